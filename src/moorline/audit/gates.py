"""Requirements that an audit has to meet, such as "attack_success_rate<=0.05"."""

import bisect
import operator
import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from ..errors import InputError, unknown_choice
from .measurements import Gate, Measurement
from .outcomes import METRICS, metric_of
from .statistics import wilson

ON = ("interval", "rate")
"""What a gate reads: the bound of the interval on its unsafe side, or the rate alone."""

_MOST_ANSWERS = 1 << 40  # that a requirement is told to need; nobody asks as many
_SIGNS = {"<=": operator.le, ">=": operator.ge, "<": operator.lt, ">": operator.gt}
_WRITTEN = re.compile(r"\s*([a-z_]+)\s*(<=|>=|<|>)\s*(\d*\.?\d+)\s*")


class Requirement(NamedTuple):
    """A requirement, taken apart."""

    metric: str
    sign: str
    bound: float

    def holds(self, value: float) -> bool:
        """Whether a value meets it."""
        return _SIGNS[self.sign](value, self.bound)


def parse_gate(text: str, on: str = "interval") -> Requirement:
    """A requirement as metric, sign and bound.

    Raises:
        InputError: If it is not written like "attack_success_rate<=0.05", names no metric, or can
            never fail or never hold.

    Example:
        >>> parse_gate("utility >= 0.9")
        Requirement(metric='utility', sign='>=', bound=0.9)
    """
    if on not in ON:
        raise unknown_choice("gate_on", on, ON)
    known = sorted({each.name for each in METRICS})
    found = _WRITTEN.fullmatch(text)
    if found is None or found.group(1) not in known:
        raise InputError(
            f"`require` must be a metric, one of <= >= < >, and a number, such as "
            f"'attack_success_rate<=0.05'; got {text!r}. Metrics: {', '.join(known)}."
        )
    gate = Requirement(found.group(1), found.group(2), float(found.group(3)))
    if gate.metric != "perplexity" and gate.bound > 1:
        hint = f" Did you mean {gate.bound / 100:g}?" if gate.bound <= 100 else ""
        raise InputError(
            f"`require` {text!r}: {gate.metric} lies between 0 and 1, so the bound must too, got "
            f"{gate.bound:g}.{hint}"
        )
    ends = (1.0, float("inf")) if gate.metric == "perplexity" else (0.0, 1.0)
    worst, best = ends if ">" in gate.sign else ends[::-1]
    # The interval of a share reaches beyond 0 and 1 whatever was counted.
    at_best = gate.bound == best
    if not gate.holds(best) or (at_best and on == "interval"):
        raise InputError(
            f"`require` {text!r} can never hold{' on an interval' * at_best}. Give a bound "
            "that can be met, or read the rate alone (--gate-on rate)."
        )
    if gate.holds(worst):
        raise InputError(f"`require` {text!r} can never fail. Give a bound that can be missed.")
    return gate


def check_gates(
    gates: Iterable[str], measurements: Sequence[Measurement], *, on: str = "interval"
) -> tuple[Gate, ...]:
    """Whether requirements hold: each for every suite, condition and judge that has its metric.

    An undefined number holds nothing, and a metric that was not measured fails. A bound from above
    on a share must hold among the answers that are not broken, too: a model that only stammers has
    not withstood an attack.

    Args:
        gates: Requirements, such as "attack_success_rate<=0.05".
        measurements: Of an audit; those by category do not count.
        on: "interval" compares the bound of the interval that lies nearer to failing; "rate" the
            number itself.
    """
    whole = [each for each in measurements if each.category is None]
    found = []
    for text in gates:
        gate = parse_gate(text, on)
        for row in [each for each in whole if each.metric == gate.metric] or [None]:
            value = None if row is None else _compared(row, whole, gate, on)
            found.append(
                Gate(
                    requirement=text,
                    suite=row and row.suite,
                    condition=row and row.condition,
                    judge=row and row.judge,
                    metric=gate.metric,
                    value=value,
                    on=on,
                    passed=value is not None and gate.holds(value),
                    needs=_needs(row, gate, on),
                )
            )
    return tuple(found)


def _needs(row: Measurement | None, gate: Requirement, on: str) -> int | None:
    """The fewest answers with which a requirement can hold; None where there are as many."""
    if row is None or row.interval != "wilson" or on != "interval":
        return None

    def holds(num: int) -> bool:  # with the best count
        best = wilson(num, num).low if ">" in gate.sign else wilson(0, num).high
        return best is not None and gate.holds(best)

    enough = 1
    while not holds(enough):
        enough *= 2
        if enough > _MOST_ANSWERS:
            return None
    fewest = 1 + bisect.bisect_left(range(1, enough), True, key=holds)
    return fewest if row.num < fewest else None


def _compared(
    row: Measurement, rows: Sequence[Measurement], gate: Requirement, on: str
) -> float | None:
    """What a requirement is held against; None if it is undefined."""
    if ">" in gate.sign:
        return row.low if on == "interval" else row.value
    value = row.high if on == "interval" else row.value
    broken = 0
    if metric_of(row.metric, row.kind).outcome in ("complied", "refused"):
        of = (row.suite, row.condition, row.judge, "degenerate_rate")
        broken = next(
            each.count or 0
            for each in rows
            if (each.suite, each.condition, each.judge, each.metric) == of
        )
    if not broken or row.count is None:
        return value
    sound = wilson(row.count, row.num - broken)
    among = sound.high if on == "interval" else sound.rate
    return None if value is None or among is None else max(value, among)
