"""Two runs that would fill one cache, and one that begins anew while it holds the folder."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
from helpers import moved, str_trainer
from transformers import TrainerCallback

from moorline.method import cache_job
from moorline.method.cache import MANIFEST, Cache, Manifest
from moorline.method.reference import AdapterOff

TESTS = Path(__file__).parents[1]

WAITS = """
import sys, time
from pathlib import Path
sys.path[:0] = {path!r}
import moorline.method.write_through as of
original = of.WriteThrough.keep
def waiting(self, batch):
    original(self, batch)
    Path("is filling").touch()
    while not Path("go on").exists():
        time.sleep(0.05)
of.WriteThrough.keep = waiting
sys.argv = ["run_host.py", *sys.argv[1:]]
import runpy
runpy.run_path({script!r}, run_name="__main__")
"""


def begin(folder, cache):
    """A training in a process of its own, which waits in each step of its first epoch."""
    folder.mkdir()
    script = WAITS.format(path=[str(TESTS)], script=str(TESTS / "run_host.py"))
    words = ["--batch", "4", "--steps", "6", "--reference", "write_through"]
    return subprocess.Popen(
        [sys.executable, "-c", script, str(folder / "log.json"), *words, "--cache-dir", str(cache)],
        cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip


@pytest.mark.slow
def test_of_two_processes_that_fill_one_cache_the_second_is_refused(tmp_path):
    """By the lock, in the midst of the first's epoch; which then ends as if nothing had been."""
    first, second = tmp_path / "first", tmp_path / "second"
    filling = begin(first, tmp_path / "z0")
    while not (first / "is filling").exists() and filling.poll() is None:
        time.sleep(0.1)
    (tmp_path / "z0" / "train" / "seen").touch()  # that there is such a folder
    other = begin(second, tmp_path / "z0")
    (second / "go on").touch()
    said, _ = other.communicate(timeout=500)
    assert other.returncode != 0
    assert f"Another run is building the reference cache {tmp_path / 'z0' / 'train'}" in said
    assert Manifest.load(tmp_path / "z0" / "train").status == "begun"
    (first / "go on").touch()
    said, _ = filling.communicate(timeout=500)
    assert filling.returncode == 0, said[-2000:]
    assert len(Cache(tmp_path / "z0" / "train")) == 8
    third = begin(tmp_path / "third", tmp_path / "z0")  # the control: now it may, and only reads
    said, _ = third.communicate(timeout=500)
    assert third.returncode == 0, said[-2000:]
    assert not (tmp_path / "third" / "is filling").exists(), "the first step reads"
    logs = [json.loads((tmp_path / name / "log.json").read_text()) for name in ("first", "third")]
    assert logs[0]["str/drift"] > 0.01
    for key in ("loss", "grad_norm", "str/drift"):
        assert logs[1][key] == pytest.approx(logs[0][key], rel=1e-5), key


@pytest.fixture
def build(make_model, rows, tokenizer, tokens, tmp_path):
    """A function that builds a trainer whose first epoch fills a cache."""

    def made(**changes):
        return str_trainer(
            moved(make_model), rows, tokenizer, tokens, tmp_path,
            **{"str_reference": "write_through", "max_steps": -1, "num_train_epochs": 3,
               "str_cache_dir": str(tmp_path / "cache"), **changes},
        )  # fmt: skip

    return made


class Fails(TrainerCallback):
    """Ends the first call once, after the first step, as a GPU without memory does."""

    def __init__(self):
        self.num = 0

    def on_step_end(self, *args, **kwargs):
        self.num += 1
        if self.num == 1:
            raise RuntimeError("CUDA out of memory.")


@pytest.mark.lengthy
def test_a_host_that_begins_anew_within_a_training_is_not_refused_by_its_own_lock(build, tmp_path):
    """`auto_find_batch_size` runs the host's loop again, and the lock was its own."""
    trainer, fails = build(auto_find_batch_size=True), Fails()
    trainer.add_callback(fails)
    trainer.train()
    assert fails.num == 1 + trainer.state.global_step > 1 + 6, "again, by fewer rows a step"
    assert len(Cache(tmp_path / "cache" / "train")) == 8
    shards = json.loads((tmp_path / "cache" / "train" / MANIFEST).read_text())["shards"]
    assert all(name.startswith("epoch-") for name in shards), "the second call kept every row"


@pytest.mark.lengthy
def test_a_training_takes_a_cache_that_another_finished_since_it_was_built(
    build, tmp_path, monkeypatch
):
    waiting = build()
    build().train()
    counted, original = [], AdapterOff.safety_logits

    def counting(*args):
        counted.append(args)
        return original(*args)

    monkeypatch.setattr(AdapterOff, "safety_logits", counting)
    waiting.train()
    assert counted == [], "nothing is computed a second time"
    log = [each for each in waiting.state.log_history if "loss" in each]
    assert len(log) == 6
    assert log[-1]["str/drift"] > 1e-4
    with cache_job.lock_of(tmp_path / "cache" / "train").acquire(blocking=False):
        pass  # the folder is free again
