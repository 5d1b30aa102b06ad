"""Safety-tuned instructions: put refusals of harmful prompts among the rows of the task.

Source:
    Bianchi et al. 2024, arXiv:2309.07875 (safety-tuned-llamas; its data is CC BY-NC, so the rows
    are the user's or the model's own).

Where we differ: they add rows. Here refusals stand in the place of rows drawn at random, so that
the training has the same number of steps; a share s of the task's rows is lost.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch

from ..errors import InputError
from .peer import Need, Peer, Strength
from .refusals import Refusal, refusals

if TYPE_CHECKING:
    from datasets import Dataset


class SafeInstr(Peer):
    """Refusals among the training rows."""

    name = "safe_instr"
    source = "Bianchi et al. 2024, arXiv:2309.07875"
    strength = Strength(
        symbol="share", meaning="share of the training rows that are refusals",
        default=0.1, grid=(0.01, 0.03, 0.1, 0.2), high=1.0,
    )  # fmt: skip
    needs = (Need.HARMFUL_PROMPTS, Need.REFUSALS)
    file = "refusals: 'messages', or 'prompt' and 'completion'"

    def rows(self, rows: "Dataset") -> "Dataset":
        """The rows with a share of them replaced, the same number in all.

        Raises:
            InputError: If the data is streamed, plain text, or tokenized already.
        """
        from datasets import Dataset, concatenate_datasets

        if not isinstance(rows, Dataset):
            raise InputError("`method` 'safe_instr' cannot mix into streamed data. Load it whole.")
        num = round(self.value * len(rows))
        if num == 0:
            return rows
        pairs = refusals(self.materials)
        shaped = [_like(rows[0], each) for each in pairs]
        extra = Dataset.from_list(shaped, features=rows.features)
        chance = torch.Generator().manual_seed(self.materials.seed)
        drawn = torch.randperm(len(rows), generator=chance)[:num].tolist()
        order = list(range(len(rows)))
        for count, index in enumerate(drawn):
            order[index] = len(rows) + count % len(pairs)
        return concatenate_datasets([rows, extra]).select(order)


def _like(sample: Mapping[str, object], pair: Refusal) -> dict[str, object]:
    """A refusal as a row of the same columns as `sample`."""
    asked = [{"role": "user", "content": pair.prompt}]
    answered = [{"role": "assistant", "content": pair.answer}]
    row: dict[str, object] = {name: None for name in sample}
    if isinstance(sample.get("messages"), list):
        return {**row, "messages": asked + answered}
    if isinstance(sample.get("prompt"), list):
        return {**row, "prompt": asked, "completion": answered}
    if isinstance(sample.get("prompt"), str) and "completion" in sample:
        return {**row, "prompt": pair.prompt, "completion": pair.answer}
    raise InputError(
        "Refusals can be mixed into rows with 'messages', or 'prompt' and 'completion', but the "
        f"data has the columns {', '.join(sample)}."
    )
