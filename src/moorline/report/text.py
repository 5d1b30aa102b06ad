"""Numbers and names as people read them, on the page, in figures, in a card and in a terminal."""

from collections.abc import Iterable
from typing import Protocol, runtime_checkable

from ..audit.measurements import Comparison, Measurement
from ..audit.outcomes import METRICS, Metric

Number = float | int
"""A number as JSON has it."""

_INTERVALS = {
    "wilson": "Wilson",
    "score": "score interval of paired differences",
    "clustered": "clustered by category",
    "bootstrap": "bootstrap",
    "normal": "1.96 standard errors",
}


@runtime_checkable
class Bounded(Protocol):
    """Whatever has an interval."""

    @property
    def low(self) -> Number | None:
        """Its lower bound."""

    @property
    def high(self) -> Number | None:
        """Its upper bound."""


def listed(parts: Iterable[str]) -> str:
    """Words in a row: "a, b and c"."""
    *most, last = parts
    return f"{', '.join(most)} and {last}" if most else last


def percent(rate: Number | None) -> str:
    """A rate as people read it."""
    return "undefined" if rate is None else f"{100 * rate:.1f} %"


def interval(row: Bounded) -> str:
    """The interval of a rate."""
    if row.low is None or row.high is None:
        return "undefined"
    return f"{100 * row.low:.1f} to {100 * row.high:.1f} %"


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
    if row.low is None or row.high is None or is_share(row):
        return interval(row)
    return f"{number(row.low)} to {number(row.high)}"


def is_share(row: Measurement) -> bool:
    """Whether it is a share of prompts, or a mean of scores between 0 and 1 that stands for one."""
    known = metric_of(row.metric, row.kind)
    return row.count is not None or (known is not None and known.outcome is not None)


def metric_of(name: str, kind: str) -> Metric | None:
    """What is known of a metric; None for one of a task's own."""
    found = [each for each in METRICS if each.name == name]
    return next((each for each in found if each.kind in (kind, None)), None)


def label(name: str, kind: str) -> str:
    """A metric as a table heads it."""
    known = metric_of(name, kind)
    return known.label if known else name.replace("_", " ")


def interval_names(rows: Iterable[Measurement | Comparison]) -> str:
    """How the intervals of some measurements were made: "Wilson", "Wilson or bootstrap"."""
    names = dict.fromkeys(_INTERVALS.get(each.interval, each.interval) for each in rows
                          if each.interval is not None)  # fmt: skip
    return " or ".join(names) or "no"


def short(text: str, longest: int = 22) -> str:
    """A name short enough for a figure, on one line."""
    line = " ".join(text.split())
    return line if len(line) <= longest else f"{line[: longest - 1]}\N{HORIZONTAL ELLIPSIS}"


def _signed(share: Number) -> str:
    return f"{100 * share:+.1f}".replace("-", "\N{MINUS SIGN}")
