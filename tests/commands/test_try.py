"""Which weight to take, tried on one's own model and rows."""

import json
import shlex
from dataclasses import replace

import pytest
from helpers import refused, runner

from moorline import embedded
from moorline.commands.cli import app
from moorline.commands.try_out import Tried, _advice, shown
from moorline.commands.tune_settings import parse
from moorline.compare.record import Judged


@pytest.mark.slow
def test_a_try_gives_a_page_a_recommendation_and_the_line(tmp_path):
    rows = tmp_path / "rows.jsonl"
    made = embedded.training_rows("plans", num=48)
    rows.write_text("".join(json.dumps(row) + "\n" for row in made))
    words = ["try", embedded.aligned_path(), str(rows), "--output", str(tmp_path / "tried"),
             "--limit", "40", "--json"]  # fmt: skip
    result = runner.invoke(app, words)
    assert result.exit_code == 0, result.output + result.stderr
    assert "Now 4 tunings as above on 36 of 48 rows, and 5 audits" in result.stderr
    assert "Rows      36 with messages" in result.stderr  # its steps are those of the tunings
    found = json.loads(result.stdout)
    assert [each[0] for each in found["rows"]] == [
        "aligned", "plain", "str weight 1", "str weight 3", "str weight 9",
    ]  # fmt: skip
    page = (tmp_path / "tried" / "trade-off.html").read_text()
    assert found["recommendation"].split("`")[0][:20] in page
    assert "<svg" in page
    assert "[" in found["rows"][1][1]  # its interval
    if found["command"]:
        line = shlex.split(found["command"])
        assert line[:2] == ["moorline", "tune"]
        settings = parse(line[2:])
        assert settings.training.str_weight in (1, 3, 9)
        assert settings.training.output_dir == "out"


def judged(word):
    return Judged(model="m", data="d", method="str", strength="weight 3", word=word, why="why")


def test_the_advice_says_no_more_than_was_shown():
    held, certain = _advice(judged("kept"), judged("lost"), "weight 3")
    assert held.startswith("Take weight 3")
    assert "why" in certain
    assert "not shown" in _advice(judged("open"), judged("lost"), "weight 3")[0]
    for word in ("lost", "broken"):
        assert "larger weight" in _advice(judged(word), judged("lost"), "weight 3")[0]
    assert "Plain tuning" in _advice(judged("kept"), judged("kept"), "weight 3")[0]
    assert (
        "Nothing can be said" in _advice(judged("no witness"), judged("no witness"), "weight 3")[0]
    )


def test_a_task_that_is_lost_is_told_to_hold_less_or_to_learn_longer():
    """It said "a larger weight, or a smaller learning rate", which loses more of the task."""
    advice = _advice(judged("task lost"), judged("lost"), "weight 3")[0]
    assert "smaller weight, more epochs, or more rows" in advice
    assert "larger" not in advice


def test_what_is_shown_fits_a_terminal_and_ends_with_the_line():
    tried = Tried(
        recommendation="Take weight 3: it keeps the refusals.", certainty="By the interval. " * 8,
        command="moorline tune --str_weight 3", page="tried/trade-off.html",
        rows=(("str weight 3", "0.0 % [0, 2]", "1.0 % [0, 4]", "3.12 [3.01, 3.20]"),),
    )  # fmt: skip
    lines = shown(tried).splitlines()
    assert max(map(len, lines)) <= 80
    assert lines[-1] == "  moorline tune --str_weight 3"
    assert "Written: tried/trade-off.html" in lines
    without = shown(replace(tried, command=""))
    assert without.endswith("trade-off.html")


def test_columns_stay_apart_where_perplexities_are_large():
    rows = (("str weight 3", "0.0 % [0, 2]", "1.0 % [0, 4]", "1.23e+05 [101234.01, 154321.20]"),)
    tried = Tried(recommendation="Take it.", certainty="Sure.", command="", page="p", rows=rows)
    line = shown(tried).splitlines()[1]
    assert line.split("  ")[-1].strip() == "1.23e+05 [101234.01, 154321.20]"
    assert len(line) <= 80


def test_what_is_said_of_a_model_that_refuses_too_little_is_a_sentence():
    none = replace(judged("no witness"), why="before tuning it refuses 40% of 20 harmful prompts")
    assert _advice(none, none, "weight 3")[1] == (
        "Before tuning it refuses 40% of 20 harmful prompts."
    )


def test_too_few_rows_are_refused(model_folder, data_file, tmp_path):
    words = ["try", str(model_folder), str(data_file), "--output", str(tmp_path / "t")]
    refused(runner.invoke(app, words), "too few")
