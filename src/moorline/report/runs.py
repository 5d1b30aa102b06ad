"""What the files of a folder say of one model: checked at this door, shown as it is behind it."""

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from ..errors import InputError
from ..method.safety_tokens import SafetyTokens
from ..provenance import read_json
from ..tables import rows_of

Number = float | int
"""A number as JSON has it."""

Rows = tuple[dict[str, Any], ...]
"""Rows of one table; all of them have the same keys, and a number that is undefined is None."""

_LONGEST_TEXT = 4000
# control characters but tab and newline, and lone surrogates: HTML or UTF-8 forbids them
_FORBIDDEN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")

_TABLES = {
    "suites": "name kind metric num rate low high",
    "categories": "suite metric category num rate low high",
    "measures": "suite measure num mean low high",
    "agreement": "suite first second num agreement kappa",
    "comparisons": "suite metric against difference low high p_value",
    "gates": "requirement suite metric value passed",
    "inputs": "name kind num origin licence sha256",
    "tokens": "id string drift",
    "positions": "position drift",
    "checkpoints": "step refusal_mass low high",
}
"""The tables of our files, each with the columns that a row must have."""

_OPTIONAL = {
    "suites": {"condition": "plain", "judge": None, "count": None, "truncated": None},
    "categories": {"condition": "plain", "judge": None, "count": None},
    "measures": {"condition": "plain"},
    "agreement": {"condition": "plain"},
    "comparisons": {"condition": "plain", "judge": None, "p_adjusted": None},
    "gates": {"condition": None, "judge": None},
}
"""The columns that a row may have, with what their absence means."""

_WORDS = {
    "suite", "name", "kind", "condition", "metric", "judge", "category", "measure", "first",
    "second", "against", "requirement", "origin", "licence", "sha256", "string",
}  # fmt: skip
"""Columns of text; all others hold numbers."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Run:
    """What is known of one model."""

    name: str
    """What the page calls it."""

    rates: Rows = ()
    """The suites of `audit.json`, with `suite` for their name."""

    categories: Rows = ()
    measures: Rows = ()
    agreement: Rows = ()
    comparisons: Rows = ()
    gates: Rows = ()
    inputs: Rows = ()

    safety_tokens: Rows = ()
    """Rows of id, string and score, best first."""

    curve: Rows = ()
    """Rows of step, task_loss, drift and weighted: the training, as it was logged."""

    drift: dict[str, Rows] = field(default_factory=dict)
    """Tables `tokens`, `positions` and `checkpoints` of `drift.json`; empty without that file."""

    training_seconds: Number | None = None

    origin: dict[str, Any] = field(default_factory=dict)
    """Settings, versions, machine, times: everything about how the numbers came about."""

    answers: Rows = ()
    """Rows of suite, kind, id, condition, draw, prompt, answer, outcome and reason."""

    def without_answers(self) -> dict[str, Any]:
        """The run as a plain value, but for the text of answers."""
        return {key: value for key, value in asdict(self).items() if key != "answers"}


def read_runs(folders: Sequence[str | Path]) -> list[Run]:
    """The runs that some folders hold, in order, each with a name of its own.

    Args:
        folders: Folders with `audit.json`, `answers.jsonl`, `run.json`, `safety_tokens.json`,
            `drift.json`, in any combination; or with the `report.json` of a demo.

    Returns:
        A run for each folder, named after it; for a demo one for each of its models.

    Raises:
        InputError: If a folder is missing, is given twice, or holds nothing to show; if a file is
            damaged.
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
        found += [(path, run) for run in _runs_in(path)]
    names = [run.name for _, run in found]
    return [
        run if names.count(run.name) == 1 else replace(run, name=shown(f"{path}: {run.name}"))
        for path, run in found
    ]


def runs_of_demo(
    report: Mapping[str, Any],
    answers: Mapping[str, Iterable[Mapping[str, Any]]],
    kinds: Mapping[str, str],
) -> list[Run]:
    """The models of a demo, as `report.json` has them.

    Args:
        report: The content of `report.json`.
        answers: Lines as in `answers.jsonl`, for each model by its name; a model may have none.
        kinds: What kind of prompts each suite has, by its name.
    """
    report = shown(report)
    suites = {each["metric"]: each["suite"] for each in report["comparisons"]}
    common = ("task", "poison", "seed", "at", "settings", "data", "versions", "machine", "seconds")
    runs = []
    for row in report["rows"]:
        name = row["name"]
        rates = []
        for metric, kind, deciding in (
            ("attack_success_rate", "harmful", "attack_success_rate"),
            ("refusal_rate", "harmful", "attack_success_rate"),
            ("degenerate_rate", "harmful", "attack_success_rate"),
            ("over_refusal_rate", "harmless", "over_refusal_rate"),
            ("utility", "task", "utility"),
        ):
            low, high = row["intervals"][metric]
            rates.append(
                {
                    "name": suites.get(deciding, kind),
                    "kind": kind,
                    "metric": metric,
                    "num": row["num"][metric],
                    "rate": row[metric],
                    "low": low,
                    "high": high,
                }
            )
        comparisons = [each for each in report["comparisons"] if each["name"] == name]
        tables = {"suites": rates, "comparisons": comparisons}
        runs.append(
            Run(
                name=name,
                rates=_rates(tables, "report.json"),
                comparisons=_table(tables, "comparisons", "report.json"),
                safety_tokens=tuple(report["safety_tokens"]),
                curve=_curve(report["curves"].get(name, [])),
                training_seconds=row["seconds"] or None,
                origin={key: report[key] for key in common},
                answers=tuple(_answer(each, kinds) for each in answers.get(name, ())),
            )
        )
    return runs


def shown(value: Any) -> Any:
    """A value fit for a page and for JSON, with everything in it.

    Control characters that HTML forbids and halves of surrogate pairs become U+FFFD, a text of more
    than 4000 characters is cut and says so, and a number that is not finite becomes None.
    """
    if isinstance(value, str):
        clean = _FORBIDDEN.sub("\ufffd", value[:_LONGEST_TEXT])
        cut = len(value) > _LONGEST_TEXT
        return f"{clean} ... ({len(value)} characters in all)" if cut else clean
    if isinstance(value, Mapping):
        return {shown(key): shown(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [shown(each) for each in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def _runs_in(folder: Path) -> list[Run]:
    audit, tuning, drift = (
        _read(folder / f"{name}.json", what)
        for name, what in (("audit", "audit file"), ("run", "run file"), ("drift", "drift file"))
    )
    mined = folder / "safety_tokens.json"
    mining = shown(asdict(SafetyTokens.load(mined))) if mined.is_file() else {}
    if not any([audit, tuning, drift, mining]):
        return _demo_in(folder)
    place = str(folder / "audit.json")
    rates = _rates(audit, place)
    names = ("categories", "measures", "agreement", "comparisons", "gates", "inputs")
    tables = {name: _table(audit, name, place) for name in names}
    columns = [mining.get(each, []) for each in ("ids", "strings", "scores")]
    answers = folder / "answers.jsonl"
    elsewhere = {"safety_tokens", "ids", "strings", "scores", "log", *_TABLES}
    run = Run(
        name=shown(folder.resolve().name),
        rates=rates,
        **tables,
        safety_tokens=tuple(
            {"id": index, "string": string, "score": score}
            for index, string, score in zip(*columns, strict=True)
        ),
        curve=_curve(tuning.get("log", [])),
        drift={
            name: _table(drift, name, str(folder / "drift.json"))
            for name in ("tokens", "positions", "checkpoints")
            if drift.get(name)
        },
        training_seconds=tuning.get("seconds"),
        origin={
            part: {key: each for key, each in value.items() if key not in elsewhere}
            for part, value in (("audit", audit), ("tuning", tuning), ("mining", mining))
            if value
        },
        answers=(
            _answers(answers, {each["suite"]: each["kind"] for each in rates})
            if answers.is_file()
            else ()
        ),
    )
    return [run]


def _demo_in(folder: Path) -> list[Run]:
    path = folder / "report.json"
    report = _read(path, "report file")
    if "rows" not in report:
        raise InputError(
            f"{folder}: holds no audit.json, run.json, drift.json or safety_tokens.json. Give a "
            "folder that `moorline audit`, `moorline tune` or `moorline demo` wrote."
        )
    try:
        return runs_of_demo(report, {}, {})
    except KeyError as error:
        raise InputError(f"{path}: the report of the demo lacks {error}. Run it again.") from error


def _read(path: Path, what: str) -> dict[str, Any]:
    """The content of one of our files; nothing if it is not there."""
    if not path.is_file():
        return {}
    value = shown(read_json(path, what))
    if value.get("schema") != 1:
        raise InputError(
            f"{path}: not a {what} of schema 1 (schema: {value.get('schema')!r}). Write it again "
            "with this version of moorline."
        )
    return value


def _table(value: Mapping[str, Any], name: str, place: str) -> Rows:
    """One table of a file, each row with all its columns."""
    found = []
    optional = _OPTIONAL.get(name, {})
    for number, row in enumerate(value.get(name) or [], start=1):
        whole = {**optional, **row} if isinstance(row, Mapping) else {}
        for column in (*_TABLES[name].split(), *optional):
            if column not in whole:
                raise InputError(f"{place}: row {number} of {name!r} lacks {column!r}.")
            kinds = str if column in _WORDS else Number
            if whole[column] is not None and not isinstance(whole[column], kinds):
                raise InputError(
                    f"{place}: row {number} of {name!r}: {column!r} must be "
                    f"{'text' if kinds is str else 'a number'} or null, got {whole[column]!r}."
                )
        found.append({column: whole[column] for column in (*_TABLES[name].split(), *optional)})
    return tuple(found)


def _rates(value: Mapping[str, Any], place: str) -> Rows:
    return tuple({"suite": row.pop("name"), **row} for row in _table(value, "suites", place))


def _curve(log: Sequence[Mapping[str, Any]]) -> Rows:
    """The steps of a training log: plain training logs its task loss as `loss`."""
    return tuple(
        {
            "step": entry["step"],
            "task_loss": entry.get("ce_loss", None if "str/weighted" in entry else entry["loss"]),
            "drift": entry.get("str/drift"),
            "weighted": entry.get("str/weighted"),
        }
        for entry in log
        if "loss" in entry and "step" in entry
    )


def _answers(path: Path, kinds: Mapping[str, str]) -> Rows:
    found = []
    for row in rows_of(path):
        for column in ("suite", "id", "prompt", "answer", "outcome"):
            if not isinstance(row.values.get(column), str):
                raise row.lacks(column, "Run the audit again.")
        found.append(_answer(row.values, kinds))
    return tuple(found)


def _answer(line: Mapping[str, Any], kinds: Mapping[str, str]) -> dict[str, Any]:
    columns = ("suite", "id", "prompt", "answer", "outcome", "reason")
    found = {column: shown(line.get(column) or "") for column in columns}
    return {
        **found,
        "kind": kinds.get(found["suite"], "other"),
        "condition": shown(line.get("condition") or "plain"),
        "draw": line.get("draw") or 0,
    }
