"""The check for a GPU is a program that runs: here with the stock libraries in Unsloth's place."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from moorline.embedded import aligned_path

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "examples" / "unsloth_check.py"
STAND_INS = ROOT / "tests" / "stand_ins"


def run(*words, path):
    before = os.environ.get("PYTHONPATH")
    return subprocess.run(
        [sys.executable, *map(str, words)], check=False, capture_output=True, text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, (str(path), before)))},
    )  # fmt: skip


@pytest.mark.slow
def test_every_check_runs_and_holds_with_the_stock_libraries():
    """It shows that the script is right, and nothing of Unsloth, which needs a GPU."""
    done = run(SCRIPT, aligned_path(), path=STAND_INS)
    lines = [each for each in done.stdout.splitlines() if each.startswith(("ok", "FAILED"))]
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]
    assert len(lines) == 10
    assert all(each.startswith("ok") for each in lines)
    assert lines[-1].startswith("ok     and those of the stock libraries")


@pytest.mark.slow
def test_the_order_of_imports_is_what_the_page_says():
    right = "import unsloth, moorline; from moorline.trainer import STRTrainer as ours; "
    right += "print(issubclass(ours, unsloth.UnslothSFTTrainer))"
    assert run("-c", right, path=STAND_INS).stdout.split()[-1] == "True"
    wrong = "import moorline.trainer, unsloth; moorline.trainer._check_order_of_imports()"
    assert "Import that library first (`import unsloth`)" in run("-c", wrong, path=STAND_INS).stderr


def test_without_a_gpu_it_ends_in_one_line(tmp_path):
    """Unsloth itself raises this as it is imported."""
    (tmp_path / "unsloth.py").write_text("raise NotImplementedError('You need a GPU.')\n")
    done = run(SCRIPT, "model", path=tmp_path)
    assert done.returncode == 1
    assert done.stderr == "Unsloth does not run here: You need a GPU.\n"
