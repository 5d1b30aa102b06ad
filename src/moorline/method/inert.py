"""Protection that protects nothing: refused where that is certain, told of where it may be so.

Before training: safety tokens that no refusal says, a reference that refuses less than the model
it is to hold. While training: no response position, a drift of exactly 0 although the task is being
learned, a drift that is no number. After it: a task that was not learned.
"""

import logging
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from ..chat.chat_model import ChatModel, evaluating
from ..errors import InputError
from ..processes import rank
from . import adapters
from .capture import safety_logits
from .head import base_of
from .penalty import DriftSum
from .reference import Reference
from .safety_tokens import SafetyTokens
from .templates import MINING_PROMPTS, REJECTION_TEMPLATES

if TYPE_CHECKING:
    from accelerate import Accelerator
    from transformers import PreTrainedTokenizerBase

_log = logging.getLogger(__name__)

WITHOUT_DRIFT = (
    "A training step was taken without the drift, so training would be unprotected: something "
    "overrides `compute_loss` or `training_step` without calling the one above it. Call "
    "`super().compute_loss(...)` there."
)

# measured on the embedded models: docs/reliability.md, "Protection that protects nothing"
_LEAST_MASS = 1e-2
_REFUSES, _REFUSES_NOT = 0.5, 0.05
_PROMPTS, _EVERY, _OWN = 2, 4, 16
_STEPS = 10
# A loss that falls by chance is no loss that is learned: so many standard errors, and this share.
_ERRORS, _SHARE = 3.0, 0.01
# The largest move, in logits or nats; some times the root mean square. 60 rows at a rate of 2e-5
# moved 0.003 in that mean, and learned nothing.
_NO_MOVE = 0.05
# Where less of the responses is learned, the task is another than the user thinks.
_LEARNED = 0.5


class _Mass(NamedTuple):
    """Probability of the safety tokens together, where a model may refuse."""

    first: float
    """At the first token of its answer to harmful prompts, in the mean."""

    highest: float
    """At any token of a refusal that is put into its mouth."""


def check_refusals(
    model: nn.Module,
    tokenizer: "PreTrainedTokenizerBase | None",
    tokens: SafetyTokens,
    reference: Reference,
) -> None:
    """Refuse tokens that no refusal says, and a reference that was swapped with the model.

    Some rejection templates, and the reference's own answers, are read after two harmful prompts by
    the reference, and by the model where the reference does not begin to refuse. The first process
    looks for all. Where there is no tokenizer with a chat template, or the weights are not in
    memory, nothing is looked at. A reference that was read from the folder of a tuning is told of.

    Args:
        model: The model in training, on which `capture.install` was called.
        tokenizer: Its tokenizer.
        tokens: The safety tokens.
        reference: What gives z0; runs.

    Raises:
        InputError: If the safety tokens together get less than 0.01 at every token of all of these
            answers, or the model begins a refusal and the reference does not.
    """
    _tell_of_tuned(model if reference.model is None else reference.model)
    weight = base_of(model).get_input_embeddings().weight
    if tokenizer is None or not getattr(tokenizer, "chat_template", None):
        return
    if weight.is_meta or weight.numel() == 0 or rank() > 0:
        return
    second = reference.model
    origin = None if second is None else next(second.parameters()).device
    with adapters.aligned(model, None if second is None else second.to(weight.device)) as aligned:
        chat = ChatModel(aligned, tokenizer)
        asked = _asked(chat)
        its = _mass(aligned, [*asked, *_own(chat, asked)], chat.padding)
    if second is not None:
        second.to(origin)
    if its.highest < _LEAST_MASS:
        raise InputError(
            f"The {len(tokens)} `safety_tokens` ({', '.join(map(repr, tokens.strings[:3]))} ...) "
            f"get a probability of {its.highest:.1g} together at most in {len(asked)} refusals "
            f"(needed: {_LEAST_MASS:g}), so nothing that refuses would be held. Mine them from the "
            "aligned model."
        )
    if its.first < _REFUSES_NOT and _mass(model, asked, chat.padding).first > _REFUSES:
        raise InputError(
            "The model in training begins to refuse where the reference does not (probability of a "
            f"safety token after harmful prompts: over {_REFUSES:g} against {its.first:.2g}), so "
            "training would unlearn refusals. Were the two swapped? Give the aligned model as "
            "`reference_model`."
        )


def _tell_of_tuned(aligned: nn.Module) -> None:
    """Say that the reference is itself a tuned model; `moorline tune` follows the chain instead."""
    name = str(getattr(base_of(aligned).config, "_name_or_path", ""))
    if name and Path(name, "run.json").is_file() and rank() == 0:
        _log.warning(
            "The reference is the model in %s, which a tuning wrote (run.json): what it unlearned "
            "there is not held. Give the model from before that tuning as `reference_model`.", name,
        )  # fmt: skip


_Asked = list[tuple[list[int], list[int]]]
"""Prompts as the model reads them, each with an answer that is not empty."""


def _asked(chat: ChatModel) -> _Asked:
    return [
        (context, answer)
        for prompt in MINING_PROMPTS[:_PROMPTS]
        for context, answers in [chat.answer_ids(prompt, REJECTION_TEMPLATES[::_EVERY])]
        for answer in answers
    ]


def _own(chat: ChatModel, asked: _Asked) -> _Asked:
    """The same prompts with the model's own answers."""
    contexts = [list(each) for each in dict.fromkeys(tuple(context) for context, _ in asked)]
    done = chat.generate(contexts, max_new_tokens=_OWN)
    return [(one, list(its.ids)) for one, its in zip(contexts, done, strict=True) if its.ids]


def _mass(model: nn.Module, asked: _Asked, padding: int) -> _Mass:
    longest = max(len(context) + len(answer) for context, answer in asked)
    ids = torch.full((len(asked), longest), padding, dtype=torch.int64)
    mask, positions = torch.zeros_like(ids), torch.zeros_like(ids, dtype=torch.bool)
    for row, (context, answer) in enumerate(asked):
        size = len(context) + len(answer)
        ids[row, :size], mask[row, :size] = torch.tensor([*context, *answer]), 1
        positions[row, len(context) - 1 : size - 1] = True
    device = base_of(model).get_input_embeddings().weight.device
    inputs = {"input_ids": ids.to(device), "attention_mask": mask.to(device)}
    with torch.no_grad(), evaluating(model):
        nats = safety_logits(model, inputs, positions.to(device), normalised=True)
    mass = nats.float().logsumexp(dim=-1).exp().cpu()
    sizes = [len(answer) for _, answer in asked]
    first = torch.stack([each[0] for each in mass.split(sizes)])
    return _Mass(first.mean().item(), mass.max().item())


def check_finite(
    found: DriftSum,
    difference: Float[Tensor, "position safety"],
    z0: Float[Tensor, "position safety"],
    positions: Bool[Tensor, "batch time"],
    *,
    step: int,
    origin: str,
    training: bool,
) -> None:
    """Refuse a drift that is no number, before it reaches any weight.

    Args:
        found: The drift.
        difference: z - z0.
        z0: What the reference said.
        positions: Where, in the batch.
        step: Number of the step, from 1.
        origin: What gave z0, for the message.
        training: Whether this is a training step, or an evaluation.

    Raises:
        InputError: If it is NaN or infinite; names the step, whose fault it is, and the rows.
    """
    if math.isfinite(found.total.item()):
        return
    of_reference = ~torch.isfinite(z0).all(dim=-1)
    bad = of_reference if of_reference.any() else ~torch.isfinite(difference).all(dim=-1)
    row_of = positions.nonzero()[:, 0]
    rows = sorted(set((row_of[bad.to(row_of.device)] + 1).tolist())) or ["all"]
    whose = f"reference ({origin})" if of_reference.any() else "model in training"
    where = f"Step {step}" if training else f"Evaluation before step {step}"
    raise InputError(
        f"{where}: a safety logit of the {whose} is NaN or infinite, in row "
        f"{', '.join(map(str, rows))} of the batch. Nothing was learned from it. Check these rows "
        "and the weights; resume from the last checkpoint with a smaller `learning_rate`, or in "
        "bf16 or float32 where this was fp16."
    )


def check_anchors(found: DriftSum | None, step: int) -> None:
    """Refuse an anchor drift that is no number.

    Raises:
        InputError: If it is NaN or infinite; names the step.
    """
    if found is not None and not math.isfinite(found.total.item()):
        raise InputError(
            f"Step {step}: the drift at the anchors is NaN or infinite, and nothing was learned "
            "from it. Resume from the last checkpoint with a smaller `learning_rate`, or in bf16 "
            "or float32 where this was fp16."
        )


def check_loss(loss: Tensor, step: int) -> None:
    """Refuse a task loss that is no number, before it reaches any weight.

    Raises:
        InputError: If it is NaN or infinite; names the step.
    """
    if not math.isfinite(loss.item()):
        raise InputError(
            f"Step {step}: the task loss is {loss.item()}, and nothing was learned from it. Check "
            "for rows without a response, and for a loss of your own that takes a mean over each "
            "row, where rows in conflict have nothing left (`conflicts`); resume from the last "
            "checkpoint with a smaller `learning_rate`."
        )


def check_weights(model: nn.Module, step: int, accelerator: "Accelerator | None") -> None:
    """Refuse trained weights that are no numbers, before they are saved.

    A loss is looked at before each step, which says nothing of the weights that the last one left.

    Args:
        model: The model in training.
        step: The step that was taken last.
        accelerator: Where each process has a part of the weights, what asks all of them; then
            every process must call this.

    Raises:
        InputError: If one is NaN or infinite; names the step, and a weight.
    """
    trained = [(name, each) for name, each in model.named_parameters() if each.requires_grad]
    local = [getattr(each, "to_local", lambda each=each: each)().detach() for _, each in trained]
    if not local:
        return
    bad = torch.stack([(~torch.isfinite(each)).any().to(local[0].device) for each in local])
    found = bad.any().int()
    if not int(found if accelerator is None else accelerator.reduce(found, "sum")):  # pyright: ignore
        return
    named = [name for (name, _), each in zip(trained, bad.tolist(), strict=True) if each]
    where = f" ({named[0]})" if named else ""
    raise InputError(
        f"Step {step}: trained weights are NaN or infinite{where}, and were not saved. Lower "
        "`learning_rate`, or look at the optimizer's settings; resume from the last checkpoint."
    )


class _Step:
    """What the batches of one step measured; on the device until someone looks."""

    def __init__(self, number: int) -> None:
        self.number, self.measured = number, 0
        self.loss: Tensor | float = 0.0
        self.highest: list[Tensor] = []
        self.num_positions: list[Tensor] = []


class Vigil:
    """Watches the first steps of a training until the drift has shown that it is alive.

    What it does not see: a drift that is alive and measured against the wrong model.
    """

    def __init__(self) -> None:
        self._is_over = False
        self._steps: list[_Step] = []

    def see(self, step: int, drift: DriftSum, measured: int, loss: Tensor | None) -> None:
        """Keep what one batch in training measured, and look at it after every ten steps.

        Args:
            step: Number of the optimizer's step; batches of one step have one number.
            drift: Its drift; its count is that of all response positions of the batch.
            measured: At how many positions it was measured.
            loss: The task's; None if not known.

        Raises:
            InputError: If ten steps had no response position, or the task loss falls while the
                drift is exactly 0.
        """
        if self._is_over:
            return
        if not self._steps or self._steps[-1].number != step:
            if self._steps and len(self._steps) % _STEPS == 0:
                self._look()
            self._steps.append(_Step(step))
        last = self._steps[-1]
        last.measured += measured
        last.highest.append(drift.max_abs)
        last.num_positions.append(drift.num_positions)
        if loss is not None:
            last.loss = last.loss + loss.detach().float()

    def _look(self) -> None:
        if not sum(int(num) for each in self._steps for num in each.num_positions):
            raise InputError(
                f"{len(self._steps)} steps had no response position: every label is -100 (or cut "
                "off by `max_length`), so nothing is learned and nothing is held. Check the labels "
                "of the data."
            )
        if any(value.item() > 0 for each in self._steps for value in each.highest):
            self._is_over, self._steps = True, []
            return
        measured = [float(each.loss) for each in self._steps if each.measured]
        losses = torch.tensor(measured, dtype=torch.float64)
        half = len(losses) // 2
        if half < 2:
            return
        first, last = losses[:half], losses[-half:]
        error = ((first.var() + last.var()) / half).sqrt().item()
        fall = (first.mean() - last.mean()).item()
        if fall > max(_ERRORS * error, _SHARE * abs(first.mean().item())):
            raise InputError(
                f"The drift was exactly 0 in {len(losses)} steps while the task loss fell from "
                f"{first.mean():.3g} to {last.mean():.3g}: the reference moves along with the "
                "model, so nothing is held. Give `reference_model`, or use `reference` 'cached'."
            )


class OwnSteps:
    """Numbers of the steps of a training loop of one's own, told by a trained weight's version."""

    def __init__(self, model: nn.Module) -> None:
        self._weight = next((each for each in model.parameters() if each.requires_grad), None)

    def number(self) -> int:
        """The same until the optimizer has written into the weights."""
        return 0 if self._weight is None else int(self._weight._version)


def task_losses(log: Sequence[Mapping[str, Any]]) -> list[float]:
    """The task's loss at each logged step in which something was learned, by what was learned.

    Rows in conflict add nothing to the loss and are counted in its divisor, so that it falls where
    more of them are drawn.
    """
    logged = [each for each in log if each.get("ce_loss") is not None]
    pairs = ((each["ce_loss"], 1 - each.get("str/skipped", 0.0)) for each in logged)
    return [loss / share for loss, share in pairs if share > 0]


def warn_of_little(log: Sequence[Mapping[str, Any]], learning_rate: float | None) -> None:
    """Warn of a run that proves nothing: the task is not learned, or nothing had to be held.

    Args:
        log: What the host logged; entries with `ce_loss` count.
        learning_rate: For the message.
    """
    logged = [each for each in log if each.get("ce_loss") is not None]
    learned = [1 - each.get("str/skipped", 0.0) for each in logged]
    losses = task_losses(log)
    if learned and sum(learned) < _LEARNED * len(learned):
        _log.warning(
            "%.0f %% of the response tokens were not learned, since the aligned model would refuse "
            "there. Look at the rows; to learn harmless ones set `conflicts` to 'learn'.",
            100 * (1 - sum(learned) / len(learned)),
        )
    moved = [each.get("str/max_abs") or 0.0 for each in logged]
    if len(losses) > 1 and losses[-1] > 0.9 * losses[0]:
        _log.warning(
            "The task loss went from %.3g to %.3g, which is less than a tenth: the task is hardly "
            "learned, so kept refusals show little. Raise `learning_rate` (now %g) or "
            "`num_train_epochs`.", losses[0], losses[-1], learning_rate or 0.0,
        )  # fmt: skip
    if moved and max(moved) < _NO_MOVE:
        _log.warning(
            "No safety token moved by more than %.2g: the model hardly moved, so nothing had to be "
            "held.",
            max(moved),
        )
