"""Rows of a user's file, one at a time, with the place of each: JSONL, JSON, CSV, Parquet."""

import csv
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from .errors import InputError

_log = logging.getLogger(__name__)

SUFFIXES = (".jsonl", ".json", ".csv", ".parquet")


class Row(NamedTuple):
    """One row of a file, and where it stands."""

    place: str
    """For messages: the file with the line (JSONL, CSV) or the row (JSON, Parquet), from 1."""

    values: Mapping[str, Any]

    def lacks(self, column: str, remedy: str) -> InputError:
        """The error for a column that this row should have, with something in it that fits."""
        if column in self.values:
            value = self.values[column]
            empty = value is None or not str(value).strip() or value in ([], {})
            fault = "is empty" if empty else "does not fit"
            return InputError(f"{self.place}: field {column!r} {fault}. {remedy}")
        there = ", ".join(repr(name) for name in self.values) or "none"
        return InputError(f"{self.place}: no field {column!r} (fields: {there}). {remedy}")


def is_table(path: str | Path) -> bool:
    """Whether a path names a file of a kind that `rows_of` reads, by its ending."""
    return Path(path).suffix.lower() in SUFFIXES


def rows_of(path: str | Path, *, columns: Sequence[str] | None = None) -> Iterator[Row]:
    """The rows of a file, read as they are asked for.

    Args:
        path: The file.
        columns: Names of the columns of a CSV file that has no header; other kinds ignore them.

    Raises:
        InputError: If the file is missing, empty, of another kind, or damaged; names the place.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path}: no such data file. Check the path.")
    readers = {
        ".jsonl": _jsonl,
        ".json": _json,
        ".csv": partial(_csv, columns=columns),
        ".parquet": _parquet,
    }
    if path.suffix.lower() not in readers:
        raise InputError(
            f"{path}: a data file ends in {', '.join(SUFFIXES)}, got "
            f"{path.suffix or 'no ending'!r}."
        )
    empty = True
    try:
        for row in readers[path.suffix.lower()](path):
            empty = False
            yield row
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not text in UTF-8 ({error}). Save it as UTF-8.") from error
    if empty:
        raise InputError(f"{path}: the data file has no rows. Give a file with at least one.")


def _jsonl(path: Path) -> Iterator[Row]:
    with path.open(encoding="utf-8-sig") as stream:
        for number, line in enumerate(stream, start=1):
            if not line.strip():
                continue
            place = f"{path}, line {number}"
            try:
                values = json.loads(line.rstrip("\r\n"))
            except json.JSONDecodeError as error:
                raise InputError(
                    f"{place}, column {error.colno}: not JSON: {error.msg}. Put one JSON object on "
                    "each line."
                ) from error
            except (RecursionError, ValueError) as error:  # ValueError: a number of many digits
                raise _unreadable(place, error) from error
            yield Row(place, _object(values, place))


def _json(path: Path) -> Iterator[Row]:
    try:
        values = json.loads(path.read_text(encoding="utf-8-sig"))
    except json.JSONDecodeError as error:
        raise InputError(
            f"{path}, line {error.lineno}, column {error.colno}: not JSON: {error.msg}."
        ) from error
    except UnicodeDecodeError:
        raise
    except (RecursionError, ValueError) as error:
        raise _unreadable(str(path), error) from error
    if not isinstance(values, list):
        raise InputError(
            f"{path}: a JSON data file holds a list of objects, got {type(values).__name__}. For "
            "one object per line, name it .jsonl."
        )
    for number, each in enumerate(values, start=1):
        place = f"{path}, row {number}"
        yield Row(place, _object(each, place))


def _unreadable(place: str, error: Exception) -> InputError:
    nested = isinstance(error, RecursionError)
    return InputError(f"{place}: {'nested too deeply to read' if nested else error}.")


def delimiter_of(path: str | Path) -> str:
    """What separates the columns of a CSV file, by its header."""
    with Path(path).open(encoding="utf-8-sig", newline="") as stream:
        header = stream.readline()
    if "," in header:
        return ","
    # as spreadsheets write it in half of Europe
    return next((each for each in ";\t" if each in header), ",")


def _csv(path: Path, columns: Sequence[str] | None) -> Iterator[Row]:
    # The module refuses fields of over 128 KiB unless told; a long text is a legal row.
    csv.field_size_limit(1 << 30)
    delimiter = "," if columns is not None else delimiter_of(path)
    with path.open(encoding="utf-8-sig", newline="") as stream:
        if delimiter != ",":
            _log.info("%s: its columns are taken to be separated by %r.", path, delimiter)
        reader = csv.DictReader(stream, fieldnames=columns, delimiter=delimiter)
        for values in reader:
            place = f"{path}, line {reader.line_num}"
            if None in values:
                raise InputError(f"{place}: more fields than the header has. Quote the commas.")
            yield Row(place, {name: each for name, each in values.items() if each is not None})


def _parquet(path: Path) -> Iterator[Row]:
    import pyarrow
    import pyarrow.parquet

    try:
        batches = pyarrow.parquet.ParquetFile(path).iter_batches()
        number = 0
        for batch in batches:
            for values in batch.to_pylist():
                number += 1
                there = {name: each for name, each in values.items() if each is not None}
                yield Row(f"{path}, row {number}", there)
    except (pyarrow.ArrowException, OSError) as error:
        raise InputError(f"{path}: not a Parquet file: {error}.") from error


def _object(value: Any, place: str) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise InputError(f"{place}: a row is a JSON object, got {type(value).__name__}.")
    return value
