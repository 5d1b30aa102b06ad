"""Pages made from the program: commands from its parser, files from types, errors from source."""

import json
import os
from pathlib import Path

import messages
from typer.testing import CliRunner

import moorline

WIDTH = "80"
"""Of the help in columns: a wider one would be cut on a screen of 1280 pixels."""


def commands() -> str:
    """Every command's own help."""
    import typer

    from moorline.commands.cli import app

    environment = {"COLUMNS": WIDTH, "TERMINAL_WIDTH": WIDTH, "NO_COLOR": "1", "TERM": "dumb"}
    os.environ.update(environment)
    runner = CliRunner(env=environment)
    parts = []
    for name in ("", *sorted(_names(typer.main.get_command(app)))):
        words = [*name.split(), "--help"]
        shown = runner.invoke(app, words, prog_name="moorline")
        if shown.exit_code:
            raise RuntimeError(f"moorline {name} --help ended with {shown.exit_code}")
        title = f"moorline {name}".strip()
        parts.append(f"## `{title}`\n\n```text\n{shown.stdout.strip()}\n```\n")
    return "\n".join(parts)


def _names(group, before: str = ""):
    """The commands of a group, with those of the groups in it."""
    for name, each in group.commands.items():
        yield f"{before}{name}"
        if hasattr(each, "commands"):
            yield from _names(each, f"{before}{name} ")


def files() -> dict[str, str]:
    """The JSON Schema of every file, by the schema's name."""
    from moorline.commands.file_formats import schemas

    return {
        f"{name.partition('.')[0]}.schema.json": json.dumps(schema, indent=2) + "\n"
        for name, schema in schemas().items()
    }


def write(folder: Path) -> None:
    """Write the parts of pages into a folder; what is as it was is left alone."""
    folder.mkdir(parents=True, exist_ok=True)
    made = {"commands.md": commands(), **files()}
    explained = Path(__file__).parent / "how-to" / "troubleshooting.md"
    made["messages.md"] = messages.page(
        Path(moorline.__file__).parent, explained.read_text(encoding="utf-8")
    )
    shown = "### {0}\n\n```{{literalinclude}} /reference/generated/{0}\n:language: json\n```\n"
    listed = [shown.format(name) for name in made if name.endswith(".json")]
    made["schemas.md"] = "\n".join(listed)
    for name, text in made.items():
        path = folder / name
        if not path.is_file() or path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")
