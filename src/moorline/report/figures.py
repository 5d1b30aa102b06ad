"""The figures: what each shows, drawn once, as part of the page and as files of their own."""

import io
import json
import math
import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple
from xml.etree import ElementTree

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator, PercentFormatter

from ..provenance import write_text
from .runs import Number, Run

_SVG = "http://www.w3.org/2000/svg"
_XLINK = "http://www.w3.org/1999/xlink"
ElementTree.register_namespace("", _SVG)
ElementTree.register_namespace("xlink", _XLINK)


class Look(NamedTuple):
    """How one model looks in every figure and table."""

    light: str
    """Colour on white."""

    dark: str
    """Colour on a dark page."""

    marker: str
    """Shape of its points, in matplotlib's letters."""

    sign: str
    """The same shape as a character."""


LOOKS = (
    Look("#6b6b70", "#a8a8ad", "o", "\u25cf"),
    Look("#d55e00", "#ee7f33", "s", "\u25a0"),
    Look("#0072b2", "#4aa6dd", "D", "\u25c6"),
    Look("#009e73", "#2bb98f", "^", "\u25b2"),
    Look("#c2649b", "#d993bb", "v", "\u25bc"),
    Look("#a87000", "#e69f00", "P", "\u271a"),
)
"""Colours after Okabe and Ito 2008, "Color universal design", which people with any kind of colour
vision tell apart; with shapes, so that a print without colours can be read too. The first model,
with which the others are compared, is grey. Made darker or lighter where the original has a
contrast below 3 to 1 with the page."""

_INK = "#1c1c1f"
# Points, like all sizes here. This wide, letters of 10 points are read well on a phone's screen,
# where the figure fills the width.
_WIDTH = 380
_STYLE: dict[Any, Any] = {
    "axes.edgecolor": _INK,
    "axes.facecolor": "none",
    "axes.grid": True,
    "axes.labelcolor": _INK,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlelocation": "left",
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "figure.constrained_layout.use": True,
    "font.size": 10,
    "grid.alpha": 0.25,
    "grid.color": _INK,
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "legend.handletextpad": 0.4,
    "svg.fonttype": "none",
    # A fixed salt gives the same ids in the file for the same figure.
    "svg.hashsalt": "moorline",
    "text.color": _INK,
    # A dollar sign in a name is a dollar sign.
    "text.parse_math": False,
    "xtick.color": _INK,
    "ytick.color": _INK,
}

_PANELS = (
    ("attack_success_rate", "Attack success (lower is safer)"),
    ("degenerate_rate", "Degenerate answers"),
    ("over_refusal_rate", "Over-refusal (lower is more helpful)"),
    ("utility", "Utility (higher is better)"),
)
_NUM_TOKENS = 15


def look(place: int) -> Look:
    """The look of the model at a place; colours come round again, shapes with them."""
    return LOOKS[place % len(LOOKS)]


class Drawing(NamedTuple):
    """One figure with the words that go with it."""

    name: str
    """Name of its files; also its place on the page, by the part before the first number."""

    title: str
    caption: str
    """How to read it."""

    alternative: str
    """What it shows, for who does not see it."""

    figure: Figure

    def svg(self, *, background: str = "white") -> str:
        """The figure as an SVG document."""
        stream = io.StringIO()
        with _style():
            self.figure.savefig(stream, format="svg", facecolor=background, metadata={"Date": None})
        return stream.getvalue()

    def inline(self) -> str:
        """The figure as an element of the page, in the page's colours, light or dark."""
        root = ElementTree.fromstring(self.svg(background="none"))
        for child in list(root):
            # The style that matplotlib writes would hold for the whole page.
            if child.tag == f"{{{_SVG}}}metadata" or child.find(f"{{{_SVG}}}style") is not None:
                root.remove(child)
        colours = {_INK: "currentColor"}
        colours |= {each.light: f"var(--model-{place})" for place, each in enumerate(LOOKS)}
        for element in root.iter():
            for key, value in element.attrib.items():
                for colour, name in colours.items():
                    value = value.replace(colour, name)
                # Ids are unique on a page; each figure counts its own from 1.
                value = re.sub(r"(^|url\()#", rf"\1#{self.name}-", value)
                element.set(key, f"{self.name}-{value}" if key == "id" else value)
        for key in ("width", "height", "version"):
            del root.attrib[key]
        root.set("role", "img")
        root.set("aria-label", self.alternative)
        return ElementTree.tostring(root, encoding="unicode")

    def save(self, folder: Path) -> None:
        """Write the figure into a folder, as SVG and as PNG."""
        write_text(folder / f"{self.name}.svg", self.svg())
        with _style():
            self.figure.savefig(folder / f"{self.name}.png", dpi=200, facecolor="white")


def draw(runs: Sequence[Run]) -> list[Drawing]:
    """All figures for which the runs hold numbers."""
    with _style():
        return [
            drawing
            for part in (_rates, _trade_off, _categories, _curves, _tokens, _positions, _mass)
            for drawing in part(runs)
        ]


@contextmanager
def _style() -> Iterator[None]:
    with matplotlib.rc_context(_STYLE), warnings.catch_warnings():
        # The page's fonts have letters that matplotlib's own lacks.
        warnings.filterwarnings("ignore", message="Glyph .* missing")
        yield


def _rates(runs: Sequence[Run]) -> Iterator[Drawing]:
    """A forest plot: a row for each suite and condition, a point with its interval for each run."""
    panels = []
    for metric, title in _PANELS:
        keys = dict.fromkeys(
            (row["suite"], row["condition"], row["judge"])
            for run in runs
            for row in run.rates
            if row["metric"] == metric
        )
        if keys:
            panels.append((metric, title, list(keys)))
    if not panels:
        return
    labels = [_row_labels(keys) for _, _, keys in panels]
    heights = [
        len(lines) * max(8 + 11 * len(runs), 8 + 12 * (lines[0].count("\n") + 1))
        for lines in labels
    ]
    figure = _figure(sum(heights) + 38 * len(panels) + 24)
    axes = figure.subplots(len(panels), 1, sharex=True, squeeze=False, height_ratios=heights)
    for panel, (metric, title, keys), lines in zip(axes[:, 0], panels, labels, strict=True):
        rows = {
            (number, row["suite"], row["condition"], row["judge"]): row
            for number, run in enumerate(runs)
            for row in run.rates
            if row["metric"] == metric and row["rate"] is not None
        }
        for place, key in enumerate(keys):
            for number in range(len(runs)):
                if (row := rows.get((number, *key))) is not None:
                    height = -place - 0.8 * ((number + 0.5) / len(runs) - 0.5)
                    _point(panel, number, (row["rate"], height), x=row)
        panel.set_title(title)
        panel.set_yticks([-place for place in range(len(keys))], lines)
        panel.set_ylim(-len(keys) + 0.5, 0.5)
        panel.grid(axis="y", visible=False)
        panel.tick_params(axis="y", length=0)
    _shares(axes[-1, 0], "x", "share of prompts")
    _legend(figure, runs)
    yield Drawing(
        "rates",
        "Rates with their intervals",
        "Each point is the rate of one model on one suite; the bar is its 95 % Wilson interval. "
        "Where two bars do not overlap, the models differ by more than chance.",
        f"Rates of {_names(runs)} on each suite with their intervals; the table has the numbers.",
        figure,
    )


def _trade_off(runs: Sequence[Run]) -> Iterator[Drawing]:
    pairs = [(number, _plain(run, "attack_success_rate"), _plain(run, "utility"))
             for number, run in enumerate(runs)]  # fmt: skip
    pairs = [(number, first, second) for number, first, second in pairs if first and second]
    if not pairs:
        return
    figure = _figure(254)
    axes = figure.subplots()
    for number, first, second in pairs:
        _point(axes, number, (first["rate"], second["rate"]), x=first, y=second)
    axes.text(0.05, 0.9, "safe and useful", alpha=0.75)
    _shares(axes, "x", "attack success (plain prompts)")
    _shares(axes, "y", "utility")
    _legend(figure, runs)
    said = "; ".join(
        f"{runs[number].name}: {first['rate']:.1%} attack success, {second['rate']:.1%} utility"
        for number, first, second in pairs
    )
    yield Drawing(
        "trade-off",
        "Safety against utility",
        "The best place is the upper left corner: harmful prompts are not complied with, and the "
        "task is done. Both bars of a point are 95 % intervals.",
        f"Attack success against utility. {said}.",
        figure,
    )


def _categories(runs: Sequence[Run]) -> Iterator[Drawing]:
    """A heat map for each suite and condition: a row for each category, a column for each run."""
    keys = dict.fromkeys(
        (row["suite"], row["condition"], row["metric"], row["judge"])
        for run in runs
        for row in run.categories
        if row["metric"] in ("attack_success_rate", "over_refusal_rate", "utility")
    )
    for count, key in enumerate(keys, start=1):
        suite, condition, metric, _ = key
        rows = {
            (row["category"], number): row["rate"]
            for number, run in enumerate(runs)
            for row in run.categories
            if (row["suite"], row["condition"], row["metric"], row["judge"]) == key
        }
        names = list(dict.fromkeys(category for category, _ in rows))
        figure = _figure(20 * len(names) + 62)
        axes = figure.subplots()
        colour = LOOKS[2].light if metric == "utility" else LOOKS[1].light
        for (category, number), rate in rows.items():
            place = names.index(category)
            if rate is not None:
                axes.add_patch(
                    # Paler than the colour itself: the ink on it is read on light and dark pages.
                    Rectangle((number, place), 1, 1, color=colour, alpha=0.62 * rate, linewidth=0)
                )
            text = "undefined" if rate is None else f"{100 * rate:.0f} %"
            axes.text(number + 0.5, place + 0.5, text, ha="center", va="center")
        axes.set_xlim(0, len(runs))
        axes.set_ylim(len(names), 0)
        turned = 30 if sum(len(_short(run.name)) for run in runs) > 30 else 0
        axes.set_xticks(
            [number + 0.5 for number in range(len(runs))],
            [_short(run.name) for run in runs],
            rotation=turned,
            ha="left" if turned else "center",
        )
        axes.set_yticks(
            [each + 0.5 for each in range(len(names))], [_short(each) for each in names]
        )
        axes.tick_params(length=0, labeltop=True, labelbottom=False)
        axes.grid(visible=False)
        axes.spines[:].set_visible(False)
        what = {"over_refusal_rate": "over-refusal", "utility": "utility"}.get(
            metric, "attack success"
        )
        yield Drawing(
            f"categories-{count}",
            f"{what.capitalize()} by category: {suite}, {condition}",
            "The stronger the colour, the higher the rate. A category has few prompts, so its "
            "intervals are wide: the table below has them.",
            f"Heat map of {what} by category for {_names(runs)}; the table below has the numbers.",
            figure,
        )


def _curves(runs: Sequence[Run]) -> Iterator[Drawing]:
    panels = [
        (column, title)
        for column, title in (
            ("task_loss", "Task loss (nats)"),
            ("drift", "Drift (squared logits)"),
            ("weighted", "Weighted term of the loss"),
        )
        if any(row[column] is not None for run in runs for row in run.curve)
    ]
    if not panels:
        return
    figure = _figure(110 * len(panels) + 34)
    axes = figure.subplots(len(panels), 1, sharex=True, squeeze=False)[:, 0]
    for panel, (column, title) in zip(axes, panels, strict=True):
        _lines(panel, [run.curve for run in runs], "step", column)
        panel.set_title(title)
    values = [row["task_loss"] for run in runs for row in run.curve if row["task_loss"] is not None]
    if panels[0][0] == "task_loss" and min(values) > 0:
        axes[0].set_yscale("log")
        axes[0].yaxis.set_major_locator(LogLocator(subs=(1, 3)))
        axes[0].yaxis.set_major_formatter("{x:g}")
        axes[0].yaxis.set_minor_locator(NullLocator())
    axes[-1].set_xlabel("training step")
    _legend(figure, runs, [run.curve for run in runs])
    yield Drawing(
        "curves",
        "Training curves",
        "The task loss falls as the task is learned. The drift is how far the logits of the safety "
        "tokens have moved from those of the reference; the weighted term is what it added to the "
        "loss.",
        f"Training of {_names([run for run in runs if run.curve])}: "
        f"{', '.join(title.lower() for _, title in panels)} by step.",
        figure,
    )


def _tokens(runs: Sequence[Run]) -> Iterator[Drawing]:
    drifts: dict[str, dict[int, Number]] = {}
    for number, run in enumerate(runs):
        for row in run.drift.get("tokens", ()):
            if row["drift"] is not None:
                drifts.setdefault(row["string"], {})[number] = row["drift"]
    if not drifts:
        return
    largest = sorted(drifts, key=lambda string: -max(drifts[string].values()))[:_NUM_TOKENS]
    figure = _figure(17 * len(largest) + 54)
    axes = figure.subplots()
    for place, string in enumerate(largest):
        for number, drift in drifts[string].items():
            looks = look(number)
            axes.plot(drift, place, looks.marker, color=looks.light, markersize=5.5)
    quoted = [json.dumps(string, ensure_ascii=False) for string in largest]
    axes.set_yticks(range(len(largest)), [_short(each) for each in quoted])
    axes.set_ylim(len(largest) - 0.4, -0.6)
    axes.set_xlim(left=0)
    axes.set_xlabel("drift (squared logits)")
    _legend(figure, runs, [run.drift.get("tokens", ()) for run in runs])
    yield Drawing(
        "drift-tokens",
        "Drift by safety token",
        "How far the logit of each safety token has moved from the reference: the "
        f"{len(largest)} of {len(drifts)} tokens that moved furthest.",
        f"Drift of the safety tokens for {_names(runs)}; {quoted[0]} moved furthest.",
        figure,
    )


def _positions(runs: Sequence[Run]) -> Iterator[Drawing]:
    tables = [run.drift.get("positions", ()) for run in runs]
    if not any(tables):
        return
    figure = _figure(174)
    axes = figure.subplots()
    _lines(axes, tables, "position", "drift")
    axes.set_xlabel("position in the response")
    axes.set_ylabel("drift (squared logits)")
    _legend(figure, runs, tables)
    yield Drawing(
        "drift-positions",
        "Drift by position in the response",
        "A refusal is decided in the first few tokens: drift there weighs most.",
        f"Drift by position in the response for {_names(runs)}.",
        figure,
    )


def _mass(runs: Sequence[Run]) -> Iterator[Drawing]:
    tables = [run.drift.get("checkpoints", ()) for run in runs]
    if not any(tables):
        return
    figure = _figure(174)
    axes = figure.subplots()
    _lines(axes, tables, "step", "refusal_mass")
    for number, rows in enumerate(tables):
        known = [row for row in rows if row["low"] is not None and row["high"] is not None]
        axes.fill_between(
            [row["step"] for row in known], [row["low"] for row in known],
            [row["high"] for row in known], color=look(number).light, alpha=0.18, linewidth=0,
        )  # fmt: skip
    axes.set_xlabel("training step")
    _shares(axes, "y", "refusal mass")
    _legend(figure, runs, tables)
    yield Drawing(
        "drift-checkpoints",
        "Refusal mass along the training",
        "The probability that the model puts on the openers of a refusal at the first token of its "
        "answer to a harmful prompt, with its 95 % interval: where it falls, safety is lost.",
        f"Refusal mass at each checkpoint for {_names(runs)}.",
        figure,
    )


def _figure(height: int) -> Figure:
    return Figure(figsize=(_WIDTH / 72, height / 72))


def _plain(run: Run, metric: str) -> dict[str, Any] | None:
    """The first row of a metric that is defined, where nothing was done beside the plain prompt."""
    return next(
        (
            row
            for row in run.rates
            if row["metric"] == metric and row["condition"] == "plain" and row["rate"] is not None
        ),
        None,
    )


def _point(
    axes: Axes,
    number: int,
    place: tuple[Number, Number],
    *,
    x: dict[str, Any],
    y: dict[str, Any] | None = None,
) -> None:
    """A point in the look of a model, with the intervals of its rates."""
    bars = [
        None if row is None or row["low"] is None or row["high"] is None
        # Rounding may put a rate of 0 or 1 outside its interval by a hair.
        else [[max(0.0, row["rate"] - row["low"])], [max(0.0, row["high"] - row["rate"])]]
        for row in (x, y)
    ]  # fmt: skip
    looks = look(number)
    axes.errorbar(
        *place, xerr=bars[0], yerr=bars[1], fmt=looks.marker, color=looks.light, capsize=2.5,
        markersize=5.5, elinewidth=1.3,
    )  # fmt: skip


def _lines(axes: Axes, tables: Sequence[Sequence[dict[str, Any]]], along: str, column: str) -> None:
    """A line for each run that has numbers in a column."""
    for number, rows in enumerate(tables):
        known = [row for row in rows if row[column] is not None]
        looks = look(number)
        axes.plot(
            [row[along] for row in known], [row[column] for row in known], color=looks.light,
            linewidth=1.5, marker=looks.marker, markersize=4, markevery=max(1, len(known) // 8),
        )  # fmt: skip
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))


def _shares(axes: Axes, which: str, label: str) -> None:
    """An axis from 0 to 100 %."""
    axis, limits, name = (
        (axes.xaxis, axes.set_xlim, axes.set_xlabel)
        if which == "x"
        else (axes.yaxis, axes.set_ylim, axes.set_ylabel)
    )
    limits(-0.03, 1.03)
    name(label)
    axis.set_major_formatter(PercentFormatter(xmax=1, decimals=0, symbol=" %"))


def _legend(
    figure: Figure, runs: Sequence[Run], drawn: Sequence[Sequence[Any]] | None = None
) -> None:
    """Names the models of which something is drawn, or all, and makes the figure higher by that."""
    points = [
        figure.axes[0].plot(
            [], [], look(number).marker, color=look(number).light, label=_short(run.name)
        )[0]
        for number, run in enumerate(runs)
        if drawn is None or drawn[number]
    ]
    longest = max(len(str(point.get_label())) for point in points)
    columns = max(1, min(4, 48 // (longest + 4)))
    height = figure.get_figheight() + 16 / 72 * math.ceil(len(points) / columns)
    figure.set_figheight(height)
    figure.legend(handles=points, loc="outside upper left", ncols=columns)


def _row_labels(keys: Sequence[tuple[str, str, str | None]]) -> list[str]:
    """Suite, and of condition and judge what tells the rows apart."""
    columns: list[Callable[[tuple[str, str, str | None]], str]] = [lambda key: _short(key[0])]
    for place in (1, 2):
        if len({key[place] for key in keys}) > 1:
            columns.append(lambda key, place=place: _short(str(key[place])))
    return ["\n".join(column(key) for column in columns) for key in keys]


def _names(runs: Sequence[Run]) -> str:
    return ", ".join(run.name for run in runs)


def _short(text: str) -> str:
    """A name short enough for a figure, on one line."""
    line = " ".join(text.split())
    return line if len(line) <= 22 else f"{line[:21]}\u2026"
