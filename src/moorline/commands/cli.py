"""The command line: words to one public call each.

Heavy imports stand inside the commands, so that `moorline --help` answers at once.
"""

import json
import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, redirect_stdout
from functools import wraps
from inspect import Parameter, Signature, signature
from pathlib import Path
from typing import Annotated, Any

import typer

from ..errors import MoorlineError
from ..processes import rank
from .audit_options import Asked

app = typer.Typer(
    name="moorline",
    help="Keep a chat model's refusals in place while you fine-tune it, and prove it.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

_Json = Annotated[
    bool, typer.Option("--json", help="Print one JSON object on stdout, nothing else.")
]


def _print_version(wanted: bool) -> None:
    if wanted:
        from .. import __version__

        print(f"moorline {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool,
        typer.Option(
            "--version", help="Print the version.", callback=_print_version, is_eager=True
        ),
    ] = False,
) -> None:
    pass


@contextmanager
def _command(*, as_json: bool) -> Iterator[Callable[[Any], None]]:
    """The frame of a command; gives a function that prints one value as JSON on stdout.

    What the user can put right: one line and exit code 2. Anything else keeps its traceback. With
    `as_json` whatever the libraries print meanwhile goes to stderr. Of several processes of one job
    the first speaks, and the others name themselves where they fail.
    """
    stdout = sys.stdout
    # What was chosen and why, as it is chosen.
    log, told = logging.getLogger("moorline"), logging.StreamHandler(sys.stderr)
    level, first = log.level, rank() == 0
    told.setLevel(logging.INFO if first else logging.CRITICAL)
    log.addHandler(told)
    log.setLevel(logging.INFO)
    try:
        with redirect_stdout(sys.stderr) if as_json else nullcontext():
            yield lambda value: print(json.dumps(value), file=stdout) if first else None
    except MoorlineError as error:
        begins = "error: " if first else f"error (process {rank()}): "
        print(begins + " ".join(str(error).split()), file=sys.stderr)
        raise typer.Exit(2) from None
    finally:
        log.removeHandler(told)
        log.setLevel(level)


@contextmanager
def _bars(show: bool) -> Iterator[Any]:
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
        TextColumn("{task.description:<14}"), BarColumn(), MofNCompleteColumn(),
        TaskProgressColumn(show_speed=True), TimeElapsedColumn(), TimeRemainingColumn(),
    )  # fmt: skip
    bars = Progress(*columns, console=Console(stderr=True), disable=not show)
    known = {}

    def say(what: str, done: int, total: int) -> None:
        if what not in known:
            known[what] = bars.add_task(what, total=total)
        bars.update(known[what], completed=done, total=total)

    with bars:
        yield say


def _options_of(kind: type) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Make a command of a function that takes a dataclass: the fields are its options."""

    def decorate(run: Callable[..., None]) -> Callable[..., None]:
        @wraps(run)
        def command(as_json: bool, **given: Any) -> None:
            run(kind(**given), as_json)

        last = Parameter("as_json", Parameter.KEYWORD_ONLY, annotation=_Json, default=False)
        parameters = [*signature(kind).parameters.values(), last]
        command.__signature__ = Signature(parameters)
        command.__annotations__ = {each.name: each.annotation for each in parameters}
        return command

    return decorate


@app.command()
def demo(
    output: Annotated[Path, typer.Option(help="Folder for the report.")] = Path("moorline-demo"),
    seed: Annotated[int, typer.Option(help="Seed of data order, adapters and poison.")] = 0,
    poison: Annotated[
        float, typer.Option(help="Share of rows that are harmful requests answered, 0 to 1.")
    ] = 0.0,
    task: Annotated[str, typer.Option(help="Downstream task: plans or reviews.")] = "plans",
    weight: Annotated[float | None, typer.Option(help="Weight of the drift.")] = None,
    form: Annotated[str | None, typer.Option(help="Form of the drift.")] = None,
    as_json: _Json = False,
) -> None:
    """Do the main job on the embedded model: mine, tune plainly and with STR, audit, report."""
    with _command(as_json=as_json) as print_json:
        from .demo import Demo, next_steps
        from .demo import demo as run

        given = {"seed": seed, "poison": poison, "task": task, "weight": weight, "form": form}
        asked = Demo(**{name: value for name, value in given.items() if value is not None})
        with _bars(show=True) as say:
            made = run(output, asked, progress=say)
        if as_json:
            print_json(made.to_json())
        else:
            print(made.text())
            print(f"\nWritten: {output / 'report.html'}\n\n{next_steps()}")


@app.command()
def mine(
    model: Annotated[str, typer.Argument(help="Folder or hub id of the aligned chat model.")],
    output: Annotated[Path, typer.Option(help="File to write.")] = Path("safety_tokens.json"),
    max_tokens: Annotated[int | None, typer.Option(help="How many tokens at most.")] = None,
    as_json: _Json = False,
) -> None:
    """Find the safety tokens of an aligned model and write them to a file."""
    with _command(as_json=as_json) as print_json:
        # Before the imports, which take seconds.
        print(f"Mining the safety tokens of {model}: loading.", file=sys.stderr, flush=True)
        from ..chat.chat_model import check_sizes
        from ..chat.loading import load_chat_model
        from ..method.mining import DEFAULT_MAX_TOKENS, mine_safety_tokens
        from ..method.safety_tokens import check_output

        check_output(output)
        num = DEFAULT_MAX_TOKENS if max_tokens is None else max_tokens
        check_sizes(max_tokens=num)
        chat = load_chat_model(model)
        with _bars(show=True) as say:
            tokens = mine_safety_tokens(
                chat.model,
                chat.tokenizer,
                max_tokens=num,
                progress=lambda done, total: say("prompts", done, total),
            )
        tokens.save(output)
        if as_json:
            found = {"path": str(output), "ids": tokens.ids, "strings": tokens.strings}
            print_json(found)
        else:
            print(f"{len(tokens)} safety tokens of {model} written to {output}.")


@app.command(
    context_settings={
        "allow_extra_args": True,
        "ignore_unknown_options": True,
        "help_option_names": [],
    }
)
def tune(context: typer.Context, as_json: _Json = False) -> None:
    """Fine-tune with the refusals held; flags and --config YAML of `trl sft`, and --str_*."""
    if {"-h", "--help"} & set(context.args):
        from .tune_settings import HELP

        print(HELP, end="")
        return
    if "--help-all" in context.args:
        from ..trainer import make_parser
        from .tune_method import MethodConfig

        make_parser(MethodConfig).print_help()
        return
    with _command(as_json=as_json) as print_json:
        logging.getLogger("moorline").info("Reading the settings.")
        from ..records import plain
        from .tune import summary
        from .tune import tune as run

        result = run(context.args)
        if as_json:
            print_json(plain(result))
        elif rank() == 0:
            print(summary(result))


@app.command()
@_options_of(Asked)
def audit(asked: Asked, as_json: bool) -> None:
    """Measure refusals, over-refusals, utility; writes audit.json and answers.jsonl."""
    with _command(as_json=as_json) as print_json:
        print(f"Auditing {asked.model}; loading the libraries ...", file=sys.stderr, flush=True)
        from transformers.utils import logging as transformers_logging

        from .audit import run_audit
        from .audit_screen import audit_lines

        transformers_logging.disable_progress_bar()
        try:
            with _bars(show=True) as say:
                found = run_audit(asked, progress=say)
        except KeyboardInterrupt:
            _print_stopped(asked.output)
            raise typer.Exit(130) from None
        if as_json:
            print_json(found)
        else:
            print(*audit_lines(found, asked.output), sep="\n")
        if not all(gate["passed"] for gate in found["gates"]):
            raise typer.Exit(3)


@app.command()
def compare(
    plan: Annotated[
        Path, typer.Argument(help="Plan in YAML; or a compare.json, to write its tables again.")
    ],
    output: Annotated[
        Path | None,
        typer.Option(
            help="Folder for the files. Default: moorline-compare, or that of compare.json."
        ),
    ] = None,
    workers: Annotated[int, typer.Option(help="How many cells at a time.")] = 1,
    engine: Annotated[str, typer.Option(help="What does them: processes or ray.")] = "processes",
    address: Annotated[
        str | None, typer.Option(help="Of a Ray cluster. Default: one on this machine.")
    ] = None,
    evidence: Annotated[
        Path | None, typer.Option(help="Markdown file for the questions and their answers.")
    ] = None,
    as_json: _Json = False,
) -> None:
    """Compare methods, strengths, seeds, data sets and models at equal conditions; resumes."""
    with _command(as_json=as_json) as print_json:
        print(f"Comparing by {plan}; loading the libraries ...", file=sys.stderr, flush=True)
        from ..compare.tables import terminal
        from ..records import plain
        from .compare import check_whole, run_compare

        try:
            made = run_compare(
                plan, output, workers=workers, engine=engine, address=address, evidence=evidence,
                say=lambda line: print(line, file=sys.stderr, flush=True),
            )  # fmt: skip
        except KeyboardInterrupt:
            print("Stopped; the same command goes on with the cells left.", file=sys.stderr)
            raise typer.Exit(130) from None
        if as_json:
            print_json(plain(made))
        else:
            print("\n".join(terminal(made)))
        check_whole(made)


@app.command()
def report(
    folders: Annotated[
        list[Path],
        typer.Argument(help="Folders of audits and tunings; the first is compared with."),
    ],
    output: Annotated[Path, typer.Option(help="Folder for the files.")] = Path("moorline-report"),
    card: Annotated[
        bool,
        typer.Option("--card", help="Put our section into the README.md of each tuned folder too."),
    ] = False,
    as_json: _Json = False,
) -> None:
    """Show audits and tunings on one page; writes report.html, report.json and figures."""
    with _command(as_json=as_json) as print_json:
        from ..report import report as run
        from ..report import write_cards

        made = run(folders, output)
        cards = write_cards(folders) if card else []
        if as_json:
            print_json(made.to_json())
        else:
            print(made.text())
            for path in (output / "report.html", *cards):
                print(f"Written: {path}")


def _print_stopped(output: Path) -> None:
    paths = [output / "answers.jsonl", output / "against" / "answers.jsonl"]
    kept = sum(path.read_bytes().count(b"\n") for path in paths if path.is_file())
    print(
        f"Stopped. {kept} answers are kept in {output}; run the same command again to resume.",
        file=sys.stderr,
    )


def main() -> None:
    """The console script."""
    app()
