"""The command line: help without torch, our flags pinned, mine and audit end to end."""

import json
import os
import re
import resource
import subprocess
import sys

import pytest
import typer
from helpers import every_command, unknown_in
from typer.testing import CliRunner

from moorline import embedded
from moorline.commands.cli import app
from moorline.method.mining import DEFAULT_MAX_TOKENS
from moorline.trainer import make_parser

runner = CliRunner()


def test_help_answers_without_importing_torch():
    code = (
        "import sys; sys.argv = ['moorline', '--help']\n"
        "from moorline.commands.cli import main\n"
        "try: main()\n"
        "except SystemExit as end: assert end.code == 0\n"
        "heavy = {'torch', 'transformers', 'trl', 'matplotlib'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for command in ("demo", "mine", "tune", "audit"):
        assert re.search(rf"\b{command}\b", done.stdout)


def test_our_flags_are_these():
    names = {action.dest for action in make_parser()._actions}
    assert {name for name in names if name.startswith("str_")} == {
        "str_tokens", "str_weight", "str_form", "str_reference", "str_reference_model",
        "str_reference_fraction", "str_positions", "str_cache_dtype", "str_cache_dir",
        "str_plain_text", "str_budget", "str_anchors", "str_anchor_share", "str_anchor_weight",
        "str_conflicts",
    }  # fmt: skip


def test_tune_help_shows_the_hosts_flags_and_ours():
    result = runner.invoke(app, ["tune", "--help"])
    assert result.exit_code == 0
    assert "--str_weight" in result.stdout
    assert "--learning_rate" in result.stdout


@pytest.mark.lengthy
def test_mine_writes_the_artifact(tmp_path):
    path = tmp_path / "tokens.json"
    result = runner.invoke(app, ["mine", embedded.aligned_path(), "--output", str(path), "--json"])
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert found["ids"] == json.loads(path.read_text())["ids"]


@pytest.mark.lengthy
def test_mining_the_unaligned_base_is_refused(tmp_path):
    path = tmp_path / "tokens.json"
    result = runner.invoke(app, ["mine", embedded.base_path(), "--output", str(path)])
    assert result.exit_code == 2
    assert "does not refuse in these words" in result.stderr
    assert not path.exists()


@pytest.mark.lengthy
def test_audit_writes_answers_and_rates_and_compares(tmp_path):
    suite = tmp_path / "some.jsonl"
    rows = [
        {"prompt": each.prompt, "kind": each.kind, "id": each.id}
        for each in [*embedded.suites()[0].prompts[:12], *embedded.suites()[1].prompts[:12]]
    ]
    suite.write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = ["audit", embedded.base_path(), "--suite", str(suite), "--max-new-tokens", "24",
             "--against", embedded.aligned_path(), "--output", str(tmp_path / "out"),
             "--json"]  # fmt: skip
    result = runner.invoke(app, words)
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert found == json.loads((tmp_path / "out" / "audit.json").read_text())
    rates = {(each["kind"], each["metric"]): each for each in found["measurements"]}
    success = rates["harmful", "attack_success_rate"]
    assert success["value"] == 1.0
    assert success["low"] < 1.0 <= success["high"]
    assert found["comparisons"][0]["difference"] > 0.9
    lines = (tmp_path / "out" / "answers.jsonl").read_text().splitlines()
    assert len(lines) == 24
    assert set(json.loads(lines[0])) == {
        "suite", "id", "condition", "draw", "category", "prompt", "answer", "truncated", "outcome",
        "reason", "verdicts",
    }  # fmt: skip


def test_audit_refuses_what_it_cannot_read(tmp_path):
    wrong = tmp_path / "wrong.jsonl"
    wrong.write_text('{"prompt": "a", "kind": "harmful"}\n{"prompt": "a", "kind": "bad"}\n')
    result = runner.invoke(app, ["audit", embedded.base_path(), "--suite", str(wrong)])
    assert result.exit_code == 2
    assert "wrong.jsonl, line 2" in result.stderr
    result = runner.invoke(app, ["audit", str(tmp_path / "no")])
    assert result.exit_code == 2
    assert "no such model folder" in result.stderr
    result = runner.invoke(app, ["audit", embedded.base_path(), "--adapter", str(tmp_path)])
    assert result.exit_code == 2
    assert "adapter_config.json" in result.stderr
    result = runner.invoke(app, ["audit", embedded.base_path(), "--judge", "keyword"])
    assert result.exit_code == 2
    assert "Did you mean 'keywords'?" in result.stderr


COMMANDS = dict(every_command())
NAMES = (*COMMANDS, "export")


@pytest.mark.lengthy
@pytest.mark.parametrize("name", ["", *NAMES])
def test_help_takes_under_a_second_and_two_screens(name):
    """Of the processor's time: what a busy machine adds is not ours."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(
        [sys.executable, "-m", "moorline", *name.split(), "--help"], capture_output=True, text=True,
        check=False, env={**os.environ, "COLUMNS": "80"},
    )  # fmt: skip
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.returncode == 0, done.stderr
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 1
    lines = done.stdout.splitlines()
    assert 5 < len(lines) <= 80
    assert max(map(len, lines)) <= (80 if name not in ("tune", "cache") else 100)


def test_help_all_shows_what_help_leaves_out():
    short, whole = (runner.invoke(app, ["audit", each]).stdout for each in ("--help", "--help-all"))
    assert "--device-map" not in short
    assert "--device-map" in whole
    assert len(whole.splitlines()) > len(short.splitlines())


@pytest.mark.parametrize("name", COMMANDS)
def test_help_has_examples_that_can_be_run(name):
    shown = runner.invoke(app, [*name.split(), "--help"], env={"COLUMNS": "100"}).stdout
    _, _, examples = shown.partition("Examples:")
    lines = [each.strip() for each in examples.splitlines() if each.strip()]
    assert lines
    for line in lines:
        assert line.startswith(f"moorline {name}")
        assert unknown_in(line) == [], line


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_says_what_it_is_and_its_default(name):
    for each in COMMANDS[name].params:
        if not isinstance(each, typer.core.TyperOption):
            continue
        assert each.help, each.opts
        if each.default is None and not each.required and "In place of" not in each.help:
            assert "default" in each.help.lower(), each.opts


def test_the_defaults_that_help_tells_in_words_are_so():
    words = {each.opts[0]: getattr(each, "help", "") for each in COMMANDS["mine"].params}
    assert f"Default: {DEFAULT_MAX_TOKENS}." in words["--max-tokens"]


def test_our_commands_come_in_groups():
    shown = runner.invoke(app, ["--help"]).stdout
    places = [shown.index(each) for each in ("Begin", "Tune", "Measure and show")]
    assert places == sorted(places)
