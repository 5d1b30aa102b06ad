"""What all figures share: the look of a model, axes, legend, and a drawing with its words."""

import io
import json
import math
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple
from xml.etree import ElementTree

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from ..provenance import write_text
from .rows import Run
from .text import TEMPLATES, Bounded, Number, short

_WORDS = json.loads((TEMPLATES / "figures.json").read_text(encoding="utf-8"))
_SVG = "http://www.w3.org/2000/svg"
ElementTree.register_namespace("", _SVG)
ElementTree.register_namespace("xlink", "http://www.w3.org/1999/xlink")


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


def look(index: int) -> Look:
    """The look of a model by its index; colours come round again, shapes with them."""
    return LOOKS[index % len(LOOKS)]


class Drawing(NamedTuple):
    """One figure with the words that go with it."""

    name: str
    """Name of its files; also where on the page it goes, by the part before the first "-"."""

    title: str
    caption: str
    """How to read it."""

    alternative: str
    """What it shows, for who does not see it."""

    figure: Figure

    @classmethod
    def of(
        cls,
        kind: str,
        figure: Figure,
        runs: Sequence[Run],
        *,
        name: str | None = None,
        **words: Any,
    ) -> "Drawing":
        """A figure of some models, with the words of its kind, filled in."""
        words["names"] = ", ".join(run.name for run in runs)
        filled = {part: text.format(**words) for part, text in _WORDS[kind].items()}
        return cls(name or kind, figure=figure, **filled)

    def svg(self, *, background: str = "white") -> str:
        """The figure as an SVG document."""
        stream = io.StringIO()
        with style():
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
        colours |= {each.light: f"var(--model-{index})" for index, each in enumerate(LOOKS)}
        for element in root.iter():
            for key, value in element.attrib.items():
                for colour, name in colours.items():
                    value = value.replace(colour, name)
                # Ids are unique on a page; each figure counts its own from 1.
                value = re.sub(r"(^|url\()#", rf"\1#{self.name}-", value)
                element.set(key, f"{self.name}-{value}" if key == "id" else value)
        for key in ("width", "height", "version"):
            del root.attrib[key]
        root.attrib |= {"role": "img", "aria-label": self.alternative}
        return ElementTree.tostring(root, encoding="unicode")

    def save(self, folder: Path) -> None:
        """Write the figure into a folder, as SVG and as PNG."""
        write_text(folder / f"{self.name}.svg", self.svg())
        with style():
            self.figure.savefig(folder / f"{self.name}.png", dpi=200, facecolor="white")


@contextmanager
def style() -> Iterator[None]:
    """The style of all figures, while one is drawn or saved."""
    with matplotlib.rc_context(fname=TEMPLATES / "figures.mplstyle"), warnings.catch_warnings():
        # The page's fonts have letters that matplotlib's own lacks.
        warnings.filterwarnings("ignore", message="Glyph .* missing")
        yield


def figure_of(height: int, ratios: Sequence[int] = (1,)) -> tuple[Figure, Sequence[Axes]]:
    """An empty figure as wide as all of them, `height` points high, its panels one below another.

    `ratios` are the heights of the panels, to one another.
    """
    figure = Figure(figsize=(_WIDTH / 72, height / 72))
    axes = figure.subplots(len(ratios), sharex=True, squeeze=False, height_ratios=ratios)
    return figure, list(axes[:, 0])


def point(
    axes: Axes, index: int, at: tuple[Number, Number], *, x: Bounded, y: Bounded | None = None
) -> None:
    """A point in the look of a model, with the intervals of its rates."""
    bars = [
        None if row is None or row.low is None or row.high is None
        # Rounding may put a rate of 0 or 1 outside its interval by a hair.
        else [[max(0.0, value - row.low)], [max(0.0, row.high - value)]]
        for value, row in zip(at, (x, y), strict=True)
    ]  # fmt: skip
    looks = look(index)
    axes.errorbar(
        *at, xerr=bars[0], yerr=bars[1], fmt=looks.marker, color=looks.light, capsize=2.5,
        markersize=5.5, elinewidth=1.3,
    )  # fmt: skip


def lines(axes: Axes, tables: Sequence[Sequence[Any]], along: str, column: str) -> None:
    """A line for each run that has numbers in a column."""
    for index, rows in enumerate(tables):
        known = [row for row in rows if getattr(row, column) is not None]
        looks = look(index)
        axes.plot(
            [getattr(row, along) for row in known], [getattr(row, column) for row in known],
            color=looks.light, linewidth=1.5, marker=looks.marker, markersize=4,
            markevery=max(1, len(known) // 8),
        )  # fmt: skip
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))


def shares(axes: Axes, which: str, label: str) -> None:
    """An axis from 0 to 100 %."""
    axes.set(**{f"{which}lim": (-0.03, 1.03), f"{which}label": label})
    axis = axes.xaxis if which == "x" else axes.yaxis
    axis.set_major_formatter(PercentFormatter(xmax=1, decimals=0, symbol=" %"))


def legend(
    figure: Figure, runs: Sequence[Run], drawn: Sequence[Sequence[Any]] | None = None
) -> None:
    """Names the models of which something is drawn, or all, and makes the figure higher by that."""
    points = [
        figure.axes[0].plot(
            [], [], look(number).marker, color=look(number).light, label=short(run.name)
        )[0]
        for number, run in enumerate(runs)
        if drawn is None or drawn[number]
    ]
    longest = max(len(str(point.get_label())) for point in points)
    columns = max(1, min(4, 48 // (longest + 4)))
    height = figure.get_figheight() + 16 / 72 * math.ceil(len(points) / columns)
    figure.set_figheight(height)
    figure.legend(handles=points, loc="outside upper left", ncols=columns)
