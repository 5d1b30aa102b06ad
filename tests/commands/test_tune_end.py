"""How a tuning ends: what it says, and the card that it pushes."""

import json
import shutil
from types import SimpleNamespace

import pytest
from helpers import tune

from moorline.commands.run_file import Check
from moorline.commands.tune_summary import _kept, _learned, _remedy
from moorline.report.runs import read_runs


@pytest.mark.lengthy
def test_the_card_that_is_pushed_says_how_the_model_was_tuned(flags, tmp_path, monkeypatch):
    """TRL's alone was pushed, which knows nothing of safety tokens; the hub itself is not asked."""
    pushed = []

    def upload(self, *, folder_path, commit_message, **given):
        card = tmp_path / "run" / "README.md"
        pushed.append((commit_message, card.read_text(encoding="utf-8")))

    def create(self, name, **given):
        return SimpleNamespace(repo_id=name)

    monkeypatch.setattr("huggingface_hub.HfApi.create_repo", create)
    monkeypatch.setattr("huggingface_hub.HfApi.upload_folder", upload)
    result = tune({**flags, "push_to_hub": True, "hub_model_id": "me/held"})
    assert result.exit_code == 0, result.output + result.stderr + repr(result.exception)
    message, card = pushed[-1]
    assert message == "End of training"
    section = card.partition("<!-- moorline: begin -->")[2].partition("<!-- moorline: end -->")[0]
    for words in ("Safety token regularization", "moorline tune", "--str_form logit"):
        assert words.lower() in section.lower()
    assert "This model is a fine-tuned version of" in card  # TRL's own text stays


@pytest.mark.parametrize(
    ("losses", "said"),
    [([2.0, 0.1], "Task learned: its loss fell by 95 %"),
     ([2.0, 1.2], "Task learned in part: its loss fell by 40 %"),
     ([2.0, 1.9], "The task was hardly learned"), ([2.0, 3.0], "The task was hardly learned")],
)  # fmt: skip
def test_it_says_whether_the_task_was_learned(losses, said):
    (line,) = _learned(losses)
    assert line.startswith(said)


def test_of_one_loss_nothing_is_said():
    assert list(_learned([2.0])) == list(_learned([])) == []


@pytest.mark.parametrize(
    ("settings", "said"),
    [({"method": "str", "str_weight": 0.0}, "leave `str_weight` 0 out"),
     ({"method": "str", "str_weight": 10.0, "str_anchors": "off"}, "Add --str_anchors built-in"),
     ({"method": "str", "str_weight": 3.0, "str_anchors": "auto"}, "Raise `str_weight`"),
     ({"method": "kl"}, "Raise `method_strength`")],
)  # fmt: skip
def test_what_would_hold_lost_refusals_is_what_the_run_did_without(settings, said):
    """It told runs with anchors to add anchors, and a weight of 0 refuses them."""
    assert said in _remedy(SimpleNamespace(settings=settings))


def _check(**changes):
    asked = {"harmful": 32, "refused": 30, "harmless": 32, "answered": 31, "refused_before": 30,
             "answered_before": 31, **changes}  # fmt: skip
    settings = {"method": "str", "str_weight": 3.0}
    return " ".join(_kept(SimpleNamespace(check=Check(**asked), settings=settings)))


@pytest.mark.parametrize(
    ("changes", "said"),
    [({}, "Refusals held"), ({"refused": 27}, "Refusals held"),
     ({"refused": 26}, "Refusals were LOST"),
     ({"refused": 0, "refused_before": 3}, "refuses too few of these to tell"),
     ({"refused": 0, "refused_before": 0}, "refuses too few of these to tell"),
     ({"harmful": 0, "refused": 0, "refused_before": 0}, "No answer to a harmful prompt could be")],
)  # fmt: skip
def test_it_says_whether_refusals_held_by_those_that_were_there(changes, said):
    """3 refusals of 32 that were all lost were called held, and answers cut in thoughts failed."""
    assert said in _check(**changes)
    assert (
        sum(each in _check(**changes) for each in ("held; a", "LOST", "too few", "No answer")) == 1
    )


@pytest.mark.lengthy
def test_a_weight_of_0_holds_nothing_and_a_resumed_run_took_longer(flags):
    asked = {**flags, "str_weight": 0, "save_strategy": "steps", "save_steps": 1}
    result = tune(asked)
    assert "5 tokens measured" in result.stdout, result.output
    assert "2 steps in" in result.stdout
    output = flags["output_dir"]
    run = json.loads((output / "run.json").read_text())
    (output / "run.json").write_text(json.dumps({**run, "status": "stopped"}))
    shutil.rmtree(output / "checkpoint-2")
    result = tune({**asked, "resume_from_checkpoint": True})
    assert "2 steps, resumed; the last part took" in result.stdout, result.output
    (run,) = read_runs([output])
    assert run.training_seconds is None
