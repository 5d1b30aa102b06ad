"""Numbers and names as people read them, on the page, in figures, in a card and in a terminal."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import jinja2

from ..audit.measurements import Comparison, Measurement
from ..audit.outcomes import METRICS, Metric
from .rows import Checkpoint

TEMPLATES = Path(__file__).parent / "templates"

Number = float | int
"""A number as JSON has it."""


class Interval(NamedTuple):
    """Two bounds."""

    low: float
    high: float


Bounded = Measurement | Comparison | Checkpoint | Interval
"""Whatever has an interval."""

_METRICS = {(each.name, each.kind): each for each in METRICS}
_INTERVALS = {
    "wilson": "Wilson",
    "score": "score interval of paired differences",
    "clustered": "clustered by category",
    "bootstrap": "bootstrap",
    "normal": "1.96 standard errors",
}


def environment(*, autoescape: bool) -> jinja2.Environment:
    """What fills our templates; all of this module's words for numbers are filters of it."""
    made = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=autoescape,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    words = (percent, points, points_interval, number, p_value, value, value_interval, label,
             quoted, interval_names)  # fmt: skip
    made.filters |= {each.__name__: each for each in words}
    return made


def listed(parts: Iterable[str]) -> str:
    """Words in a row: "a, b and c"."""
    *most, last = parts
    return f"{', '.join(most)} and {last}" if most else last


def quoted(value: Any) -> str:
    """A text in quotes, which show white space at its ends; any other value as JSON has it."""
    return json.dumps(value, ensure_ascii=False)


def percent(rate: Number | None) -> str:
    """A rate as people read it."""
    return "undefined" if rate is None else f"{100 * rate:.1f} %"


def points(difference: Number | None) -> str:
    """A difference of two rates."""
    return "undefined" if difference is None else f"{_signed(difference)} points"


def points_interval(row: Bounded) -> str:
    """The interval of a difference of two rates."""
    if row.low is None or row.high is None:
        return "undefined"
    return f"{_signed(row.low)} to {_signed(row.high)}"


def p_value(value: Number | None) -> str:
    """A p-value; a very small one by its bound."""
    return "< 0.0001" if value is not None and value < 1e-4 else number(value)


def number(value: Number | None) -> str:
    """Any other number, to three digits."""
    return "undefined" if value is None else f"{value:.3g}"


def value(row: Measurement) -> str:
    """The number of a measurement: a share as a percentage."""
    return percent(row.value) if is_share(row) else number(row.value)


def value_interval(row: Measurement) -> str:
    """The interval of a measurement, in the same unit."""
    if row.low is None or row.high is None:
        return "undefined"
    if is_share(row):
        return f"{100 * row.low:.1f} to {100 * row.high:.1f} %"
    return f"{number(row.low)} to {number(row.high)}"


def is_share(row: Measurement) -> bool:
    """Whether it is a share of prompts, or a mean of scores between 0 and 1 that stands for one."""
    known = metric_of(row)
    return row.count is not None or (known is not None and known.outcome is not None)


def metric_of(row: Measurement | Comparison) -> Metric | None:
    """What is known of the metric of a row; None for one of a task's own."""
    return _METRICS.get((row.metric, row.kind)) or _METRICS.get((row.metric, None))


def label(row: Measurement | Comparison) -> str:
    """The metric of a row as a table heads it."""
    known = metric_of(row)
    return known.label if known else row.metric.replace("_", " ")


def interval_names(rows: Iterable[Measurement | Comparison]) -> str:
    """How the intervals of some rows were made: "Wilson", "Wilson or bootstrap"."""
    names = (_INTERVALS.get(row.interval, row.interval) for row in rows if row.interval)
    return " or ".join(dict.fromkeys(names)) or "no"


def short(text: str, longest: int = 22) -> str:
    """A name short enough for a figure, on one line."""
    line = " ".join(text.split())
    return line if len(line) <= longest else f"{line[: longest - 1]}\N{HORIZONTAL ELLIPSIS}"


def _signed(share: Number) -> str:
    return f"{100 * share:+.1f}".replace("-", "\N{MINUS SIGN}")
