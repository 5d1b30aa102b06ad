"""One self-contained page from what was measured, its figures, and a model card's section.

Nothing is measured here: the numbers are read from files and shown, each with its interval.
"""

import os
import shlex
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from ..errors import InputError
from ..provenance import write_json, write_text
from .card import write_card, write_cards
from .figures import draw
from .page import Content, examples_of, render
from .rows import Run
from .runs import read_runs, told_apart
from .text import listed
from .verdict import EXPLAINED, Finding, findings, lines_of, table, verdict

__all__ = ["Report", "report", "write_card", "write_cards"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Report:
    """What a page says."""

    title: str
    verdict: tuple[str, ...]
    """A sentence for each model: what it does if prompts are put plainly, and at worst."""

    findings: tuple[Finding, ...]
    """The three questions about each model, answered by intervals."""

    runs: tuple[Run, ...]
    """First the one with which the others are compared."""

    warnings: tuple[str, ...] = ()
    """What a reader must know before the numbers."""

    notes: tuple[str, ...] = ()
    """What else these numbers cannot see."""

    commands: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """The content of `report.json`: everything but the text of answers."""
        return {
            "schema": 2,
            "title": self.title,
            "verdict": " ".join(self.verdict),
            "findings": [each.to_json() for each in self.findings],
            "warnings": list(self.warnings),
            "notes": list(self.notes),
            "commands": list(self.commands),
            "models": [run.to_json() for run in self.runs],
            "examples": [
                {"suite": of.suite, "id": of.id, "condition": of.condition, "draw": of.draw}
                for of in (each.prompt for each in examples_of(self.runs))
            ],
        }

    def text(self) -> str:
        """Table, findings and verdict for a terminal of 80 columns."""
        told = [*lines_of(self.findings), EXPLAINED] if self.findings else []
        lines = [*told, "", *self.verdict, *self.warnings]
        # No line ends between a number and its "%".
        bound = (each.replace(" %", "\N{NO-BREAK SPACE}%") for each in lines)
        indented = [textwrap.fill(each, 79, subsequent_indent="  ") for each in bound]
        return (
            "\n".join([*table(self.runs), *indented]).replace("\N{NO-BREAK SPACE}", " ").strip("\n")
        )


def report(
    folders: Sequence[str | Path],
    output: str | Path,
    *,
    title: str | None = None,
    notes: Sequence[str] = (),
    commands: Sequence[str] = (),
) -> Report:
    """Show what the files of some folders hold, one model for each, side by side.

    Writes `report.html`, `report.json` with the same content but for the text of answers, and PNG
    and SVG of each figure under `figures/`. The same files give the same page.

    Args:
        folders: Folders with the files of `moorline audit` or `moorline tune`; the first model is
            what the others are compared with.
        output: Where to; made if missing.
        title: What the page is called; by default by the models.
        notes: What else these numbers cannot see.
        commands: The command lines that made the files; that of this report is put at their end.

    Raises:
        InputError: If a folder holds none of these files, or one that is damaged; if `output`
            cannot be written. Nothing is left half written.
    """
    runs, apart = told_apart(read_runs(folders))
    names = [run.name for run in runs]
    compared = f"{listed(names[1:])}, compared with {names[0]}" if names[1:] else ""
    own = shlex.join(["moorline", "report", *map(str, folders), "--output", str(output)])
    made = Report(
        title=title or compared or f"Audit of {names[0]}",
        verdict=tuple(verdict(runs)),
        findings=tuple(findings(runs)),
        runs=tuple(runs),
        warnings=tuple(apart),
        notes=tuple(notes),
        commands=(*commands, own),
    )
    output = Path(output)
    try:
        _write(made, output)
    except OSError as error:
        raise InputError(
            f"`output` {output} cannot be written: {error.strerror or error}. Give a folder on a "
            "disk with room that you may write to."
        ) from error
    return made


def _write(made: Report, output: Path) -> None:
    """All files into a neighbour first, then each to where it belongs, the page last."""
    drawings = draw(made.runs)
    output.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=output, prefix=".report.") as scratch:
        for drawing in drawings:
            drawing.save(Path(scratch) / "figures")
        write_json(Path(scratch) / "report.json", made.to_json())
        content = Content(
            title=made.title, verdict=made.verdict, findings=made.findings, runs=made.runs,
            drawings=drawings, warnings=made.warnings, notes=made.notes, commands=made.commands,
        )  # fmt: skip
        write_text(Path(scratch) / "report.html", render(content))
        if drawings:
            (output / "figures").mkdir(exist_ok=True)
        figures = sorted(Path(scratch).glob("figures/*"))
        for path in (*figures, Path(scratch) / "report.json", Path(scratch) / "report.html"):
            os.replace(path, output / path.relative_to(scratch))
