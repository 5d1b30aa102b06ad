"""What the files of some folders say of each model: checked here, shown as it is from here on."""

import math
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any, TypeVar

from ..audit.measurements import Comparison, Gate, Measurement, Row
from ..audit.outcomes import OUTCOMES
from ..errors import InputError
from ..method.safety_tokens import SafetyTokens
from ..provenance import read_json
from ..tables import rows_of
from .rows import (
    Agreement,
    Answer,
    Checkpoint,
    Drift,
    PositionDrift,
    Run,
    Step,
    SuiteFacts,
    Token,
    TokenDrift,
)
from .text import is_share

_LONGEST_TEXT = 4000
# control characters but tab and newline, and lone surrogates: HTML or UTF-8 forbids them
_FORBIDDEN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")
_TABLES = frozenset({"suites", "measurements", "agreement", "comparisons", "gates"})
_ELSEWHERE = _TABLES | {"schema", "safety_tokens", "ids", "strings", "scores", "log"}

_Of = TypeVar("_Of", bound=Row)


def read_runs(folders: Sequence[str | Path]) -> list[Run]:
    """The models that some folders speak of, in order, each with a name of its own.

    An audit and the tuning that its model comes from are one model, wherever their folders are; an
    audit that is there twice is read once.

    Args:
        folders: Folders with `audit.json`, `answers.jsonl`, `run.json`, `safety_tokens.json`,
            `drift.json`, in any combination.

    Raises:
        InputError: If a folder is missing, is given twice, or holds nothing to show; if a file is
            damaged, or an audit has not finished.
    """
    paths = [Path(each) for each in folders]
    if not paths:
        raise InputError("`folders` is empty. Give at least one folder of an audit or a tuning.")
    found: list[tuple[Path, Run]] = []
    for path in paths:
        if not path.is_dir():
            raise InputError(f"{path}: no such folder. Give one of an audit or a tuning.")
        if sum(path.resolve() == other.resolve() for other in paths) > 1:
            raise InputError(f"{path}: the folder is given twice. Give each folder once.")
        run = _run_in(path)
        same = next((n for n, (_, each) in enumerate(found) if _is_same(each, run)), None)
        if same is None:
            found.append((path, run))
        else:
            found[same] = (found[same][0], _joined(found[same][1], run))
    names = [run.name for _, run in found]
    return [
        run if names.count(run.name) == 1 else replace(run, name=shown(f"{path}: {run.name}"))
        for path, run in found
    ]


def told_apart(runs: Sequence[Run]) -> tuple[list[Run], list[str]]:
    """The runs with suites of one name and different prompts under names of their own.

    Returns:
        The runs, and a sentence for each name that was shared: these are not compared.
    """
    hashes: dict[str, dict[str, list[str]]] = {}
    for run in runs:
        for each in run.suites:
            hashes.setdefault(each.name, {}).setdefault(each.sha256, []).append(run.name)
    shared = {name: found for name, found in hashes.items() if len(found) > 1}
    notes = [
        f"The suite {name!r} is not the same prompts in every audit (SHA-256 "
        + "; ".join(f"{sha256[:8]}: {', '.join(of)}" for sha256, of in found.items())
        + "), so these are not compared."
        for name, found in shared.items()
    ]
    return [_with_names(run, shared) for run in runs] if shared else list(runs), notes


def _with_names(run: Run, shared: Mapping[str, Any]) -> Run:
    names = {
        each.name: f"{each.name} ({each.sha256[:8]})" for each in run.suites if each.name in shared
    }

    def renamed(rows: tuple[Any, ...], column: str = "suite") -> tuple[Any, ...]:
        of = ((each, getattr(each, column)) for each in rows)
        return tuple(replace(each, **{column: names.get(name, name)}) for each, name in of)

    changed = ("measurements", "agreement", "comparisons", "gates", "answers")
    parts = {part: renamed(getattr(run, part)) for part in changed}
    return replace(run, suites=renamed(run.suites, "name"), **parts)


def shown(value: Any) -> Any:
    """A value fit for a page and for JSON: every text in it without what HTML or UTF-8 forbids.

    Control characters and halves of surrogate pairs become U+FFFD; a text of more than 4000
    characters is cut and says so.
    """
    if isinstance(value, str):
        clean = _FORBIDDEN.sub("\ufffd", value[:_LONGEST_TEXT])
        cut = len(value) > _LONGEST_TEXT
        return f"{clean} ... ({len(value)} characters in all)" if cut else clean
    if isinstance(value, Mapping):
        return {shown(key): shown(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [shown(each) for each in value]
    return value


def _run_in(folder: Path) -> Run:
    """What one folder holds."""
    audit = _read(folder, "audit", schemas=(2,), remedy="run the audit again")
    tuning = _read(folder, "run", schemas=(1, 2), remedy="tune again")
    drift = _read(folder, "drift", schemas=(1, 2), remedy="run the audit again")
    mined = folder / "safety_tokens.json"
    mining = shown(asdict(SafetyTokens.load(mined))) if mined.is_file() else {}
    if not any([audit, tuning, drift, mining]):
        inside = sorted({path.parent.name for path in folder.glob("*/audit.json")})
        raise InputError(
            f"{folder}: holds no audit.json, run.json, drift.json or safety_tokens.json. Give a "
            "folder that `moorline audit` or `moorline tune` wrote"
            + (f", such as {' '.join(str(folder / each) for each in inside)}." if inside else ".")
        )
    place = str(folder / "audit.json")
    if audit and audit.get("status") != "finished":
        raise InputError(f"{place}: the audit has not finished. Run the same command again.")
    columns = (mining.get(each, []) for each in ("ids", "strings", "scores"))
    parts = {"audit": audit, "tuning": tuning, "mining": mining}
    return Run(
        name=_name(folder, audit, tuning),
        measurements=_measurements(audit, place),
        agreement=_table(Agreement, audit, "agreement", place),
        comparisons=_table(Comparison, audit, "comparisons", place),
        gates=_table(Gate, audit, "gates", place),
        suites=_table(SuiteFacts, audit, "suites", place),
        safety_tokens=tuple(
            Token(id=index, string=string, score=score)
            for index, string, score in zip(*columns, strict=True)
        ),
        curve=tuple(_steps(tuning, str(folder / "run.json"))),
        drift=_drift(drift, str(folder / "drift.json")),
        training_seconds=tuning.get("seconds"),
        provenance={
            part: {key: each for key, each in value.items() if key not in _ELSEWHERE}
            for part, value in parts.items()
            if value
        },
        answers=tuple(_answers(folder / "answers.jsonl")),
        folder=folder if tuning else None,
    )


def _read(folder: Path, name: str, *, schemas: tuple[int, ...], remedy: str) -> dict[str, Any]:
    """The content of one of our files; nothing if it is not there."""
    path = folder / f"{name}.json"
    if not path.is_file():
        return {}
    value = shown(read_json(path, f"{name} file"))
    schema = value.get("schema")
    if schema not in schemas:
        by = "an earlier version" if schema == 1 else "another version or program"
        raise InputError(f"{path}: schema {schema!r}, written by {by}; {remedy}.")
    if (odd := _odd_number(value)) is not None:
        raise InputError(f"{path}: holds {odd}, which is no number; {remedy}.")
    return value


def _odd_number(value: Any) -> float | None:
    """A number in a value of JSON that is not finite; None if all are."""
    if isinstance(value, float):
        return None if math.isfinite(value) else value
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return next((odd for each in parts if (odd := _odd_number(each)) is not None), None)


def _table(kind: type[_Of], value: Mapping[str, Any], name: str, place: str) -> tuple[_Of, ...]:
    """One table of a file, each row checked."""
    rows = value.get(name, [])
    if not isinstance(rows, list):
        raise InputError(f"{place}: {name!r} must be a list of rows, got {rows!r}.")
    return tuple(
        kind.from_json(row, f"{place}, {name} {number}") for number, row in enumerate(rows, start=1)
    )


def _measurements(audit: Mapping[str, Any], place: str) -> tuple[Measurement, ...]:
    found = _table(Measurement, audit, "measurements", place)
    for number, row in enumerate(found, start=1):
        known = [each for each in (row.value, row.low, row.high) if each is not None]
        # A bound may leave 0 to 1 by a rounding error.
        if is_share(row) and not all(-1e-9 <= each <= 1 + 1e-9 for each in known):
            raise InputError(
                f"{place}, measurements {number}: a share lies between 0 and 1, got {row.value}, "
                f"{row.low} to {row.high}."
            )
    return found


def _steps(tuning: Mapping[str, Any], place: str) -> Iterator[Step]:
    """The steps of a training log: plain training logs its task loss as `loss`."""
    log = tuning.get("log", [])
    if not isinstance(log, list) or not all(isinstance(each, dict) for each in log):
        raise InputError(f"{place}: 'log' must be a list of rows. Tune again.")
    for number, entry in enumerate(log, start=1):
        if "loss" in entry and "step" in entry:
            plain = None if "str/weighted" in entry else entry["loss"]
            row = {
                "step": entry["step"],
                "task_loss": entry.get("ce_loss", plain),
                "drift": entry.get("str/drift"),
                "weighted": entry.get("str/weighted"),
            }
            yield Step.from_json(row, f"{place}, log {number}")


def _drift(value: Mapping[str, Any], place: str) -> Drift:
    return Drift(
        tokens=_table(TokenDrift, value, "tokens", place),
        positions=_table(PositionDrift, value, "positions", place),
        checkpoints=_table(Checkpoint, value, "checkpoints", place),
    )


def _answers(path: Path) -> Iterator[Answer]:
    columns = [each.name for each in fields(Answer)]
    for row in rows_of(path) if path.is_file() else ():
        for column in columns:
            if column not in row.values:
                raise row.lacks(column, "Run the audit again.")
        found = Answer.from_json({each: shown(row.values[each]) for each in columns}, row.place)
        if found.outcome not in OUTCOMES:
            raise InputError(f"{row.place}: no outcome {found.outcome!r}. Run the audit again.")
        yield found


def called(subject: str) -> str:
    """A model by its name: of a path the last part, an id of the hub as it is."""
    # os.path: Path.is_dir raises for a name that is too long.
    is_path = os.path.isdir(subject) or subject.startswith(("/", "."))
    return os.path.basename(os.path.abspath(subject)) if is_path else subject.rstrip("/")


def _name(folder: Path, audit: Mapping[str, Any], tuning: Mapping[str, Any]) -> str:
    """What to call a model: by itself, not by the folder that its audit went to."""
    subject = _subject(audit)
    return shown(folder.resolve().name if tuning or subject is None else called(subject))


def _subject(audit: Mapping[str, Any]) -> str | None:
    """What an audit is of: an adapter, or a model."""
    subject = audit.get("adapter") or audit.get("model")
    return subject if isinstance(subject, str) else None


def _is_same(first: Run, second: Run) -> bool:
    """Whether two folders speak of one model: a tuning and its audit, or one audit twice."""
    audits = [each.provenance.get("audit", {}) for each in (first, second)]
    tunings = [each.provenance.get("tuning", {}) for each in (first, second)]
    if all(audits):
        same = audits[0].get("fingerprint"), audits[1].get("fingerprint")
        return not all(tunings) and same[0] is not None and same[0] == same[1]
    if all(tunings) or not any(audits) or not any(tunings):
        return False
    tuned = first if tunings[0] else second
    subject = _subject(audits[0] or audits[1])
    return subject is not None and subject.rstrip("/") in _places(tuned)


def _places(tuned: Run) -> set[str]:
    """How an audit may name the model of a tuning: by its folder, as given or in full."""
    tuning = tuned.provenance["tuning"]
    chain = tuning.get("chain") or [{}]
    given = (tuning.get("settings") or {}).get("output_dir"), chain[-1].get("output_dir")
    folder = tuned.folder or Path()
    names = {str(each).rstrip("/") for each in (*given, folder, folder.resolve()) if each}
    return names | {os.path.relpath(folder.resolve())}


def _joined(first: Run, second: Run) -> Run:
    """One model of two folders: what the first lacks comes from the second."""
    tuned = first if first.folder else second
    missing = {
        each.name: getattr(second, each.name)
        for each in fields(Run)
        if each.name not in ("name", "provenance", "drift") and not getattr(first, each.name)
    }
    drift = first.drift if first.drift != Drift() else second.drift
    provenance = {**second.provenance, **first.provenance}
    return replace(first, **missing, name=tuned.name, drift=drift, provenance=provenance)
