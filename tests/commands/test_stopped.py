"""Ctrl-C at moments of its own: in `moorline cache`, and after the last step of a tuning."""

import json

import pytest
from helpers import runner, tune

from moorline.commands.cli import app
from moorline.method import cache_job, cache_shards


def test_a_cache_that_is_stopped_says_what_is_kept_and_goes_on(flags, tmp_path, monkeypatch):
    """It said nothing."""
    monkeypatch.setattr(cache_shards, "MAX_ROWS", 4)
    words = [f"--{key}={value}" for key, value in flags.items()]
    words = ["cache", *words, f"--str_cache_dir={tmp_path / 'z0'}"]
    computed, original = [], cache_job._write_shard

    def interrupt(*args):
        if len(computed) == 2:
            raise KeyboardInterrupt
        computed.append(args)
        original(*args)

    with monkeypatch.context() as patch:
        patch.setattr(cache_job, "_write_shard", interrupt)
        stopped = runner.invoke(app, words)
    assert stopped.exit_code == 130
    assert "Stopped. What is computed is kept, and the same command goes on" in stopped.stderr
    there = {path.name for path in (tmp_path / "z0" / "train").glob("*.arrow")}
    assert len(there) == 2
    again = runner.invoke(app, words)
    assert again.exit_code == 0, again.stderr
    assert "Stopped" not in again.stderr
    assert len(list((tmp_path / "z0" / "train").glob("*.arrow"))) == 3


@pytest.mark.lengthy
def test_a_run_that_is_stopped_after_its_end_is_whole(flags, tmp_path, monkeypatch):
    def interrupt(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr("moorline.commands.tune.leave_the_group", interrupt)
    stopped = tune(flags)
    assert stopped.exit_code == 130
    assert f"Stopped after the run was finished: {tmp_path / 'run'} is whole" in stopped.stderr
    assert json.loads((tmp_path / "run" / "run.json").read_text())["status"] == "finished"


@pytest.mark.lengthy
@pytest.mark.parametrize("where", ["checked", "_log_of"])
def test_a_run_that_is_stopped_after_its_last_step_says_so(where, flags, tmp_path, monkeypatch):
    """`run.json` said "running" for ever, and nothing was said."""
    from moorline.commands import tune as of

    given, original = {**flags, "save_strategy": "steps", "save_steps": 1}, getattr(of, where)
    once = []

    def interrupt(*args):
        if not once:
            once.append(args)
            raise KeyboardInterrupt
        return original(*args)

    with monkeypatch.context() as patch:
        patch.setattr(of, where, interrupt)
        stopped = tune(given)
    assert stopped.exit_code == 130
    assert "Stopped at step 2." in stopped.stderr
    assert "resume with the same command and --resume_from_checkpoint true" in stopped.stderr
    assert json.loads((tmp_path / "run" / "run.json").read_text())["status"] == "stopped"
    again = tune({**given, "resume_from_checkpoint": "true"})
    assert again.exit_code == 0, again.stderr
    assert json.loads((tmp_path / "run" / "run.json").read_text())["status"] == "finished"
