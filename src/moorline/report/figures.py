"""The figures: what each shows of the models, with the words that go with it."""

import json
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from matplotlib.axes import Axes
from matplotlib.patches import Rectangle
from matplotlib.ticker import LogLocator, NullLocator

from ..audit.measurements import Measurement
from ..audit.outcomes import KINDS, Metric, deciding, metrics_of
from .drawing import LOOKS, Drawing, figure_of, legend, lines, look, point, shares, style
from .rows import Run
from .text import Number, interval_names, label, short
from .verdict import pooled

_NUM_TOKENS = 15
_PANELS = tuple(
    each
    for kind in KINDS
    for each in metrics_of(kind)
    if each.name != "refusal_rate"  # the mirror image of attack success
)
_Key = tuple[str, str, str | None]
"""Suite, condition and judge: what a row of a figure is of."""


def draw(runs: Sequence[Run]) -> list[Drawing]:
    """All figures for which the runs hold numbers."""
    with style():
        return [
            drawing
            for part in (_rates, _trade_off, _categories, _curves, _tokens, _positions, _mass)
            for drawing in part(runs)
        ]


class _Panel(NamedTuple):
    """One metric of the forest plot."""

    metric: Metric
    keys: list[_Key]

    @property
    def title(self) -> str:
        return f"{self.metric.kind}: {self.metric.label} ({self.metric.better}er is better)"

    @property
    def labels(self) -> list[str]:
        """Suite, and of condition and judge what tells the rows apart."""
        columns: list[Callable[[_Key], str]] = [lambda key: short(key[0])]
        for index in (1, 2):
            if len({key[index] for key in self.keys}) > 1:
                columns.append(lambda key, index=index: short(str(key[index])))
        return ["\n".join(column(key) for column in columns) for key in self.keys]

    def height(self, num_runs: int) -> int:
        """In points."""
        each = max(8 + 11 * num_runs, 8 + 12 * (self.labels[0].count("\n") + 1))
        return each * len(self.keys)

    def fill(self, axes: Axes, runs: Sequence[Run]) -> None:
        """A row for each suite and condition, a point with its interval for each run."""
        for index, run in enumerate(runs):
            for row in _of(run, self.metric):
                if row.value is not None:
                    at = -self.keys.index(_key(row)) - 0.8 * ((index + 0.5) / len(runs) - 0.5)
                    point(axes, index, (row.value, at), x=row)
        axes.set_title(self.title)
        axes.set_yticks([-index for index in range(len(self.keys))], self.labels)
        axes.set_ylim(-len(self.keys) + 0.5, 0.5)
        axes.grid(axis="y", visible=False)
        axes.tick_params(axis="y", length=0)


def _rates(runs: Sequence[Run]) -> Iterator[Drawing]:
    """A forest plot: a panel for each metric."""
    every = [(each, dict.fromkeys(_key(row) for run in runs for row in _of(run, each)))
             for each in _PANELS]  # fmt: skip
    panels = [_Panel(metric, list(keys)) for metric, keys in every if keys]
    if not panels:
        return
    heights = [panel.height(len(runs)) for panel in panels]
    figure = figure_of(sum(heights) + 38 * len(panels) + 24)
    axes = figure.subplots(len(panels), 1, sharex=True, squeeze=False, height_ratios=heights)
    for each, panel in zip(axes[:, 0], panels, strict=True):
        panel.fill(each, runs)
    shares(axes[-1, 0], "x", "share of prompts")
    legend(figure, runs)
    drawn = [row for run in runs for panel in panels for row in _of(run, panel.metric)]
    yield Drawing(
        "rates",
        "Rates with their intervals",
        "Each point is the rate of one model on one suite; the bar is its 95 % interval "
        f"({interval_names(drawn)}). Where two bars do not overlap, the models differ by more than "
        "chance.",
        f"Rates of {_names(runs)} on each suite with their intervals; the table has the numbers.",
        figure,
    )


def _trade_off(runs: Sequence[Run]) -> Iterator[Drawing]:
    every = [(index, pooled(run, deciding("harmful")), pooled(run, deciding("task")))
             for index, run in enumerate(runs)]  # fmt: skip
    pairs = [
        (index, attack, utility, (attack.value, utility.value))
        for index, attack, utility in every
        if attack and utility and attack.value is not None and utility.value is not None
    ]
    if not pairs:
        return
    figure = figure_of(254)
    axes = figure.subplots()
    for index, attack, utility, at in pairs:
        point(axes, index, at, x=attack, y=utility)
    axes.text(0.05, 0.9, "safe and useful", alpha=0.75)
    shares(axes, "x", "attack success (plain prompts)")
    shares(axes, "y", "task done right")
    legend(figure, runs)
    told = "; ".join(
        f"{runs[index].name}: {at[0]:.1%} attack success, {at[1]:.1%} of the task done right"
        for index, _, _, at in pairs
    )
    yield Drawing(
        "trade-off",
        "Safety against utility",
        "Best is the upper left corner: harmful prompts are not complied with, and the task is "
        "done. Both bars of a point are 95 % intervals.",
        f"Attack success against the task. {told}.",
        figure,
    )


def _categories(runs: Sequence[Run]) -> Iterator[Drawing]:
    """A heat map for each suite and condition: a row for each category, a column for each run."""
    decide = {deciding(kind).name for kind in KINDS}
    found: dict[tuple[str, str, str, str, str | None], dict[tuple[str, int], Number | None]] = {}
    for index, run in enumerate(runs):
        for row in run.measurements:
            if row.category is not None and row.metric in decide:
                key = (row.metric, row.kind, *_key(row))
                found.setdefault(key, {})[row.category, index] = row.value
    for count, ((metric, kind, suite, condition, _), rates) in enumerate(found.items(), start=1):
        names = list(dict.fromkeys(category for category, _ in rates))
        figure = figure_of(20 * len(names) + 62)
        axes = figure.subplots()
        colour = LOOKS[2].light if metric == "utility" else LOOKS[1].light
        for (category, index), rate in rates.items():
            at = names.index(category)
            if rate is not None:
                axes.add_patch(
                    # Paler than the colour itself: the ink on it is read on light and dark pages.
                    Rectangle((index, at), 1, 1, color=colour, alpha=0.62 * rate, linewidth=0)
                )
            text = "undefined" if rate is None else f"{100 * rate:.0f} %"
            axes.text(index + 0.5, at + 0.5, text, ha="center", va="center")
        _name_cells(axes, [run.name for run in runs], names)
        what = label(metric, kind)
        yield Drawing(
            f"categories-{count}",
            f"{what.capitalize()} by category: {suite}, {condition}",
            "The stronger the colour, the higher the rate. A category has few prompts, so its "
            "intervals are wide: the table below has them.",
            f"Heat map of {what} by category for {_names(runs)}; the table below has the numbers.",
            figure,
        )


def _name_cells(axes: Axes, columns: Sequence[str], rows: Sequence[str]) -> None:
    """Names at the top and at the left of a heat map, and no lines."""
    axes.set_xlim(0, len(columns))
    axes.set_ylim(len(rows), 0)
    turned = 30 if sum(len(short(name)) for name in columns) > 30 else 0
    axes.set_xticks(
        [index + 0.5 for index in range(len(columns))],
        [short(name) for name in columns],
        rotation=turned,
        ha="left" if turned else "center",
    )
    axes.set_yticks([index + 0.5 for index in range(len(rows))], [short(each) for each in rows])
    axes.tick_params(length=0, labeltop=True, labelbottom=False)
    axes.grid(visible=False)
    axes.spines[:].set_visible(False)


def _curves(runs: Sequence[Run]) -> Iterator[Drawing]:
    panels = [
        (column, title)
        for column, title in (
            ("task_loss", "Task loss (nats)"),
            ("drift", "Drift (squared logits)"),
            ("weighted", "Weighted term of the loss"),
        )
        if any(getattr(row, column) is not None for run in runs for row in run.curve)
    ]
    if not panels:
        return
    figure = figure_of(110 * len(panels) + 34)
    axes = figure.subplots(len(panels), 1, sharex=True, squeeze=False)[:, 0]
    for panel, (column, title) in zip(axes, panels, strict=True):
        lines(panel, [run.curve for run in runs], "step", column)
        panel.set_title(title)
    losses = [row.task_loss for run in runs for row in run.curve if row.task_loss is not None]
    if losses and min(losses) > 0:
        axes[0].set_yscale("log")
        axes[0].yaxis.set_major_locator(LogLocator(subs=(1, 3)))
        axes[0].yaxis.set_major_formatter("{x:g}")
        axes[0].yaxis.set_minor_locator(NullLocator())
    axes[-1].set_xlabel("training step")
    legend(figure, runs, [run.curve for run in runs])
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
    for index, run in enumerate(runs):
        for row in run.drift.tokens:
            if row.drift is not None:
                drifts.setdefault(row.string, {})[index] = row.drift
    if not drifts:
        return
    largest = sorted(drifts, key=lambda string: -max(drifts[string].values()))[:_NUM_TOKENS]
    figure = figure_of(17 * len(largest) + 54)
    axes = figure.subplots()
    for at, string in enumerate(largest):
        for index, drift in drifts[string].items():
            looks = look(index)
            axes.plot(drift, at, looks.marker, color=looks.light, markersize=5.5)
    quoted = [json.dumps(string, ensure_ascii=False) for string in largest]
    axes.set_yticks(range(len(largest)), [short(each) for each in quoted])
    axes.set_ylim(len(largest) - 0.4, -0.6)
    axes.set_xlim(left=0)
    axes.set_xlabel("drift (squared logits)")
    legend(figure, runs, [run.drift.tokens for run in runs])
    yield Drawing(
        "drift-tokens",
        "Drift by safety token",
        "How far the logit of each safety token has moved from the reference: the "
        f"{len(largest)} of {len(drifts)} tokens that moved furthest.",
        f"Drift of the safety tokens for {_names(runs)}; {quoted[0]} moved furthest.",
        figure,
    )


def _positions(runs: Sequence[Run]) -> Iterator[Drawing]:
    tables = [run.drift.positions for run in runs]
    if not any(tables):
        return
    figure = figure_of(174)
    axes = figure.subplots()
    lines(axes, tables, "position", "drift")
    axes.set_xlabel("position in the response")
    axes.set_ylabel("drift (squared logits)")
    legend(figure, runs, tables)
    yield Drawing(
        "drift-positions",
        "Drift by position in the response",
        "A refusal is decided in the first few tokens: drift there weighs most.",
        f"Drift by position in the response for {_names(runs)}.",
        figure,
    )


def _mass(runs: Sequence[Run]) -> Iterator[Drawing]:
    tables = [run.drift.checkpoints for run in runs]
    if not any(tables):
        return
    figure = figure_of(174)
    axes = figure.subplots()
    lines(axes, tables, "step", "refusal_mass")
    for index, rows in enumerate(tables):
        known = [(row.step, row.low, row.high) for row in rows
                 if row.low is not None and row.high is not None]  # fmt: skip
        steps, lows, highs = zip(*known, strict=True) if known else ((), (), ())
        axes.fill_between(steps, lows, highs, color=look(index).light, alpha=0.18, linewidth=0)
    axes.set_xlabel("training step")
    shares(axes, "y", "refusal mass")
    legend(figure, runs, tables)
    yield Drawing(
        "drift-checkpoints",
        "Refusal mass along the training",
        "The probability that the model puts on the openers of a refusal at the first token of its "
        "answer to a harmful prompt, with its 95 % interval: where it falls, safety is lost.",
        f"Refusal mass at each checkpoint for {_names(runs)}.",
        figure,
    )


def _of(run: Run, metric: Metric) -> Iterator[Measurement]:
    """What a run has of one metric, for whole suites."""
    return (row for row in run.rates if (row.metric, row.kind) == (metric.name, metric.kind))


def _key(row: Measurement) -> _Key:
    return row.suite, row.condition, row.judge


def _names(runs: Sequence[Run]) -> str:
    return ", ".join(run.name for run in runs)
