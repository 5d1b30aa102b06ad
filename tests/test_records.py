"""Our own JSON files: what comes back is what was written, and what does not fit is named."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple

import pytest

from moorline import records
from moorline.errors import InputError


class Point(NamedTuple):
    x: int
    y: float | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Part:
    name: str
    """What it is called."""

    share: float | None = None

    def __post_init__(self) -> None:
        if self.share is not None and self.share > 1:
            raise InputError(f"`share` must not exceed 1, got {self.share}.")


@dataclass(frozen=True, kw_only=True, slots=True)
class Whole:
    """A file."""

    SCHEMA: ClassVar[int] = 2

    status: Literal["running", "finished"]
    parts: tuple[Part, ...]
    settings: Mapping[str, Any]
    points: tuple[Point, ...] = ()
    size: int | str | None = None
    passed: bool = False


VALUES = {"status": "running", "parts": [{"name": "a"}], "settings": {"deep": [1, {"b": None}]}}


def load(tmp_path, values, **options):
    text = values if isinstance(values, str) else json.dumps(values)
    (tmp_path / "whole.json").write_text(text, encoding="utf-8")
    path = tmp_path / "whole.json"
    return records.read(Whole, path, "whole file", remedy="Do it again.", **options)


def test_what_is_written_comes_back_of_the_same_types(tmp_path):
    whole = Whole(
        status="finished", parts=(Part(name="ä\u2028", share=0.5), Part(name="b")),
        settings={"deep": [1, {"b": None}]}, points=(Point(1), Point(2, 0.5)), size="big",
        passed=True,
    )  # fmt: skip
    records.write(tmp_path / "whole.json", whole)
    text = (tmp_path / "whole.json").read_text(encoding="utf-8")
    assert next(iter(json.loads(text))) == "schema"
    back = load(tmp_path, text)
    assert back == whole
    assert type(back.parts[0]) is Part
    assert type(back.points[0]) is Point


def test_a_whole_number_is_a_float_where_one_is_asked_for(tmp_path):
    values = {"schema": 2, **VALUES, "parts": [{"name": "a", "share": 1}]}
    share = load(tmp_path, values).parts[0].share
    assert (share, type(share)) == (1.0, float)


@pytest.mark.parametrize(("changes", "words"), [
    ({"status": "gone"}, "'status' holds \"gone\", must be 'running' or 'finished'"),
    ({"parts": [{"name": 3}]}, "'parts[0].name' holds 3, must be a valid string"),
    ({"parts": [{"name": "a"}, {}]}, "lacks 'parts[1].name'"),
    ({"parts": [{"name": "a"}, None]}, "'parts[1]' holds null, must be an object"),
    ({"parts": {"name": "a"}}, "'parts' holds {\"name\": \"a\"}, must be a valid array"),
    ({"parts": [{"name": "a", "odd": 1}]}, "has an unknown field 'parts[0].odd'"),
    ({"parts": [{"name": "", "share": True}]},
     "'parts[0].share' holds true, must be a valid number"),
    ({"parts": [{"name": "", "share": "1"}]},
     "'parts[0].share' holds \"1\", must be a valid number"),
    ({"parts": [{"name": "a", "share": 2.0}]}, "`share` must not exceed 1, got 2.0"),
    ({"settings": []}, "'settings' holds [], must be an object"),
    ({"points": [{"x": 0.5}]}, "'points[0].x' holds 0.5, must be a valid integer"),
    ({"size": 0.5}, "'size' holds 0.5, must be a valid integer"),
    ({"passed": 1}, "'passed' holds 1, must be a valid boolean"),
    ({"schema": 1}, "by another version of Moorline (schema 1, this one reads 2)"),
    ({"schema": True}, "by another version of Moorline (schema true, this one reads 2)"),
    ({"settings": {"a": float("nan")}}, "holds NaN or Infinity, no number"),
])  # fmt: skip
def test_what_does_not_fit_is_named_with_place_and_remedy(changes, words, tmp_path):
    with pytest.raises(InputError) as refused:
        load(tmp_path, {"schema": 2, **VALUES, **changes})
    assert words in str(refused.value)
    assert str(refused.value).startswith(str(tmp_path / "whole.json"))
    assert str(refused.value).endswith(". Do it again.")
    load(tmp_path, {"schema": 2, **VALUES})  # the control: as it was, it is taken


def test_a_value_that_is_no_object_at_all_is_named_by_its_place():
    with pytest.raises(InputError) as refused:
        records.parse(Part, "x", "parts 3", remedy="Again.")
    assert str(refused.value).startswith('parts 3: holds "x", must be an object')


def test_a_file_that_is_shipped_is_read_by_its_type():
    named = records.packaged(dict[str, Any], "moorline.audit", "formats.toml")
    assert named["formats"][1]["name"] == "advbench"
    with pytest.raises(InputError, match=r"formats\.toml: .* must be a valid integer"):
        records.packaged(dict[str, int], "moorline.audit", "formats.toml")


def test_a_long_value_is_shown_in_part(tmp_path):
    with pytest.raises(InputError) as refused:
        load(tmp_path, {"schema": 2, **VALUES, "status": "x" * 10_000})
    assert len(str(refused.value)) < 300 + len(str(tmp_path))


def test_fields_to_come_are_passed_over_where_that_is_asked_for(tmp_path):
    values = {"schema": 2, **VALUES, "parts": [{"name": "a", "new": 1}], "newer": 1}
    assert load(tmp_path, values, others=True).parts == (Part(name="a"),)
    with pytest.raises(InputError, match="unknown field"):
        load(tmp_path, values)


def test_older_schemas_are_read_where_that_is_asked_for(tmp_path):
    values = {"schema": 1, **VALUES}
    assert load(tmp_path, values, schemas=(1, 2)) == load(tmp_path, {**values, "schema": 2})
    with pytest.raises(InputError, match="schema 3, this one reads 1 or 2"):
        load(tmp_path, {**values, "schema": 3}, schemas=(1, 2))


def test_rows_are_parsed_one_by_one_and_in_a_table():
    assert records.parse(Point, {"x": 1}, "a.jsonl, line 1", remedy="") == Point(1)
    rows = records.parse(tuple[Point, ...], [{"x": 1}, [2, 0.5]], "a.json", remedy="")
    assert rows == (Point(1), Point(2, 0.5))
    with pytest.raises(
        InputError, match=r"^a\.json: '\[1\]\.x' holds \"1\", must be a valid integer\."
    ):
        records.parse(tuple[Point, ...], [{"x": 1}, {"x": "1"}], "a.json", remedy="Again.")


def test_half_of_a_surrogate_pair_is_read(tmp_path):
    text = json.dumps({"schema": 2, **VALUES, "settings": {"name": "\ud800"}})
    assert load(tmp_path, text).settings == {"name": "?"}


def test_a_class_gives_the_json_schema_of_its_file():
    schema = records.json_schema(Whole)
    whole, part = schema["$defs"]["Whole"], schema["$defs"]["Part"]
    assert schema["$ref"] == "#/$defs/Whole"
    assert whole["properties"]["schema"] == {"const": 2}
    assert whole["required"] == ["schema", "status", "parts", "settings"]
    assert whole["additionalProperties"] is False
    assert part["properties"]["name"]["description"] == "What it is called."
