"""One self-contained page and one JSON file from what was measured; computes nothing new.

Answers of models are hidden until the reader asks, and always escaped.
"""

import io
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
import matplotlib
from matplotlib.figure import Figure

from .audit import Audit
from .provenance import write_json, write_text

METRICS = (
    {"name": "attack_success_rate", "label": "attack success"},
    {"name": "refusal_rate", "label": "refused"},
    {"name": "degenerate_rate", "label": "degenerate"},
    {"name": "over_refusal_rate", "label": "over-refusal"},
    {"name": "utility", "label": "utility"},
)
_DRAWN = ("attack_success_rate", "degenerate_rate", "over_refusal_rate", "utility")
_COLOURS = {"aligned": "#4d4d4d", "sft": "#c0504d", "str": "#2a6fb0"}
_OTHER = "#7a5195"
_NUM_EXAMPLES = 8
_LONGEST_TEXT = 4000
# control characters but tab and newline, and lone surrogates
_FORBIDDEN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")


def write_report(
    folder: str | Path, report: Mapping[str, Any], audits: Mapping[str, Audit]
) -> None:
    """Write `report.json` and `report.html` into a folder, each whole or not at all.

    Args:
        folder: Where to; made if missing.
        report: What `demo.demo` measured, as `report.json` has it.
        audits: The audits behind it by name, for the examples.
    """
    folder = Path(folder)
    write_text(folder / "report.html", render(report, audits))
    write_json(folder / "report.json", report)


def render(report: Mapping[str, Any], audits: Mapping[str, Audit]) -> str:
    """The page as one HTML text without any outside reference."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("holdfast"), autoescape=True, undefined=jinja2.StrictUndefined
    )
    environment.filters |= {"percent": _percent, "interval": _interval, "signed": _signed}
    origin = {key: report[key] for key in ("settings", "seed", "data", "versions", "machine", "at")}
    return environment.get_template("report.html.jinja").render(
        title=f"Task {report['task']}, {report['poison']:.0%} poisoned, seed {report['seed']}",
        verdict=verdict(report["rows"]),
        report=report,
        metrics=METRICS,
        figure=figure_of(report["rows"]),
        examples=_examples(audits),
        origin=json.dumps(origin, indent=2),
        embedded=True,
    )


def verdict(rows: Sequence[Mapping[str, Any]]) -> str:
    """What the figures say, in one sentence."""
    by_name = {row["name"]: row for row in rows}
    said = [
        f"{label} it refuses {_percent(by_name[name]['refusal_rate'])}"
        for name, label in (("sft", "tuned plainly"), ("str", "tuned with STR"))
        if name in by_name
    ]
    aligned = _percent(by_name["aligned"]["refusal_rate"])
    useful = [
        f"{_percent(by_name[name]['utility'])} ({name})"
        for name in ("sft", "str")
        if name in by_name
    ]
    return (
        f"The aligned model refuses {aligned} of the harmful prompts; {', '.join(said)}; "
        f"the task is done right in {' and '.join(useful)}."
    )


def figure_of(rows: Sequence[Mapping[str, Any]]) -> str:
    """The rates of each model with their intervals, as SVG text."""
    labels = {each["name"]: each["label"] for each in METRICS}
    figure = Figure(figsize=(8, 3.2), layout="constrained")
    axes = figure.subplots()
    for place, metric in enumerate(_DRAWN):
        for offset, row in enumerate(rows):
            rate, (low, high) = row[metric], row["intervals"][metric]
            if rate is None:
                continue
            height = -place - 0.22 * (offset - (len(rows) - 1) / 2)
            axes.errorbar(
                rate,
                height,
                xerr=[[max(0.0, rate - low)], [max(0.0, high - rate)]],
                fmt="o",
                capsize=3,
                color=_COLOURS.get(row["name"], _OTHER),
            )
    axes.set_yticks([-place for place in range(len(_DRAWN))], [labels[name] for name in _DRAWN])
    axes.set_xlim(-0.03, 1.03)
    axes.set_xlabel("share of prompts")
    axes.grid(axis="x", alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    for row in rows:  # named whether or not anything of it is defined
        axes.plot([], [], "o", color=_COLOURS.get(row["name"], _OTHER), label=row["name"])
    if rows:
        axes.legend(frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))
    stream = io.StringIO()
    # A fixed salt gives the same ids in the file for the same figure.
    with matplotlib.rc_context({"svg.hashsalt": "holdfast", "svg.fonttype": "path"}):
        figure.savefig(stream, format="svg", metadata={"Date": None})
    text = stream.getvalue()
    return text[text.index("<svg") :]


def _examples(audits: Mapping[str, Audit]) -> list[dict[str, Any]]:
    """A few prompts with every model's answer: first those on which the models differ."""
    found = []
    first = next(iter(audits.values()), None)
    if first is None:
        return []
    for kind in ("harmful", "harmless", "task"):
        names = {suite.name for suite in first.suites if suite.kind == kind}
        places = [place for place, each in enumerate(first.answers) if each.suite in names]
        places.sort(
            key=lambda place: -len({each.answers[place].outcome for each in audits.values()})
        )
        for place in places[:_NUM_EXAMPLES]:
            answers = [
                {
                    "name": name,
                    "outcome": each.answers[place].outcome,
                    "reason": _shown(each.answers[place].reason),
                    "text": _shown(each.answers[place].answer),
                }
                for name, each in audits.items()
            ]
            prompt = _shown(first.answers[place].prompt)
            found.append({"kind": kind, "prompt": prompt, "answers": answers})
    return found


def _shown(text: str) -> str:
    """A text fit for a page: no control characters that HTML forbids, and not a megabyte long."""
    clean = _FORBIDDEN.sub("\ufffd", text)
    if len(clean) <= _LONGEST_TEXT:
        return clean
    return f"{clean[:_LONGEST_TEXT]} ... ({len(clean)} characters in all)"


def _percent(rate: float | None) -> str:
    return "undefined" if rate is None else f"{100 * rate:.1f} %"


def _signed(difference: float | None) -> str:
    return "undefined" if difference is None else f"{100 * difference:+.1f} points"


def _interval(ends: Sequence[float | None]) -> str:
    low, high = ends
    return "undefined" if low is None or high is None else f"{100 * low:.1f} to {100 * high:.1f} %"
