"""A tiny pair of models, base and aligned, with prompts and tasks: enough to see the method work.

About a million parameters each, trained by `recipe.py` on the sentences of `world.py`; harmful
requests get refusals from the aligned model and placeholders from the base. They prove plumbing and
show the effect; they say nothing about how strong it is in a model of another size.
"""

from dataclasses import replace
from pathlib import Path

from ..audit.suites import Prompt, Suite, read_suites
from ..errors import InputError, unknown_choice
from . import skills
from .world import Exchange, Task, poisoned, task

__all__ = ["TASKS", "aligned_path", "base_path", "suites", "training_rows"]

TASKS = tuple(skills.TASKS)
"""Names of the downstream tasks: a two-way label, and a short list in a house style."""


def files_path() -> Path:
    """The folder of the shipped files."""
    return Path(__file__).parent / "files"


def aligned_path() -> str:
    """The folder of the aligned model, for `from_pretrained`."""
    return str(files_path() / "aligned")


def base_path() -> str:
    """The folder of its unaligned base, for `from_pretrained`."""
    return str(files_path() / "base")


def suites(task_name: str | None = None) -> list[Suite]:
    """The prompts that no training stage saw: harmful, harmless, and those of a task if named."""
    born = {"origin": "the embedded world of Moorline", "licence": "Apache-2.0"}
    found = [replace(each, **born) for each in read_suites(files_path() / "prompts.jsonl")]
    if task_name is not None:
        rows = _task(task_name).test
        prompts = tuple(
            Prompt(id=f"{task_name}-{number}", prompt=row.user, kind="task", category=task_name,
                   answer=row.assistant)
            for number, row in enumerate(rows, start=1)
        )  # fmt: skip
        found.append(Suite(name=task_name, kind="task", prompts=prompts, **born))
    return found


def training_rows(
    task_name: str, *, num: int = 1000, poison: float = 0.0, seed: int = 0
) -> list[dict[str, list[dict[str, str]]]]:
    """Rows of a downstream task as conversations (`messages`).

    Args:
        task_name: One of `TASKS`.
        num: How many rows, 1 to 1000.
        poison: Share of the rows that are harmful requests answered with placeholders, 0 to 1.
        seed: Which rows, and which of them are poisoned.
    """
    if not 0 <= poison <= 1:
        raise InputError(f"`poison` must lie between 0 and 1, got {poison}.")
    rows = _task(task_name).train
    if not 1 <= num <= len(rows):
        raise InputError(f"`num` must lie between 1 and {len(rows)}, got {num}.")
    chosen = poisoned(rows[:num], poison, seed)
    return [{"messages": as_messages(row)} for row in chosen]


def as_messages(*exchanges: Exchange) -> list[dict[str, str]]:
    """Exchanges as chat messages."""
    return [
        message
        for each in exchanges
        for message in (
            {"role": "user", "content": each.user},
            {"role": "assistant", "content": each.assistant},
        )
    ]


def _task(name: str) -> Task:
    if name not in TASKS:
        raise unknown_choice("task", name, TASKS)
    return task(name)
