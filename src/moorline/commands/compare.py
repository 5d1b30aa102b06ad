"""`moorline compare` as one call: a plan in, its cells by command lines of ours, its tables out."""

import logging
from collections.abc import Callable, Sequence
from pathlib import Path

import typer

from ..compare import Compared, compare, read_compared, read_plan
from ..compare.evidence import evidence as page_of
from ..compare.fronts import write_fronts
from ..compare.tables import markdown
from ..errors import InputError, MoorlineError
from ..provenance import write_text
from .tune_settings import parse


def run_compare(
    plan: Path,
    output: Path | None = None,
    *,
    workers: int = 1,
    engine: str = "processes",
    address: str | None = None,
    evidence: Path | None = None,
    say: Callable[[str], None] = print,
) -> Compared:
    """Compare what a plan names; of a `compare.json` write the tables and figures again.

    Args:
        plan: A plan in YAML, or a `compare.json`.
        output: Folder for everything; "moorline-compare", or that of the `compare.json`, if None.
        workers: How many cells at a time.
        engine: "processes" or "ray".
        address: Of a Ray cluster.
        evidence: Markdown file to write the questions and answers to.
        say: Called with lines of progress.

    Raises:
        InputError: If something does not fit; names file and field.
        PrerequisiteError: If the engine is missing.
    """
    if output is None:
        output = plan.parent if plan.suffix == ".json" else Path("moorline-compare")
    if plan.suffix == ".json":
        found = read_compared(plan)
    else:
        found = compare(
            read_plan(plan), output, run_line, check=parse, engine=engine, workers=workers,
            address=address, say=say,
        )  # fmt: skip
    write_text(output / "tables.md", markdown(found))
    write_fronts(found, output / "figures")
    if evidence is not None:
        write_text(evidence, page_of(found))
    return found


def check_whole(found: Compared) -> None:
    """Refuse to call a comparison done that lacks cells.

    Raises:
        InputError: If a cell failed or was never done.
    """
    failed = [each for each in found.cells if each.failed is not None]
    if failed:
        raise InputError(
            f"{len(failed)} of {len(found.cells)} cells failed, first {failed[0].cell.name}: "
            f"{failed[0].failed} Put it right and run the same command again."
        )


def run_line(words: Sequence[str]) -> None:
    """Run one command line of Moorline in this process, as a user would.

    Raises:
        MoorlineError: What the command says in one line before it exits with 2.
    """
    from .cli import app  # which has this command too

    command, log = typer.main.get_command(app), logging.getLogger("moorline")
    others, log.handlers[:] = list(log.handlers), []  # it says its own on its own stderr
    try:
        with command.make_context("moorline", list(words)) as context:
            command.invoke(context)
    except typer.Exit as stop:
        if stop.exit_code == 130:
            raise KeyboardInterrupt from None
        if isinstance(stop.__context__, MoorlineError):
            raise stop.__context__ from None
        if stop.exit_code:
            raise InputError(f"`moorline {words[0]}` ended with {stop.exit_code}.") from stop
    finally:
        log.handlers[:] = others
