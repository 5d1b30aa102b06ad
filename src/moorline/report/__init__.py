"""One self-contained page from what was measured, its figures, and a model card's section.

Nothing is measured here: the numbers are read from files and shown, each with its interval.
"""

import os
import shlex
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from ..errors import InputError
from ..provenance import read_json, write_json, write_text
from .card import write_card, write_cards
from .figures import draw
from .page import Report, render
from .runs import read_runs, told_apart
from .text import listed
from .verdict import findings, verdict

AUDIT = "audit.json"

__all__ = ["Report", "report", "write_card", "write_cards"]


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
            what the others are compared with. Where one of them alone holds an audit, and that was
            made `--against` another model, the audit of the other one comes first by itself.
        output: Where to; made if missing.
        title: What the page is called; by default by the models.
        notes: What else these numbers cannot see.
        commands: The command lines that made the files; that of this report is put at their end.

    Raises:
        InputError: If a folder holds none of these files, or one that is damaged; if `output`
            cannot be written. Nothing is left half written.
    """
    runs, apart = told_apart(read_runs([*_other_of(folders), *folders]))
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
    try:
        _write(made, Path(output))
    except OSError as error:
        raise InputError(
            f"`output` {output} cannot be written: {error.strerror or error}. Give a folder on a "
            "disk with room that you may write to."
        ) from error
    return made


def _other_of(folders: Sequence[str | Path]) -> list[Path]:
    """The audit of the model that the only audit in some folders was compared with, if any."""
    audits = [Path(each) for each in folders if (Path(each) / AUDIT).is_file()]
    if len(audits) != 1 or not read_json(audits[0] / AUDIT, "audit file").get("comparisons"):
        return []
    other = audits[0] / "against"
    return [other] if (other / AUDIT).is_file() else []


def _write(made: Report, output: Path) -> None:
    """All files into a neighbour first, then each to where it belongs, the page last."""
    drawings = draw(made.runs)
    output.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=output, prefix=".report.") as scratch:
        for drawing in drawings:
            drawing.save(Path(scratch) / "figures")
        write_json(Path(scratch) / "report.json", made.to_json())
        write_text(Path(scratch) / "report.html", render(made, drawings))
        if drawings:
            (output / "figures").mkdir(exist_ok=True)
        figures = sorted(Path(scratch).glob("figures/*"))
        for path in (*figures, Path(scratch) / "report.json", Path(scratch) / "report.html"):
            os.replace(path, output / path.relative_to(scratch))
