"""The figures: what each shows of the models; their words are in `templates/figures.json`."""

from collections.abc import Iterator, Sequence

from matplotlib.axes import Axes
from matplotlib.patches import Rectangle
from matplotlib.ticker import LogLocator, NullLocator

from ..audit.measurements import Measurement
from ..audit.outcomes import KINDS, deciding, metrics_of
from .drawing import LOOKS, Drawing, figure_of, legend, lines, look, point, shares, style
from .rows import Run
from .text import Number, interval_names, label, quoted, short
from .verdict import pooled

_NUM_TOKENS = 15
_PANELS = [
    each
    for kind in KINDS
    for each in metrics_of(kind)
    if each.name != "refusal_rate"  # the mirror image of attack success
]
_CURVES = {
    "task_loss": "Task loss (nats)",
    "drift": "Drift (unit of its form)",
    "weighted": "Weighted term of the loss",
}
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


def _rates(runs: Sequence[Run]) -> Iterator[Drawing]:
    """A forest plot: a panel for each metric, in it a row for each suite, condition and judge."""
    every = [(metric, [(index, row) for index, run in enumerate(runs) for row in run.of(metric)])
             for metric in _PANELS]  # fmt: skip
    panels = [(metric, rows, list(dict.fromkeys(_key(row) for _, row in rows)))
              for metric, rows in every if rows]  # fmt: skip
    if not panels:
        return
    labels = [_labels(keys) for _, _, keys in panels]
    heights = [
        len(each) * max(8 + 11 * len(runs), 8 + 12 * (each[0].count("\n") + 1)) for each in labels
    ]
    figure, axes = figure_of(sum(heights) + 38 * len(panels) + 24, heights)
    for each, (metric, rows, keys), names in zip(axes, panels, labels, strict=True):
        for index, row in rows:
            if row.value is not None:
                at = -keys.index(_key(row)) - 0.8 * ((index + 0.5) / len(runs) - 0.5)
                point(each, index, (row.value, at), x=row)
        each.set_title(f"{metric.kind}: {metric.label} ({metric.better}er is better)")
        each.set_yticks([-index for index in range(len(keys))], names)
        each.set_ylim(-len(keys) + 0.5, 0.5)
        each.grid(axis="y", visible=False)
        each.tick_params(axis="y", length=0)
    shares(axes[-1], "x", "share of prompts")
    legend(figure, runs)
    drawn = [row for run in runs for metric in _PANELS for row in run.of(metric)]
    yield Drawing.of("rates", figure, runs, intervals=interval_names(drawn))


def _labels(keys: Sequence[_Key]) -> list[str]:
    """Suite, and of condition and judge what tells the rows apart."""
    columns = [0, *(each for each in (1, 2) if len({key[each] for key in keys}) > 1)]
    return ["\n".join(short(str(key[each])) for each in columns) for key in keys]


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
    figure, (axes,) = figure_of(254)
    for index, attack, utility, at in pairs:
        point(axes, index, at, x=attack, y=utility)
    axes.text(0.05, 0.9, "safe and useful", alpha=0.75)
    shares(axes, "x", "attack success (plain prompts)")
    shares(axes, "y", "task done right")
    legend(figure, runs)
    told = (
        f"{runs[index].name}: {at[0]:.1%} attack success, {at[1]:.1%} of the task done right"
        for index, _, _, at in pairs
    )
    yield Drawing.of("trade-off", figure, runs, points="; ".join(told))


def _categories(runs: Sequence[Run]) -> Iterator[Drawing]:
    """A heat map for each suite and condition: a row for each category, a column for each run."""
    decide = [deciding(kind).name for kind in KINDS]
    found: dict[tuple[str, ...], list[tuple[int, Measurement]]] = {}
    for index, run in enumerate(runs):
        for row in run.measurements:
            if row.category is not None and row.metric in decide:
                key = (row.metric, row.kind, *map(str, _key(row)))
                found.setdefault(key, []).append((index, row))
    for count, rows in enumerate(found.values(), start=1):
        of = rows[0][1]
        names = list(dict.fromkeys(str(row.category) for _, row in rows))
        figure, (axes,) = figure_of(20 * len(names) + 62)
        colour = LOOKS[2].light if of.metric == "utility" else LOOKS[1].light
        for index, row in rows:
            at, text = names.index(str(row.category)), "undefined"
            if row.value is not None:
                # Paler than the colour itself: the ink on it is read on light and dark pages.
                axes.add_patch(Rectangle((index, at), 1, 1, color=colour, alpha=0.62 * row.value,
                                         linewidth=0))  # fmt: skip
                text = f"{100 * row.value:.0f} %"
            axes.text(index + 0.5, at + 0.5, text, ha="center", va="center")
        _name_cells(axes, [run.name for run in runs], names)
        yield Drawing.of(
            "categories", figure, runs, name=f"categories-{count}", metric=label(of),
            what=label(of).capitalize(), suite=of.suite, condition=of.condition,
        )  # fmt: skip


def _name_cells(axes: Axes, columns: Sequence[str], rows: Sequence[str]) -> None:
    """Names at the top and at the left of a heat map, and no lines."""
    axes.set_xlim(0, len(columns))
    axes.set_ylim(len(rows), 0)
    turned = sum(len(short(name)) for name in columns) > 30
    axes.set_xticks(
        [index + 0.5 for index in range(len(columns))], [short(name) for name in columns],
        rotation=30 if turned else 0, ha="left" if turned else "center",
    )  # fmt: skip
    axes.set_yticks([index + 0.5 for index in range(len(rows))], [short(each) for each in rows])
    axes.tick_params(length=0, labeltop=True, labelbottom=False)
    axes.grid(visible=False)
    axes.spines[:].set_visible(False)


def _curves(runs: Sequence[Run]) -> Iterator[Drawing]:
    curves = [run.curve for run in runs]
    panels = {
        column: title
        for column, title in _CURVES.items()
        if any(getattr(row, column) is not None for rows in curves for row in rows)
    }
    if not panels:
        return
    figure, axes = figure_of(110 * len(panels) + 34, [1] * len(panels))
    for panel, (column, title) in zip(axes, panels.items(), strict=True):
        lines(panel, curves, "step", column)
        panel.set_title(title)
    losses = [row.task_loss for rows in curves for row in rows if row.task_loss is not None]
    if losses and min(losses) > 0:
        axes[0].set_yscale("log")
        axes[0].yaxis.set_major_locator(LogLocator(subs=(1, 3)))
        axes[0].yaxis.set_major_formatter("{x:g}")
        axes[0].yaxis.set_minor_locator(NullLocator())
    axes[-1].set_xlabel("training step")
    legend(figure, runs, curves)
    drawn = [run for run in runs if run.curve]
    yield Drawing.of("curves", figure, drawn, panels=", ".join(panels.values()).lower())


def _tokens(runs: Sequence[Run]) -> Iterator[Drawing]:
    drifts: dict[str, dict[int, Number]] = {}
    for index, run in enumerate(runs):
        for row in run.drift.tokens:
            if row.drift is not None:
                drifts.setdefault(row.string, {})[index] = row.drift
    if not drifts:
        return
    largest = sorted(drifts, key=lambda string: -max(drifts[string].values()))[:_NUM_TOKENS]
    figure, (axes,) = figure_of(17 * len(largest) + 54)
    for at, string in enumerate(largest):
        for index, drift in drifts[string].items():
            looks = look(index)
            axes.plot(drift, at, looks.marker, color=looks.light, markersize=5.5)
    axes.set_yticks(range(len(largest)), [short(quoted(each)) for each in largest])
    axes.set_ylim(len(largest) - 0.4, -0.6)
    axes.set_xlim(left=0)
    axes.set_xlabel("drift (squared logits)")
    legend(figure, runs, [run.drift.tokens for run in runs])
    yield Drawing.of("drift-tokens", figure, runs, num=len(largest), of=len(drifts),
                     furthest=quoted(largest[0]))  # fmt: skip


def _positions(runs: Sequence[Run]) -> Iterator[Drawing]:
    tables = [run.drift.positions for run in runs]
    if any(tables):
        figure, (axes,) = figure_of(174)
        lines(axes, tables, "position", "drift")
        axes.set(xlabel="position in the response", ylabel="drift (squared logits)")
        legend(figure, runs, tables)
        yield Drawing.of("drift-positions", figure, runs)


def _mass(runs: Sequence[Run]) -> Iterator[Drawing]:
    tables = [run.drift.checkpoints for run in runs]
    if not any(tables):
        return
    figure, (axes,) = figure_of(174)
    lines(axes, tables, "step", "refusal_mass")
    for index, rows in enumerate(tables):
        known = [(row.step, row.low, row.high) for row in rows
                 if row.low is not None and row.high is not None]  # fmt: skip
        steps, lows, highs = zip(*known, strict=True) if known else ((), (), ())
        axes.fill_between(steps, lows, highs, color=look(index).light, alpha=0.18, linewidth=0)
    axes.set_xlabel("training step")
    shares(axes, "y", "refusal mass")
    legend(figure, runs, tables)
    yield Drawing.of("drift-checkpoints", figure, runs)


def _key(row: Measurement) -> _Key:
    return row.suite, row.condition, row.judge
