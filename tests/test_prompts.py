"""Prompt suites: what a suite must hold, and how a file of prompts becomes suites."""

import json

import pytest

from holdfast.errors import InputError
from holdfast.prompts import MINING_PROMPTS, Prompt, Suite, read_suites


def _prompt(number=1, kind="harmful", **more):
    return Prompt(id=f"p{number}", prompt=f"Request {number}?", kind=kind, **more)


def _file(folder, *rows, name="requests.jsonl"):
    path = folder / name
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def test_a_suite_of_one_kind_is_accepted():
    suite = Suite(name="s", kind="harmful", prompts=(_prompt(1), _prompt(2)))
    assert [each.id for each in suite.prompts] == ["p1", "p2"]


def test_a_suite_without_prompts_is_refused():
    with pytest.raises(InputError, match=r"Suite 's' has no prompts, so there is nothing to measu"):
        Suite(name="s", kind="harmful", prompts=())


def test_a_suite_of_mixed_kinds_is_refused():
    words = (
        r"Suite 's' is harmful but prompt 'p2' is harmless\. Put each kind into a suite of its own"
    )
    with pytest.raises(InputError, match=words):
        Suite(name="s", kind="harmful", prompts=(_prompt(1), _prompt(2, "harmless")))


def test_a_task_without_its_answer_is_refused():
    known, unknown = _prompt(1, "task", answer="yes"), _prompt(2, "task")
    words = r"Suite 's': prompt 'p2' of a task has no 'answer'\. Add it\."
    with pytest.raises(InputError, match=words):
        Suite(name="s", kind="task", prompts=(known, unknown))
    Suite(name="s", kind="task", prompts=(known,))


def test_an_id_twice_is_refused():
    with pytest.raises(
        InputError, match=r"Suite 's' holds an id twice\. Give each prompt its own\."
    ):
        Suite(name="s", kind="harmful", prompts=(_prompt(1), _prompt(1)))


def test_a_file_of_one_kind_is_one_suite_by_the_name_of_the_file(tmp_path):
    path = _file(
        tmp_path,
        {"id": "a", "prompt": "One?", "kind": "harmless", "category": "kitchen"},
        {"prompt": "Two?", "kind": "harmless"},
    )
    assert read_suites(path) == [
        Suite(
            name="requests",
            kind="harmless",
            prompts=(
                Prompt(id="a", prompt="One?", kind="harmless", category="kitchen"),
                Prompt(id="2", prompt="Two?", kind="harmless"),
            ),
        )
    ]


def test_a_file_of_several_kinds_is_a_suite_for_each_in_order(tmp_path):
    path = _file(
        tmp_path,
        {"prompt": "Steal?", "kind": "harmful"},
        {"prompt": "2 + 2?", "kind": "task", "answer": 4},
        {"prompt": "Bake?", "kind": "harmless"},
        {"prompt": "Forge?", "kind": "harmful"},
    )
    suites = read_suites(str(path))
    assert [(each.name, each.kind) for each in suites] == [
        ("requests-harmful", "harmful"),
        ("requests-task", "task"),
        ("requests-harmless", "harmless"),
    ]
    assert [each.prompt for each in suites[0].prompts] == ["Steal?", "Forge?"]
    assert [each.id for each in suites[0].prompts] == ["1", "4"]
    assert suites[1].prompts[0].answer == "4"


def test_suites_are_read_from_csv_too(tmp_path):
    (tmp_path / "a.csv").write_text("prompt,kind,answer\n2 + 2?,task,4\n")
    (suite,) = read_suites(tmp_path / "a.csv")
    assert suite.prompts == (Prompt(id="1", prompt="2 + 2?", kind="task", answer="4"),)


@pytest.mark.parametrize("column", ["prompt", "kind"])
def test_a_row_that_lacks_a_column_is_refused_with_its_place(tmp_path, column):
    good = {"prompt": "One?", "kind": "harmful"}
    bad = {"text": "Two?", **good}
    del bad[column]
    words = (
        rf"requests\.jsonl, line 2: no field '{column}' \(fields: 'text', .+ A suite needs 'prompt'"
    )
    with pytest.raises(InputError, match=words):
        read_suites(_file(tmp_path, good, bad))


def test_an_empty_prompt_is_refused_without_calling_the_field_absent(tmp_path):
    """The message used to say: no field 'prompt' (fields: 'prompt', 'kind')."""
    path = _file(tmp_path, {"prompt": "", "kind": "harmful"})
    with pytest.raises(InputError, match=r"line 1: .*'prompt'") as caught:
        read_suites(path)
    assert "no field 'prompt' (fields: 'prompt'" not in str(caught.value)


@pytest.mark.parametrize("kind", ["Harmful", "bad", 3, ["harmful"]])
def test_an_unknown_kind_is_refused_with_the_known_ones(tmp_path, kind):
    path = _file(tmp_path, {"prompt": "One?", "kind": kind})
    with pytest.raises(
        InputError, match="line 1: 'kind' must be one of harmful, harmless, task, got"
    ):
        read_suites(path)


def test_a_null_id_or_category_counts_as_not_given(tmp_path):
    """JSON's null used to become the word 'None', so two such rows were refused as one id twice."""
    rows = [
        {"prompt": text, "kind": "harmful", "id": None, "category": None, "answer": None}
        for text in ("One?", "Two?")
    ]
    (suite,) = read_suites(_file(tmp_path, *rows))
    assert [each.id for each in suite.prompts] == ["1", "2"]
    assert [each.category for each in suite.prompts] == ["", ""]
    assert [each.answer for each in suite.prompts] == [None, None]


def test_an_id_of_zero_is_an_id(tmp_path):
    (suite,) = read_suites(_file(tmp_path, {"prompt": "One?", "kind": "harmful", "id": 0}))
    assert suite.prompts[0].id == "0"


def test_a_given_id_that_is_another_rows_number_is_refused_not_mixed_up(tmp_path):
    path = _file(
        tmp_path,
        {"prompt": "One?", "kind": "harmful", "id": "2"},
        {"prompt": "Two?", "kind": "harmful"},
    )
    with pytest.raises(InputError, match="holds an id twice"):
        read_suites(path)


def test_the_rules_of_a_suite_hold_for_files(tmp_path):
    with pytest.raises(InputError, match="of a task has no 'answer'"):
        read_suites(_file(tmp_path, {"prompt": "2 + 2?", "kind": "task"}))


def test_mining_prompts_are_distinct_requests():
    assert len(set(MINING_PROMPTS)) == len(MINING_PROMPTS) >= 10
    assert all(each == each.strip() and each for each in MINING_PROMPTS)
