"""How many prompts of the training data the aligned model itself refuses: said before it trains.

To hold a model to its refusals at a prompt that the data answers sets the two against each other:
the task is learned slower, or the refusals go. By default such rows are skipped (`conflicts.py`).
They are harmless ones that the model refuses too much, or harmful ones that somebody put there.
Which, only a reader can tell.
"""

import logging
import random
from dataclasses import dataclass
from typing import Any

from ..audit.judges import judge
from ..chat.chat_model import ChatModel
from ..chat.conversation import IGNORED_LABEL
from ..method import adapters

_log = logging.getLogger(__name__)

SAMPLE = 32
"""Rows that are asked: an interval of at most 17 points to each side, in seconds."""

_LENGTH = 16
"""Tokens of an answer: a refusal shows in its first words."""

_MANY, _SHOWN = 0.1, 10

_SKIPPED = (
    "Those that answer otherwise are not learned, and its refusal is held (`str/skipped` in the "
    "log). Look at them: a harmful row ought to go; to learn harmless ones set `str_conflicts` to "
    "'learn'."
)
_HELD = (
    "There its refusals are held against the task, which is learned slower for it. Look at them: a "
    "harmful row ought to go; for harmless ones give a smaller `str_weight`."
)


@dataclass(frozen=True, kw_only=True, slots=True)
class RefusedRows:
    """What the aligned model says to the prompts of some training rows."""

    asked: int
    rows: tuple[int, ...] = ()
    """Numbers of those that it refuses, from 0, in the prepared data: rows without a response,
    which the trainer drops, are not counted."""


def ask(trainer: Any, aligned: ChatModel) -> RefusedRows | None:
    """Ask the aligned model some of the training prompts; None where rows cannot be told apart.

    Args:
        trainer: With its data and collator; adapters on the aligned model are off meanwhile.
        aligned: The aligned model.
    """
    rows, model = trainer.train_dataset, aligned.model
    is_whole = model.get_input_embeddings().weight.numel() and model.device.type != "meta"
    if not hasattr(rows, "__len__") or trainer.args.packing or not is_whole:
        return None
    drawn = sample(len(rows), trainer.args.seed)
    contexts = {number: each for number in drawn if (each := _context(trainer, rows[number]))}
    if not contexts:
        return None
    with adapters.aligned(model):
        found = aligned.answer_rows(list(contexts.values()), max_new_tokens=_LENGTH)
    prompts = aligned.tokenizer.batch_decode(list(contexts.values()), skip_special_tokens=True)
    verdicts = judge("keywords").verdicts(prompts, [each.text for each in found])
    told = zip(contexts, verdicts, strict=True)
    refused = tuple(number for number, each in told if each.outcome == "refused")
    return RefusedRows(asked=len(contexts), rows=refused)


def sample(num_rows: int, seed: int) -> list[int]:
    """Numbers of the rows that are asked, in order."""
    # not the numbers that whoever mixed the rows by this seed may have drawn
    chance = random.Random(f"refused rows, {seed}")
    return sorted(chance.sample(range(num_rows), min(SAMPLE, num_rows)))


def tell(found: RefusedRows | None, *, skips: bool) -> None:
    """Warn where the aligned model refuses more than a tenth of the prompts.

    Args:
        found: What it said.
        skips: Whether rows in conflict are skipped.
    """
    if found is None or len(found.rows) <= _MANY * found.asked:
        return
    _log.warning(
        "The aligned model itself refuses %d of the %d training prompts that it was asked: rows "
        "%s of the prepared data, from 0. %s",
        len(found.rows), found.asked, ", ".join(map(str, found.rows[:_SHOWN])),
        _SKIPPED if skips else _HELD,
    )  # fmt: skip


def _context(trainer: Any, row: Any) -> list[int] | None:
    """The tokens before the first response; None if there is none, or nothing before it."""
    batch = trainer.data_collator([row])
    labels = batch["labels"][0].tolist()
    first = next((at for at, label in enumerate(labels) if label != IGNORED_LABEL), 0)
    return batch["input_ids"][0, :first].tolist() or None
