"""Rows of a user's file with the place of each, and what is said when a file is damaged."""

import json
import re

import pyarrow
import pyarrow.parquet
import pytest

from moorline.errors import InputError
from moorline.tables import Row, is_table, rows_of


def _file(folder, name, content):
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def _values(path):
    return [row.values for row in rows_of(path)]


def _refusal(path):
    with pytest.raises(InputError) as caught:
        list(rows_of(path))
    return str(caught.value)


# JSONL


def test_jsonl_rows_come_in_order_with_their_lines_past_blank_ones(tmp_path):
    path = _file(tmp_path, "a.jsonl", '{"x": 1}\n\n   \n{"x": "\u00e9\u2028"}\r\n{"x": null}')
    assert list(rows_of(path)) == [
        Row(f"{path}, line 1", {"x": 1}),
        Row(f"{path}, line 4", {"x": "\u00e9\u2028"}),
        Row(f"{path}, line 5", {"x": None}),
    ]


@pytest.mark.parametrize(
    ("name", "text"), [("a.jsonl", '{"x": "1"}\n'), ("a.json", '[{"x": "1"}]'), ("a.csv", "x\n1\n")]
)
def test_a_byte_order_mark_is_not_part_of_the_first_row(tmp_path, name, text):
    assert _values(_file(tmp_path, name, "\ufeff" + text)) == [{"x": "1"}]


def test_bad_json_names_file_line_and_column(tmp_path):
    path = _file(tmp_path, "a.jsonl", '{"x": 1}\n\n{"x": 1, y: 2}\n{"x": 3}\n')
    words = (
        f"{re.escape(str(path))}, line 3, column 10: not JSON: .+ Put one JSON object on each line"
    )
    with pytest.raises(InputError, match=words):
        list(rows_of(path))


def test_a_line_cut_short_is_named_with_the_column_where_it_ends(tmp_path):
    """The line's own end of line used to be taken for a second line, so the column was 1."""
    path = _file(tmp_path, "a.jsonl", '{"x": 1}\n{"x": 2}\n{"x": 34\n{"x": 4}\n')
    assert f"{path}, line 3, column 9: not JSON" in _refusal(path)


def test_rows_before_the_damage_are_delivered(tmp_path):
    rows = rows_of(_file(tmp_path, "a.jsonl", '{"x": 1}\n{"x": 2}\noops\n'))
    assert [next(rows).values, next(rows).values] == [{"x": 1}, {"x": 2}]
    with pytest.raises(InputError, match="line 3"):
        next(rows)


@pytest.mark.parametrize(
    ("line", "kind"), [("[1]", "list"), ('"text"', "str"), ("3", "int"), ("null", "NoneType")]
)
def test_a_line_that_is_no_object_is_refused(tmp_path, line, kind):
    path = _file(tmp_path, "a.jsonl", f'{{"x": 1}}\n{line}\n')
    with pytest.raises(InputError, match=f"line 2: a row is a JSON object, got {kind}\\."):
        list(rows_of(path))


# JSON


def test_a_json_list_gives_its_rows(tmp_path):
    path = _file(tmp_path, "a.json", json.dumps([{"x": 1}, {"x": [2]}]))
    assert list(rows_of(path)) == [
        Row(f"{path}, row 1", {"x": 1}),
        Row(f"{path}, row 2", {"x": [2]}),
    ]


def test_bad_json_in_a_list_names_line_and_column(tmp_path):
    path = _file(tmp_path, "a.json", '[\n {"x": 1},\n {"x": }\n]')
    with pytest.raises(InputError, match=r"a\.json, line 3, column 8: not JSON: Expecting value\."):
        list(rows_of(path))


def test_json_that_is_no_list_is_refused_with_the_way_out(tmp_path):
    path = _file(tmp_path, "a.json", '{"x": 1}')
    words = r"holds a list of objects, got dict\. For one object per line, name it \.jsonl\."
    with pytest.raises(InputError, match=words):
        list(rows_of(path))


def test_a_list_with_something_else_in_it_is_refused(tmp_path):
    path = _file(tmp_path, "a.json", '[{"x": 1}, 2]')
    with pytest.raises(InputError, match=r"row 2: a row is a JSON object, got int\."):
        list(rows_of(path))


# CSV


def test_csv_rows_come_with_their_lines_and_quoted_commas_stay(tmp_path):
    path = _file(tmp_path, "a.csv", 'x,y\n1,"a, b"\n\n3,"say ""no"""\n')
    assert list(rows_of(path)) == [
        Row(f"{path}, line 2", {"x": "1", "y": "a, b"}),
        Row(f"{path}, line 4", {"x": "3", "y": 'say "no"'}),
    ]


def test_a_quoted_line_break_belongs_to_the_field(tmp_path):
    path = _file(tmp_path, "a.csv", 'x,y\n1,"two\nlines"\n2,one\n')
    assert _values(path) == [{"x": "1", "y": "two\nlines"}, {"x": "2", "y": "one"}]


def test_a_missing_csv_field_is_absent_and_an_empty_one_is_there(tmp_path):
    assert _values(_file(tmp_path, "a.csv", "x,y\n1\n2,\n")) == [{"x": "1"}, {"x": "2", "y": ""}]


def test_a_surplus_csv_field_is_refused_with_its_line(tmp_path):
    path = _file(tmp_path, "a.csv", "x,y\n1,2\n1,well, no\n")
    with pytest.raises(
        InputError, match=r"line 3: more fields than the header has\. Quote the comm"
    ):
        list(rows_of(path))


def test_a_csv_field_longer_than_the_parser_takes_is_read(tmp_path):
    """A long text, or a quote that is never closed, used to end in a bare `csv.Error`."""
    text = "x" * 140_000  # csv.field_size_limit() is 131072 unless set
    path = _file(tmp_path, "a.csv", f'x,y\n1,"{text}"\n')
    assert _values(path) == [{"x": "1", "y": text}]


# Parquet


def test_parquet_rows_come_in_order_over_row_groups_with_nulls_absent(tmp_path):
    path = tmp_path / "a.parquet"
    table = pyarrow.table({"x": [1, 2, None, 4], "y": ["a", None, "c", "d"]})
    pyarrow.parquet.write_table(table, path, row_group_size=2)
    assert list(rows_of(path)) == [
        Row(f"{path}, row 1", {"x": 1, "y": "a"}),
        Row(f"{path}, row 2", {"x": 2}),
        Row(f"{path}, row 3", {"y": "c"}),
        Row(f"{path}, row 4", {"x": 4, "y": "d"}),
    ]


def test_parquet_keeps_conversations_as_lists_of_objects(tmp_path):
    messages = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]
    pyarrow.parquet.write_table(pyarrow.table({"messages": [messages]}), tmp_path / "a.parquet")
    assert _values(tmp_path / "a.parquet") == [{"messages": messages}]


@pytest.mark.parametrize("content", [b"", b"not a table at all", b"PAR1" + b"x" * 40 + b"PAR1"])
def test_bytes_that_are_no_parquet_are_refused(tmp_path, content):
    path = _file(tmp_path, "a.parquet", content)
    with pytest.raises(InputError, match=r"a\.parquet: not a Parquet file: .+"):
        list(rows_of(path))


def test_parquet_damaged_inside_is_refused(tmp_path):
    """Damage in a data page used to end in a bare `OSError`: the footer alone was checked."""
    good = tmp_path / "good.parquet"
    table = pyarrow.table({"x": [f"text {number}" for number in range(1000)]})
    pyarrow.parquet.write_table(table, good)
    content = good.read_bytes()
    assert len(list(rows_of(good))) == 1000
    path = _file(tmp_path, "a.parquet", content[:50] + b"\xff" * 60 + content[110:])
    assert str(path) in _refusal(path)


# All kinds


@pytest.mark.parametrize(
    ("name", "content"),
    [("a.jsonl", ""), ("a.jsonl", "\n \n\n"), ("a.json", "[]"), ("a.csv", ""), ("a.csv", "x,y\n")],
)
def test_a_file_without_rows_is_refused(tmp_path, name, content):
    path = _file(tmp_path, name, content)
    with pytest.raises(
        InputError, match=f"{name}: the data file has no rows\\. Give a file with at"
    ):
        list(rows_of(path))


def test_a_parquet_file_without_rows_is_refused(tmp_path):
    pyarrow.parquet.write_table(pyarrow.table({"x": []}), tmp_path / "a.parquet")
    with pytest.raises(InputError, match="the data file has no rows"):
        list(rows_of(tmp_path / "a.parquet"))


def test_an_empty_json_file_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"a\.json, line 1, column 1: not JSON"):
        list(rows_of(_file(tmp_path, "a.json", "")))


@pytest.mark.parametrize(
    ("name", "got"), [("a.txt", r"'\.txt'"), ("a", "'no ending'"), ("a.jsonl.gz", r"'\.gz'")]
)
def test_an_unknown_ending_is_refused_with_the_known_ones(tmp_path, name, got):
    path = _file(tmp_path, name, '{"x": 1}\n')
    words = rf"a data file ends in \.jsonl, \.json, \.csv, \.parquet, got {got}\."
    with pytest.raises(InputError, match=words):
        list(rows_of(path))


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(InputError, match=r"gone\.jsonl: no such data file\. Check the path\."):
        list(rows_of(tmp_path / "gone.jsonl"))


def test_a_folder_is_no_data_file(tmp_path):
    (tmp_path / "a.jsonl").mkdir()
    with pytest.raises(InputError, match="no such data file"):
        list(rows_of(tmp_path / "a.jsonl"))


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.csv"])
def test_text_that_is_not_utf8_is_refused(tmp_path, name):
    path = _file(tmp_path, name, b"x\n\xe9t\xe9\n")
    with pytest.raises(InputError, match=rf"{name}: not text in UTF-8 \(.+\)\. Save it as UTF-8\."):
        list(rows_of(path))


def test_the_ending_may_be_in_capitals_and_the_path_a_string(tmp_path):
    assert _values(str(_file(tmp_path, "A.JSONL", '{"x": 1}\n'))) == [{"x": 1}]


@pytest.mark.parametrize(
    ("path", "claim"),
    [
        ("a.jsonl", True),
        ("b/a.CSV", True),
        ("a.json", True),
        ("a.parquet", True),
        ("a.txt", False),
        ("jsonl", False),
        ("org/data", False),
        ("a.jsonl/b", False),
    ],
)
def test_a_table_is_told_by_its_ending(path, claim):
    assert is_table(path) is claim


def test_a_lacking_column_is_named_with_the_place_and_the_columns_there():
    row = Row("a.jsonl, line 41", {"text": "x", "label": 1})
    words = (
        r"^a\.jsonl, line 41: no field 'prompt' \(fields: 'text', 'label'\)\. "
        r"Rename it\.$"
    )
    with pytest.raises(InputError, match=words):
        raise row.lacks("prompt", "Rename it.")


def test_a_row_without_columns_says_none():
    with pytest.raises(InputError, match=r"\(fields: none\)"):
        raise Row("a.jsonl, line 1", {}).lacks("prompt", "Add it.")
