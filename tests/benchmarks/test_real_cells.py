"""Cells that one machine keeps are finished cells on another."""

import pytest
import real_model

from moorline.compare.cells import CELL, Cell, Found, Verdict
from moorline.records import read, write


def cell(seed, *, known_by="a", failed=None):
    at = Cell(model="m", data="d", method="str", strength="weight 3", seed=seed)
    verdict = Verdict("harmful", "harmful", "plain", "1\u2028", "refused", None)
    return Found(
        cell=at, known_by=known_by, failed=failed, answers={"test": (verdict,)},
        commands=("moorline audit /a/path",),
    )  # fmt: skip


def put(folder, *found):
    for each in found:
        write(folder / each.cell.path / CELL, each)


def test_what_is_kept_is_taken(tmp_path):
    one, other, file = tmp_path / "one", tmp_path / "other", tmp_path / "cells.jsonl"
    put(one, cell(0), cell(1, failed="it broke"))
    assert real_model.main(["keep", str(one), str(file)]) == 0
    put(one, cell(0, known_by="b"), cell(2))
    assert real_model.main(["keep", str(one), str(file)]) == 0
    assert "/a/path" not in file.read_text(encoding="utf-8")
    put(other, cell(2, known_by="own"))
    assert real_model.main(["take", str(file), str(other)]) == 0
    taken = {each.seed: read(Found, other / each.path / CELL, "cell", remedy="")
             for each in (cell(0).cell, cell(2).cell)}  # fmt: skip
    assert taken[0].known_by == "b"
    assert taken[0].answers == cell(0).answers
    assert taken[2].known_by == "own", "what is there stays"
    assert not (other / cell(1).cell.path).exists(), "a failed cell is done again"


@pytest.mark.parametrize("text", ["no json\n", '{"cell": 1}\n'])
def test_what_is_no_cell_is_refused(text, tmp_path, capsys):
    file = tmp_path / "cells.jsonl"
    file.write_text(text)
    assert real_model.main(["take", str(file), str(tmp_path / "out")]) == 2
    assert "line 1" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_folder_without_a_cell_is_refused(tmp_path, capsys):
    assert real_model.main(["keep", str(tmp_path), str(tmp_path / "cells.jsonl")]) == 2
    assert "no finished cell" in capsys.readouterr().err
