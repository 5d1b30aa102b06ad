"""One number with what it is of: the row that audits write and reports, gates and exports read."""

import math
from dataclasses import asdict, dataclass
from typing import Any, Literal, TypeVar

from ..errors import InputError
from ..records import parse
from .statistics import Mean, Rate

Interval = Literal["wilson", "score", "clustered", "bootstrap", "normal"]
"""How an interval was made: `statistics.wilson`; the score interval of
`statistics.paired_difference`; either of them over clusters; `statistics.mean_interval`; or 1.96
standard errors."""

_Of = TypeVar("_Of", bound="Row")


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """A row of a file: read with its place in the message, written as plain values."""

    def to_json(self) -> dict[str, Any]:
        """The row as JSON has it."""
        return asdict(self)

    @classmethod
    def from_json(cls: type[_Of], value: Any, place: str) -> _Of:
        """A row read from a file, checked.

        Args:
            value: What the file holds.
            place: Where it stands, for the message: "out/audit.json, measurement 3".

        Raises:
            InputError: If it does not fit; names place, field and value, as `records.parse` does.
        """
        return parse(cls, value, place, remedy="Write the file again.")


@dataclass(frozen=True, kw_only=True, slots=True)
class Measurement(Row):
    """One number about one model.

    Raises:
        InputError: If counts, value and interval contradict each other.

    Example:
        >>> row = Measurement(suite="hard", kind="harmful", condition="plain",
        ...     metric="refusal_rate", judge="keywords", category=None, num=4, count=3, value=0.75,
        ...     low=0.3, high=0.95, interval="wilson")
        >>> Measurement.from_json(row.to_json(), "audit.json, measurement 1") == row
        True
    """

    suite: str
    kind: str
    """harmful, harmless or task; "rows" for held-out rows, "lm_eval" for tasks of lm-eval."""

    condition: str
    metric: str
    """A name of `outcomes.METRICS`, or a task's own metric."""

    judge: str | None
    """Who judged: a judge, or the metric of a task; None where nothing is judged."""

    category: str | None
    """The category that it is limited to; None for the whole suite."""

    num: int
    """How many prompts, answers or rows it comes from."""

    count: int | None
    """How many of them; None where it is a mean."""

    value: float | None
    """The number; None if it is undefined. A share lies between 0 and 1."""

    low: float | None
    high: float | None
    """The 95 % interval; None if it is undefined."""

    interval: str | None
    """How the interval was made, one of `Interval`; None without one."""

    def __post_init__(self) -> None:
        if self.num < 0 or (self.count is not None and not 0 <= self.count <= self.num):
            raise InputError(f"`count` must lie between 0 and `num`, got {self.count}, {self.num}.")
        if self.count is not None and self.num and self.value is not None:
            share = self.count / self.num
            if not math.isclose(self.value, share, abs_tol=1e-9):
                raise InputError(f"`value` must be `count` / `num`, got {self.value}.")
        if len({each is None for each in (self.low, self.high, self.interval)}) > 1:
            raise InputError("`low`, `high` and `interval` must be given together, or none.")
        if self.low is not None and self.high is not None:
            inside = self.value is not None and self.low <= self.high
            if not inside:
                raise InputError(f"`low` must not exceed `high`: {self.low}, {self.high}.")


def measured(
    found: Rate | Mean,
    *,
    suite: str,
    kind: str,
    metric: str,
    condition: str = "plain",
    judge: str | None = None,
    category: str | None = None,
    interval: Interval | None = None,
) -> Measurement:
    """A share or a mean as a measurement; its interval is Wilson's or a bootstrap's unless told."""
    count, value = (found.count, found.rate) if isinstance(found, Rate) else (None, found.mean)
    how = interval or ("wilson" if isinstance(found, Rate) else "bootstrap")
    return Measurement(
        suite=suite, kind=kind, condition=condition, metric=metric, judge=judge, category=category,
        num=found.num, count=count, value=value, low=found.low, high=found.high,
        interval=None if found.low is None else how,
    )  # fmt: skip


@dataclass(frozen=True, kw_only=True, slots=True)
class Comparison(Row):
    """How one number of a model differs from that of another on the same prompts."""

    suite: str
    kind: str
    condition: str
    metric: str
    judge: str | None
    against: str
    """The name of the other model."""

    num: int
    """Prompts that both were asked, and both answers judged."""

    difference: float | None
    """This model minus the other, -1 to 1."""

    low: float | None
    high: float | None
    interval: str | None
    p_value: float | None
    p_adjusted: float | None
    """Corrected for the number of comparisons (Holm)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Gate(Row):
    """One requirement, held against one measurement."""

    requirement: str
    suite: str | None
    """None where no measurement has the metric: the requirement then fails."""

    condition: str | None
    judge: str | None
    metric: str
    value: float | None
    """What was compared: the bound of the interval, or the rate, as `on` says."""

    on: str
    """"interval" or "rate"."""

    passed: bool
    needs: int | None = None
    """The fewest answers with which an interval could hold it, where there were fewer."""
