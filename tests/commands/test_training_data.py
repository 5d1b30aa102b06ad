"""Rows of a local file as they are trained on: kept whole, converted where clear, else refused."""

import json
import re
from types import SimpleNamespace

import pytest

from moorline import InputError
from moorline.commands.training_data import read_training_data

TURN = [{"role": "user", "content": "w1"}, {"role": "assistant", "content": "w2"}]


def read(path):
    script = SimpleNamespace(dataset_name=str(path), dataset_train_split="train")
    return read_training_data(script, SimpleNamespace(datasets=[]))["train"]


def written(tmp_path, *rows):
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(each) + "\n" for each in rows))
    return path


def test_calls_of_tools_thoughts_names_and_columns_for_the_template_are_kept(tmp_path):
    """They used to be thrown away without a word: the model learned to answer nothing."""
    call = {"type": "function", "function": {"name": "weather", "arguments": {"city": "Rome"}}}
    other = {"type": "function", "function": {"name": "sum", "arguments": {"terms": [1, 2]}}}
    messages = [
        TURN[0],
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "name": "weather", "content": "20 C"},
        {"role": "assistant", "content": "It is 20 C.", "reasoning_content": "The tool said so."},
    ]
    tools = [{"type": "function", "function": {"name": "weather", "parameters": {}}}]
    second = [TURN[0], {"role": "assistant", "content": None, "tool_calls": [other]}]
    rows = read(
        written(
            tmp_path,
            {"messages": messages, "tools": tools, "chat_template_kwargs": {"style": "w5"}},
            {"messages": second, "ignored": 1},
        )
    )
    assert rows.column_names == ["messages", "chat_template_kwargs", "tools"]
    assert rows[0] == {
        "messages": messages, "tools": tools, "chat_template_kwargs": {"style": "w5"},
    }  # fmt: skip
    assert rows[1]["messages"] == [TURN[0], {**second[1], "content": ""}]


def test_messages_of_a_prompt_and_a_completion_are_kept_as_they_are_too(tmp_path):
    """Arrow gave each call of a tool the arguments of all the others, as null."""

    def row(**arguments):
        call = {"type": "function", "function": {"name": "f", "arguments": arguments}}
        answer = {"role": "assistant", "content": "", "tool_calls": [call]}
        return {"prompt": [TURN[0]], "completion": [answer]}

    given = [row(city="Rome"), row(terms=[1, 2])]
    assert list(read(written(tmp_path, *given))) == given


@pytest.mark.parametrize(("row", "expected", "name"), [
    ({"conversations": [{"from": "human", "value": "w1"}, {"from": "gpt", "value": "w2"}]}, TURN,
     "ShareGPT"),
    ({"instruction": "w1", "output": "w2"}, TURN, "Alpaca"),
    ({"instruction": "w1", "input": "w3", "output": "w2"},
     [{"role": "user", "content": "w1\n\nw3"}, TURN[1]], "Alpaca"),
])  # fmt: skip
def test_rows_as_people_have_them_are_converted_and_that_is_said(
    row, expected, name, tmp_path, caplog
):
    """They used to be refused without the remedy."""
    caplog.set_level("INFO", logger="moorline")
    assert read(written(tmp_path, row))[0] == {"messages": expected}
    assert f"rows of {name}'s shape are read as 'messages'" in caplog.text


def turns(*contents):
    return [
        {"role": "assistant" if at % 2 else "user", "content": each}
        for at, each in enumerate(contents)
    ]


SYSTEM = {"role": "system", "content": "Be kind."}


@pytest.mark.parametrize(("row", "expected"), [
    ({"instruction": "w1", "output": "w2", "system": "Be kind."}, [SYSTEM, *TURN]),
    ({"instruction": "w1", "output": "w2", "system": "", "history": []}, TURN),
    ({"instruction": "w1", "input": "", "output": "w2", "history": [["w3", "w4"], ["w5", "w6"]]},
     turns("w3", "w4", "w5", "w6", "w1", "w2")),
    ({"conversations": [{"from": "human", "value": "w1"}, {"from": "gpt", "value": "w2"}],
      "system": "Be kind."}, [SYSTEM, *TURN]),
    ({"messages": TURN, "system": "Be kind."}, [SYSTEM, *TURN]),
])  # fmt: skip
def test_a_system_message_and_a_history_in_columns_of_their_own_are_read(row, expected, tmp_path):
    """They were dropped without a word."""
    assert read(written(tmp_path, row))[0] == {"messages": expected}


def test_a_system_message_stands_in_the_prompt_of_a_prompt_and_a_completion(tmp_path):
    row = {"prompt": [TURN[0]], "completion": [TURN[1]], "system": "Be kind."}
    found = read(written(tmp_path, row))[0]
    assert found == {"prompt": [SYSTEM, TURN[0]], "completion": [TURN[1]]}


@pytest.mark.parametrize("tools", ["", None, []])
def test_tools_of_an_alpaca_row_are_kept_and_no_tools_are_none(tools, tmp_path):
    given = [{"type": "function", "function": {"name": "weather", "parameters": {}}}]
    row = {"instruction": "w1", "output": "w2"}
    rows = read(written(tmp_path, {**row, "tools": given}, {**row, "tools": tools}))
    assert [each["tools"] for each in rows] == [given, None]


def test_content_in_parts_of_text_is_joined(tmp_path):
    parts = [{"type": "text", "text": "w"}, {"type": "text", "text": "1"}]
    rows = read(written(tmp_path, {"messages": [{"role": "user", "content": parts}, TURN[1]]}))
    assert rows[0]["messages"] == TURN


def test_columns_between_semicolons_are_read_and_that_is_said(tmp_path, caplog):
    caplog.set_level("INFO", logger="moorline")
    path = tmp_path / "rows.csv"
    path.write_text("prompt;completion\nw1, please;w2\n")
    assert read(path)[0] == {"prompt": "w1, please", "completion": "w2"}
    assert "separated by ';'" in caplog.text
    caplog.clear()
    path.write_text('prompt,completion\n"w1; please",w2\n')
    assert read(path)[0] == {"prompt": "w1; please", "completion": "w2"}
    assert "separated" not in caplog.text


WRONG = {
    "an empty answer": (
        {"messages": [TURN[0], {"role": "assistant", "content": " "}]},
        "line 2, message 2: the assistant's message is empty",
    ),
    "an empty completion": ({"messages": TURN, "x": 1, "prompt": 3}, None),
    "a picture": (
        {"messages": [{"role": "user", "content": [{"type": "image"}]}, TURN[1]]},
        "line 2, message 1: its content has a part of type 'image', but only text",
    ),
    "a number": (
        {"messages": [{"role": "user", "content": 3}, TURN[1]]},
        "'content' must be text, got int .3.",
    ),
    "messages as text": ({"messages": "hello"}, "got str .\"hello\".. Use a 'text' column"),
    "nobody answers": (
        {"messages": [{"role": "human", "content": "w1"}, {"role": "bot", "content": "w2"}]},
        "line 2: no message of role 'assistant' .*roles, in order: 'human', 'bot'",
    ),
    "an answer to nothing": (
        {"messages": [TURN[1], TURN[0]]},
        "line 2: no message of role 'assistant' that answers another one",
    ),
    "no messages": ({"messages": None}, "line 2: field 'messages' is empty"),
    "a system message twice": (
        {"messages": [{"role": "system", "content": "w1"}, *TURN], "system": "w3"},
        "line 2: a column 'system', and a first message of role 'system' too",
    ),
    "nested too deeply": ("[" * 100_000, "line 2: nested too deeply"),
    "a number of many digits": ('{"messages": ' + "9" * 5000 + "}", "line 2: Exceeds the limit"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_cannot_be_trained_on_is_refused_with_its_place_and_what_it_is(case, tmp_path):
    row, words = WRONG[case]
    path = written(tmp_path, {"messages": TURN})
    with path.open("a") as stream:
        stream.write(row if isinstance(row, str) else json.dumps(row))
    if words is None:
        assert len(read(path)) == 2
        return
    with pytest.raises(InputError, match=words):
        read(path)


def test_a_speaker_that_is_unclear_is_refused(tmp_path):
    row = {"conversations": [{"from": "narrator", "value": "w1"}, {"from": "gpt", "value": "w2"}]}
    with pytest.raises(InputError, match="message 1: 'from' 'narrator' is unclear"):
        read(written(tmp_path, row))


@pytest.mark.parametrize(
    ("row", "renamed"),
    [
        ({"question": "w1", "answer": "w2"}, "{'question': 'prompt', 'answer': 'completion'}"),
        ({"prompt": "w1", "response": "w2"}, "{'response': 'completion'}"),
        ({"chosen": TURN, "rejected": TURN}, "rename_column('chosen', 'messages')"),
        ({"prompt": "w1", "chosen": TURN, "rejected": TURN}, "'chosen', 'messages'"),
        ({"prompt": "w1", "chosen": "w2", "rejected": "w3"}, "'chosen', 'completion'"),
        ({"prompt": TURN[:1], "chosen": TURN[1:], "rejected": TURN}, "'chosen', 'completion'"),
    ],
)
def test_rows_of_another_shape_are_refused_with_the_command_that_converts(
    tmp_path, monkeypatch, row, renamed
):
    converted = convert(written(tmp_path, row, row), tmp_path, monkeypatch, renamed)
    assert len(converted) == 2
    turn = converted.column_names == ["messages"]
    said = converted[0]["messages"] if turn else [*converted[0].values()]
    assert said in (TURN, [TURN[:1], TURN[1:]], ["w1", "w2"])


def convert(path, tmp_path, monkeypatch, words):
    """What the command makes that an error names."""
    with pytest.raises(InputError, match="no field 'messages'") as raised:
        read(path)
    (code,) = re.findall(r'python -c "(.*)"$', str(raised.value))
    assert words in code
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "the command", "exec"), {})
    return read(tmp_path / "converted.jsonl")


@pytest.mark.parametrize("mark", [";", "\t"])
def test_the_command_reads_a_table_by_what_separates_its_columns(mark, tmp_path, monkeypatch):
    path = tmp_path / "rows.csv"
    path.write_text(f"question{mark}answer\nw1{mark}w2\n")
    found = convert(path, tmp_path, monkeypatch, f"sep={mark!r}")
    assert found[0] == {"prompt": "w1", "completion": "w2"}


@pytest.mark.parametrize(("row", "words"), [
    ({"instruction": "w1", "output": "w2", "history": [["w3"]]}, "line 1: 'history' must be"),
    ({"instruction": "w1", "output": "w2", "history": "w3"}, "line 1: 'history' must be"),
    ({"prompt": "w1", "completion": "w2", "system": "w3"}, "line 1: 'system' is not read beside"),
])  # fmt: skip
def test_columns_that_cannot_be_read_are_refused_by_name(row, words, tmp_path):
    with pytest.raises(InputError, match=words):
        read(written(tmp_path, row))


def test_an_empty_cell_of_a_table_is_called_empty(tmp_path):
    """The message said: no field 'completion' (fields: 'prompt', 'completion')."""
    path = tmp_path / "rows.csv"
    path.write_text("prompt,completion\nw1,w2\nw3,\n")
    with pytest.raises(InputError, match="line 3: field 'completion' is empty"):
        read(path)


def test_a_file_of_an_unknown_ending_is_refused_with_those_that_are_read(tmp_path):
    """The message said: no such data set, here or on the hub."""
    path = tmp_path / "rows.txt"
    path.write_text("hello\n")
    with pytest.raises(InputError, match=r"ends in \.jsonl, \.json, \.csv, \.parquet, got '\.txt'"):
        read(path)


def test_rows_that_nobody_knows_are_refused_without_a_command(tmp_path):
    with pytest.raises(InputError) as raised:
        read(written(tmp_path, {"a": "w1", "b": "w2"}))
    assert "python -c" not in str(raised.value)


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"text": "hello", "system": "Be kind."}, "'system' is not read beside a 'text'"),
        ({"messages": TURN, "tools": "bad"}, "`tools` of a row must be a list"),
        ({"messages": TURN, "tools": {"a": 1}}, "`tools` of a row must be a list"),
    ],
)
def test_what_would_be_lost_is_refused_by_its_place(row, said, tmp_path):
    with pytest.raises(InputError, match=f"line 1: {re.escape(said)}"):
        read(written(tmp_path, row))


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"instruction": "p", "input": "x", "response": "c"}, None),
        ({"instruction": "p", "context": "x", "response": "c"}, None),
        ({"instruction": "p", "input": "", "response": "c"}, "'response': 'completion'"),
        ({"prompt": "a", "chosen": "a b", "rejected": "a c"}, None),
        ({"prompt": TURN[:1], "chosen": TURN, "rejected": TURN}, "('chosen', 'messages')"),
    ],
)
def test_no_command_is_told_that_would_lose_or_double_a_part(row, said, tmp_path):
    with pytest.raises(InputError) as caught:
        read(written(tmp_path, row))
    assert ("python -c" in str(caught.value)) == (said is not None)
    assert said is None or said in str(caught.value)
