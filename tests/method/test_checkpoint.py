"""Which checkpoints are whole: a run that is killed while it writes one leaves a torn one."""

import logging

import pytest

from moorline import InputError
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
    for given in (None, False, "some/folder"):
        assert resumed(given, str(tmp_path), with_state=False) is given
