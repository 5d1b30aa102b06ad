"""One self-contained page from what was measured, its figures, and a model card's section.

Nothing is computed here: the numbers are read from files and shown, each with its interval.
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..provenance import write_json, write_text
from .card import write_card
from .figures import draw
from .page import METRICS, examples_of, headline, listed, render, verdict
from .runs import Run, read_runs, runs_of_demo, shown

__all__ = ["METRICS", "report", "verdict", "write_card", "write_report"]

_DEMO_NOTE = (
    "Models of another size: this one has about a million parameters and a closed world of "
    'sentences, in which every "harmful" answer is a placeholder.'
)


def report(folders: Sequence[str | Path], output: str | Path) -> dict[str, Any]:
    """Show what the files of some folders hold, one model for each folder, side by side.

    Writes `report.html`, `report.json` with the same content but for the text of answers, and PNG
    and SVG of each figure under `figures/`. The same files give the same page.

    What it cannot see: whether the folders belong together. It shows the suites with their hashes;
    paired comparisons are there only where `moorline audit --against` made them.

    Args:
        folders: Folders with the files of `moorline audit` or `moorline tune`; the first is what
            the others are compared with. The folder of a demo stands for its three models.
        output: Where to; made if missing.

    Returns:
        The content of `report.json`.

    Raises:
        InputError: If a folder holds none of these files, or one that is damaged.
    """
    runs = read_runs(folders)
    names = [run.name for run in runs]
    title = f"Audit of {names[0]}"
    if len(names) > 1:
        title = f"{listed(names[1:])}, compared with {names[0]}"
    chosen = ("suite", "id", "condition", "draw")
    value = {
        "schema": 1,
        "title": title,
        "verdict": verdict(headline(runs)),
        "runs": [run.without_answers() for run in runs],
        "examples": [{key: each[key] for key in chosen} for each in examples_of(runs)],
    }
    _write(output, title, runs, value)
    return value


def write_report(
    folder: str | Path,
    report: Mapping[str, Any],
    *,
    answers: Mapping[str, Iterable[Mapping[str, Any]]],
    kinds: Mapping[str, str],
) -> None:
    """Write the page, the figures and `report.json` of a demo.

    Args:
        folder: Where to; made if missing.
        report: What `demo.demo` measured; becomes `report.json` as it is.
        answers: Lines as in `answers.jsonl`, for each model by its name, for the examples.
        kinds: What kind of prompts each suite has, by its name.
    """
    title = f"Task {report['task']}, {report['poison']:.0%} poisoned, seed {report['seed']}"
    runs = runs_of_demo(report, answers, kinds)
    _write(folder, shown(title), runs, report, notes=[_DEMO_NOTE])


def _write(
    folder: str | Path,
    title: str,
    runs: Sequence[Run],
    value: Mapping[str, Any],
    *,
    notes: Sequence[str] = (),
) -> None:
    folder = Path(folder)
    drawings = draw(runs)
    for drawing in drawings:
        drawing.save(folder / "figures")
    write_text(folder / "report.html", render(title, runs, drawings, notes=notes))
    write_json(folder / "report.json", value)
