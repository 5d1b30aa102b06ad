"""Typed reading and writing of our own JSON files: what one holds is a frozen dataclass.

A class that stands for a whole file says its schema's number as `SCHEMA: ClassVar[int]`.
"""

import json
import tomllib
from collections.abc import Mapping
from dataclasses import asdict
from functools import cache, reduce
from importlib.resources import files
from operator import or_
from pathlib import Path
from typing import Any, TypeVar

from .errors import InputError
from .provenance import read_json, write_json

_T = TypeVar("_T")


def read(
    kind: type[_T], path: str | Path, what: str, *, remedy: str, others: bool = False,
    schemas: tuple[int, ...] = (),
) -> _T:  # fmt: skip
    """Read one of our files, each of its values checked.

    Args:
        kind: The dataclass that it holds.
        path: The file.
        what: What the file should be, for the message ("run file").
        remedy: What to do about a file that does not fit; the end of the message.
        others: Whether fields that `kind` does not name are passed over; else they are refused.
        schemas: Schema numbers that can be read; by default `kind.SCHEMA` alone.

    Raises:
        InputError: If it is missing, damaged, or of another schema; names file, field and value.
    """
    values = read_json(path, what)
    known, found = schemas or _schema(kind), values.pop("schema", None)
    if known and (type(found) is not int or found not in known):
        raise InputError(
            f"{path} was written by another version of Moorline (schema {json.dumps(found)[:20]}, "
            f"this one reads {' or '.join(map(str, known))}). {remedy}"
        )
    return parse(kind, values, str(path), remedy=remedy, others=others)


def parse(kind: type[_T], value: Any, place: str, *, remedy: str, others: bool = False) -> _T:
    """A value of JSON as its type has it: a dataclass, a NamedTuple, or a tuple of them.

    Args:
        kind: The type. A list becomes a tuple, a whole number a float; nothing else is converted.
        value: What the file holds.
        place: Where it stands, for the message ("out/answers.jsonl, line 3").
        remedy: What to do about a value that does not fit; the end of the message.
        others: As for `read`.

    Raises:
        InputError: If it does not fit; names place, field, what was there, and what must hold.

    Example:
        >>> parse(tuple[int, ...], [1, "2"], "ids.json", remedy="Mine again.")
        Traceback (most recent call last):
        moorline.errors.InputError: ids.json: '[1]' holds "2", must be a valid integer. Mine again.
    """
    from pydantic import ValidationError

    try:
        text = json.dumps([value], ensure_ascii=False, allow_nan=False)
    except ValueError as error:
        raise InputError(f"{place}: holds NaN or Infinity, no number. {remedy}") from error
    try:  # half of a surrogate pair, which no text can hold, is read as "?"
        return _adapter(kind, others).validate_json(text.encode(errors="replace"))[0]
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
    field, within = repr(_field(first["loc"][1:], value)), len(first["loc"]) > 1
    there = json.dumps(first["input"], default=str)[:60]
    words = f"holds {there}, {first['msg']}".replace("Input should", "must")
    words = f"{field} {words}" if within else words
    own = {
        "missing": f"lacks {field}",
        "unexpected_keyword_argument": f"has an unknown field {field}",
        # of the class itself
        "value_error": f"{field}: " * within + str(first.get("ctx", {}).get("error")).rstrip("."),
    }
    raise InputError(f"{place}: {own.get(first['type'], words)}. {remedy}")


_MOST_VALUES = 1_000_000


def read_yaml(path: Path) -> Any:
    """What a YAML file holds: plain values, never objects; its aliases may not grow without end.

    Raises:
        InputError: If it is not YAML in UTF-8, is nested too deeply, or stands for over a million
            values; names the line where it can.
    """
    import yaml

    try:
        value = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        where = getattr(error, "problem_mark", None)
        line = f", line {where.line + 1}" if where else ""
        raise InputError(f"{path}{line}: not YAML: {getattr(error, 'problem', error)}.") from error
    except (ValueError, OverflowError, RecursionError) as error:
        reason = "nested too deeply to read" if isinstance(error, RecursionError) else error
        raise InputError(f"{path}: not YAML: {reason}.") from error
    left, rest = _MOST_VALUES, [value]
    while rest:
        each = rest.pop()
        inner = each.values() if isinstance(each, Mapping) else each
        rest.extend(inner if isinstance(each, Mapping | list) else ())
        left -= 1
        if left < 0:
            raise InputError(f"{path}: stands for over {_MOST_VALUES} values. Shorten it.")
    return value


def packaged(kind: type[_T], package: str, name: str) -> _T:
    """A data file that we ship (TOML) by its type, as `parse` reads it.

    Example:
        >>> packaged(dict[str, Any], "moorline.audit", "formats.toml")["formats"][1]["hub"]
        'walledai/AdvBench'
    """
    text = (files(package) / name).read_text(encoding="utf-8")
    return parse(kind, tomllib.loads(text), name, remedy="Install Moorline again.")


def plain(value: Any) -> Mapping[str, Any]:
    """A dataclass as plain values, its schema's number first."""
    schema = {"schema": value.SCHEMA} if hasattr(value, "SCHEMA") else {}
    return {**schema, **asdict(value)}


def write(path: str | Path, value: Any) -> None:
    """Write a dataclass as JSON, whole or not at all."""
    write_json(path, plain(value))


def json_schema(*kinds: type) -> Mapping[str, Any]:
    """The JSON Schema of a file that holds one of some dataclasses (draft 2020-12)."""
    found = _adapter(reduce(or_, kinds), False).json_schema()
    for kind in kinds:
        made = found["$defs"][kind.__name__]
        for number in _schema(kind):
            made["properties"] = {"schema": {"const": number}, **made["properties"]}
            made["required"] = ["schema", *made.get("required", [])]
    draft = "https://json-schema.org/draft/2020-12/schema"
    return {"$schema": draft, **found["items"], "$defs": found["$defs"]}


def _schema(kind: Any) -> tuple[int, ...]:
    return (kind.SCHEMA,) if hasattr(kind, "SCHEMA") else ()


@cache
def _adapter(kind: Any, others: bool) -> Any:
    """The checks of a type, made once; in a list, as pydantic takes no settings for a dataclass."""
    from pydantic import ConfigDict, TypeAdapter

    extra = "ignore" if others else "forbid"
    settings = ConfigDict(strict=True, extra=extra, allow_inf_nan=False)
    rows: Any = list[kind]  # pyright: ignore[reportInvalidTypeForm]
    return TypeAdapter(rows, config={**settings, "use_attribute_docstrings": True})


def _field(path: tuple[int | str, ...], value: Any) -> str:
    """A place within a value, as `chain[0].tokens`; pydantic names members of unions too."""
    words = ""
    for each in path:
        if isinstance(each, int):
            words += f"[{each}]"
            value = value[each] if isinstance(value, list) and each < len(value) else None
        elif isinstance(value, Mapping):
            words += f".{each}"
            value = value.get(each)
    return words.removeprefix(".")
