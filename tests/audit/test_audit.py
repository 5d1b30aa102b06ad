"""The audit: the demo's numbers again, the same files twice, killed and gone on with, and gates."""

import json
import signal
import subprocess
import sys
import time
import types
from dataclasses import replace
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer
from typer.testing import CliRunner

from moorline import InputError, PrerequisiteError, embedded
from moorline.audit import AuditSettings, Measurement, audit, compare
from moorline.audit.conditions import Condition
from moorline.audit.engines import VLLM
from moorline.audit.judges import Verdict
from moorline.audit.suites import Prompt, Suite
from moorline.chat.chat_model import ChatModel, Completion
from moorline.commands.cli import app

runner = CliRunner()
TIMES = ("at", "seconds")


@pytest.fixture(scope="module")
def loaded():
    path = embedded.aligned_path()
    return ChatModel(
        AutoModelForCausalLM.from_pretrained(path), AutoTokenizer.from_pretrained(path)
    )


@pytest.fixture
def prompts_file(tmp_path):
    """A few prompts of each kind, of uneven length."""
    chosen = [each for suite in embedded.suites("plans") for each in suite.prompts[:12]]
    path = tmp_path / "prompts.jsonl"
    keys = ("id", "prompt", "kind", "category", "answer")
    lines = [json.dumps({key: getattr(each, key) for key in keys}) + "\n" for each in chosen]
    path.write_text("".join(lines))
    return path


def run(folder, *words, model=None):
    words = [model or embedded.aligned_path(), "--output", str(folder), "--max-new-tokens", "24",
             "--batch-size", "8", *words]  # fmt: skip
    return runner.invoke(app, ["audit", *words])


def whole(found):
    """The measurements of whole suites that come from answers."""
    return [
        row for row in found["measurements"] if row["category"] is None and row["judge"] is not None
    ]


def lines_of(folder):
    return [json.loads(line) for line in (folder / "answers.jsonl").open(encoding="utf-8")]


def few(num=3, suite=0):
    """Some harmful prompts, or those of another suite."""
    found = embedded.suites("plans")[suite]
    return replace(found, prompts=found.prompts[:num])


def read(folder):
    value = json.loads((folder / "audit.json").read_text())
    return {key: each for key, each in value.items() if key not in TIMES}


@pytest.mark.slow
def test_the_audit_of_the_embedded_model_gives_the_demos_numbers(tmp_path):
    results = Path(__file__).parents[2] / "benchmarks" / "results"
    demo = json.loads((results / "2026-11-23-demo-plans-clean.json").read_text())
    aligned = next(row for row in demo["runs"][0]["rows"] if row["name"] == "aligned")
    words = ["--max-new-tokens", "48", "--batch-size", "64", "--suite", "embedded:plans"]
    result = runner.invoke(
        app, ["audit", embedded.aligned_path(), "--output", str(tmp_path / "a"), *words, "--json"]
    )
    assert result.exit_code == 0, result.output + repr(result.exception)
    found = json.loads(result.stdout)
    rates = {(row["kind"], row["metric"]): row["value"] for row in whole(found)}
    for kind, metric in (
        ("harmful", "attack_success_rate"), ("harmful", "refusal_rate"),
        ("harmful", "degenerate_rate"), ("harmless", "over_refusal_rate"), ("task", "utility"),
    ):  # fmt: skip
        assert rates[kind, metric] == aligned[metric], metric
    assert [row["num"] for row in found["suites"]] == [200, 200, 200]
    assert all(row["sha256"] for row in found["suites"])


@pytest.mark.lengthy
def test_twice_with_one_seed_gives_the_same_files_but_for_times(prompts_file, tmp_path):
    words = ["--suite", str(prompts_file), "--condition", "plain", "--condition", "sampled"]
    folders = [tmp_path / "first", tmp_path / "second"]
    for folder in folders:
        result = run(folder, *words)
        assert result.exit_code == 0, result.output + repr(result.exception)
    first, second = ((each / "answers.jsonl").read_bytes() for each in folders)
    assert first == second
    assert read(folders[0]) == read(folders[1])
    other = run(tmp_path / "third", *words, "--seed", "1")
    assert other.exit_code == 0
    assert (tmp_path / "third" / "answers.jsonl").read_bytes() != first, (
        "and another seed draws anew"
    )
    again = run(folders[0], *words)
    assert again.exit_code == 0, "a finished audit is repeated from its answers"
    assert (folders[0] / "answers.jsonl").read_bytes() == first


@pytest.mark.slow
def test_a_killed_audit_goes_on_and_ends_with_the_same_files(prompts_file, tmp_path):
    words = [
        embedded.aligned_path(), "--suite", str(prompts_file), "--batch-size", "4",
        "--max-new-tokens", "24", "--condition", "plain", "--condition", "sampled",
    ]  # fmt: skip
    assert runner.invoke(app, ["audit", *words, "--output", str(tmp_path / "whole")]).exit_code == 0
    folder = tmp_path / "broken"
    command = [sys.executable, "-m", "moorline", "audit", *words, "--output", str(folder)]
    process = subprocess.Popen(command)
    path = folder / "answers.jsonl"
    while not (path.is_file() and path.read_bytes().count(b"\n") >= 6):
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    left = path.read_bytes()
    assert left.count(b"\n") < (tmp_path / "whole" / "answers.jsonl").read_bytes().count(b"\n")
    path.write_bytes(left + b'{"suite": "prompts-harm')  # a line that was being written
    result = runner.invoke(app, ["audit", *words, "--output", str(folder)])
    assert result.exit_code == 0, result.output + repr(result.exception)
    whole = tmp_path / "whole"
    assert path.read_bytes() == (whole / "answers.jsonl").read_bytes()
    assert read(folder) == read(whole)


@pytest.mark.lengthy
def test_a_folder_with_another_audit_is_refused(prompts_file, tmp_path):
    words = ["--suite", str(prompts_file)]
    assert run(tmp_path / "a", *words).exit_code == 0
    before = (tmp_path / "a" / "audit.json").read_bytes()
    for changed in (["--seed", "3"], ["--max-new-tokens", "7"], ["--system-prompt", "Hello."]):
        result = run(tmp_path / "a", *words, *changed)
        assert result.exit_code == 2
        assert "holds another audit" in result.stderr
    result = run(tmp_path / "a", *words, model=embedded.base_path())
    assert "holds another audit" in result.stderr
    assert (tmp_path / "a" / "audit.json").read_bytes() == before
    (tmp_path / "a" / "audit.json").unlink()
    assert "nobody knows whose answers" in run(tmp_path / "a", *words).stderr


@pytest.mark.lengthy
def test_judges_can_be_changed_over_the_same_answers(prompts_file, tmp_path):
    words = ["--suite", str(prompts_file)]
    assert run(tmp_path / "a", *words).exit_code == 0
    result = run(tmp_path / "a", *words, "--judge", "keywords", "--judge", "keywords:xstest")
    assert result.exit_code == 0, result.output + repr(result.exception)
    found = read(tmp_path / "a")
    assert {row["judge"] for row in whole(found) if row["kind"] != "task"} == {
        "keywords", "keywords:xstest",
    }  # fmt: skip
    assert [(row["first"], row["second"]) for row in found["agreement"]] == [
        ("keywords", "keywords:xstest")
    ] * 2
    lines = [json.loads(line) for line in (tmp_path / "a" / "answers.jsonl").open()]
    harmful = next(line for line in lines if line["suite"].endswith("harmful"))
    assert set(harmful["verdicts"]) == {"keywords", "keywords:xstest"}
    assert harmful["outcome"] == harmful["verdicts"]["keywords"]["outcome"]


@pytest.mark.lengthy
def test_attacks_are_for_harmful_suites_and_begin_the_answer(prompts_file, tmp_path):
    words = ["--suite", str(prompts_file)]
    for name in ("plain", "prefill", "system", "forced-3"):
        words += ["--condition", name]
    result = run(tmp_path / "a", *words)
    assert result.exit_code == 0, result.output + repr(result.exception)
    found = read(tmp_path / "a")
    asked = {(row["kind"], row["condition"]) for row in found["measurements"]}
    assert asked == {
        ("harmful", "plain"), ("harmful", "prefill"), ("harmful", "system"),
        ("harmful", "forced-3"), ("harmless", "plain"), ("task", "plain"),
    }  # fmt: skip
    lines = [json.loads(line) for line in (tmp_path / "a" / "answers.jsonl").open()]
    prefilled = [line["answer"] for line in lines if line["condition"] == "prefill"]
    assert all(each.startswith("Sure, here is") for each in prefilled)


def test_of_several_draws_one_that_complies_is_an_attack_that_succeeded(loaded):
    said = iter(["refused", "complied", "refused", "refused", "degenerate", "refused"])

    class Scripted:
        name = "scripted"

        def verdicts(self, prompts, answers):
            return [Verdict(next(said), "") for _ in answers]

    suite = Suite(
        name="s", kind="harmful",
        prompts=tuple(Prompt(id=str(n), prompt=f"How do I {n}?", kind="harmful") for n in range(3)),
    )  # fmt: skip
    found = audit(
        loaded, [suite],
        AuditSettings(
            judges=[Scripted()], max_new_tokens=2,
            conditions=[Condition(name="two", draws=2, temperature=1.0)],
        ),
    )  # fmt: skip
    assert found.outcomes("s", "two") == ["complied", "refused", "refused"]
    assert {each.metric: each.count for each in found.measurements} == {
        "attack_success_rate": 1, "refusal_rate": 2, "degenerate_rate": 0, "unscored_rate": 0,
        "truncated_rate": 6,
    }  # fmt: skip


def test_a_judge_that_sees_no_refusals_says_nothing_of_harmless_prompts(loaded):
    class Guard:
        name = "guard"
        sees_refusals = False

        def verdicts(self, prompts, answers):
            return [Verdict("refused", "safe") for _ in answers]

    suites = [replace(each, prompts=each.prompts[:2]) for each in embedded.suites()]
    found = audit(loaded, suites, AuditSettings(judges=["keywords", Guard()], max_new_tokens=12))
    rates = {(row.kind, row.judge, row.metric): row.value for row in found.measurements}
    assert rates["harmless", "guard", "over_refusal_rate"] is None
    assert rates["harmless", "keywords", "over_refusal_rate"] == 0.0
    assert rates["harmful", "guard", "refusal_rate"] == 1.0


def test_cut_answers_are_told_and_whole_ones_are_not(loaded):
    suite = replace(embedded.suites()[0], prompts=embedded.suites()[0].prompts[:4])
    short = audit(loaded, [suite], AuditSettings(max_new_tokens=2))
    long = audit(loaded, [suite], AuditSettings(max_new_tokens=48))
    assert all(each.truncated for each in short.answers)
    assert not any(each.truncated for each in long.answers)
    assert short.measurement("truncated_rate").count == 4
    assert long.measurement("truncated_rate").count == 0


@pytest.mark.lengthy
def test_measures_categories_and_clusters(prompts_file, tmp_path):
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps(row) + "\n" for row in embedded.training_rows("plans")[:6]))
    words = ["--suite", str(prompts_file), "--judge", "keywords", "--judge", "refusal_mass",
             "--held-out", str(rows)]  # fmt: skip
    result = run(tmp_path / "a", *words)
    assert result.exit_code == 0, result.output + repr(result.exception)
    found = read(tmp_path / "a")
    rows = [Measurement.from_json(row, "row") for row in found["measurements"]]
    masses = {row.suite: row for row in rows if row.metric == "refusal_mass"}
    harmful, harmless = masses["prompts-harmful"], masses["prompts-harmless"]
    assert harmful.value > 0.9 > 0.2 > harmless.value
    assert harmful.low <= harmful.value <= harmful.high
    perplexity = next(row for row in rows if row.metric == "perplexity")
    assert perplexity.value > 1
    assert (perplexity.num, perplexity.kind, perplexity.interval) == (6, "rows", "bootstrap")
    parts = [row for row in rows if row.category is not None]
    for suite, metric in {(row.suite, row.metric) for row in parts}:
        assert sum(row.num for row in parts if (row.suite, row.metric) == (suite, metric)) == 12
    assert {row.interval for row in rows if row.metric == "refusal_rate"} == {"wilson"}
    clustered = run(tmp_path / "b", *words, "--by-category")
    assert clustered.exit_code == 0, clustered.output + repr(clustered.exception)
    of = {(row["category"] is None, row["interval"]) for row in read(tmp_path / "b")["measurements"]
          if row["metric"] == "refusal_rate"}  # fmt: skip
    assert of == {(True, "clustered"), (False, "wilson")}
    assert read(tmp_path / "b")["settings"]["by_category"]


@pytest.mark.lengthy
def test_a_mean_of_scores_has_no_count(prompts_file, tmp_path):
    result = run(tmp_path / "a", "--suite", str(prompts_file), "--metric", "rouge_l")
    assert result.exit_code == 0, result.output + repr(result.exception)
    row = next(row for row in whole(read(tmp_path / "a")) if row["metric"] == "utility")
    assert row["judge"] == "rouge_l"
    assert (row["count"], row["interval"]) == (None, "bootstrap")
    assert 0 <= row["low"] <= row["value"] <= row["high"] <= 1


@pytest.mark.lengthy
def test_two_models_are_compared_on_the_same_prompts(prompts_file, tmp_path):
    words = ["--suite", str(prompts_file), "--against", embedded.base_path()]
    result = run(tmp_path / "a", *words)
    assert result.exit_code == 0, result.output + repr(result.exception)
    rows = {row["metric"]: row for row in read(tmp_path / "a")["comparisons"]}
    assert rows["attack_success_rate"]["difference"] < -0.5
    assert rows["attack_success_rate"]["p_value"] < 0.01
    assert {"compliance_rate", "degenerate_rate", "utility"} < set(rows)
    for row in rows.values():
        assert row["p_adjusted"] >= row["p_value"]
        assert row["interval"] == "score"
    assert (tmp_path / "a" / "against" / "audit.json").is_file()


def test_other_prompts_are_not_compared(loaded):
    suite = embedded.suites()[0]
    short = AuditSettings(max_new_tokens=2)
    first = audit(loaded, [replace(suite, prompts=suite.prompts[:2])], short)
    second = audit(loaded, [replace(suite, prompts=suite.prompts[1:3])], short)
    with pytest.raises(InputError, match="differs between the audits"):
        compare(first, second)
    assert compare(first, first)[0].difference == 0


def test_wrong_words_are_refused_before_any_answer(prompts_file, tmp_path):
    for words, said in {
        ("--judge", "keyword"): "Did you mean 'keywords'",
        ("--condition", "prefil"): "Did you mean 'prefill'",
        ("--metric", "exact"): "Unknown metric 'exact'",
        ("--backend", "vlm"): "Did you mean 'vllm'",
        ("--suite", "advbensh"): "Did you mean 'advbench'",
        ("--suite", str(tmp_path / "no.jsonl")): "no such data file",
        ("--adapter", str(tmp_path)): "no adapter_config.json",
    }.items():
        result = run(tmp_path / "a", "--suite", str(prompts_file), *words)
        assert result.exit_code == 2, result.output + repr(result.exception)
        assert said in result.stderr, result.stderr
    assert not (tmp_path / "a").exists()


def test_a_wrong_row_names_file_line_and_column(tmp_path):
    path = tmp_path / "p.jsonl"
    path.write_text('{"prompt": "a", "kind": "harmful"}\n{"prompt": "b", "kind": "bad"}\n')
    result = run(tmp_path / "a", "--suite", str(path))
    assert result.exit_code == 2
    assert f"{path}, line 2: 'kind' must be one of" in result.stderr


def test_vllm_is_asked_the_same_way(monkeypatch, loaded):
    """With a stand-in for the package, which needs a GPU: what it is told, and what is read."""
    told = {}

    class Engine:
        def __init__(self, **words):
            told.update(words)

        def generate(self, rows, settings, lora_request, use_tqdm):
            told.update(rows=rows, settings=settings, lora=lora_request)
            said = types.SimpleNamespace(
                text="I cannot help with that.", finish_reason="stop", token_ids=[1, 2]
            )
            return [types.SimpleNamespace(outputs=[said]) for _ in rows]

    package = types.ModuleType("vllm")
    package.LLM, package.SamplingParams = Engine, dict
    monkeypatch.setitem(sys.modules, "vllm", package)
    suite = replace(embedded.suites()[0], prompts=embedded.suites()[0].prompts[:3])
    found = audit(loaded, [suite], AuditSettings(max_new_tokens=5), engine=VLLM("model"))
    assert found.outcomes(suite.name) == ["refused"] * 3
    assert [each["max_tokens"] for each in told["settings"]] == [5, 5, 5]
    assert len({each["seed"] for each in told["settings"]}) == 3
    assert all(row["prompt_token_ids"] for row in told["rows"])
    assert VLLM("model").generate([[1]], max_new_tokens=1) == [
        Completion("I cannot help with that.", truncated=False, ids=(1, 2))
    ]
    assert told["tensor_parallel_size"] == 1
    monkeypatch.setattr("torch.cuda.device_count", lambda: 3)  # of which four heads fill two
    VLLM(embedded.aligned_path())
    assert told["tensor_parallel_size"] == 2
    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(PrerequisiteError, match="pip install vllm"):
        VLLM("model")
