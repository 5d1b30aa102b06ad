"""The command line: words to one public call each.

Heavy imports stand inside the commands, so that `moorline --help` answers at once.
"""

import json
import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, redirect_stdout
from pathlib import Path
from typing import Annotated, Any

import typer

from ..errors import MoorlineError

app = typer.Typer(
    name="moorline",
    help="Keep a chat model's refusals in place while you fine-tune it, and prove it.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

_Json = Annotated[
    bool, typer.Option("--json", help="Print one JSON object on stdout, nothing else.")
]


@contextmanager
def _command(*, as_json: bool) -> Iterator[Callable[[Any], None]]:
    """The frame of a command; gives a function that prints one value as JSON on stdout.

    What the user can put right: one line and exit code 2. Anything else keeps its traceback. With
    `as_json` whatever the libraries print meanwhile goes to stderr.
    """
    stdout = sys.stdout
    # What was chosen and why, as it is chosen.
    log, told = logging.getLogger("moorline"), logging.StreamHandler(sys.stderr)
    level = log.level
    log.addHandler(told)
    log.setLevel(logging.INFO)
    try:
        with redirect_stdout(sys.stderr) if as_json else nullcontext():
            yield lambda value: print(json.dumps(value), file=stdout)
    except MoorlineError as error:
        print("error: " + " ".join(str(error).split()), file=sys.stderr)
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
    known: dict[str, Any] = {}

    def say(what: str, done: int, total: int) -> None:
        if what not in known:
            known[what] = bars.add_task(what, total=total)
        bars.update(known[what], completed=done, total=total)

    with bars:
        yield say


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
        from ..chat.loading import load_chat_model
        from ..method.mining import DEFAULT_MAX_TOKENS, mine_safety_tokens

        chat = load_chat_model(model)
        tokens = mine_safety_tokens(
            chat.model, chat.tokenizer, max_tokens=max_tokens or DEFAULT_MAX_TOKENS
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
    with _command(as_json=as_json) as print_json:
        from .tune import tune as run

        result = run(context.args)
        where = result["settings"]["output_dir"]
        if as_json:
            print_json(result)
        else:
            print(f"Tuned {result['model']} in {result.get('seconds')} s; written to {where}.")


@app.command()
def audit(
    model: Annotated[str, typer.Argument(help="Folder or hub id of the model.")],
    suite: Annotated[
        list[str] | None,
        typer.Option(
            help="File of prompts, name of a published set (advbench, xstest, ...), NAME:FILE, or "
            "embedded:TASK; may be given again."
        ),
    ] = None,
    adapter: Annotated[Path | None, typer.Option(help="Folder of a PEFT adapter.")] = None,
    against: Annotated[str | None, typer.Option(help="Model to compare with.")] = None,
    output: Annotated[Path, typer.Option(help="Folder for the files.")] = Path("moorline-audit"),
    judge: Annotated[
        list[str] | None, typer.Option(help="Judge of the answers; may be given again.")
    ] = None,
    condition: Annotated[
        list[str] | None,
        typer.Option(help="plain, prefill, system, sampled, forced-K; may be given again."),
    ] = None,
    metric: Annotated[
        str, typer.Option(help="Metric of a task: exact_match, choice or rouge_l.")
    ] = "exact_match",
    held_out: Annotated[
        Path | None, typer.Option(help="File of rows to measure perplexity on.")
    ] = None,
    drift: Annotated[
        bool, typer.Option(help="Write drift.json: of a tuned model, on the --held-out rows.")
    ] = False,
    lm_eval: Annotated[
        list[str] | None, typer.Option(help="Task of lm-eval; may be given again.")
    ] = None,
    require: Annotated[
        list[str] | None,
        typer.Option(help="Gate, such as 'attack_success_rate<=0.05'; exit code 3 if one fails."),
    ] = None,
    by_category: Annotated[
        bool, typer.Option(help="Take prompts of one category for alike in intervals.")
    ] = False,
    backend: Annotated[str, typer.Option(help="transformers or vllm.")] = "transformers",
    max_new_tokens: Annotated[int, typer.Option(help="Longest answer in tokens.")] = 128,
    batch_size: Annotated[int, typer.Option(help="Prompts per batch.")] = 32,
    system_prompt: Annotated[str | None, typer.Option(help="Put before each prompt.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of what is drawn.")] = 0,
    as_json: _Json = False,
) -> None:
    """Measure refusals, over-refusals, utility; writes audit.json and answers.jsonl."""
    with _command(as_json=as_json) as print_json:
        from .audit import run_audit

        with _bars(show=True) as say:
            found = run_audit(
                model, output, adapter=adapter, against=against, suites=suite or (),
                backend=backend, held_out=held_out, with_drift=drift, lm_eval=lm_eval or (),
                gates=require or (), progress=say, judges=judge or ("keywords",),
                conditions=condition or ("plain",), metric=metric, by_category=by_category,
                max_new_tokens=max_new_tokens, batch_size=batch_size, system_prompt=system_prompt,
                seed=seed,
            )  # fmt: skip
        if as_json:
            print_json(found)
        else:
            _print_audit(found, output)
        if not all(gate["passed"] for gate in found["gates"]):
            raise typer.Exit(3)


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


def _print_audit(found: dict[str, Any], output: Path) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"audit of {found['model']}")
    for column in ("suite", "metric", "judge", "rate [95 % interval]", "n"):
        table.add_column(column, overflow="fold")
    for row in found["suites"]:
        rate = "undefined" if row["rate"] is None else f"{row['rate']:.3f}"
        if row["low"] is not None:
            rate += f" [{row['low']:.3f}, {row['high']:.3f}]"
        suite = row["name"] if row["condition"] == "plain" else f"{row['name']}, {row['condition']}"
        table.add_row(suite, row["metric"].replace("_", " "), row["judge"], rate, str(row["num"]))
    console = Console()
    console.print(table)
    for gate in found["gates"]:
        value = "undefined" if gate["value"] is None else f"{gate['value']:.3f}"
        where = ", ".join(gate[key] for key in ("suite", "condition", "judge") if gate[key])
        said = "holds" if gate["passed"] else "FAILS"
        console.print(f"{gate['requirement']} {said}: {value} ({where or 'not measured'})")
    console.print(f"Written to {output}.", highlight=False)


def main() -> None:
    """The console script."""
    app()
