"""Prompts and rows, split by hash into those that strengths are chosen on and those reported."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from .. import embedded
from ..audit.outcomes import Kind
from ..audit.suites import Suite, read_suites
from ..errors import InputError
from ..provenance import as_json, fingerprint, write_text
from ..tables import rows_of
from .plan import Data, Plan

Split = Literal["validation", "test"]
SPLITS: tuple[Split, ...] = ("validation", "test")

UTILITY_ROWS = "utility-rows.jsonl"
"""Name of the held-out rows whose perplexity is the utility, as measurements have it."""


@dataclass(frozen=True, slots=True)
class Files:
    """The files of one data set and one split: what an audit of it is given."""

    suites: tuple[Path, ...]
    held_out: Path | None


def is_validation(text: str, share: float) -> bool:
    """Whether a prompt or row is one that strengths are chosen on.

    By its words alone, without case and spaces: the same prompt is on one side in every suite, in
    every plan, and stays there where others come and go.

    Example:
        >>> is_validation("Plan a picnic.", 0.3) == is_validation(" plan  A picnic.", 0.3)
        True
    """
    known = fingerprint([" ".join(text.casefold().split())])
    return int(known[:12], 16) / 16**12 < share


def write_splits(plan: Plan, folder: Path) -> dict[str, dict[Split, Files]]:
    """Write every suite and held-out file of a plan, split in two; gives them by data set.

    Raises:
        InputError: If a source has no prompt of the kind that is asked for, a split is empty, or
            two suites have one name.
    """
    asked = _suites(plan, plan.audit.harmful, "harmful", "audit.harmful")
    asked += _suites(plan, plan.audit.harmless, "harmless", "audit.harmless")
    found = {}
    for data in plan.data:
        tasks = _suites(plan, data.tasks, "task", f"data {data.name!r}, tasks")
        names = [each.name for each in (*asked, *tasks)]
        if twice := [each for each in names if names.count(each) > 1]:
            raise InputError(f"Two suites are called {twice[0]!r}. Rename one of the files.")
        rows = None if data.held_out is None else _split_rows(data.held_out, plan.validation)
        found[data.name] = {
            split: _written(folder / split, data, asked, tasks, rows, split, plan.validation)
            for split in SPLITS
        }
    return found


def _suites(plan: Plan, sources: Sequence[str], kind: Kind, where: str) -> list[Suite]:
    """The suites of one kind, whole."""
    found = []
    for source in sources:
        name, _, task = source.partition(":")
        read = embedded.suites(task or None) if name == "embedded" else read_suites(source)
        of_kind = [each for each in read if each.kind == kind]
        if not of_kind:
            raise InputError(f"{where}: {source} has no {kind} prompts. Name another suite.")
        found += [each.limited(plan.audit.limit) for each in of_kind]
    return found


def _split_rows(path: str, share: float) -> dict[Split, list[str]]:
    lines = [as_json(row.values) for row in rows_of(path)]
    return {
        split: [each for each in lines if is_validation(each, share) == (split == "validation")]
        for split in SPLITS
    }


def _written(
    folder: Path,
    data: Data,
    asked: Sequence[Suite],
    tasks: Sequence[Suite],
    rows: dict[Split, list[str]] | None,
    split: Split,
    share: float,
) -> Files:
    paths = []
    for suite, where in [(each, folder) for each in asked] + [
        (each, folder / data.name) for each in tasks
    ]:
        kept = [
            as_json(asdict(each))
            for each in suite.prompts
            if is_validation(each.prompt, share) == (split == "validation")
        ]
        paths.append(where / f"{suite.name}.jsonl")
        _write(paths[-1], kept, f"suite {suite.name!r}", split)
    if rows is None:
        return Files(tuple(paths), None)
    held_out = folder / data.name / UTILITY_ROWS
    _write(held_out, rows[split], f"data {data.name!r}: `held_out`", split)
    return Files(tuple(paths), held_out)


def _write(path: Path, lines: Sequence[str], what: str, split: Split) -> None:
    if not lines:
        raise InputError(
            f"{what} leaves nothing for {split}. Give more prompts, or another `validation` share."
        )
    write_text(path, "".join(lines))
