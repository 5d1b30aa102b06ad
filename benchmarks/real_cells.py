"""Finished cells of a comparison in one file, so that another machine goes on from them.

A cell counts there as long as what it was done with is the same (`known_by`): commands, rows,
suites, versions, and the model's files. Prompts and answers are in no cell, only ids and outcomes.
"""

import json
from dataclasses import replace
from pathlib import Path

from moorline.compare.cells import CELL, Found
from moorline.errors import InputError
from moorline.provenance import as_json, write_lines
from moorline.records import parse, plain, read, write

_REMEDY = "Give the file that `keep` wrote."


def keep_cells(output: Path, file: Path) -> int:
    """Add the finished cells of a comparison's folder to a file, one a line; says how many it has.

    A cell that is there already is replaced. Command lines, which name paths of a machine, are left
    out: the plan says them.

    Raises:
        InputError: If the folder has no finished cell, or the file is none of ours.
    """
    kept = {each.cell.path: each for each in read_cells(file)} if file.is_file() else {}
    found = [read(Found, path, "cell", remedy=_REMEDY) for path in output.rglob(CELL)]
    new = {each.cell.path: replace(each, commands=()) for each in found if each.failed is None}
    if not new:
        raise InputError(f"{output}: no finished cell. Give the folder of a comparison.")
    kept |= new
    write_lines(file, [as_json(plain(kept[path])) for path in sorted(kept)])
    return len(kept)


def take_cells(file: Path, output: Path) -> int:
    """Put the cells of a file where a comparison in a folder looks for them; says how many.

    Cells that are there already stay.
    """
    found = [each for each in read_cells(file) if not (output / each.cell.path / CELL).exists()]
    for each in found:
        write(output / each.cell.path / CELL, each)
    return len(found)


def read_cells(file: Path) -> list[Found]:
    """The cells of a file.

    Raises:
        InputError: If a line is no cell.
    """
    lines = file.read_text(encoding="utf-8").split("\n")
    return [
        _cell(line, f"{file}, line {number}")
        for number, line in enumerate(lines, 1)
        if line.strip()
    ]


def _cell(line: str, place: str) -> Found:
    try:
        values = json.loads(line)
    except ValueError as error:
        raise InputError(f"{place}: not JSON ({error}). {_REMEDY}") from error
    values.pop("schema", None)
    return parse(Found, values, place, remedy=_REMEDY)
