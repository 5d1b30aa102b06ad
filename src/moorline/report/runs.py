"""What the files of some folders say of each model: checked here, shown as it is from here on."""

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

from ..errors import InputError
from ..method.safety_tokens import SafetyTokens
from ..provenance import read_json
from ..records import parse
from ..tables import rows_of
from .rows import Answer, Drift, Origin, Run, Step, Token
from .text import is_share

_LONGEST_TEXT = 4000
# control characters but tab and newline, and lone surrogates: HTML or UTF-8 forbids them
_FORBIDDEN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")
_TABLES = ("suites", "measurements", "agreement", "comparisons", "gates")
_AUDIT_AGAIN, _TUNE_AGAIN = "Run the audit again.", "Tune again."


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
    names = [_name(path, run) for path, run in found]
    return [
        replace(run, name=name if names.count(name) == 1 else shown(f"{path}: {name}"))
        for name, (path, run) in zip(names, found, strict=True)
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
    return [_with_names(run, shared) if shared else run for run in runs], notes


def _with_names(run: Run, shared: Mapping[str, Any]) -> Run:
    names = {
        each.name: f"{each.name} ({each.sha256[:8]})" for each in run.suites if each.name in shared
    }

    def renamed(part: str, column: str = "suite") -> tuple[Any, ...]:
        of = ((each, getattr(each, column)) for each in getattr(run, part))
        return tuple(replace(each, **{column: names.get(name, name)}) for each, name in of)

    changed = ("measurements", "agreement", "comparisons", "gates", "answers")
    parts = {part: renamed(part) for part in changed}
    return replace(run, suites=renamed("suites", "name"), **parts)


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
    parts = [(read, folder / name) for name, read in _FILES.items() if (folder / name).is_file()]
    if not parts:
        inside = sorted({path.parent.name for path in folder.glob("*/audit.json")})
        raise InputError(
            f"{folder}: holds no audit.json, run.json, drift.json or safety_tokens.json. Give a "
            "folder that `moorline audit` or `moorline tune` wrote"
            + (f", such as {' '.join(str(folder / each) for each in inside)}." if inside else ".")
        )
    found = Run(answers=tuple(_answers(folder / "answers.jsonl")))
    for read, path in parts:
        found = _joined(read(path), found)
    return found


def _audited(path: Path) -> Run:
    value = _read(path, _AUDIT_AGAIN, 2)
    if value.get("status") != "finished":
        raise InputError(f"{path}: the audit has not finished. Run the same command again.")
    tables = {name: value.pop(name) for name in _TABLES if name in value}
    run = parse(Run, tables, str(path), remedy=_AUDIT_AGAIN)
    for number, row in enumerate(run.measurements, start=1):
        known = [each for each in (row.value, row.low, row.high) if each is not None]
        # A bound may leave 0 to 1 by a rounding error.
        if is_share(row) and not all(-1e-9 <= each <= 1 + 1e-9 for each in known):
            raise InputError(
                f"{path}, measurements {number}: a share lies between 0 and 1, got {row.value}, "
                f"{row.low} to {row.high}. {_AUDIT_AGAIN}"
            )
    origin = parse(Origin, value, str(path), remedy=_AUDIT_AGAIN, others=True)
    return replace(run, audit=origin, provenance={"audit": value})


def _tuned(path: Path) -> Run:
    value = _read(path, _TUNE_AGAIN, 1, 2)
    if (status := value.get("status", "finished")) not in _STATUSES:
        raise InputError(
            f"{path}: 'status' must be one of {', '.join(_STATUSES)}, got {status!r}. {_TUNE_AGAIN}"
        )
    origin = parse(Origin, value, str(path), remedy=_TUNE_AGAIN, others=True)
    # The log is drawn, and the tokens stand in a file of their own.
    rest = {name: each for name, each in value.items() if name not in ("log", "safety_tokens")}
    # Of a run that was resumed the time is that of its last part.
    seconds = origin.training_seconds or origin.seconds
    return Run(
        curve=tuple(_steps(origin.log, path)),
        tuning=origin,
        provenance={"tuning": rest},
        folder=path.parent,
        training_seconds=None if origin.settings.get("resume_from_checkpoint") else seconds,
    )


def _steps(log: Sequence[Mapping[str, Any]], path: Path) -> Iterator[Step]:
    """The steps of a training log: plain training logs its task loss as `loss`."""
    for number, entry in enumerate(log, start=1):
        if "loss" in entry and "step" in entry:
            plain = None if "str/weighted" in entry else entry["loss"]
            row = {
                "step": entry["step"],
                "task_loss": entry.get("ce_loss", plain),
                "drift": entry.get("str/drift"),
                "weighted": entry.get("str/weighted"),
            }
            yield parse(Step, row, f"{path}, log {number}", remedy=_TUNE_AGAIN)


def _mined(path: Path) -> Run:
    value = shown(asdict(SafetyTokens.load(path)))
    columns = (value.pop(each) for each in ("ids", "strings", "scores"))
    tokens = (Token(id=index, string=string, score=score)
              for index, string, score in zip(*columns, strict=True))  # fmt: skip
    return Run(safety_tokens=tuple(tokens), provenance={"mining": value})


def _drifted(path: Path) -> Run:
    value = _read(path, _AUDIT_AGAIN, 1, 2)
    if not value.keys() & {each.name for each in fields(Drift)}:
        raise InputError(f"{path}: holds nothing that a drift file has. {_AUDIT_AGAIN}")
    return Run(drift=parse(Drift, value, str(path), remedy=_AUDIT_AGAIN, others=True))


def _read(path: Path, remedy: str, *schemas: int) -> dict[str, Any]:
    """The content of one of our files, but for its schema."""
    value = shown(read_json(path, f"{path.stem} file"))
    if (schema := value.pop("schema", None)) not in schemas:
        by = "an earlier version" if schema == 1 else "another version or program"
        raise InputError(f"{path}: schema {schema!r}, written by {by}. {remedy}")
    return value


_STATUSES = ("running", "stopped", "finished")
_FILES = {
    "audit.json": _audited, "run.json": _tuned, "drift.json": _drifted,
    "safety_tokens.json": _mined,
}  # fmt: skip


def _answers(path: Path) -> Iterator[Answer]:
    for row in rows_of(path) if path.is_file() else ():
        yield parse(Answer, shown(row.values), row.place, remedy=_AUDIT_AGAIN, others=True)


def called(subject: str) -> str:
    """A model by its name: of a path the last part, an id of the hub as it is."""
    # os.path: Path.is_dir raises for a name that is too long.
    is_path = os.path.isdir(subject) or subject.startswith(("/", "."))
    return os.path.basename(os.path.abspath(subject)) if is_path else subject.rstrip("/")


def _name(folder: Path, run: Run) -> str:
    """What to call a model: by itself, not by the folder that its audit went to."""
    subject = _subject(run)
    return shown(called(subject) if subject and not run.folder
                 else (run.folder or folder).resolve().name)  # fmt: skip


def _subject(run: Run) -> str | None:
    """What an audit is of: an adapter, or a model."""
    return run.audit.adapter or run.audit.model


def _is_same(first: Run, second: Run) -> bool:
    """Whether two folders speak of one model: a tuning and its audit, or one audit twice."""
    audited = [each for each in (first, second) if "audit" in each.provenance]
    tuned = [each for each in (first, second) if each.folder]
    if len(audited) == 2:
        # The fingerprint of what is served knows the address and the name, and no weights.
        one, other = ((each.audit.fingerprint, each.measurements) for each in audited)
        return len(tuned) < 2 and one[0] is not None and one == other
    if not audited or len(tuned) != 1:
        return False
    subject = _subject(audited[0])
    return subject is not None and subject.rstrip("/") in _places(tuned[0])


def is_of(run: Run, subject: str) -> bool:
    """Whether a model that a file names, by path or id, is that of a run."""
    own = {_subject(run), run.name} | (_places(run) if run.folder else set())
    return any(_names(each) & _names(subject) for each in own if each)


def _names(subject: str) -> set[str]:
    """A path or id as given, and in full where it is a folder."""
    whole = {os.path.abspath(subject)} if os.path.isdir(subject) else set()
    return {subject.rstrip("/")} | whole


def _places(tuned: Run) -> set[str]:
    """How an audit may name the model of a tuning: by its folder, as given or in full."""
    folder, links = tuned.folder or Path(), (tuned.tuning.settings, *tuned.tuning.chain[-1:])
    given = [each.get("output_dir") for each in links]
    names = {str(each).rstrip("/") for each in (*given, folder, folder.resolve()) if each}
    return names | {os.path.relpath(folder.resolve())}


def _joined(first: Run, second: Run) -> Run:
    """One model of two parts: what the first lacks comes from the second."""
    nothing = Run()
    missing = {
        each.name: getattr(second, each.name)
        for each in fields(Run)
        if getattr(first, each.name) == getattr(nothing, each.name)
    }
    missing["provenance"] = {**second.provenance, **first.provenance}
    return replace(first, **missing)
