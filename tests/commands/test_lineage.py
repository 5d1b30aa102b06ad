"""Several fine-tunings in a row: each is held to the aligned model, not to the one before."""

import json
import shutil

import pytest
from helpers import conversations, refused, tune

from moorline import InputError
from moorline.commands.lineage import lineage_of

WAYS = {
    "adapter off": ({"str_reference": "adapter_off"}, "adapter_off"),
    "adapter, cached": ({"str_reference": "cached"}, "cached"),
    "frozen copy": ({"str_reference": "frozen_copy", "use_peft": False}, "frozen_copy"),
    "full, cached": ({"str_reference": "cached", "use_peft": False}, "cached"),
    "auto": ({}, "adapter_off"),
    "full, auto": ({"use_peft": False}, "frozen_copy"),
}


def task(tmp_path, number):
    path = tmp_path / f"task{number}.jsonl"
    rows = conversations(8, seed=number)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def read(folder):
    return json.loads((folder / "run.json").read_text())


@pytest.fixture
def go(flags, tmp_path):
    """A function that tunes task after task, each from what the one before left."""

    def run(number, model=None, **changes):
        folder = tmp_path / f"run{number}"
        model = flags["model_name_or_path"] if model is None else model
        made = {"model_name_or_path": model, "dataset_name": task(tmp_path, number),
                "output_dir": folder, "str_weight": 1.0, **changes}  # fmt: skip
        return folder, tune({**flags, **made})

    return run


@pytest.mark.lengthy
@pytest.mark.parametrize("way", WAYS)
def test_three_tasks_in_a_row_are_held_to_the_aligned_model(way, go):
    changes, name = WAYS[way]
    model, drifts, fingerprints = None, [], set()
    for number in (1, 2, 3):
        model, result = go(number, model, **changes, **({"str_tokens": None} if model else {}))
        assert result.exit_code == 0, result.output + repr(result.exception)
        run = read(model)
        assert run["reference"] == name
        assert len(run["chain"]) == number
        fingerprints.add(run["base"]["weights"])
        drifts.append(run["log"][0]["str/drift"])
    assert drifts[0] < 1e-10
    # Held to the run before, these would begin at 0 too.
    assert drifts[1] > 1e-3
    assert drifts[2] > 1e-3
    assert len(fingerprints) == 1
    assert [link["steps"] for link in run["chain"]] == [2, 2, 2]
    assert len({link["tokens"] for link in run["chain"]}) == 1
    assert (model / "safety_tokens.json").is_file()


@pytest.mark.lengthy
def test_a_new_adapter_on_a_tuned_model_is_held_to_the_aligned_one(go):
    first, result = go(1, use_peft=False)
    assert result.exit_code == 0, result.output
    second, result = go(2, first, str_reference="auto")
    assert result.exit_code == 0, result.output + repr(result.exception)
    assert read(second)["reference"] == "frozen_copy"
    assert read(second)["log"][0]["str/drift"] > 1e-3
    # The adapter belongs to the tuned model, the reference to the head of the chain.
    start = lineage_of(str(second))
    assert (start.model, start.base) == (str(first), read(first)["base"]["name"])
    third, result = go(3, second, str_reference="auto")
    assert result.exit_code == 0, result.output + repr(result.exception)
    assert read(third)["reference"] == "frozen_copy"
    assert read(third)["log"][0]["str/drift"] > 1e-3
    assert len({read(each)["base"]["weights"] for each in (first, second, third)}) == 1


@pytest.mark.lengthy
def test_a_given_reference_is_that_of_the_chain(go, make_model, tmp_path):
    aligned = tmp_path / "aligned"
    make_model(seed=6).save_pretrained(aligned)
    first, result = go(1, str_reference_model=aligned)
    assert result.exit_code == 0, result.output + repr(result.exception)
    assert read(first)["base"]["name"] == str(aligned)
    second, result = go(2, first)
    assert result.exit_code == 0, result.output + repr(result.exception)
    assert read(second)["base"] == read(first)["base"]
    assert read(second)["reference"] == "frozen_copy"


@pytest.mark.lengthy
def test_a_moved_folder_and_a_checkpoint_go_on_with_the_chain(go, tmp_path):
    first, _ = go(1, save_strategy="steps", save_steps=1)
    moved = first.rename(tmp_path / "elsewhere")
    for number, place in ((2, moved), (3, moved / "checkpoint-1")):
        folder, result = go(number, place, str_tokens=None)
        assert result.exit_code == 0, result.output + repr(result.exception)
        assert len(read(folder)["chain"]) == 2


@pytest.mark.lengthy
def test_told_otherwise_the_reference_is_what_was_said(go):
    first, _ = go(1, use_peft=False)
    second, result = go(2, first, use_peft=False, str_reference_model=first)
    assert result.exit_code == 0, result.output + repr(result.exception)
    assert read(second)["log"][0]["str/drift"] == 0.0


@pytest.mark.lengthy
def test_a_chain_with_other_tokens_is_refused(go, tokens_file, tmp_path):
    first, _ = go(1)
    other = json.loads(tokens_file.read_text())
    other |= {name: other[name][1:] for name in ("ids", "strings", "scores")}
    (tmp_path / "other.json").write_text(json.dumps(other))
    second, result = go(2, first, str_tokens=tmp_path / "other.json")
    refused(result, "`str_tokens`", "other tokens than those that the runs before", "Leave")
    assert not second.exists()
    assert go(2, first)[1].exit_code == 0, "and with the same tokens it goes on"


@pytest.mark.lengthy
@pytest.mark.parametrize("full", [False, True])
def test_a_chain_whose_base_changed_or_went_is_refused(full, go, flags, make_model, tmp_path):
    first, _ = go(1, use_peft=not full)
    base = flags["model_name_or_path"]
    kept = tmp_path / "kept"
    shutil.copytree(base, kept)
    make_model(seed=4).save_pretrained(base)
    second, result = go(2, first, use_peft=not full)
    refused(result, str(base), "not those that the runs before were held to")
    shutil.rmtree(base)
    _, result = go(2, first, use_peft=not full)
    refused(result, str(base), "no such model folder")
    assert not second.exists()
    shutil.copytree(kept, base)
    assert go(2, first, use_peft=not full)[1].exit_code == 0, "and with it back it goes on"


@pytest.mark.lengthy
def test_a_run_that_is_not_finished_or_says_nothing_of_its_base_is_refused(go):
    first, _ = go(1)
    run = read(first)
    (first / "run.json").write_text(json.dumps({**run, "status": "running"}))
    with pytest.raises(InputError, match="is not finished, so nothing can follow it"):
        lineage_of(str(first))
    (first / "run.json").write_text(json.dumps({**run, "base": None}))
    with pytest.raises(InputError, match="'base' holds null, must be an object. Restore"):
        lineage_of(str(first))


@pytest.mark.lengthy
def test_an_adapter_of_another_tool_is_gone_on_with(go, tmp_path):
    first, _ = go(1)
    (first / "run.json").unlink()
    second, result = go(2, first)
    assert result.exit_code == 0, result.output + repr(result.exception)
    assert len(read(second)["chain"]) == 1
    assert read(second)["log"][0]["str/drift"] > 1e-3
