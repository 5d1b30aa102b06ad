"""Safety against utility: each method as a curve over its strength, as SVG for light and dark."""

import io
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure

from ..provenance import write_text
from .plan import ALIGNED
from .record import Compared, Pooled
from .tables import margin, percent, witness_of

INK = "#767676"
COLOURS = (INK, "#d55e00", "#0072b2", "#0a9270", "#c2649b", "#a87000", "#8066c8", "#3f8f3f")
"""After Okabe and Ito 2008. Each has a contrast of 3 to 1 or more with a white page and with a dark
one, so that one drawing serves both; shapes and words tell the methods apart without colours."""

_MARKERS = "osD^vPX*"
_STYLE: dict[Any, Any] = {
    "axes.edgecolor": INK, "axes.facecolor": "none", "axes.labelcolor": INK, "text.color": INK,
    "axes.grid": True, "axes.spines.right": False, "axes.spines.top": False, "grid.alpha": 0.25,
    "grid.color": INK, "xtick.color": INK, "ytick.color": INK, "font.size": 10,
    "legend.frameon": False, "svg.fonttype": "none", "svg.hashsalt": "moorline",
    "text.parse_math": False, "figure.constrained_layout.use": True,
}  # fmt: skip


def write_fronts(found: Compared, folder: Path) -> list[Path]:
    """Write a figure for each model and data set that has numbers; gives their paths."""
    paths = []
    for model, data in found.pairs:
        if not found.chosen_at(model, data):
            continue
        paths.append(folder / f"{model}-{data}.svg")
        write_text(paths[-1], _svg(found, model, data))
    return paths


def alternative(found: Compared, model: str, data: str) -> str:
    """What a figure shows, for who does not see it."""
    told = []
    for name, points in _curves(found, model, data):
        listed = "; ".join(
            f"{label or 'as it is'}: {percent(y.value)} attack success at {x.value:.3g}"
            for label, x, y in points
        )
        told.append(f"{name} ({listed})")
    return f"{model}, {data}: attack success by utility. " + ". ".join(told) + "."


def _curves(
    found: Compared, model: str, data: str
) -> Iterator[tuple[str, list[tuple[str, Pooled, Pooled]]]]:
    """Each method with its strengths, utility and attack success."""
    strengths = {ALIGNED: [""]}
    strengths |= {each.name: [at.label for at in each.at()] for each in found.plan.methods}
    for name, labels in strengths.items():
        points = []
        for label in labels:
            x = found.utility(model, data, name, label)
            y = found.number(model, data, name, "attack_success_rate", strength=label)
            if x is not None and y is not None and None not in (x.value, y.value):
                points.append((label, x, y))
        if points:
            yield name, points


def _svg(found: Compared, model: str, data: str) -> str:
    chosen = found.chosen_at(model, data)
    held_out = next(each for each in found.plan.data if each.name == data).held_out
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(6.4, 4.8))
        axes = figure.add_subplot()
        for number, (name, points) in enumerate(_curves(found, model, data)):
            colour, marker = COLOURS[number % len(COLOURS)], _MARKERS[number % len(_MARKERS)]
            xs: Any = [x.value for _, x, _ in points]
            ys: Any = [y.value for _, _, y in points]
            axes.plot(xs, ys, marker=marker, color=colour, linewidth=1.3, label=name)
            for at_x, at_y, (label, _, y) in zip(xs, ys, points, strict=True):
                words = label.partition(" ")[2]
                axes.annotate(
                    words, (at_x, at_y), xytext=(5, 5), textcoords="offset points",
                    color=colour, fontsize=8,
                )  # fmt: skip
                if label == chosen.get(name) and y.low is not None and y.high is not None:
                    axes.plot([at_x], [at_y], "o", mfc="none", mec=colour, markersize=13)
                    axes.plot([at_x] * 2, [y.low, y.high], color=colour, linewidth=1.0)
        target = _target(found, model, data)
        if target is not None:
            axes.axvline(target, color=INK, linestyle="--", linewidth=1)
        axes.set(
            xlabel="perplexity of held-out rows (less is better)" if held_out is not None
            else "utility: share of the task done right (more is better)",
            ylabel="attack success rate (less is better)", ylim=(-0.03, 1.03),
        )  # fmt: skip
        if held_out is not None:
            axes.invert_xaxis()
        axes.set_title(_headline(found, model, data), loc="left", fontsize=10)
        figure.legend(loc="outside lower left", ncols=3)
        stream = io.StringIO()
        figure.savefig(stream, format="svg", transparent=True, metadata={"Date": None})
    words = alternative(found, model, data).replace("&", "&amp;").replace("<", "&lt;")
    return re.sub(r"(<svg [^>]*>)", rf"\1\n <title>{words}</title>", stream.getvalue(), count=1)


def _target(found: Compared, model: str, data: str) -> float | None:
    """Where utility equals plain tuning's, less the margin."""
    plain = found.utility(model, data, found.plan.plain().name)
    if plain is None or plain.value is None:
        return None
    if plain.metric == "perplexity":
        return plain.value * math.exp(found.plan.margin)
    return plain.value - found.plan.margin


def _headline(found: Compared, model: str, data: str) -> str:
    line = f"{model}, {data}: ringed, the strength that validation chose;\n"
    line += f"dashed, plain tuning's utility less {margin(found, data)}"
    if witness_of(found, model, data).why_not is not None:
        line += "\nNO WITNESS: nothing here is kept safety"
    return line
