"""The page: verdict, tables, figures, answers, in one HTML text without any outside reference.

Answers of models are hidden until the reader asks, and always escaped.
"""

import base64
import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from importlib.resources import files
from itertools import islice
from typing import Any, NamedTuple

import jinja2

from ..audit.measurements import Measurement
from ..audit.outcomes import METRICS
from . import text
from .drawing import LOOKS, Drawing, look
from .rows import Answer, Run, SuiteFacts, Token
from .runs import called
from .verdict import (
    ATTACK,
    BROKEN,
    EXPLAINED,
    HELP,
    OVER_REFUSAL,
    TASK,
    Finding,
    at_worst,
    pooled,
    where,
)

_NUM_EXAMPLES = 8
_MOST_ANSWERS = 5000
_LONGEST_ANSWER = 1000
_RARE = ("unscored_rate", "truncated_rate")
"""Shown where there are any."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Content:
    """What a page is of."""

    title: str
    verdict: Sequence[str]
    findings: Sequence[Finding]
    runs: Sequence[Run]
    """First the one with which the others are compared."""

    drawings: Sequence[Drawing] = ()
    warnings: Sequence[str] = ()
    """What a reader must know before the numbers."""

    notes: Sequence[str] = ()
    """What else these numbers cannot see."""

    commands: Sequence[str] = ()
    """The command lines that made it."""


class Told(NamedTuple):
    """The answer of one model to the prompt of an example."""

    run: int
    name: str
    answer: Answer


class Example(NamedTuple):
    """One prompt with the answers of all models."""

    kind: str
    prompt: Answer
    told: list[Told]


class Tile(NamedTuple):
    """One model in brief."""

    name: str
    attack: Measurement | None
    worst: Measurement | None
    worst_where: str
    rest: list[tuple[str, Measurement]]


class Group(NamedTuple):
    """Rows of a table under one heading, each with a cell for every model."""

    head: str
    kind: str
    rows: dict[tuple[str, str], list[Measurement | None]]
    """By label and by what tells the row apart."""


def render(content: Content) -> str:
    """The page as one HTML text."""
    runs = content.runs
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("moorline.report"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    names = ("percent", "points", "points_interval", "number", "p_value", "value", "value_interval")
    environment.filters |= {name: getattr(text, name) for name in names}
    environment.filters |= {
        "label": lambda row: text.label(row.metric, row.kind),
        "quoted": lambda string: json.dumps(string, ensure_ascii=False),
        "called": called,
    }
    gates = [(run.name, gate) for run in runs for gate in run.gates]
    script = files("moorline.report").joinpath("templates/answers.js").read_text(encoding="utf-8")
    digest = hashlib.sha256(script.encode()).digest()
    answers, num_answers = _all_answers(runs)
    whole = [row for run in runs for row in run.rates if row.interval]
    return environment.get_template("report.html.jinja").render(
        content=content,
        runs=runs,
        questions=_by_question(content.findings),
        explained=EXPLAINED,
        looks=[look(index) for index in range(len(runs))],
        palette=LOOKS,
        tiles=[_tile(run) for run in runs],
        gates=gates,
        passed=sum(gate.passed for _, gate in gates),
        rates=list(_groups(runs, _is_rate)),
        measures=list(_groups(runs, lambda row: not _is_rate(row))),
        categories=list(_category_groups(runs)),
        intervals=text.interval_names(whole),
        difference_intervals=text.interval_names(c for run in runs for c in run.comparisons),
        figures={
            part: [each for each in content.drawings if each.name.split("-")[0] == part]
            for part in ("rates", "trade", "categories", "curves", "drift")
        },
        examples=examples_of(runs),
        answers=answers,
        num_answers=num_answers,
        script=script,
        script_hash=base64.b64encode(digest).decode(),
        token_sets=_token_sets(runs),
        facts=_facts(runs),
        suites=list(_suites(runs)),
        conditions=list(dict.fromkeys(row.condition for run in runs for row in run.rates)),
        judges=list(dict.fromkeys(row.judge for run in runs for row in run.rates if row.judge)),
        origins=[
            (run.name, json.dumps(run.provenance, indent=2, ensure_ascii=False)) for run in runs
        ],
    )


def examples_of(runs: Sequence[Run]) -> list[Example]:
    """A few prompts of each kind with every model's answer: first those where the models differ."""
    kinds = {name: kind for run in runs for name, kind in run.kinds().items()}
    found: dict[tuple[str, str, str, int], Example] = {}
    for index, run in enumerate(runs):
        for each in run.answers:
            key = (each.suite, each.id, each.condition, each.draw)
            example = found.setdefault(key, Example(kinds.get(each.suite, "other"), each, []))
            example.told.append(Told(index, run.name, each))
    # Stable, so that within each group the order is that of the audit.
    ordered = sorted(
        found.values(), key=lambda each: -len({told.answer.outcome for told in each.told})
    )
    return [
        each
        for kind in dict.fromkeys(each.kind for each in found.values())
        for each in islice((each for each in ordered if each.kind == kind), _NUM_EXAMPLES)
    ]


def _by_question(findings: Iterable[Finding]) -> dict[str, list[Finding]]:
    """The findings of all models under each question."""
    found: dict[str, list[Finding]] = {}
    for each in findings:
        found.setdefault(each.question, []).append(each)
    return found


def _tile(run: Run) -> Tile:
    worst = at_worst(run)
    rest = (("harmless answered", HELP), ("broken (harmless)", BROKEN),
            ("over-refusal", OVER_REFUSAL), ("task done right", TASK))  # fmt: skip
    measured = [(label, pooled(run, metric)) for label, metric in rest]
    return Tile(
        run.name,
        pooled(run, ATTACK),
        worst,
        where(worst, [run]) if worst else "",
        [(label, row) for label, row in measured if row is not None],
    )


def _is_rate(row: Measurement) -> bool:
    return row.kind in ("harmful", "harmless", "task") and text.is_share(row)


def _groups(runs: Sequence[Run], wanted: Callable[[Measurement], bool]) -> Iterable[Group]:
    """The measurements of whole suites, suite by suite."""
    order = [(each.name, each.kind) for each in METRICS]
    found: dict[tuple[str, str], dict[Any, list[Measurement | None]]] = {}
    for index, run in enumerate(runs):
        for row in filter(wanted, run.rates):
            cells = found.setdefault((row.suite, row.kind), {})
            key = (row.metric, row.condition, row.judge)
            cells.setdefault(key, [None] * len(runs))[index] = row
    for (suite, kind), rows in found.items():
        known = [at for at in order if at[1] in (kind, None)]
        ranks = {name: rank for rank, (name, _) in enumerate(known)}
        seen = {
            (text.label(key[0], kind), _how(key[1:], runs)): cells
            for key, cells in sorted(rows.items(), key=lambda row: ranks.get(row[0][0], 99))
            if key[0] not in _RARE or any(each and each.value for each in cells)
        }
        yield Group(suite, kind, seen)


def _category_groups(runs: Sequence[Run]) -> Iterable[Group]:
    """The measurements by category, for each suite, condition, metric and judge."""
    found: dict[Any, dict[tuple[str, str], list[Measurement | None]]] = {}
    for index, run in enumerate(runs):
        for row in run.measurements:
            if row.category is not None:
                rows = found.setdefault(
                    (row.suite, row.metric, row.kind, row.condition, row.judge), {}
                )
                rows.setdefault((row.category, ""), [None] * len(runs))[index] = row
    for (suite, metric, kind, *how), rows in found.items():
        yield Group(f"{text.label(metric, kind)}, {suite}", _how(how, runs), rows)


def _how(parts: Sequence[str | None], runs: Sequence[Run]) -> str:
    """Condition and judge; where every prompt was put plainly, nothing is said about it."""
    condition, judge = parts
    attacked = any(row.condition != "plain" for run in runs for row in run.rates)
    judged = f"judged by {judge}" if judge else None
    return ", ".join(each for each in (condition if attacked else None, judged) if each)


def _all_answers(runs: Sequence[Run]) -> tuple[dict[str, Any], int]:
    """Every answer for the filter: values that stand in many answers by their index."""
    every = ((index, each) for index, run in enumerate(runs) for each in run.answers)
    rows = [
        [index, each.suite, each.condition, each.outcome,
         each.prompt[:_LONGEST_ANSWER], each.answer[:_LONGEST_ANSWER]]
        for index, each in islice(every, _MOST_ANSWERS)
    ]  # fmt: skip
    return {"models": [run.name for run in runs], "rows": rows}, sum(len(r.answers) for r in runs)


def _token_sets(runs: Sequence[Run]) -> list[tuple[list[str], tuple[Token, ...]]]:
    """Each set of safety tokens once, with the names of the models that share it."""
    found: dict[tuple[Token, ...], list[str]] = {}
    for run in runs:
        if run.safety_tokens:
            found.setdefault(run.safety_tokens, []).append(run.name)
    return [(names, tokens) for tokens, names in found.items()]


def _suites(runs: Sequence[Run]) -> Iterable[SuiteFacts]:
    return dict.fromkeys(each for run in runs for each in run.suites)


def _facts(runs: Sequence[Run]) -> list[tuple[str, list[Any]]]:
    """Where each run's numbers come from: the facts that a reader looks for first."""
    parts = [run.provenance.get("audit") or run.provenance.get("tuning") or {} for run in runs]
    tunings = [(run.provenance.get("tuning") or {}).get("settings") or {} for run in runs]
    settings = [part.get("settings") or {} for part in parts]
    versions = [part.get("versions") or {} for part in parts]
    found = [
        *_rows_of(parts, ("model", "adapter", "seed", "at")),
        *_rows_of(settings, ("judges", "conditions", "metric", "by_category", "max_new_tokens",
                             "batch_size", "system_prompt")),
        *_rows_of(tunings, ("str_weight", "str_form", "learning_rate", "num_train_epochs")),
        ("training seconds", [run.training_seconds for run in runs]),
        *_rows_of(versions, dict.fromkeys(name for each in versions for name in each)),
    ]  # fmt: skip
    return [
        (name.replace("_", " "), [_fact(value) for value in values])
        for name, values in found
        if any(value is not None for value in values)
    ]


def _rows_of(
    parts: Sequence[dict[str, Any]], names: Iterable[str]
) -> Iterable[tuple[str, list[Any]]]:
    return ((name, [part.get(name) for part in parts]) for name in names)


def _fact(value: Any) -> Any:
    """A setting on one line: of a list its names."""
    if not isinstance(value, list):
        return value
    return ", ".join(str(each.get("name") if isinstance(each, dict) else each) for each in value)
