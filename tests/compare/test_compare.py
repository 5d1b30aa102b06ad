"""A comparison on the embedded model, whole: engines, stops, failures, models without refusals."""

import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import time

import jsonschema
import pytest
import yaml
from filelock import FileLock
from helpers import files_that_fit, fits_schema, refused, runner

from moorline import embedded
from moorline.audit.suites import read_suites
from moorline.commands.cli import app
from moorline.compare import read_compared, without_times
from moorline.compare.engines import check_engine
from moorline.compare.splits import is_validation, write_splits
from moorline.errors import InputError, PrerequisiteError

pytestmark = pytest.mark.slow

TRAINING = {
    "max_steps": 3, "use_peft": True, "lora_r": 4, "lora_target_modules": "all-linear",
    "learning_rate": 4.0e-3, "per_device_train_batch_size": 4, "dtype": "float32", "bf16": False,
    "logging_steps": 1, "disable_tqdm": True, "str_form": "logit", "str_anchors": "off",
}  # fmt: skip


def planned(folder, **changes):
    """A plan of three small cells on the embedded model: aligned, plain, and STR at one weight."""
    folder.mkdir(exist_ok=True)
    rows = folder / "rows.jsonl"
    rows.write_text(
        "".join(json.dumps(each) + "\n" for each in embedded.training_rows("plans", num=16))
    )
    plan = {
        "models": [{"name": "tiny", "path": embedded.aligned_path()}],
        "data": [{"name": "plans", "train": str(rows), "tasks": ["embedded:plans"]}],
        "methods": [{"name": "plain"}, {"name": "str", "weights": [10]}],
        "audit": {
            "harmful": ["embedded"], "harmless": ["embedded"], "limit": 12, "max_new_tokens": 12,
        },
        "training": TRAINING,
        **changes,
    }  # fmt: skip
    path = folder / "plan.yaml"
    path.write_text(yaml.safe_dump(plan))
    return path


def compare(plan, output, *words):
    return runner.invoke(app, ["compare", str(plan), "--output", str(output), *words])


def with_tokens(whole, output):
    """A folder in which the tokens are mined already, which takes as long as a cell."""
    shutil.copytree(whole[0] / "models", output / "models")
    return output


def numbers(output):
    return without_times(read_compared(output / "compare.json"))


@pytest.fixture(scope="module")
def plan(tmp_path_factory):
    return planned(tmp_path_factory.mktemp("plan"))


@pytest.fixture(scope="module")
def whole(plan, tmp_path_factory):
    """What one process makes of the plan, without a stop."""
    output = tmp_path_factory.mktemp("compare") / "whole"
    evidence = output / "evidence.md"
    result = compare(plan, output, "--evidence", str(evidence))
    assert result.exit_code == 0, result.output + repr(result.exception)
    return output, result


def test_every_cell_leaves_its_numbers_and_the_tables_show_them(whole):
    output, result = whole
    found = read_compared(output / "compare.json")
    assert found.status == "finished"
    assert [each.cell.method for each in found.cells] == ["aligned", "plain", "str"]
    metrics = {(row.kind, row.metric) for row in found.pooled if row.method == "str"}
    assert metrics == {
        ("harmful", "attack_success_rate"), ("harmful", "refusal_rate"),
        ("harmful", "degenerate_rate"), ("harmless", "over_refusal_rate"),
        ("harmless", "compliance_rate"), ("harmless", "degenerate_rate"), ("task", "utility"),
    }  # fmt: skip
    assert found.cells[1].training.steps == 3
    assert found.cells[1].training.logged >= 3
    assert found.witnesses[0].why_not is None
    lines = result.stdout.splitlines()
    assert max(map(len, lines)) <= 100
    assert any(line.startswith("  weight 10 ") for line in lines)
    assert "[3/3] tiny, plans, str weight 10, seed 0:" in result.stderr
    assert "left" in result.stderr
    assert (output / "tables.md").read_text().count("| plain |") == 1
    assert "<svg" in (output / "figures" / "tiny-plans.svg").read_text()
    assert "# Evidence" in (output / "evidence.md").read_text()


def test_what_it_writes_fits_the_schemas(whole):
    output, _ = whole
    assert {"cell.json", "compare.json", "audit.json", "run.json"} <= files_that_fit(output)
    cells = [json.loads(each.read_text()) for each in output.rglob("cell.json")]
    assert {each["cell"]["method"] for each in cells} == {"aligned", "plain", "str"}
    cells[0]["audit_seconds"] = "long"
    with pytest.raises(jsonschema.ValidationError):
        fits_schema("cell.json", cells[0])


def test_the_audits_pool_to_the_numbers_of_the_file(whole):
    output, _ = whole
    found = read_compared(output / "compare.json")
    audit = json.loads((output / "cells/tiny/plans/plain/seed-0/test/audit.json").read_text())
    for row in audit["measurements"]:
        if row["category"] is None and row["metric"] in ("attack_success_rate", "utility"):
            pooled = found.number("tiny", "plans", "plain", row["metric"], kind=row["kind"])
            assert (pooled.value, pooled.num) == (row["value"], row["num"])


def test_no_prompt_is_on_both_sides(whole):
    output, _ = whole
    sides = {}
    for split in ("validation", "test"):
        suites = [
            suite
            for path in sorted((output / "suites" / split).rglob("*.jsonl"))
            for suite in read_suites(path)
        ]
        assert {each.kind for each in suites} == {"harmful", "harmless", "task"}
        sides[split] = {each.prompt for suite in suites for each in suite.prompts}
    assert sides["validation"]
    assert not sides["validation"] & sides["test"]
    assert all(is_validation(each, 0.3) for each in sides["validation"])
    audits = output / "cells/tiny/plans/str-weight-10/seed-0"
    for split in sides:  # what was asked is what was written
        lines = (audits / split / "answers.jsonl").read_text().splitlines()
        assert {json.loads(each)["prompt"] for each in lines} == sides[split]


def test_the_same_again_does_nothing_and_a_compare_json_is_shown_again(whole, plan):
    output, _ = whole
    before = (output / "cells/tiny/plans/plain/seed-0/cell.json").stat().st_mtime_ns
    result = compare(plan, output)
    assert "3 cells, 3 of them done." in result.stderr
    assert (output / "cells/tiny/plans/plain/seed-0/cell.json").stat().st_mtime_ns == before
    evidence = output / "again.md"
    shown = runner.invoke(
        app, ["compare", str(output / "compare.json"), "--evidence", str(evidence), "--json"]
    )
    assert shown.exit_code == 0, shown.output
    assert json.loads(shown.stdout)["schema"] == 1
    assert evidence.read_text().startswith("# Evidence")


def test_a_comparison_that_is_killed_goes_on_to_the_same_file(whole, plan, tmp_path):
    with_tokens(whole, tmp_path)
    words = [sys.executable, "-m", "moorline", "compare", str(plan), "--output", str(tmp_path)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    first = tmp_path / "cells/tiny/plans/plain/seed-0"
    with subprocess.Popen(words, env=environment, stderr=subprocess.DEVNULL) as process:
        until = time.monotonic() + 300
        # in the middle of a cell: the tuning has begun, and nothing of it is written down
        while not (first / "tuned-1").exists() and time.monotonic() < until:
            assert process.poll() is None
            time.sleep(0.05)
        process.send_signal(signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    assert not (first / "cell.json").exists()
    assert not (tmp_path / "compare.json").exists()
    result = compare(plan, tmp_path)
    assert "3 cells, 1 of them done." in result.stderr
    assert numbers(tmp_path) == numbers(whole[0])


def test_two_processes_give_the_cells_of_one(whole, plan, tmp_path):
    result = compare(plan, with_tokens(whole, tmp_path), "--workers", "2")
    assert result.exit_code == 0, result.output + result.stderr
    assert numbers(tmp_path) == numbers(whole[0])


@pytest.mark.skipif(
    importlib.util.find_spec("ray") is None,
    reason="Ray is not installed: pip install 'moorline[ray]'",
)
def test_a_ray_cluster_of_two_workers_gives_the_cells_of_one(whole, plan, tmp_path):
    words = [sys.executable, "-m", "moorline", "compare", str(plan), "--output", str(tmp_path)]
    words += ["--engine", "ray", "--workers", "2"]
    with_tokens(whole, tmp_path)
    done = subprocess.run(words, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert numbers(tmp_path) == numbers(whole[0])


def test_other_seeds_give_other_numbers(whole, tmp_path):
    """The control of all comparisons of files above: they could differ."""
    other = planned(tmp_path / "plan", seeds=[1])
    assert compare(other, with_tokens(whole, tmp_path / "out")).exit_code == 0
    ours, theirs = (read_compared(each / "compare.json") for each in (tmp_path / "out", whole[0]))
    losses = [each.cells[1].training.train_loss for each in (ours, theirs)]
    assert losses[0] != losses[1]


def test_a_failed_cell_says_why_and_is_tried_again(whole, tmp_path):
    """The one cell that has no file of tokens fails, the others go on."""
    tokens = tmp_path / "tokens.json"
    methods = [
        {"name": "plain"},
        {"name": "str", "weights": [10], "settings": {"str_tokens": str(tokens)}},
    ]
    plan = planned(tmp_path / "plan", methods=methods)
    result = compare(plan, with_tokens(whole, tmp_path / "out"))
    refused(result, "1 of 3 cells failed", "str weight 10", "tokens.json")
    assert "FAILED: tiny, plans, str weight 10, seed 0:" in result.stdout
    found = read_compared(tmp_path / "out/compare.json")
    assert found.status == "unfinished"
    assert [each.failed is None for each in found.cells] == [True, True, False]
    mined = next((whole[0] / "models").glob("*/safety_tokens.json"))
    shutil.copy(mined, tokens)
    result = compare(plan, tmp_path / "out")
    assert result.exit_code == 0, result.output
    assert "3 cells, 2 of them done." in result.stderr
    assert read_compared(tmp_path / "out/compare.json").status == "finished"


def test_a_model_that_does_not_refuse_is_said_to_be_no_witness(tmp_path):
    models = [{"name": "base", "path": embedded.base_path()}]
    plan = planned(tmp_path / "plan", models=models)
    result = compare(plan, tmp_path / "out")
    assert "NO WITNESS: before tuning it refuses 0% of" in " ".join(result.stdout.split())
    warned = result.stderr.index("Warning: base, plans: before tuning it refuses 0% of")
    assert warned < result.stderr.index("[2/")  # before the tunings
    found = read_compared(tmp_path / "out/compare.json")
    assert found.witnesses[0].refusal_rate == 0
    assert {each.word for each in found.judged} <= {"no witness"}
    assert "NO WITNESS" in (tmp_path / "out/tables.md").read_text()


def test_perplexity_may_be_the_utility_and_tuned_weights_may_go(whole, tmp_path):
    rows = tmp_path / "general.jsonl"
    rows.write_text(
        "".join(json.dumps(each) + "\n" for each in embedded.training_rows("reviews", num=40))
    )
    data = [{"name": "plans", "train": str(rows), "held_out": str(rows)}]
    audit = {
        "harmful": ["embedded"], "harmless": ["embedded"], "limit": 12, "max_new_tokens": 12,
        "perplexity": str(rows),
    }  # fmt: skip
    plan = planned(
        tmp_path / "plan", data=data, audit=audit, methods=[{"name": "plain"}], keep_models=False
    )
    result = compare(plan, with_tokens(whole, tmp_path / "out"))
    assert result.exit_code == 0, result.output + result.stderr
    found = read_compared(tmp_path / "out/compare.json")
    tuned, aligned = (
        found.utility("tiny", "plans", name, "").value for name in ("plain", "aligned")
    )
    assert 1 < tuned < aligned
    assert found.chosen[0].validation_utility < 0
    suites = {row.suite for row in found.pooled if row.metric == "perplexity"}
    assert suites == {"general.jsonl", "utility-rows.jsonl"}
    left = tmp_path / "out/cells/tiny/plans/plain/seed-0/tuned-1"
    assert (left / "run.json").is_file()
    assert not list(left.glob("*.safetensors"))


def test_tasks_in_a_row_are_tuned_from_one_another(whole, tmp_path):
    for name in ("plans", "reviews"):
        rows = embedded.training_rows(name, num=16)
        text = "".join(json.dumps(each) + "\n" for each in rows)
        (tmp_path / f"{name}.jsonl").write_text(text)
    both = [str(tmp_path / f"{name}.jsonl") for name in ("reviews", "plans")]
    data = [{"name": "row", "train": both, "tasks": ["embedded:plans"], "question": "sequence"}]
    plan = planned(tmp_path / "plan", data=data, methods=[{"name": "plain"}])
    assert compare(plan, with_tokens(whole, tmp_path / "out")).exit_code == 0
    found = read_compared(tmp_path / "out/compare.json")
    assert found.cells[1].training.steps == 6
    run = json.loads((tmp_path / "out/cells/tiny/row/plain/seed-0/tuned-2/run.json").read_text())
    assert [each["dataset"] for each in run["chain"]] == both


def test_what_does_not_fit_is_refused_before_any_cell(tmp_path):
    unknown = planned(tmp_path / "a", training={**TRAINING, "learning_rte": 1.0})
    refused(compare(unknown, tmp_path / "out"), "learning_rte", "Did you mean")
    few = planned(tmp_path / "b", validation=0.000001)
    refused(compare(few, tmp_path / "out"), "leaves nothing for validation", "`validation`")
    audit = {"harmful": ["moorline-harmless"], "harmless": ["embedded"]}
    other = planned(tmp_path / "c", audit=audit)
    refused(compare(other, tmp_path / "out"), "audit.harmful", "has no harmful prompts")
    refused(compare(tmp_path / "none.yaml", tmp_path / "out"), "no such plan")
    refused(compare(unknown, tmp_path / "out", "--workers", "0"), "`workers`")
    refused(compare(unknown, tmp_path / "out", "--engine", "rai"), "Did you mean 'ray'")
    (tmp_path / "file").write_text("")
    refused(compare(few, tmp_path / "file"), "`output`", "is a file")
    assert not (tmp_path / "out" / "cells").exists()


def test_two_comparisons_do_not_share_a_folder(plan, tmp_path):
    with FileLock(tmp_path / ".lock"):
        refused(compare(plan, tmp_path), "another comparison runs in it")
    assert not (tmp_path / "suites").exists()


def test_ray_that_is_not_there_is_said_so(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(PrerequisiteError, match=r"moorline\[ray\]"):
        check_engine("ray", 2)


def test_two_suites_of_one_name_are_refused(tmp_path):
    from moorline.compare import read_plan

    audit = {"harmful": ["embedded", "embedded"], "harmless": ["embedded"]}
    with pytest.raises(InputError, match="Two suites are called"):
        write_splits(read_plan(planned(tmp_path / "plan", audit=audit)), tmp_path)
