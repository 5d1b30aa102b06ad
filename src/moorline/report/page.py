"""What a report says, and its page: one HTML text without any outside reference.

Answers of models are hidden until the reader asks, and always escaped.
"""

import base64
import csv
import hashlib
import io
import json
import textwrap
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from functools import partial
from itertools import islice
from operator import attrgetter
from typing import Any, NamedTuple

import jinja2

from ..audit.measurements import Measurement
from ..audit.outcomes import METRICS
from .drawing import LOOKS, Drawing
from .rows import Answer, Run
from .runs import called
from .text import TEMPLATES, environment, is_share, metric_of, percent
from .verdict import ATTACK, BRIEF, EXPLAINED, Finding, at_worst, pooled, where

_NUM_EXAMPLES = 8
_MOST_ANSWERS = 5000
_LONGEST_ANSWER = 1000
_RARE = ("unscored_rate", "truncated_rate")
"""Shown where there are any."""

Cells = list[Measurement | None]
"""A row of a table: what each model has of one number."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Report:
    """What a page says."""

    title: str
    verdict: tuple[str, ...]
    """A sentence for each model: what it does if prompts are put plainly, and at worst."""

    findings: tuple[Finding, ...]
    """The three questions about each model, answered by intervals."""

    runs: tuple[Run, ...]
    """First the one with which the others are compared."""

    warnings: tuple[str, ...] = ()
    """What a reader must know before the numbers."""

    notes: tuple[str, ...] = ()
    """What else these numbers cannot see."""

    commands: tuple[str, ...] = ()
    """The command lines that made it."""

    def to_json(self) -> dict[str, Any]:
        """The content of `report.json`: everything but the text of answers."""
        value = asdict(self)
        models = value.pop("runs")
        hidden = ("answers", "folder", "audit", "tuning")
        of = ("suite", "id", "condition", "draw")
        return {
            "schema": 2,
            **value,
            "verdict": " ".join(self.verdict),
            "models": [{key: run[key] for key in run if key not in hidden} for run in models],
            "examples": [
                {name: getattr(each.prompt, name) for name in of} for each in examples_of(self.runs)
            ],
        }

    def text(self) -> str:
        """Table, findings and verdict for a terminal of 80 columns."""
        made = _environment(autoescape=False)
        made.filters |= {"cell": _cell, "filled": _filled}
        return made.get_template("report.txt.jinja").render(report=self).strip("\n")


class Example(NamedTuple):
    """One prompt with the answers of all models."""

    kind: str
    prompt: Answer
    answers: list[tuple[int, Answer]]
    """Each with the index of its model."""


def render(report: Report, drawings: Sequence[Drawing] = ()) -> str:
    """The page as one HTML text."""
    runs = report.runs
    script = (TEMPLATES / "answers.js").read_text(encoding="utf-8")
    digest = hashlib.sha256(script.encode()).digest()
    rates = [row for run in runs for row in run.rates]
    made = _environment(autoescape=True)
    made.filters |= {"called": called, "fact": _fact, "pretty": _pretty}
    return made.get_template("report.html.jinja").render(
        report=report,
        runs=runs,
        looks=LOOKS,
        gates=[(run.name, gate) for run in runs for gate in run.gates],
        whole=rates,
        table_file=base64.b64encode(_table_file(runs).encode()).decode(),
        rates=_grouped(runs, _is_rate),
        measures=_grouped(runs, lambda row: row.category is None and not _is_rate(row)),
        categories=_tables(
            runs, lambda row: row.category is not None,
            attrgetter("suite", "metric", "kind", "condition", "judge"), attrgetter("category"),
        ),
        figures=lambda part: [each for each in drawings if each.name.split("-")[0] == part],
        examples=examples_of(runs),
        answers=_all_answers(runs),
        num_answers=sum(len(run.answers) for run in runs),
        script=script,
        script_hash=base64.b64encode(digest).decode(),
        facts=_facts(runs),
        conditions=list(dict.fromkeys(row.condition for row in rates)),
        judges=list(dict.fromkeys(row.judge for row in rates if row.judge)),
    )  # fmt: skip


def _environment(*, autoescape: bool) -> jinja2.Environment:
    """What fills the page and the text for a terminal: both tell of a model by the same numbers."""
    made = environment(autoescape=autoescape)
    made.filters |= {"pooled": pooled, "at_worst": at_worst, "where": where}
    made.globals |= {"attack": ATTACK, "brief": BRIEF, "explained": EXPLAINED}
    return made


def examples_of(runs: Sequence[Run]) -> list[Example]:
    """A few prompts of each kind with every model's answer: first those where the models differ."""
    kinds = {each.suite: each.kind for run in runs for each in run.measurements}
    found: dict[tuple[str, str, str, int], Example] = {}
    for index, run in enumerate(runs):
        for each in run.answers:
            key = (each.suite, each.id, each.condition, each.draw)
            example = found.setdefault(key, Example(kinds.get(each.suite, "other"), each, []))
            example.answers.append((index, each))
    # Stable, so that within each group the order is that of the audit.
    ordered = sorted(
        found.values(), key=lambda each: -len({answer.outcome for _, answer in each.answers})
    )
    return [
        each
        for kind in dict.fromkeys(each.kind for each in found.values())
        for each in islice((each for each in ordered if each.kind == kind), _NUM_EXAMPLES)
    ]


def _is_rate(row: Measurement) -> bool:
    return row.category is None and row.kind in ("harmful", "harmless", "task") and is_share(row)


def _grouped(runs: Sequence[Run], wanted: Callable[[Measurement], bool]) -> list[list[Cells]]:
    """The measurements of whole suites, suite by suite, in the order of the metrics."""

    def rank(cells: Cells) -> int:
        known = metric_of(next(filter(None, cells)))
        return METRICS.index(known) if known else len(METRICS)

    def is_shown(cells: Cells) -> bool:
        return any(each and (each.metric not in _RARE or each.value) for each in cells)

    of = attrgetter("suite", "kind"), attrgetter("metric", "condition", "judge")
    return [sorted(filter(is_shown, rows), key=rank) for rows in _tables(runs, wanted, *of)]


def _tables(
    runs: Sequence[Run],
    wanted: Callable[[Measurement], bool],
    head: Callable[[Measurement], Any],
    line: Callable[[Measurement], Any],
) -> list[list[Cells]]:
    """The rows under each head, in the order in which they were measured."""
    found: dict[Any, dict[Any, Cells]] = {}
    for index, run in enumerate(runs):
        for row in filter(wanted, run.measurements):
            rows = found.setdefault(head(row), {})
            rows.setdefault(line(row), [None] * len(runs))[index] = row
    return [list(rows.values()) for rows in found.values()]


def _table_file(runs: Sequence[Run]) -> str:
    """Every measurement of every model as CSV, for a reader who wants to check it.

    A text that a spreadsheet would take for a formula has an apostrophe before it.
    """
    names = [each.name for each in fields(Measurement)]
    text = io.StringIO()
    made = csv.writer(text)
    made.writerow(["model", *names])
    for run in runs:
        for row in run.measurements:
            made.writerow(map(_as_cell, [run.name, *(getattr(row, name) for name in names)]))
    return text.getvalue()


def _as_cell(value: Any) -> Any:
    return f"'{value}" if isinstance(value, str) and value[:1] in ("=", "+", "-", "@") else value


def _all_answers(runs: Sequence[Run]) -> dict[str, list[Any]]:
    """Every answer for the filter: of its model the index."""
    every = ((index, each) for index, run in enumerate(runs) for each in run.answers)
    rows = [
        [index, each.suite, each.condition, each.outcome,
         each.prompt[:_LONGEST_ANSWER], each.answer[:_LONGEST_ANSWER]]
        for index, each in islice(every, _MOST_ANSWERS)
    ]  # fmt: skip
    return {"models": [run.name for run in runs], "rows": rows}


def _facts(runs: Sequence[Run]) -> dict[str, list[Any]]:
    """Where each run's numbers come from: the facts that a reader looks for first."""
    origins = [run.audit if "audit" in run.provenance else run.tuning for run in runs]

    def rows(parts: Iterable[Any], names: Iterable[str]) -> dict[str, list[Any]]:
        return {name: [part.get(name) for part in parts] for name in names}

    found = {
        **{name: [getattr(each, name) for each in origins]
           for name in ("model", "adapter", "seed", "at")},
        **rows([each.settings for each in origins], (
            "judges", "conditions", "metric", "by_category", "max_new_tokens", "batch_size",
            "system_prompt",
        )),
        **rows([run.tuning.settings for run in runs], (
            "str_weight", "str_form", "learning_rate", "num_train_epochs",
        )),
        "training_seconds": [run.training_seconds for run in runs],
        **rows([each.versions for each in origins],
               dict.fromkeys(name for each in origins for name in each.versions)),
    }  # fmt: skip
    return {
        name.replace("_", " "): values
        for name, values in found.items()
        if any(value is not None for value in values)
    }


def _fact(value: Any) -> Any:
    """A setting on one line: of a list its names."""
    if not isinstance(value, list | tuple):
        return value
    return ", ".join(str(each.get("name") if isinstance(each, dict) else each) for each in value)


_pretty = partial(json.dumps, indent=2, ensure_ascii=False)


def _cell(row: Measurement | None) -> str:
    """A number with its interval, for a table in a terminal."""
    if row is None:
        return "not measured"
    if row.value is None or row.low is None or row.high is None:
        return percent(row.value)
    return f"{percent(row.value)} [{100 * row.low:.0f}, {100 * row.high:.0f}]"


def _filled(text: str) -> str:
    """A text in lines for a terminal, none of which ends between a number and its "%"."""
    bound = text.replace(" %", "\N{NO-BREAK SPACE}%")
    return textwrap.fill(bound, 79, subsequent_indent="  ").replace("\N{NO-BREAK SPACE}", " ")
