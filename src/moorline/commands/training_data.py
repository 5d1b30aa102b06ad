"""Rows to train on: a local file or a data set of the hub, each row checked with its place."""

import json
import logging
from collections.abc import Iterator, Mapping
from typing import Any

import datasets
from datasets import Dataset, DatasetDict, load_dataset
from datasets.exceptions import DatasetGenerationError

from ..chat.conversation import conversation_of
from ..errors import InputError, PrerequisiteError
from ..provenance import sha256_of
from ..tables import Row, is_table, rows_of
from ..trainer import get_dataset

_log = logging.getLogger(__name__)

_SHAPES = (
    ("messages",),
    ("prompt", "completion"),
    ("text",),
    ("conversations",),
    ("instruction", "output"),
)
_CONVERTED = {
    ("conversations",): "ShareGPT",
    ("instruction", "output"): "Alpaca",
}
# Columns of a conversation's row that TRL hands to the chat template.
_FOR_TEMPLATE = ("tools", "chat_template_kwargs")
_ROLES = ("system", "developer", "user", "assistant", "tool")


def read_training_data(script: Any, mixture: Any) -> Any:
    """The data sets that the settings name, by split.

    Raises:
        InputError: If no data is named, or a row of a local file cannot be trained on.
        PrerequisiteError: If there is no such data set here or on the hub.
    """
    if mixture.datasets:
        return get_dataset(mixture)
    name = script.dataset_name
    if not name:
        raise InputError(
            "`dataset_name` is missing. Give a JSONL, JSON, CSV or Parquet file, or a hub id."
        )
    if is_table(name):
        return DatasetDict({script.dataset_train_split: _read_file(name)})
    try:
        return load_dataset(name, name=script.dataset_config, streaming=script.dataset_streaming)
    except (FileNotFoundError, ConnectionError, OSError) as error:
        raise PrerequisiteError(
            f"{name}: no such data set, here or on the hub ({str(error).splitlines()[0]}). Check "
            "`dataset_name`."
        ) from error


def split_of(data: Any, name: str) -> Any:
    """One split of the data.

    Raises:
        InputError: If there is none of that name.
    """
    if name not in data:
        raise InputError(
            f"The data has no split {name!r} (it has: {', '.join(map(repr, data))}). Set "
            "`dataset_train_split` or `dataset_test_split`."
        )
    return data[name]


def _read_file(name: str) -> Dataset:
    shape = _shape_of(next(rows_of(name)))
    if shape in _CONVERTED:
        _log.info("%s: rows of %s's shape are read as 'messages'.", name, _CONVERTED[shape])
    # The digest makes the cache of `datasets` see an edited file.
    given = {"path": name, "shape": shape, "digest": sha256_of(name)}
    columns = {next(iter(_checked(row, shape))) for row in [next(rows_of(name))]}
    features = None
    if columns == {"messages"} and hasattr(datasets, "Json"):
        # Messages stay as they are: Arrow's own type would give each the keys of all the others.
        names = {name for row in rows_of(name) for name in _FOR_TEMPLATE if name in row.values}
        kinds = {
            "messages": datasets.List(datasets.Json()),
            **{each: datasets.Json() for each in sorted(names)},
        }
        features = datasets.Features(kinds)
    try:
        return Dataset.from_generator(_checked_rows, gen_kwargs=given, features=features)  # pyright: ignore
    except DatasetGenerationError as error:
        cause = error.__cause__
        while cause is not None and not isinstance(cause, InputError):
            cause = cause.__cause__
        if cause is not None:
            raise cause from error
        raise InputError(
            f"{name}: its rows do not fit into one table ({error.__cause__ or error}). Give each "
            "column one type in all rows."
        ) from error


def _features(name: str, shape: tuple[str, ...]) -> Any:
    """Types that keep messages as they are; Arrow's own give each the keys of all the others."""
    first = _checked(next(rows_of(name)), shape)
    lists = [column for column, value in first.items() if isinstance(value, list)]
    lists = [column for column in lists if column not in _FOR_TEMPLATE]
    if not lists or not hasattr(datasets, "Json"):
        return None
    more = {each for row in rows_of(name) for each in _FOR_TEMPLATE if row.values.get(each)}
    kinds: dict[str, Any] = {each: datasets.List(datasets.Json()) for each in lists}
    return datasets.Features({**kinds, **{each: datasets.Json() for each in sorted(more)}})


def _shape_of(row: Row) -> tuple[str, ...]:
    shape = next((each for each in _SHAPES if set(each) <= row.values.keys()), None)
    if shape is None:
        raise row.lacks(
            "messages",
            "Training rows have 'messages', or 'prompt' and 'completion', or 'text'; ShareGPT's "
            "'conversations' and Alpaca's 'instruction' and 'output' are read too.",
        )
    return shape


def _checked_rows(path: str, shape: tuple[str, ...], digest: str) -> Iterator[dict[str, Any]]:
    """Rows of a local file, all of one shape."""
    for row in rows_of(path):
        yield _checked(row, tuple(shape))


def _checked(row: Row, shape: tuple[str, ...]) -> dict[str, Any]:
    """What is trained on of a row.

    Raises:
        InputError: If it lacks a column of its shape, or one is of another type or empty.
    """
    for column in shape:
        if row.values.get(column) in (None, "", []):
            raise row.lacks(column, f"The first row has {', '.join(shape)}; every row must.")
    kept = {name: row.values[name] for name in _FOR_TEMPLATE if row.values.get(name) is not None}
    if shape == ("text",):
        return {"text": _text(row, "text")}
    if shape == ("instruction", "output"):
        asked = [_text(row, "instruction")]
        if row.values.get("input"):
            asked.append(_text(row, "input"))
        turn = {"role": "user", "content": "\n\n".join(asked)}
        answer = {"role": "assistant", "content": _text(row, "output")}
        return {"messages": _messages(row, [turn, answer])}
    if shape == ("prompt", "completion"):
        if isinstance(row.values["prompt"], str):
            return {column: _text(row, column) for column in shape} | kept
        messages = {column: _listed(row, column) for column in shape}
        _messages(row, [*messages["prompt"], *messages["completion"]])
        return {column: _messages(row, each, part=True) for column, each in messages.items()} | kept
    return {"messages": _messages(row, _listed(row, shape[0]))} | kept


def _text(row: Row, column: str) -> str:
    value = row.values[column]
    if not isinstance(value, str):
        raise InputError(f"{row.place}: {column!r} must be text, got {_kind(value)}.")
    if not value.strip():
        raise InputError(f"{row.place}: {column!r} is empty. Fill it, or leave the row out.")
    return value


def _listed(row: Row, column: str) -> list[dict[str, Any]]:
    """The messages of a column, with `role` and `content` whatever they were called."""
    value = row.values[column]
    found = conversation_of({"messages": value})
    if found is None:
        remedy = " Use a 'text' column for plain text." if isinstance(value, str) else ""
        raise InputError(
            f"{row.place}: {column!r} must be a list of messages with 'role' and 'content', got "
            f"{_kind(value)}.{remedy}"
        )
    return found.messages


def _messages(row: Row, given: list[dict[str, Any]], *, part: bool = False) -> list[dict[str, Any]]:
    """Messages that can be trained on, with whatever they hold beside role and content."""
    messages = [_message(row, number, each) for number, each in enumerate(given, 1)]
    if not part and not any(each["role"] == "assistant" for each in messages):
        raise InputError(f"{row.place}: no message of role 'assistant', so nothing to learn.")
    return messages


def _message(row: Row, number: int, given: Mapping[str, Any]) -> dict[str, Any]:
    place = f"{row.place}, message {number}"
    role, content = given.get("role"), given.get("content")
    if not isinstance(role, str) or not {"content", "tool_calls"} & given.keys():
        raise InputError(
            f"{place}: 'messages' must be a list of messages with 'role' and 'content' (here: "
            f"{', '.join(map(repr, given)) or 'nothing'})."
        )
    if "conversations" in row.values and role not in _ROLES:
        known = ", ".join(map(repr, _ROLES))
        raise InputError(
            f"{place}: 'from' {role!r} is unclear. Give the rows as 'messages' with the roles "
            f"{known}."
        )
    if isinstance(content, list):
        content = "".join(_part(place, each) for each in content)
    if content is not None and not isinstance(content, str):
        raise InputError(f"{place}: 'content' must be text, got {_kind(content)}.")
    if role == "assistant" and not (content or "").strip() and not given.get("tool_calls"):
        raise InputError(
            f"{place}: the assistant's message is empty, so the model would learn to say nothing. "
            "Fill it, or leave the row out."
        )
    return {**given, "content": content or ""}


def _part(place: str, part: Any) -> str:
    if isinstance(part, Mapping) and isinstance(part.get("text"), str):
        return part["text"]
    kind = part.get("type") if isinstance(part, Mapping) else _kind(part)
    raise InputError(
        f"{place}: its content has a part of type {kind!r}, but only text can be trained on here. "
        "Leave the row out, or use `STRTrainer` with a vision model."
    )


def _kind(value: Any) -> str:
    shown = json.dumps(value, ensure_ascii=False, default=str)
    return f"{type(value).__name__} ({shown if len(shown) <= 60 else shown[:57] + '...'})"
