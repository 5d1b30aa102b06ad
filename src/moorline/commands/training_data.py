"""Rows to train on: a local file or a data set of the hub, each row checked with its place."""

import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import datasets
from datasets import Dataset, DatasetDict, load_dataset
from datasets.exceptions import DatasetGenerationError

from ..chat.conversation import Message, conversation_of, tools_of
from ..errors import InputError, PrerequisiteError
from ..provenance import sha256_of
from ..tables import Row, delimiter_of, is_table, rows_of
from ..trainer import get_dataset

_log = logging.getLogger(__name__)

# Columns by which a row is known, and what it is converted from where it is.
_SHAPES = {
    ("messages",): None,
    ("prompt", "completion"): None,
    ("text",): None,
    ("conversations",): "ShareGPT",
    ("instruction", "output"): "Alpaca",
}
# What others call the two sides of an exchange; not renamed unasked, as they may mean other things.
_RENAMED = (
    ("prompt", "response"), ("instruction", "response"), ("question", "answer"),
    ("query", "response"), ("input", "output"), ("user", "assistant"),
)  # fmt: skip
_BUILDERS = {".csv": "csv", ".parquet": "parquet"}

# Columns of a conversation's row that TRL hands to the chat template.
_FOR_TEMPLATE = ("tools", "chat_template_kwargs")
_ROLES = ("system", "developer", "user", "assistant", "tool")


def read_training_data(script: Any, mixture: Any) -> Any:
    """The data sets that the settings name, by split; each row of a local file is checked."""
    if mixture.datasets:
        return get_dataset(mixture)
    name = script.dataset_name
    if not name:
        raise InputError(
            "`dataset_name` is missing. Give a JSONL, JSON, CSV or Parquet file, or a hub id."
        )
    if is_table(name) or Path(name).is_file():
        return DatasetDict({script.dataset_train_split: _read_file(name)})
    try:
        return load_dataset(name, name=script.dataset_config, streaming=script.dataset_streaming)
    except (FileNotFoundError, ConnectionError, OSError) as error:
        raise PrerequisiteError(
            f"{name}: no such data set, here or on the hub ({str(error).splitlines()[0]}). Check "
            "`dataset_name`."
        ) from error


def split_of(data: Any, name: str) -> Any:
    """One split of the data."""
    if name not in data:
        raise InputError(
            f"The data has no split {name!r} (it has: {', '.join(map(repr, data))}). Set "
            "`dataset_train_split` or `dataset_test_split`."
        )
    return data[name]


def _read_file(name: str) -> Dataset:
    first = next(rows_of(name))
    shape = next((each for each in _SHAPES if set(each) <= first.values.keys()), None)
    if shape is None:
        raise first.lacks(
            "messages",
            "Training rows have 'messages', or 'prompt' and 'completion', or 'text'; ShareGPT's "
            "'conversations' and Alpaca's 'instruction' and 'output' are read too."
            + _converts(name, first.values),
        )
    if _SHAPES[shape] is not None:
        _log.info("%s: rows of %s's shape are read as 'messages'.", name, _SHAPES[shape])
    # The digest makes the cache of `datasets` see an edited file.
    given = {"path": name, "shape": shape, "digest": sha256_of(name)}
    try:
        return Dataset.from_generator(
            _checked_rows,  # pyright: ignore[reportArgumentType]
            gen_kwargs=given,
            features=_features(name, _checked(first, shape)),
        )
    except DatasetGenerationError as error:
        if isinstance(error.__cause__, InputError):
            raise error.__cause__ from error
        raise InputError(
            f"{name}: its rows do not fit into one table ({error.__cause__ or error}). Give each "
            "column one type in all rows."
        ) from error


def _converts(name: str, first: Mapping[str, Any]) -> str:
    """The command that makes rows of ours of these, where it is plain which column is what."""
    builder, apart = _BUILDERS.get(Path(name).suffix.lower(), "json"), ""
    if builder == "csv" and (delimiter := delimiter_of(name)) != ",":
        apart = f", sep={delimiter!r}"
    load = f"import datasets; datasets.load_dataset('{builder}', data_files='{name}'{apart})"
    load += "['train']"
    for prompt, answer in _RENAMED:
        lost = {"prompt", "input", "context", "system"} - {prompt}
        if {prompt, answer} <= first.keys() and not any(first.get(each) for each in lost):
            names = {prompt: "prompt"} if prompt != "prompt" else {}
            made = f"{load}.rename_columns({ {**names, answer: 'completion'} })"
            return f" To convert them: python -c \"{made}.to_json('converted.jsonl')\""
    chosen, prompt = first.get("chosen"), first.get("prompt")
    if "rejected" not in first or not isinstance(chosen, str | list):
        return ""
    if prompt and type(prompt) is type(chosen) and chosen[: len(prompt)] == prompt:
        if isinstance(chosen, str):  # both in one text, with no border between them
            return ""
        prompt = None
    if type(prompt) is type(chosen):  # the answer alone
        columns, known_as = ["prompt", "chosen"], "completion"
    elif isinstance(chosen, list):  # the whole conversation
        columns, known_as = ["chosen"], "messages"
    else:
        return ""
    made = f"{load}.select_columns({columns}).rename_column('chosen', '{known_as}')"
    return (
        " These are preferences; to learn the chosen answers: python -c "
        f"\"{made}.to_json('converted.jsonl')\""
    )


def _features(name: str, first: Mapping[str, Any]) -> datasets.Features | None:
    """Types that keep messages as they are; Arrow's own give each the keys of all the others."""
    lists = {each: value for each, value in first.items() if each not in _FOR_TEMPLATE}
    if not hasattr(datasets, "Json") or not all(isinstance(each, list) for each in lists.values()):
        return None
    more = {each for row in rows_of(name) for each in _FOR_TEMPLATE if each in row.values}
    messages = dict.fromkeys(lists, datasets.List(datasets.Json()))
    return datasets.Features({**messages, **dict.fromkeys(sorted(more), datasets.Json())})


def _checked_rows(path: str, shape: tuple[str, ...], digest: str) -> Iterator[Mapping[str, Any]]:
    first: type | None = None
    for row in rows_of(path):
        kind = type(row.values.get(shape[0]))
        if shape[0] == "prompt" and first is not None and kind is not first:
            raise InputError(
                f"{row.place}: 'prompt' is a {kind.__name__}, and a {first.__name__} in the first "
                "row. Give texts in all rows, or lists of messages in all."
            )
        first = kind
        yield _checked(row, tuple(shape))


def _checked(row: Row, shape: tuple[str, ...]) -> Mapping[str, Any]:
    """What is trained on of a row, which has every column of its shape."""
    for column in shape:
        if row.values.get(column) in (None, "", []):
            raise row.lacks(column, f"The first row has {', '.join(shape)}; every row must.")
    of_texts = shape == ("text",) or isinstance(row.values.get("prompt"), str)
    if of_texts and shape[0] in ("text", "prompt") and row.values.get("system"):
        raise InputError(
            f"{row.place}: 'system' is not read beside a {shape[0]!r} that is a text. Give the "
            "rows as 'messages', the system message first."
        )
    if shape == ("text",):
        return {"text": _text(row, "text")}
    try:
        tools_of(row.values)
    except InputError as error:
        raise InputError(f"{row.place}: {error}") from error
    kept = {name: row.values[name] for name in _FOR_TEMPLATE if row.values.get(name)}
    if shape == ("prompt", "completion") and isinstance(row.values["prompt"], str):
        return {column: _text(row, column) for column in shape} | kept
    if shape == ("instruction", "output"):
        turns = [_exchanges(row)]
    else:
        turns = [_listed(row, column) for column in shape]
    messages = [*_system(row, turns[0]), *_messages(row, [each for part in turns for each in part])]
    border = len(messages) - len(turns[1]) if len(turns) == 2 else 0
    if not any(each["role"] == "assistant" for each in messages[max(border, 1) :]):
        roles = ", ".join(dict.fromkeys(repr(each["role"]) for each in messages))
        raise InputError(
            f"{row.place}: no message of role 'assistant' that answers another one, so nothing to "
            f"learn (roles, in order: {roles}). Name who answers 'assistant', and put what it "
            "answers before it."
        )
    if border:
        return {"prompt": messages[:border], "completion": messages[border:]} | kept
    return {"messages": messages} | kept


def _exchanges(row: Row) -> list[Message]:
    """An Alpaca row as turns: its history, then its instruction, with its input, and its output."""
    history = row.values.get("history") or []
    pairs = history if isinstance(history, list) else [history]
    for pair in pairs:
        if not isinstance(pair, list) or [type(each) for each in pair] != [str, str]:
            raise InputError(
                f"{row.place}: 'history' must be a list of pairs of texts, what the user said and "
                f"what was answered, got {_kind(history)}."
            )
    asked = [_text(row, each) for each in ("instruction", "input") if row.values.get(each)]
    pairs = [*pairs, ["\n\n".join(asked), _text(row, "output")]]
    spoken = [zip(("user", "assistant"), pair, strict=True) for pair in pairs]
    return [{"role": role, "content": content} for pair in spoken for role, content in pair]


def _system(row: Row, turns: Sequence[Message]) -> list[Message]:
    """The message in a column 'system', which stands before the others."""
    if not row.values.get("system"):
        return []
    if turns and turns[0].get("role") == "system":
        raise InputError(
            f"{row.place}: a column 'system', and a first message of role 'system' too. Keep one."
        )
    return [{"role": "system", "content": _text(row, "system")}]


def _text(row: Row, column: str) -> str:
    value = row.values[column]
    if not isinstance(value, str):
        raise InputError(f"{row.place}: {column!r} must be text, got {_kind(value)}.")
    if not value.strip():
        raise InputError(f"{row.place}: {column!r} is empty. Fill it, or leave the row out.")
    return value


def _listed(row: Row, column: str) -> list[Message]:
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


def _messages(row: Row, given: Sequence[Message]) -> list[Message]:
    """Messages that can be trained on, with whatever they hold beside role and content."""
    return [_message(row, number, each) for number, each in enumerate(given, 1)]


def _message(row: Row, number: int, given: Message) -> Message:
    place = f"{row.place}, message {number}"
    role, content = given.get("role"), given.get("content")
    if not isinstance(role, str) or not {"content", "tool_calls"} & given.keys():
        raise InputError(
            f"{place}: 'messages' must be a list of messages with 'role' and 'content' (here: "
            f"{', '.join(map(repr, given)) or 'nothing'})."
        )
    if "conversations" in row.values and role not in _ROLES:
        raise InputError(
            f"{place}: 'from' {role!r} is unclear. Give the rows as 'messages' with the roles "
            f"{', '.join(map(repr, _ROLES))}."
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
