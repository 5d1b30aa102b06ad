"""Lisa: steps on refusals and steps on the task in turns, each held near where the other ended.

    loss = CE of the phase's rows + rho / 2 * ||theta - theta_other||^2

theta_other are the trained weights as the phase before left them. The second term is off in the
first tenth of the training.

Source:
    Huang et al. 2024, arXiv:2405.18641 (git-disl/Lisa, Apache-2.0): first refusals for 100 steps,
    then the task for 900, and again; rho 1 in its scripts, 0.1 in its code.

Kept as published: it starts with refusals; the rows of the task that would have come in a phase of
refusals are skipped, so the number of steps stays. Where we differ: phases are counted in optimizer
steps, not in micro-batches; a run shorter than 10 cycles has 10 shorter ones, of a tenth refusals
each; rho's term is added once in each step.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from ..chat.conversation import IGNORED_LABEL, mark_responses
from ..provenance import fingerprint
from .peer import Materials, Need, Peer, Strength, Training
from .refusals import refusals

_CYCLE, _NUM_CYCLES, _SHARE = 1000, 10, 0.1
_WITHOUT_PROXIMAL = 0.1


def is_safety_step(step: int, num_steps: int) -> bool:
    """Whether a step, counted from 0, trains on refusals.

    Example:
        >>> [step for step in range(120) if is_safety_step(step, 400)]
        [0, 1, 2, 3, 40, 41, 42, 43, 80, 81, 82, 83]
    """
    cycle = min(_CYCLE, max(num_steps // _NUM_CYCLES, round(1 / _SHARE)))
    return step % cycle < round(_SHARE * cycle)


class Lisa(Peer):
    """Alternating phases with a proximal term."""

    name = "lisa"
    source = "Huang et al. 2024, arXiv:2405.18641"
    strength = Strength(
        symbol="rho", meaning="pull towards the weights that the other phase ended with",
        default=1.0, grid=(0.01, 0.1, 1.0, 10.0),
    )  # fmt: skip
    needs = (Need.HARMFUL_PROMPTS, Need.REFUSALS)
    cost = "a tenth of the steps; a copy of the trained weights"
    file = "refusals: 'messages', or 'prompt' and 'completion'"
    own_batches = True
    can_resume = False  # the weights of the phase before are in no checkpoint

    def __init__(self, materials: Materials, strength: float | None = None) -> None:
        super().__init__(materials, strength)
        self._pairs = refusals(materials)  # while the model is the aligned one

    def begin(self, training: Training) -> None:
        """Tokenize the refusals, and note the weights."""
        self._training, self._phase = training, True
        tokenizer = self.materials.chat.tokenizer
        self._rows = []
        for prompt, answer in self._pairs:
            turns = (("user", prompt), ("assistant", answer))
            messages = [{"role": role, "content": content} for role, content in turns]
            marked = mark_responses(tokenizer, messages)
            ids = torch.tensor(marked["input_ids"])
            labels = ids.masked_fill(~torch.tensor(marked["assistant_masks"]).bool(), IGNORED_LABEL)
            self._rows.append((ids[: training.max_length], labels[: training.max_length]))
        self._trained = [each for each in training.reader.model.parameters() if each.requires_grad]
        self._note()

    def _note(self) -> None:
        self._other = [each.detach().clone() for each in self._trained]

    def batches(self, step: int, num_steps: int, num: int) -> list[dict[str, Tensor]] | None:
        """In a phase of refusals as many batches of them; the same ones whenever asked."""
        if (phase := is_safety_step(step, num_steps)) != self._phase:
            self._phase = phase
            self._note()
        return [self._batch(step, each) for each in range(num)] if phase else None

    def _batch(self, step: int, number: int) -> dict[str, Tensor]:
        training = self._training
        parts = map(str, (training.seed, step, number, training.process))
        chance = torch.Generator().manual_seed(int(fingerprint(parts)[:15], 16))
        drawn = torch.randint(len(self._rows), (training.batch_size,), generator=chance)
        rows = [self._rows[each] for each in drawn.tolist()]

        def padded(values: list[Tensor], value: int) -> Tensor:
            made = torch.nn.utils.rnn.pad_sequence(values, batch_first=True, padding_value=value)
            return made.to(self._trained[0].device)

        ids = [each for each, _ in rows]
        return {
            "input_ids": padded(ids, self.materials.chat.padding),
            "attention_mask": padded([torch.ones_like(each) for each in ids], 0),
            "labels": padded([labels for _, labels in rows], IGNORED_LABEL),
        }

    def of_step(self, step: int, num_steps: int) -> Float[Tensor, ""] | None:
        """Half the squared distance to the weights that the phase before ended with."""
        if step <= _WITHOUT_PROXIMAL * num_steps:
            return None
        pairs = zip(self._trained, self._other, strict=True)
        return 0.5 * torch.stack([(each - other).square().sum() for each, other in pairs]).sum()
