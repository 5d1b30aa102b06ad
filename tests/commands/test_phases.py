"""Each phase that takes its time has one line, with the time left."""

import time

import pytest

from moorline.commands import phases
from moorline.commands.phases import phase


@pytest.fixture
def at_once(monkeypatch):
    monkeypatch.setattr(phases, "_DELAY", 0.01)


def test_a_phase_says_how_much_is_done_and_the_time_left(at_once, capsys):
    with phase("Mining", hidden=False) as tell:
        for done in range(1, 5):
            time.sleep(0.12)
            tell(done, 8)
    shown = capsys.readouterr().err
    assert "Mining" in shown
    assert "4/8" in shown
    assert "<00:00" in shown  # half a second is left
    assert shown.count("\n") <= 1


def test_what_is_done_at_once_and_what_is_hidden_has_no_line(at_once, capsys, monkeypatch):
    with phase("Mining", hidden=True) as tell:
        time.sleep(0.15)
        tell(1, 2)
    monkeypatch.setattr(phases, "_DELAY", 2.0)
    with phase("Mining", hidden=False) as tell:
        tell(1, 2)
    assert capsys.readouterr().err == ""
