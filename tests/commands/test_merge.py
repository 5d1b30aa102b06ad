"""An adapter merged into its weights: the same logits, its files beside it, a check that fails."""

import json
import os
from pathlib import Path

import pytest
import torch
from helpers import refused, runner, tune
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase

from moorline.chat.loading import with_adapter
from moorline.commands.cli import app
from moorline.commands.merge import checked
from moorline.errors import InputError


def logits(model):
    ids = torch.arange(5, 25).reshape(2, 10)
    with torch.no_grad():
        return model.eval()(input_ids=ids).logits


@pytest.mark.lengthy
def test_a_merged_adapter_says_the_same_and_keeps_its_files(flags, model_folder, tmp_path):
    flags |= {"learning_rate": 0.05, "max_steps": 3}
    assert tune(flags).exit_code == 0
    out, merged = flags["output_dir"], tmp_path / "merged"
    result = runner.invoke(app, ["merge", str(out), "--output", str(merged), "--json"])
    assert result.exit_code == 0, result.output + result.stderr
    found = json.loads(result.stdout)
    assert found["largest_difference"] < 1e-4
    assert found["same_next_token"] == 1.0
    base = AutoModelForCausalLM.from_pretrained(model_folder)
    untuned = logits(base)
    adapted = logits(PeftModel.from_pretrained(base, out))
    whole = logits(AutoModelForCausalLM.from_pretrained(merged))
    torch.testing.assert_close(whole, adapted, rtol=1e-4, atol=1e-4)
    assert (adapted - untuned).abs().max() > 1e-2  # there was something to merge
    assert len(AutoTokenizer.from_pretrained(merged)) == base.config.vocab_size
    for name in ("safety_tokens.json", "run.json"):
        assert (merged / name).read_bytes() == (out / name).read_bytes()
    # and a next tuning is held to the aligned model all the same
    again = {**flags, "model_name_or_path": merged, "output_dir": tmp_path / "next",
             "str_tokens": None}  # fmt: skip
    assert tune(again).exit_code == 0
    run = json.loads((tmp_path / "next" / "run.json").read_text())
    assert run["base"]["name"] == str(model_folder.resolve())


def test_a_merge_that_was_killed_goes_on_by_the_same_command(flags, tmp_path):
    """Its own files were refused as somebody's, for good."""
    assert tune(flags).exit_code == 0
    words = ["merge", str(flags["output_dir"]), "--output", str(tmp_path / "merged")]
    whole = runner.invoke(app, [*words[:-1], str(tmp_path / "whole")])
    assert whole.exit_code == 0
    moves, move = [], Path.replace

    def killed(path, target):
        if moves:
            os._exit(9)
        moves.append(target)
        return move(path, target)

    child = os.fork()
    if child == 0:
        torch.set_num_threads(1)
        Path.replace = killed
        runner.invoke(app, words)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
    assert len(list((tmp_path / "merged").iterdir())) == 2
    assert runner.invoke(app, words).exit_code == 0
    names = {each.name for each in (tmp_path / "whole").iterdir()}
    assert {each.name for each in (tmp_path / "merged").iterdir()} == names


def test_a_merge_that_says_something_else_is_refused(tmp_path):
    before = torch.tensor([[1.0, 2.0, -4.0]])
    assert checked(before, before, torch.float32, tmp_path).largest_difference == 0
    with pytest.raises(InputError, match="was not written"):
        checked(before, before + torch.tensor([0.0, 0.01, 0.0]), torch.float32, tmp_path)
    # what float32 may not, bfloat16 may
    checked(before, before + torch.tensor([0.0, 0.01, 0.0]), torch.bfloat16, tmp_path)
    with pytest.raises(InputError, match="differ by nan"):
        checked(before, before * torch.nan, torch.bfloat16, tmp_path)


@pytest.mark.lengthy
def test_what_cannot_be_merged_is_refused(model_folder, flags, tmp_path):
    refused(runner.invoke(app, ["merge", str(model_folder)]), "nothing to merge")
    assert tune(flags).exit_code == 0
    full = tmp_path / "full"
    full.mkdir()
    (full / "mine.txt").write_text("mine")
    result = runner.invoke(app, ["merge", str(flags["output_dir"]), "--output", str(full)])
    refused(result, "not empty")
    assert [each.name for each in full.iterdir()] == ["mine.txt"]


def test_an_adapter_of_another_size_is_refused_in_one_line(make_model, tokenizer, tmp_path):
    """Tokens were added and the base was never saved with them: torch's own error is a page."""
    base, adapter = tmp_path / "base", tmp_path / "adapter"
    make_model().save_pretrained(base)
    tokenizer.save_pretrained(base)
    model = AutoModelForCausalLM.from_pretrained(base)
    model.resize_token_embeddings(len(tokenizer) + 8)
    asked = LoraConfig(r=2, target_modules=["q_proj"], modules_to_save=["lm_head"])
    get_peft_model(model, asked).save_pretrained(adapter, save_embedding_layers=False)
    result = runner.invoke(app, ["merge", str(adapter), "--output", str(tmp_path / "merged")])
    refused(result, "does not fit the model it is put on (size mismatch")
    assert not (tmp_path / "merged").exists()
    result = runner.invoke(app, ["audit", str(adapter), "--output", str(tmp_path / "audit")])
    refused(result, "does not fit the model")


@pytest.mark.lengthy
def test_a_merge_that_fails_in_writing_leaves_no_folder(flags, tmp_path, monkeypatch):
    assert tune(flags).exit_code == 0

    def fails(self, *args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(PreTrainedTokenizerBase, "save_pretrained", fails)
    merged = tmp_path / "merged"
    result = runner.invoke(app, ["merge", str(flags["output_dir"]), "--output", str(merged)])
    assert result.exit_code == 2, result.output
    assert not merged.exists()
    assert not list(tmp_path.glob(".merged*"))


@pytest.mark.lengthy
@pytest.mark.parametrize("name", [".", "linked", "x" * 250])
def test_an_empty_folder_is_written_to_however_it_is_named(name, flags, tmp_path, monkeypatch):
    assert tune(flags).exit_code == 0
    (tmp_path / "empty").mkdir()
    (tmp_path / "linked").symlink_to(tmp_path / "empty")
    monkeypatch.chdir(tmp_path / "empty" if name == "." else tmp_path)
    result = runner.invoke(app, ["merge", str(flags["output_dir"]), "--output", name])
    assert result.exit_code == 0, result.output + repr(result.exception)
    written = tmp_path / (name if name.startswith("x") else "empty")
    assert {"config.json", "run.json"} <= {each.name for each in written.iterdir()}
    assert not [each for each in written.iterdir() if each.name.startswith(".")]


def test_only_other_sizes_are_told_as_such(make_model, tmp_path, monkeypatch):
    adapter = tmp_path / "adapter"
    get_peft_model(make_model(), LoraConfig(r=2, target_modules=["q_proj"])).save_pretrained(
        adapter
    )
    assert with_adapter(make_model(), adapter).peft_config

    def full(*args, **kwargs):
        raise torch.OutOfMemoryError("out of memory")

    monkeypatch.setattr(PeftModel, "load_adapter", full)
    with pytest.raises(torch.OutOfMemoryError):
        with_adapter(make_model(), adapter)
