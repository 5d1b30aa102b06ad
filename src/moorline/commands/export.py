"""`moorline export`: an audit as other tools read it."""

from pathlib import Path
from typing import Annotated

import typer

from .examples import add_examples
from .frame import Json, framed

app = typer.Typer(
    help="Write an audit as other tools read it: Inspect, lm-eval, the hub, JUnit.",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)

_Folder = Annotated[Path, typer.Argument(help="Folder that `moorline audit` wrote.")]


@app.command()
def inspect(
    folder: _Folder,
    output: Annotated[
        Path | None, typer.Option(help="Folder for the logs. Default: FOLDER/inspect.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Write logs that `inspect view` opens, one for each suite and condition."""
    with framed(as_json=as_json) as print_json:
        from ..exports.inspect_log import write_inspect

        output = output or folder / "inspect"
        written = write_inspect(folder, output)
        if as_json:
            print_json({"written": [str(each) for each in written]})
        else:
            _print_written(written)
            print(f"To read them: inspect view --log-dir {output}")


@app.command("lm-eval")
def lm_eval(
    folder: _Folder,
    output: Annotated[
        Path | None, typer.Option(help="Folder for the tasks. Default: FOLDER/lm-eval.")
    ] = None,
    judge: Annotated[
        str | None,
        typer.Option(help="Its judge. Default: the audit's first; command:PROGRAM must be given."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Write a folder of tasks that `lm_eval --include_path` runs, and print the command."""
    with framed(as_json=as_json) as print_json:
        from ..exports.lm_eval_folder import shown, write_lm_eval

        output = output or folder / "lm-eval"
        words = write_lm_eval(folder, output, judge=judge)
        if as_json:
            print_json({"written": str(output), "command": words})
        else:
            print(f"Written: {output}\nTo run it:\n  {shown(words)}")


@app.command()
def hub(
    folder: _Folder,
    output: Annotated[
        Path | None, typer.Option(help="Folder of the model. Default: FOLDER.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Write the rates into a model card (`model-index`), and `.eval_results/` of known sets."""
    with framed(as_json=as_json) as print_json:
        from ..exports.hub import write_hub

        written = write_hub(folder, output)
        if as_json:
            print_json({"written": [str(each) for each in written]})
        else:
            _print_written(written)


@app.command()
def junit(
    folder: _Folder,
    output: Annotated[
        Path | None, typer.Option(help="File to write. Default: FOLDER/junit.xml.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Write the gates (`--require`) as JUnit XML, for continuous integration."""
    with framed(as_json=as_json) as print_json:
        from ..exports.junit import write_junit

        written = write_junit(folder, output or folder / "junit.xml")
        if as_json:
            print_json({"written": str(written)})
        else:
            _print_written([written])


@app.command()
def tracker(
    folder: _Folder,
    to: Annotated[str, typer.Option(help="wandb or mlflow.")],
    as_json: Json = False,
) -> None:
    """Log the files of an audit or a tuning as artifacts of W&B or MLflow."""
    with framed(as_json=as_json) as print_json:
        from ..exports.trackers import log_files

        logged = log_files(folder, to)
        if as_json:
            print_json({"logged": [str(each) for each in logged]})
        else:
            print(f"Logged to {to}: {', '.join(each.name for each in logged)}")


add_examples(app)


def _print_written(paths: list[Path]) -> None:
    for each in paths:
        print(f"Written: {each}")
