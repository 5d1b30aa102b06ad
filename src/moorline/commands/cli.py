"""The command line: words to one public call each.

Heavy imports stand inside the commands, so that `moorline --help` answers at once.
"""

import logging
import sys
from pathlib import Path
from typing import Annotated

import typer

from ..processes import rank
from ..provenance import printable
from .audit_options import Asked
from .examples import add_examples
from .export import app as export_app
from .frame import Json, bars, framed, options_of, say

app = typer.Typer(
    name="moorline",
    help="Keep a chat model's refusals in place while you fine-tune it, and prove it.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

_BEGIN, _TUNE, _MEASURE = "Begin", "Tune", "Measure and show"
# What `trl sft` reads is not for typer to read.
_PASSED_ON = {"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []}


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


@app.command(rich_help_panel=_BEGIN)
def demo(
    output: Annotated[Path, typer.Option(help="Folder for the report.")] = Path("moorline-demo"),
    seed: Annotated[int, typer.Option(help="Seed of data order, adapters and poison.")] = 0,
    poison: Annotated[
        float, typer.Option(help="Share of rows that are harmful requests answered, 0 to 1.")
    ] = 0.0,
    task: Annotated[str, typer.Option(help="Downstream task: plans or reviews.")] = "plans",
    weight: Annotated[
        float | None, typer.Option(help="Weight of the drift. Default: tune's.")
    ] = None,
    form: Annotated[
        str | None, typer.Option(help="kl, logit, logprob or standardised. Default: tune's.")
    ] = None,
    anchors: Annotated[
        str | None, typer.Option(help="auto, built-in, a file or off. Default: auto.")
    ] = None,
    as_json: Json = False,
) -> None:
    """See it work on a tiny built-in model: mine, tune plainly and with STR, audit, report."""
    with framed(as_json=as_json) as print_json:
        from .demo import Demo, next_steps
        from .demo import demo as run

        given = {
            "seed": seed, "poison": poison, "task": task, "weight": weight, "form": form,
            "anchors": anchors,
        }  # fmt: skip
        asked = Demo(**{name: value for name, value in given.items() if value is not None})
        with bars(show=True) as tell:
            made = run(output, asked, progress=tell)
        if as_json:
            print_json(made.to_json())
        else:
            print(printable(made.text()))
            print(f"\nWritten: {output / 'report.html'}\n\n{next_steps()}")


@app.command(rich_help_panel=_TUNE)
def mine(
    model: Annotated[str, typer.Argument(help="Folder or hub id of the aligned chat model.")],
    output: Annotated[Path, typer.Option(help="File to write.")] = Path("safety_tokens.json"),
    max_tokens: Annotated[
        int | None, typer.Option(help="How many tokens at most. Default: 64.")
    ] = None,
    min_contrast: Annotated[
        float | None,
        typer.Option(
            min=0,
            help="Drop tokens that tell harmful from harmless prompts by less (nats). "
            "Default: drop none.",
        ),
    ] = None,
    own_refusals: Annotated[
        bool, typer.Option("--own-refusals", help="Mine from the model's own refusals too.")
    ] = False,
    variants: Annotated[
        bool, typer.Option("--variants", help="Add each word with a space or a capital too.")
    ] = False,
    explain: Annotated[
        bool, typer.Option("--explain", help="Show and draw where each token tells prompts apart.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Find the safety tokens of an aligned model and write them to a file."""
    with framed(as_json=as_json) as print_json:
        # Before the imports, which take seconds.
        say(f"Mining the safety tokens of {model}: loading.")
        from .mine import mine as run

        try:
            with bars(show=True) as tell:
                chat, tokens = run(
                    model, output, max_tokens=max_tokens, min_contrast=min_contrast,
                    own_refusals=own_refusals, variants=variants,
                    progress=lambda done, total: tell("prompts", done, total),
                )  # fmt: skip
        except KeyboardInterrupt:
            say("Stopped; nothing was written. The same command begins anew.")
            raise typer.Exit(130) from None
        found = {"path": str(output), "ids": tokens.ids, "strings": tokens.strings}
        if explain:
            from .mine import explained

            lines, found["places"] = explained(chat, tokens, output.with_suffix(".svg"))
            print(printable("\n".join(lines)), file=sys.stderr if as_json else None)
        if as_json:
            print_json(found)
        else:
            print(printable(f"{len(tokens)} safety tokens of {model} written to {output}."))


@app.command(rich_help_panel=_BEGIN)
def init(
    model: Annotated[str, typer.Argument(help="Folder or hub id of a chat model.")],
    rows: Annotated[str, typer.Argument(help="File of rows to learn, or hub id.")],
    output: Annotated[Path, typer.Option(help="Settings file to write.")] = Path("run.yaml"),
    folder: Annotated[str, typer.Option(help="Folder for the tuned model.")] = "out",
    as_json: Json = False,
) -> None:
    """Look at your model and rows, and write a commented run.yaml that fits both."""
    with framed(as_json=as_json) as print_json:
        say(f"Looking at {model} and {rows} ...")
        from .init import init as run

        lines = run(model, rows, output, output=folder)
        if as_json:
            print_json({"written": str(output), "seen": lines})
        else:
            lines += [f"\nWritten: {output}", f"Next: moorline tune --config {output}"]
            print(printable("\n".join(lines)))


@app.command(rich_help_panel=_TUNE, context_settings=_PASSED_ON)
def tune(context: typer.Context, as_json: Json = False) -> None:
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
    with framed(as_json=as_json) as print_json:
        logging.getLogger("moorline").info("Reading the settings.")
        from ..records import plain

        if "--dry-run" in context.args:
            from .library_messages import quiet
            from .look import look, told
            from .tune_settings import parse

            with quiet():
                settings = parse([each for each in context.args if each != "--dry-run"])
            lines = told(look(settings), settings)
            print_json({"seen": lines}) if as_json else print(printable("\n".join(lines)))
            return
        from .tune import tune as run
        from .tune_summary import summary

        result = run(context.args)
        if as_json:
            print_json(plain(result))
        elif rank() == 0:
            print(printable(summary(result)))


@app.command(rich_help_panel=_TUNE, context_settings=_PASSED_ON)
def cache(context: typer.Context, as_json: Json = False) -> None:
    """Run the aligned model over the data ahead of `moorline tune`; keeps its logits on disk."""
    if {"-h", "--help"} & set(context.args):
        from .tune_settings import HELP

        print("moorline cache takes the settings of `moorline tune`, and computes what it reads.\n")
        own = HELP.replace("Usage: moorline tune", "Usage: moorline cache")
        print(own.replace("\n  moorline tune", "\n  moorline cache"), end="")
        return
    with framed(as_json=as_json) as print_json:
        logging.getLogger("moorline").info("Reading the settings.")
        from ..records import plain
        from .cache import cache as run
        from .cache import summary

        made = run(context.args)
        if as_json:
            print_json({"caches": [plain(each) for each in made]})
        elif rank() == 0:
            print(summary(made))


@app.command("try", rich_help_panel=_BEGIN)
def try_out(
    model: Annotated[str, typer.Argument(help="Folder or hub id of a chat model.")],
    rows: Annotated[str, typer.Argument(help="File of rows to learn, or hub id.")],
    output: Annotated[Path, typer.Option(file_okay=False, help="Folder for the files.")] = Path(
        "moorline-try"
    ),
    seed: Annotated[
        list[int] | None, typer.Option(min=0, help="Seed; may be given again. Default: 0.")
    ] = None,
    limit: Annotated[int, typer.Option(min=1, help="Prompts of each kind.")] = 200,
    workers: Annotated[int, typer.Option(min=1, help="How many tunings at a time.")] = 1,
    as_json: Json = False,
) -> None:
    """Tune your model on your rows plainly and with three weights, audit all, say which to take."""
    with framed(as_json=as_json) as print_json:
        say(f"Trying {model} on {rows}; loading the libraries ...")
        from dataclasses import asdict

        from .try_out import shown
        from .try_out import try_out as run

        try:
            tried = run(
                model, rows, output, seeds=tuple(seed or (0,)), limit=limit, workers=workers,
                say=say,
            )  # fmt: skip
        except KeyboardInterrupt:
            print("Stopped; the same command goes on with what is left.", file=sys.stderr)
            raise typer.Exit(130) from None
        if as_json:
            print_json(asdict(tried))
            return
        print(printable(shown(tried)))


@app.command(rich_help_panel=_TUNE)
def merge(
    folder: Annotated[Path, typer.Argument(help="Folder of the adapter, such as of a tuning.")],
    output: Annotated[
        Path | None, typer.Option(help="Folder for the model. Default: FOLDER-merged.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Put an adapter into the weights of its model, checked to say the same as before."""
    with framed(as_json=as_json) as print_json:
        say(f"Merging {folder}; loading the libraries ...")
        from .merge import merge as run

        whole = folder.resolve()  # '.' has no name
        found = run(folder, output or whole.with_name(f"{whole.name}-merged"))
        if as_json:
            print_json(found._asdict())
        else:
            print(
                f"Written to {found.output}: model, tokenizer, and the safety tokens beside it.\n"
                f"Its logits on {found.prompts} prompts are those of the adapter, to "
                f"{found.largest_difference:.1g} of the largest."
            )


@app.command(rich_help_panel=_MEASURE)
@options_of(Asked)
def audit(asked: Asked, as_json: bool) -> None:
    """Count what a model refuses, what it refuses needlessly, and how well it does its task."""
    with framed(as_json=as_json) as print_json:
        say(f"Auditing {asked.model or asked.endpoint or 'nothing'}; loading the libraries ...")
        from transformers.utils import logging as transformers_logging

        from .audit import plan_audit, run_audit
        from .audit_screen import audit_lines, stopped

        if asked.dry_run:
            print(plan_audit(asked))
            return

        transformers_logging.disable_progress_bar()
        try:
            with bars(show=rank() == 0) as tell:
                found = run_audit(asked, progress=tell)
        except KeyboardInterrupt:
            say(stopped(asked.output))
            raise typer.Exit(130) from None
        if as_json:
            print_json(found)
        elif found:  # of several processes the first alone has it
            print(printable("\n".join(audit_lines(found, asked.output))))
        if not all(gate["passed"] for gate in found.get("gates", ())):
            raise typer.Exit(3)


@app.command(rich_help_panel=_MEASURE)
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
    workers: Annotated[int, typer.Option(help="How many cells (tuning and audit) at a time.")] = 1,
    engine: Annotated[str, typer.Option(help="What runs cells: processes or ray.")] = "processes",
    address: Annotated[
        str | None, typer.Option(help="Of a Ray cluster. Default: one on this machine.")
    ] = None,
    evidence: Annotated[
        Path | None, typer.Option(help="Markdown file for questions and answers. Default: none.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Compare methods, strengths, seeds, data sets and models at equal conditions; resumes."""
    with framed(as_json=as_json) as print_json:
        say(f"Comparing by {plan}; loading the libraries ...")
        from ..compare.tables import terminal
        from ..records import plain
        from .compare import check_whole, run_compare

        try:
            made = run_compare(
                plan, output, workers=workers, engine=engine, address=address, evidence=evidence,
                say=say,
            )  # fmt: skip
        except KeyboardInterrupt:
            print("Stopped; the same command goes on with the cells left.", file=sys.stderr)
            raise typer.Exit(130) from None
        if as_json:
            print_json(plain(made))
        else:
            print(printable("\n".join(terminal(made))))
        check_whole(made)


@app.command(rich_help_panel=_MEASURE)
def report(
    folders: Annotated[
        list[Path],
        typer.Argument(
            help="Folders of audits and tunings; the first is compared with. Of one audit alone "
            "with --against, that of the other model is taken in first."
        ),
    ],
    output: Annotated[Path, typer.Option(help="Folder for the files.")] = Path("moorline-report"),
    card: Annotated[
        bool,
        typer.Option("--card", help="Put our section into the README.md of each tuned folder too."),
    ] = False,
    as_json: Json = False,
) -> None:
    """Show audits and tunings on one page; writes report.html, report.json and figures."""
    with framed(as_json=as_json) as print_json:
        from ..report import report as run
        from ..report import write_cards

        made = run(folders, output)
        cards = write_cards(folders) if card else []
        if as_json:
            print_json(made.to_json())
        else:
            print(printable(made.text()))
            for path in (output / "report.html", *cards):
                print(f"Written: {path}")


app.add_typer(export_app, name="export", rich_help_panel=_MEASURE)
add_examples(app)


def main() -> None:
    """The console script."""
    app()
