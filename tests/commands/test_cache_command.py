"""`moorline cache`: what a tuning reads, computed ahead by a job of its own."""

import json

import pytest
from helpers import refused, runner, tune

from moorline.commands.cli import app
from moorline.method import cache_job


def cache(flags, *more):
    words = [f"--{key}={value}" for key, value in flags.items() if value is not None]
    return runner.invoke(app, ["cache", *words, *more])


@pytest.fixture
def settings(flags, tmp_path):
    return {**flags, "str_cache_dir": tmp_path / "z0"}


@pytest.mark.slow
def test_a_tuning_reads_what_was_computed_ahead_and_computes_nothing(settings, monkeypatch):
    live = tune(settings | {"output_dir": settings["output_dir"].with_name("live")}, "--json")
    made = cache(settings, "--json")
    assert made.exit_code == 0, made.stderr
    (kept,) = json.loads(made.stdout)["caches"]
    assert kept["rows"] == 12
    assert kept["bytes"] == kept["positions"] * 5 * 4
    assert not settings["output_dir"].exists(), "nothing is trained"

    def never(*args):
        raise AssertionError("the pass ran again")

    monkeypatch.setattr(cache_job, "_compute", never)
    read = tune(settings, "--str_reference=cached", "--json")
    assert read.exit_code == 0, read.stderr
    runs = [json.loads(each.stdout) for each in (live, read)]
    assert [each["reference"] for each in runs] == ["adapter_off", "cached"]
    logs = [[entry for entry in each["log"] if "str/drift" in entry] for each in runs]
    assert logs[1][-1]["str/drift"] > 1e-6
    for one, other in zip(*logs, strict=True):
        for key in ("loss", "grad_norm", "str/drift"):
            assert other[key] == pytest.approx(one[key], rel=1e-4, abs=1e-7), key
    again = cache(settings)
    assert again.exit_code == 0, again.stderr
    assert "12 rows" in again.stdout
    # the control: other safety tokens would need another pass
    assert cache(settings | {"str_cache_dir": settings["output_dir"]}).exit_code != 0


def test_a_reference_that_runs_computes_no_cache(settings):
    refused(cache(settings, "--str_reference=adapter_off"), "`str_reference` 'adapter_off'")


def test_its_help_names_the_settings_of_tune():
    said = runner.invoke(app, ["cache", "--help"])
    assert "--str_cache_dir" in said.stdout
    assert "Usage: moorline cache" in said.stdout
    assert "Usage: moorline tune" not in said.stdout  # as it said
