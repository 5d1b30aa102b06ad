"""Which checkpoints are whole: a run that is killed while it writes one leaves a torn one."""

import json
import logging
import shutil

import pytest
import torch
import transformers
from helpers import lora, str_trainer

from moorline import InputError
from moorline.method import checkpoint
from moorline.method.checkpoint import STATE, resumed, whole_checkpoints


def write(folder, step, state="{}", *, of_budget=False):
    path = folder / f"checkpoint-{step}"
    path.mkdir()
    if state is not None:
        (path / "trainer_state.json").write_text(state)
    if of_budget:
        (path / STATE).write_text("{}")
    return path


@pytest.mark.parametrize("state", [None, "", '{"global_step": 1'])
def test_a_torn_checkpoint_is_passed_over_by_name(state, tmp_path, caplog):
    whole = write(tmp_path, 8)
    write(tmp_path, 10, state)
    assert whole_checkpoints(tmp_path) == [whole]
    with caplog.at_level(logging.WARNING, logger="moorline"):
        assert resumed(True, str(tmp_path), with_state=False) == str(whole)
    assert "checkpoint-10 was not written to its end" in caplog.text


def test_whole_checkpoints_stand_in_order_of_their_steps(tmp_path, caplog):
    paths = [write(tmp_path, step) for step in (2, 10, 8)]
    (tmp_path / "checkpoint-best").mkdir()
    assert whole_checkpoints(tmp_path) == [paths[0], paths[2], paths[1]]
    with caplog.at_level(logging.WARNING, logger="moorline"):
        assert resumed(True, str(tmp_path), with_state=False) == str(paths[1])
    assert not caplog.text


def test_with_a_budget_a_checkpoint_has_its_state(tmp_path):
    whole = write(tmp_path, 2, of_budget=True)
    write(tmp_path, 4)
    assert whole_checkpoints(tmp_path, with_state=True) == [whole]
    assert len(whole_checkpoints(tmp_path)) == 2


def test_without_a_whole_one_nothing_is_resumed(tmp_path):
    write(tmp_path, 2, None)
    with pytest.raises(InputError, match="holds no whole checkpoint"):
        resumed(True, str(tmp_path), with_state=False)
    for given in (None, False):
        assert resumed(given, str(tmp_path), with_state=False) is given


@pytest.mark.parametrize(("processes", "names"), [
    (1, ["rng_state.pth"]), (2, ["rng_state_0.pth", "rng_state_1.pth"]),
])  # fmt: skip
def test_a_checkpoint_without_the_random_state_of_every_process_is_torn(processes, names, tmp_path):
    """Killed between the files of two processes it counted as whole, and went on elsewhere."""
    path = write(tmp_path, 2)
    (path / STATE).write_text(json.dumps({"held": {}, "processes": processes}))
    for name in names:
        assert whole_checkpoints(tmp_path) == []
        with pytest.raises(InputError, match="no whole checkpoint"):
            resumed(str(path), str(tmp_path), with_state=False)
        torch.save({}, path / name)
    assert whole_checkpoints(tmp_path) == [path]
    assert resumed(str(path), str(tmp_path), with_state=False) == str(path)


@pytest.mark.lengthy
@pytest.mark.parametrize(
    "name", ["optimizer.pt", "scheduler.pt", "rng_state.pth", "adapter_model.safetensors"]
)
def test_a_checkpoint_with_a_file_cut_short_is_torn(name, build, tmp_path):
    build().train()
    path = tmp_path / "out" / "checkpoint-1" / name
    assert len(whole_checkpoints(tmp_path / "out")) == 2
    path.write_bytes(path.read_bytes()[:-40])
    assert [each.name for each in whole_checkpoints(tmp_path / "out")] == ["checkpoint-2"]


def test_what_holds_the_model_alone_is_not_resumed(build, tmp_path):
    """It went on with a new optimizer, and ended elsewhere without a word."""
    build(save_only_model=True).train()
    with pytest.raises(InputError, match="save_only_model"):
        build().train(resume_from_checkpoint=True)


def test_the_state_is_there_before_older_checkpoints_are_removed(build, tmp_path, monkeypatch):
    """A kill between the two left one checkpoint, and that without its state."""
    seen, rotate = [], transformers.trainer.rotate_checkpoints

    def rotating(*args, **kwargs):
        seen.append(len(whole_checkpoints(tmp_path / "out", with_state=True)))
        rotate(*args, **kwargs)

    monkeypatch.setattr(transformers.trainer, "rotate_checkpoints", rotating)
    build(str_budget=0.1, save_total_limit=1, max_steps=3).train()
    assert seen == [1, 2, 2]


@pytest.mark.lengthy
@pytest.mark.parametrize("save", ["steps", "no"])
def test_weights_that_are_no_numbers_are_never_saved(save, build, tmp_path):
    """The last step was never looked at: a folder of NaN said finished, exit code 0."""
    settings = {"max_steps": 1, "save_strategy": save, "max_grad_norm": 0.0}
    control = build(**settings)
    control.train()
    control.save_model()
    assert (tmp_path / "out" / "adapter_model.safetensors").is_file()
    shutil.rmtree(tmp_path / "out")
    trainer = build(learning_rate=1e30, weight_decay=1e30, optim="sgd", **settings)
    with pytest.raises(InputError, match="Step 1: trained weights are NaN or infinite"):
        trainer.train() and trainer.save_model()
    assert not list((tmp_path / "out").rglob("*.safetensors"))


def test_a_save_of_the_first_process_alone_waits_for_nobody(build, tmp_path, monkeypatch):
    """Scripts save so under DDP; a check that all processes take part in would hang there."""
    trainer = build(max_steps=1, save_strategy="no")
    trainer.train()
    monkeypatch.setattr(trainer.accelerator, "reduce", lambda *_: pytest.fail("it asked others"))
    trainer.save_model()
    assert (tmp_path / "out" / "adapter_model.safetensors").is_file()
    monkeypatch.setattr(checkpoint, "is_sharded", lambda _: True)
    with pytest.raises(pytest.fail.Exception, match="asked others"):  # the control
        trainer.save_model()


@pytest.fixture
def build(make_model, rows, tokenizer, tokens, tmp_path):
    """A function that builds a trainer over one output folder."""

    def made(**changes):
        return str_trainer(
            make_model(), rows, tokenizer, tokens, tmp_path, lora(),
            **{"max_steps": 2, "save_strategy": "steps", "save_steps": 1, **changes},
        )  # fmt: skip

    return made


def resumes(trainer, tmp_path, caplog):
    """What is said where a trainer goes on from the first step."""
    caplog.clear()
    with caplog.at_level(logging.WARNING, logger="moorline.method.checkpoint"):
        trainer.train(resume_from_checkpoint=str(tmp_path / "out" / "checkpoint-1"))
    assert trainer.state.global_step == 2
    of = "moorline.method.checkpoint"
    return "\n".join(each.getMessage() for each in caplog.records if each.name == of)


@pytest.mark.lengthy
def test_a_checkpoint_of_another_form_is_refused(build, tmp_path, caplog):
    """It went on with the new default: the second half of a run was held by something else."""
    build(str_form="logprob").train()
    state = json.loads((tmp_path / "out" / "checkpoint-1" / STATE).read_text())
    held = {"form": "logprob", "weight": 10.0, "positions": "all", "conflicts": "learn",
            "anchors": None}  # fmt: skip
    assert state == {"held": held, "processes": 1}
    for form in ("logit", "kl"):
        with pytest.raises(InputError, match="`form` 'logprob', and this one has"):
            resumes(build(str_form=form, str_weight=10.0), tmp_path, caplog)
    # the controls: the same form, and a run that holds nothing
    assert resumes(build(str_form="logprob"), tmp_path, caplog) == ""
    assert "`weight` was 10.0 and is 0.0" in resumes(build(str_weight=0.0), tmp_path, caplog)


def test_another_weight_or_other_positions_are_told(build, tmp_path, caplog):
    build().train()
    said = resumes(build(str_weight=3.0, str_positions="first:2"), tmp_path, caplog)
    assert "checkpoint-1 is resumed with other settings: `weight` was 10.0 and is 3.0; " in said
    assert "`positions` was 'all' and is 'first:2'" in said


@pytest.mark.lengthy
def test_other_anchors_are_told(build, tmp_path, caplog):
    build().train()
    path = tmp_path / "out" / "checkpoint-1" / STATE
    state = json.loads(path.read_text())
    assert resumes(build(), tmp_path, caplog) == ""
    state["held"]["anchors"] = "of other prompts"
    path.write_text(json.dumps(state))
    assert "`anchors` were other prompts" in resumes(build(), tmp_path, caplog)


@pytest.mark.lengthy
@pytest.mark.parametrize("old", [None, {}, {"held": 3}, {"held": {"form": "logit"}}])
def test_a_checkpoint_that_does_not_say_its_form_is_told_by_name(old, build, tmp_path, caplog):
    """Those of earlier versions have no state without a budget."""
    build().train()
    path = tmp_path / "out" / "checkpoint-1" / STATE
    path.unlink()
    if old is not None:
        path.write_text(json.dumps(old))
    said = resumes(build(), tmp_path, caplog)
    assert "checkpoint-1 does not say by which form" in said
    assert "goes on with `form` 'logit' at `weight` 10.0" in said
    assert resumes(build(str_weight=0.0), tmp_path, caplog) == "", "nothing is held"
