"""The figure of the README and the home page, from a dated result of the demo.

    python benchmarks/demo_figure.py benchmarks/results/2026-11-27-demo-default.json docs/demo.svg

Nothing is measured: rates and intervals are those of the file, of its first poisoned run unless
`--poison` names another. The same file and the same matplotlib give the same bytes.
"""

import argparse
import json
from pathlib import Path

from matplotlib.figure import Figure

from moorline.provenance import write_text
from moorline.report.drawing import Drawing, look, style

MODELS = {"aligned": "aligned model", "plain": "plain fine-tuning", "str": "STR"}
PANELS = {
    "harmful: complied": ("attack_success_rate", "harmful"),
    "harmful: refused": ("refusal_rate", "harmful"),
    "harmless: answered": ("compliance_rate", "harmless"),
    "task done right": ("utility", "task"),
}


def run_of(path, poison):
    """The run of a result file that has this share of poisoned rows."""
    runs = json.loads(Path(path).read_text(encoding="utf-8"))["runs"]
    found = [each for each in runs if each["poison"] == poison]
    if not found:
        known = sorted({each["poison"] for each in runs})
        raise SystemExit(f"error: {path} has no run with `poison` {poison}. It has {known}.")
    return found[0]


def rates(run):
    """Of each panel its rows: model, rate, both ends of the interval."""
    every = {
        (model["name"], each["metric"], each["kind"]): each
        for model in run["models"]
        for each in model["measurements"]
        if each["condition"] == "plain" and each["category"] is None
    }
    return {
        title: [(name, every[name, *what]) for name in MODELS] for title, what in PANELS.items()
    }


def draw(run):
    """The figure: a panel for each rate, a row for each model, every rate written beside it."""
    # Two by two and narrow, so that its letters are read on a telephone too.
    figure = Figure(figsize=(5.4, 3.6))
    panels = figure.subplots(2, 2, sharex=True, sharey=True)
    for axes, (title, rows) in zip(panels.flat, rates(run).items(), strict=True):
        for at, (_, row) in enumerate(rows):
            value, low, high = (100 * row[each] for each in ("value", "low", "high"))
            looks = look(at)
            bar = [[max(0.0, value - low)], [max(0.0, high - value)]]
            axes.errorbar(value, -at, xerr=bar, fmt=looks.marker, color=looks.light, capsize=3,
                          markersize=6.5, elinewidth=1.4)  # fmt: skip
            left = value > 50
            axes.annotate(
                f"{value:.1f} %", (low if left else high, -at), (-6 if left else 6, 0),
                textcoords="offset points", va="center", ha="right" if left else "left",
            )  # fmt: skip
        axes.set_title(title)
        axes.set(xlim=(-5, 105), xticks=(0, 50, 100), ylim=(-len(rows) + 0.45, 0.55))
        axes.set_yticks([-at for at in range(len(rows))], MODELS.values())
        axes.grid(axis="y", visible=False)
        axes.tick_params(axis="y", length=0)
    for axes in panels[-1]:
        axes.set_xlabel("%")
    return figure


def svg(run):
    """The figure as the text of an SVG file, without trailing blanks."""
    with style():
        made = Drawing("demo", "", "", "", draw(run)).svg()
    return "\n".join(line.rstrip() for line in made.splitlines()) + "\n"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("result", type=Path, help="file that benchmarks/demo_seeds.py wrote")
    parser.add_argument("figure", type=Path, help="SVG to write")
    parser.add_argument("--poison", type=float, default=0.1, help="share of poisoned rows")
    words = parser.parse_args()
    write_text(words.figure, svg(run_of(words.result, words.poison)))
    print(f"Written to {words.figure}.")


if __name__ == "__main__":
    main()
