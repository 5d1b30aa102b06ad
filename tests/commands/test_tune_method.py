"""`moorline tune --method`: the same run with a method to compare with."""

import json

import pytest
import torch
from helpers import refusals_file, refused, tune
from safetensors.torch import load_file


def run_of(tmp_path, name="run"):
    return json.loads((tmp_path / name / "run.json").read_text())


def weights(tmp_path, name):
    return load_file(tmp_path / name / "adapter_model.safetensors")


@pytest.mark.lengthy
@pytest.mark.parametrize(
    ("method", "strength"), [("kl", 0.1), ("constrained_sft", 1.0), ("pact", 1.0), ("sbr", 50.0),
                             ("safe_instr", 0.1), ("wise_ft", 0.5), ("lookahead", 6), ("lisa", 1.0)]
)  # fmt: skip
def test_each_method_is_recorded_and_its_drift_measured(method, strength, flags, tmp_path):
    more = {}
    if method in ("safe_instr", "lisa"):
        more["method_file"] = refusals_file(tmp_path)
    result = tune({**flags, "method": method, **more})
    assert result.exit_code == 0, result.output + repr(result.exception)
    run = run_of(tmp_path)
    settings = run["settings"]
    assert (settings["method"], settings["method_strength"]) == (method, strength)
    assert settings["str_weight"] == 0
    logged = [entry for entry in run["log"] if "loss" in entry]
    assert all("str/drift" in entry and entry["str/weighted"] == 0 for entry in logged)
    if method in ("kl", "constrained_sft", "pact", "sbr"):
        assert logged[-1]["method/weighted"] > 0
    assert "tokens measured." in result.output


@pytest.mark.lengthy
def test_plain_is_str_at_weight_zero_and_a_strength_of_str_its_weight(flags, tmp_path):
    for name, more in {
        "plain": {"method": "plain"},
        "zero": {"str_weight": 0},
        "strong": {"method": "str", "method_strength": 30},
        "weight": {"str_weight": 30},
        "kl": {"method": "kl", "method_strength": 0},
    }.items():
        result = tune({**flags, "output_dir": tmp_path / name, **more})
        assert result.exit_code == 0, result.output + repr(result.exception)
    assert run_of(tmp_path, "strong")["settings"]["str_weight"] == 30
    found = {name: weights(tmp_path, name) for name in ("plain", "zero", "strong", "weight", "kl")}
    for one, other in (("plain", "zero"), ("strong", "weight")):
        assert all(torch.equal(found[one][key], found[other][key]) for key in found[one])
    # the log of a step at strength 0 is plain fine-tuning but for the sum with 0
    assert all(torch.allclose(found["plain"][key], found["kl"][key], atol=1e-6)
               for key in found["kl"])  # fmt: skip
    assert any(not torch.equal(found["plain"][key], found["strong"][key]) for key in found["zero"])


@pytest.mark.lengthy
def test_wise_ft_goes_back_a_part_of_the_way(flags, tmp_path):
    for name, more in {"plain": {"method": "plain"},
                       "half": {"method": "wise_ft", "method_strength": 0.25}}.items():  # fmt: skip
        assert tune({**flags, "output_dir": tmp_path / name, **more}).exit_code == 0
    plain, half = weights(tmp_path, "plain"), weights(tmp_path, "half")
    for key, each in plain.items():
        expected = 0.25 * each if "lora_B" in key else each
        assert torch.equal(half[key], expected), key


@pytest.mark.lengthy
def test_safe_lora_and_full_fine_tuning(flags, model_folder, tmp_path, make_model, tokenizer):
    base = tmp_path / "base"
    make_model(seed=1).save_pretrained(base)
    more = {"method": "safe_lora", "method_base": base, "method_strength": 1}
    assert tune({**flags, **more}).exit_code == 0
    refused(
        tune({**flags, **more, "output_dir": tmp_path / "full", "use_peft": False}),
        "Add --use_peft",
    )
    result = tune({**flags, "method": "kl", "output_dir": tmp_path / "kl", "use_peft": False})
    assert result.exit_code == 0, result.output + repr(result.exception)
    assert run_of(tmp_path, "kl")["reference"] == "frozen_copy"


@pytest.mark.lengthy
def test_a_second_task_is_compared_with_the_first_aligned_model(flags, tmp_path):
    """An adapter that is tuned further: the aligned model is the one without it."""
    assert tune({**flags, "output_dir": tmp_path / "first", "method": "plain"}).exit_code == 0
    second = {**flags, "model_name_or_path": tmp_path / "first", "use_peft": None,
              "lora_target_modules": None, "lora_r": None, "lora_dropout": None,
              "method": "kl", "max_steps": 1}  # fmt: skip
    result = tune(second)
    assert result.exit_code == 0, result.output + repr(result.exception)
    first = next(entry for entry in run_of(tmp_path)["log"] if "loss" in entry)
    assert first["method/loss"] > 1e-3, "it has moved already"


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"method": "kll"}, ["Unknown `method` 'kll'", "Did you mean 'kl'"]),
        ({"method": "safe_lora"}, ["needs the unaligned base", "`method_base`"]),
        ({"method": "kl", "method_strength": -1}, ["`method_strength`", "at least 0"]),
        ({"method": "kl", "str_weight": 2}, ["`str_weight` belongs to `method` 'str'"]),
        ({"method": "str", "method_strength": 2, "str_weight": 2}, ["`str_weight` is set too"]),
        ({"method": "sbr", "method_file": "none.jsonl"}, ["none.jsonl: no such file"]),
        ({"method": "kl", "method_file": "none.jsonl"}, ["reads no `method_file`"]),
        ({"method": "plain", "method_strength": 1}, ["'plain' has no `method_strength`"]),
        ({"method": "safe_instr"}, ["refuses none of our 12 harmful prompts"]),
    ],
)
def test_what_cannot_work_is_refused_in_one_line(more, words, flags, tmp_path):
    refused(tune({**flags, **more}), *words)
    assert not (tmp_path / "run" / "run.json").exists()
