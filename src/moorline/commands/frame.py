"""What every command stands in: its errors in one line, its progress, its JSON, its options."""

import errno
import json
import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, redirect_stdout
from functools import wraps
from inspect import Parameter, Signature, signature
from typing import Annotated, Any

import typer
import typer.core

from ..errors import MoorlineError
from ..processes import rank
from ..provenance import printable

Json = Annotated[
    bool, typer.Option("--json", help="Print one JSON object on stdout, nothing else.")
]


_OF_THE_USER = (
    errno.ENAMETOOLONG, errno.ELOOP, errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC,
    errno.EDQUOT,
)  # fmt: skip


class _Printable(logging.Formatter):
    """Log lines without what would steer the terminal: they quote names and rows from outside."""

    def format(self, record: logging.LogRecord) -> str:
        return printable(super().format(record))


def say(text: str) -> None:
    """Print a line on stderr at once, without what would steer the terminal."""
    print(printable(text), file=sys.stderr, flush=True)


def _say_error(text: str) -> None:
    begins = "error: " if rank() == 0 else f"error (process {rank()}): "
    say(begins + " ".join(text.split()))


@contextmanager
def framed(*, as_json: bool) -> Iterator[Callable[[Any], None]]:
    """The frame of a command; gives a function that prints one value as JSON on stdout.

    What the user can put right: one line and exit code 2. Anything else keeps its traceback. With
    `as_json` whatever the libraries print meanwhile goes to stderr. Of several processes of one job
    the first speaks, and the others name themselves where they fail.
    """
    stdout = sys.stdout
    # What was chosen and why, as it is chosen.
    log, told = logging.getLogger("moorline"), logging.StreamHandler(sys.stderr)
    told.setFormatter(_Printable())
    level, first = log.level, rank() == 0
    told.setLevel(logging.INFO if first else logging.CRITICAL)
    log.addHandler(told)
    log.setLevel(logging.INFO)
    try:
        with redirect_stdout(sys.stderr) if as_json else nullcontext():
            yield lambda value: print(json.dumps(value), file=stdout) if first else None
    except MoorlineError as error:
        _say_error(str(error))
        raise typer.Exit(2) from None
    except OSError as error:  # of a path or a disk, wherever it was met
        if error.errno not in _OF_THE_USER:
            raise
        place = str(error.filename or "")[:200]
        _say_error(f"{place}: {error.strerror}. Give another path, or make room.")
        raise typer.Exit(2) from None
    finally:
        log.removeHandler(told)
        log.setLevel(level)


@contextmanager
def bars(show: bool) -> Iterator[Any]:
    """Progress bars on stderr, one for each thing that is being done."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TaskProgressColumn,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description:<14}", markup=False), BarColumn(), MofNCompleteColumn(),
        TaskProgressColumn(show_speed=True), TimeElapsedColumn(), TimeRemainingColumn(),
    )  # fmt: skip
    shown = Progress(*columns, console=Console(stderr=True), disable=not show)
    known = {}

    def say(what: str, done: int, total: int) -> None:
        if what not in known:
            known[what] = shown.add_task(printable(what), total=total)
        shown.update(known[what], completed=done, total=total)

    with shown:
        yield say


def _print_all(context: typer.Context, wanted: bool) -> None:
    if wanted:
        for each in context.command.params:
            if isinstance(each, typer.core.TyperOption):
                each.hidden = False
        print(context.get_help())
        raise typer.Exit


_HelpAll = Annotated[
    bool,
    typer.Option("--help-all", help="Show every option.", callback=_print_all, is_eager=True),
]


def options_of(kind: type) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Make a command of a function that takes a dataclass: the fields are its options.

    Those that are hidden are shown by --help-all.
    """

    def decorate(run: Callable[..., None]) -> Callable[..., None]:
        @wraps(run)
        def command(as_json: bool, help_all: bool, **given: Any) -> None:
            run(kind(**given), as_json)

        last = {"as_json": Json, "help_all": _HelpAll}
        parameters = [
            *signature(kind).parameters.values(),
            *(
                Parameter(name, Parameter.KEYWORD_ONLY, annotation=each, default=False)
                for name, each in last.items()
            ),
        ]
        command.__signature__ = Signature(parameters)
        command.__annotations__ = {each.name: each.annotation for each in parameters}
        return command

    return decorate
