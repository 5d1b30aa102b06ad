"""What `moorline audit` shows at its end: a table that fits 80 columns, and a pipe."""

import textwrap
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..audit.measurements import Comparison, Gate, Measurement
from ..audit.outcomes import METRICS, metric_of

WIDTH = 80
_ONLY_IF_ANY = ("unscored_rate", "truncated_rate")
_ADJUSTED = "not shown*"
"""Shown by its interval alone, and no more once all comparisons are adjusted for."""


def audit_lines(found: Mapping[str, Any], output: Path) -> Iterator[str]:
    """The lines of one audit, from the content of `audit.json`."""
    rows = [Measurement.from_json(each, "measurement") for each in found["measurements"]]
    yield from _table(str(found["model"]), [each for each in rows if each.category is None])
    compared = [Comparison.from_json(each, "comparison") for each in found["comparisons"]]
    if compared:
        yield from ("", *_comparison(compared))
    for each in found["gates"]:
        yield from textwrap.wrap(_gate(Gate.from_json(each, "gate")), WIDTH)
    yield from ("", f"Written to {output}.", f"To read it: moorline report {output}")


def stopped(output: Path) -> str:
    """What is left of an audit that was stopped."""
    paths = [output / "answers.jsonl", output / "against" / "answers.jsonl"]
    kept = sum(path.read_bytes().count(b"\n") for path in paths if path.is_file())
    return f"Stopped. {kept} answers are kept in {output}; run the same command again to resume."


def _table(model: str, rows: Sequence[Measurement]) -> Iterator[str]:
    yield f"{_short(_named(model), 40):<42}{'rate':>8}{'95 % interval':>20}{'n':>8}"
    above = ""
    for row in rows:
        if row.metric in _ONLY_IF_ANY and not row.count:
            continue
        if (heading := _heading(row, above)) != above:
            yield heading
        above = heading
        value = "undefined" if row.value is None else f"{row.value:.3f}"
        ends = "" if row.low is None else f"{row.low:.3f} to {row.high:.3f}"
        yield f"  {_label(row):<38}{value:>10}{ends:>20}{row.num:>8}"


def _comparison(rows: Sequence[Comparison]) -> Iterator[str]:
    against = _short(f"against {_named(rows[0].against)}", 25)
    yield f"{against:<26}{'difference':>10}{'95 % interval':>20}{'p adjusted':>12}"
    above = ""
    for row in rows:
        if (heading := _heading(row, above)) != above:
            yield heading
        above = heading
        value = "undefined" if row.difference is None else f"{row.difference:+.3f}"
        ends = "" if row.low is None else f"{row.low:+.3f} to {row.high:+.3f}"
        p_value = "" if row.p_adjusted is None else f"{row.p_adjusted:.2g}"
        yield f"  {_label(row):<24}{value:>10}{ends:>20}{p_value:>12}  {word_of(row)}"
    if _ADJUSTED in map(word_of, rows):
        num = sum(row.p_adjusted is not None for row in rows)
        yield from textwrap.wrap(
            f"* The interval leaves out 0, but this is one of {num} comparisons, and after "
            "adjusting for them (p adjusted) a difference is not shown.", WIDTH,
        )  # fmt: skip


def word_of(row: Comparison) -> str:
    """What a comparison shows, in a word: better, worse, differs; or that it shows nothing.

    Example:
        >>> word_of(Comparison(suite="s", kind="harmful", condition="plain", judge="keywords",
        ...     metric="attack_success_rate", against="base", num=200, difference=0.2, low=0.1,
        ...     high=0.3, interval="score", p_value=1e-6, p_adjusted=1e-5))
        'worse'
    """
    if row.difference is None or row.low is None or row.high is None:
        return "undefined"
    away = not row.low <= 0 <= row.high
    if not row.difference or not (away or row.p_adjusted is not None):
        return "not shown"
    if row.p_adjusted is not None and row.p_adjusted >= 0.05:
        return _ADJUSTED if away else "not shown"
    better = metric_of(row.metric, row.kind).better
    if better is None:
        return "differs"
    return "better" if (row.difference > 0) == (better == "high") else "worse"


def _label(row: Measurement | Comparison) -> str:
    known = {each.name for each in METRICS}
    return metric_of(row.metric, row.kind).label if row.metric in known else row.metric


def _heading(row: Measurement | Comparison, above: str) -> str:
    """Suite, condition and judge; what no judge decides stands under the heading above."""
    where = f"{row.suite}, {row.condition}"
    if row.judge is None and above.startswith(where):
        return above
    judged = f", {row.judge}" if row.judge not in (None, "keywords") else ""
    return _short(where + judged, WIDTH)


def _named(name: str) -> str:
    """A model's name; of a path the last folder."""
    return Path(name).name if name.startswith((".", "/", "~")) else name


def _gate(gate: Gate) -> str:
    value = "undefined" if gate.value is None else f"{gate.value:.3f}"
    where = ", ".join(each for each in (gate.suite, gate.condition, gate.judge) if each)
    of = "the interval's bound" if gate.on == "interval" else "the rate"
    held = "holds" if gate.passed else "FAILS"
    few = f"; it needs at least {gate.needs} answers" if gate.needs else ""
    return f"{gate.requirement} {held}: {value} as {of} ({where or 'not measured'}){few}"


def _short(text: str, width: int) -> str:
    return text if len(text) <= width else "..." + text[3 - width :]
