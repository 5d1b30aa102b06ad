"""The command `mine`: refuses before it loads, tells what it does, writes over nothing else."""

import json

import pytest
from helpers import refused, runner

from moorline import SafetyTokens, embedded
from moorline.commands.cli import app


def mine(*words):
    return runner.invoke(app, ["mine", embedded.aligned_path(), *map(str, words)])


@pytest.mark.lengthy
def test_it_says_at_once_what_it_does_and_writes_the_file(tmp_path):
    path = tmp_path / "tokens.json"
    for _ in range(2):  # over its own file the second time
        result = mine("--output", path, "--max-tokens", 8)
        assert result.exit_code == 0, result.stderr
        assert result.stderr.startswith("Mining the safety tokens of ")
        assert "28/28" in result.stderr
        assert len(SafetyTokens.load(path)) == 8


@pytest.mark.parametrize("num", [0, -3])
def test_a_number_of_tokens_below_one_is_refused(tmp_path, num):
    """0 gave the default."""
    result = mine("--output", tmp_path / "tokens.json", "--max-tokens", num)
    refused(result, f"`max_tokens` must be 1 or more, got {num}")
    assert not (tmp_path / "tokens.json").exists()


def test_no_other_file_is_written_over(tmp_path):
    """Any file was."""
    path = tmp_path / "notes.json"
    path.write_text('{"schema": 1, "notes": "mine"}')
    refused(mine("--output", path), "is there and is no safety-token file")
    assert "notes" in path.read_text()
    refused(mine("--output", tmp_path), "a file cannot be written there")


@pytest.mark.lengthy
def test_explain_shows_where_each_token_tells_and_draws_it(tmp_path):
    path = tmp_path / "tokens.json"
    result = mine("--output", path, "--max-tokens", 6, "--explain", "--json")
    assert result.exit_code == 0, result.stderr
    assert "contrast" in result.stderr
    assert "' sorry'" in result.stderr
    assert {"token", "depth", "harmful", "harmless", "contrast"} <= json.loads(result.stdout)[
        "places"
    ][0].keys()
    assert "<svg" in path.with_suffix(".svg").read_text()


@pytest.mark.lengthy
def test_without_explain_there_is_neither(tmp_path):
    result = mine("--output", tmp_path / "tokens.json", "--max-tokens", 6, "--json")
    assert "places" not in json.loads(result.stdout)
    assert not (tmp_path / "tokens.svg").exists()


def test_a_contrast_below_zero_is_refused_before_anything_is_loaded(tmp_path):
    """It was refused after the model was loaded."""
    result = mine("--output", tmp_path / "tokens.json", "--min-contrast", -1)
    assert result.exit_code == 2
    assert "--min-contrast" in result.stderr
    assert "loading" not in result.stderr
