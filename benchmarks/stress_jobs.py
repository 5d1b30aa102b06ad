"""The jobs that `stress.py` kills, how one is run and killed, and what it leaves.

Each command runs in a process of its own, forked from this one, so that the libraries are loaded
once.
"""

import contextlib
import json
import os
import random
import re
import shlex
import signal
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

os.environ |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "OMP_NUM_THREADS": "1"}

import torch
import transformers
import trl  # noqa: F401  loaded once, before the forks

from moorline import embedded
from moorline.commands import audit, compare, tune  # noqa: F401  the same
from moorline.commands.cli import app
from moorline.errors import MoorlineError
from moorline.method import cache_shards
from moorline.method.cache import MANIFEST, Cache, keys_in
from moorline.method.checkpoint import whole_checkpoints

# What tells when, where, and how fast, and not what came of it; the host counts `num_tokens` anew.
_TIMES = {
    "at", "started", "finished", "seconds", "training_seconds", "peak_memory_bytes", "machine",
    "train_runtime", "train_samples_per_second", "train_steps_per_second", "eval_runtime",
    "train_tokens_per_second", "total_flos", "resume_from_checkpoint", "peak_memory_of",
    "train_loss", "logging_dir", "cost", "fingerprint", "num_tokens",
    "audit_seconds", "tune_seconds",
}  # fmt: skip
# Files that tell of the way, or are the host's own: not what a job is for.
_PASSED_OVER = re.compile(
    r"(?:^|/)\.[^/]+$|checkpoint-|log\.txt$|README\.md|training_args\.bin|runs/|figures/|tables\.md"
)


class Kill(NamedTuple):
    """Where a process ends: at the n-th file that gets its name, or after a share of the time."""

    at_file: int | None = None
    after: bool = False
    share: float = 0.0

    def __str__(self) -> str:
        """In words."""
        if self.at_file is None:
            return f"{self.share:.0%} of the time"
        return f"{'after' if self.after else 'before'} file {self.at_file}"


@dataclass
class Job:
    """One command, and what it leaves."""

    name: str
    words: Callable[[Path], list[str]]
    kept: str
    """Files to compare, as a pattern of paths in the job's folder."""

    again: Callable[[Path], list[str]] | None = None
    """The command after a kill, where it is another one."""

    by_row: bool = False
    """Whether its cache is filled in the order of training, so that rows are compared, and not
    the files that they stand in."""

    seconds: float = 0.0
    files: int = 0
    wanted: dict[str, str] = field(default_factory=dict)


def run(
    words: Sequence[str], folder: Path, kill: Kill | None = None, seconds: float = 0.0
) -> tuple[int, int]:
    """Run a command in a forked process; its exit code (-9 if killed) and how many files it named.

    Args:
        words: The command.
        folder: Where it runs; its output goes to `log.txt` there.
        kill: Where it is killed; nowhere if None.
        seconds: How long the unbroken run took, for kills by time.
    """
    counter = folder / "files.count"
    counter.write_text("0")
    child = begun(words, folder, kill)
    if kill is not None and kill.at_file is None:
        deadline = time.monotonic() + kill.share * seconds
        while time.monotonic() < deadline:
            done, status = os.waitpid(child, os.WNOHANG)
            if done:
                return os.waitstatus_to_exitcode(status), int(counter.read_text() or 0)
            time.sleep(0.005)
        os.kill(child, signal.SIGKILL)
    return ended(child), int(counter.read_text() or 0)


def begun(words: Sequence[str], folder: Path, kill: Kill | None = None) -> int:
    """A command in a forked process; the number of the process."""
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        _be(words, folder, kill, folder / "files.count")
    return child


def ended(child: int) -> int:
    """The exit code of a process, once it has ended."""
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status)


def _be(words: Sequence[str], folder: Path, kill: Kill | None, counter: Path) -> None:
    """The forked process: one command, and out."""
    code = 1
    try:
        # A shell that starts this in its background has Ctrl-C ignored, for all that come after.
        signal.signal(signal.SIGINT, signal.default_int_handler)
        os.chdir(folder)
        log = os.open("log.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(log, 1)
        os.dup2(log, 2)
        sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w")
        # After a fork torch makes its pool of threads anew where it is first asked for, and two
        # threads that ask at once (transformers reads weights in several) find none.
        torch.set_num_threads(1)
        cache_shards.MAX_ROWS = 8  # several shards, of which one may be half done
        _count_files(kill, counter)
        random.seed(0)
        transformers.set_seed(0)
        app(list(words), prog_name="moorline")
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else 1
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        with contextlib.suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


def _count_files(kill: Kill | None, counter: Path) -> None:
    """Count the files that get their name, and die at one of them."""
    rename, done = os.replace, 0

    def replace(*args: object, **kwargs: object) -> None:
        nonlocal done
        done += 1
        here = kill is not None and kill.at_file == done
        if here and not kill.after:
            os.kill(os.getpid(), signal.SIGKILL)
        rename(*args, **kwargs)
        counter.write_text(str(done))
        if here:
            os.kill(os.getpid(), signal.SIGKILL)

    os.replace = replace


def left(job: Job, folder: Path) -> dict[str, str]:
    """The files that count, by name; of a cache filled while training, its rows."""
    paths = [path for path in sorted(folder.glob(job.kept)) if path.is_file()]
    caches = {path.parent for path in paths if job.by_row and path.name == MANIFEST}
    names = {str(path.relative_to(folder)): path for path in paths if path.parent not in caches}
    found = {
        name: _settled(path, folder)
        for name, path in names.items()
        if not _PASSED_OVER.search(name)
    }
    return found | {str(each.relative_to(folder)): _rows_of(each) for each in caches}


def _rows_of(cache: Path) -> str:
    """Every row of a finished cache with its values, in the order of the keys."""
    try:
        opened = Cache(cache)
    except MoorlineError as error:
        return str(error)
    shards = [cache / name for name in json.loads((cache / MANIFEST).read_text())["shards"]]
    keys = sorted(key.tobytes() for key in keys_in(shards))
    places = [opened.find(key) for key in keys]
    values = [b"none" if at is None else opened.values(at).tobytes() for at in places]
    return b"".join(each for pair in zip(keys, values, strict=True) for each in pair).hex()


def _settled(path: Path, folder: Path) -> str:
    """What a file says, without times and the place of its folder."""
    if path.suffix not in (".json", ".jsonl", ".md"):
        return path.read_bytes().hex()
    text = path.read_text(encoding="utf-8").replace(str(folder.resolve()), ".")
    if path.suffix == ".json":
        return json.dumps(_without_times(json.loads(text)), sort_keys=True)
    return text


def _without_times(value: object) -> object:
    if isinstance(value, dict):
        kept = {key: each for key, each in value.items() if key not in _TIMES}
        return {key: _without_times(each) for key, each in kept.items()}
    return [_without_times(each) for each in value] if isinstance(value, list) else value


_TRAINING = shlex.split(
    "--use_peft --lora_target_modules all-linear --lora_r 4 --bf16 false --use_cpu "
    "--report_to none --per_device_train_batch_size 4 --learning_rate 0.004 --max_steps 8 "
    "--gradient_checkpointing false --save_steps 2 --logging_steps 1 --dtype float32"
)


def jobs(shared: Path) -> list[Job]:
    """The jobs; what they read lies in `shared`."""
    model, tokens, rows = embedded.aligned_path(), shared / "tokens.json", shared / "rows.jsonl"
    rows.write_text(
        "".join(json.dumps(row) + "\n" for row in embedded.training_rows("plans", num=32))
    )
    suite = shared / "suite.jsonl"
    prompts = [each for of in embedded.suites() for each in of.prompts[:12]]
    suite.write_text("".join(json.dumps(_row(each)) + "\n" for each in prompts))
    plan = shared / "plan.json.yaml"
    plan.write_text(json.dumps(_plan(model, rows, suite)))
    settings = ["--model_name_or_path", model, "--dataset_name", str(rows), "--str_tokens",
                str(tokens), "--output_dir", "out", *_TRAINING]  # fmt: skip
    budgeted = [*settings, "--str_form", "logprob", "--str_budget", "0.3"]
    held = [*settings, "--str_cache_dir", "kept", "--str_reference"]
    # twelve steps of four of 32 rows: the cache is finished in the midst of the training
    filling = [*held, "write_through", "--max_steps", "12"]
    asked = ["audit", model, "--suite", str(suite), "--max-new-tokens", "24", "--batch-size", "4",
             "--output", "out"]  # fmt: skip
    return [
        Job("mine", lambda _: ["mine", model, "--output", "out/tokens.json"], "out/*"),
        Job("cache", lambda _: ["cache", *held, "cached"], "kept/**/*"),
        _tuning("tune", budgeted),
        _tuning("tune, cached", [*held, "cached"]),
        _tuning("tune, write_through", filling, by_row=True),
        Job("audit", lambda _: asked, "out/**/*"),
        Job("compare", lambda _: ["compare", str(plan), "--output", "out"], "out/compare.json"),
    ]


def _tuning(name: str, settings: Sequence[str], *, by_row: bool = False) -> Job:
    """A tuning: resumed once there is a whole checkpoint."""
    words = ["tune", *settings]

    def again(folder: Path) -> list[str]:
        resumes = whole_checkpoints(folder / "out", with_state="--str_budget" in words)
        return [*words, *(["--resume_from_checkpoint", "true"] if resumes else [])]

    return Job(name, lambda _: words, "[ok]*/**/*", again, by_row)


def _plan(model: str, rows: Path, suite: Path) -> dict[str, object]:
    return {
        "models": [{"name": "small", "path": model}],
        "data": [{"name": "plans", "train": str(rows), "tasks": ["embedded:plans"]}],
        "methods": [{"name": "plain"}, {"name": "str", "weights": [1.0]}],
        "training": {"max_steps": 2, "use_peft": True, "lora_r": 4, "use_cpu": True, "bf16": False,
                     "lora_target_modules": "all-linear", "report_to": "none",
                     "gradient_checkpointing": False, "dtype": "float32"},
        "audit": {"harmful": [str(suite)], "harmless": [str(suite)], "limit": 8,
                  "max_new_tokens": 8},
    }  # fmt: skip


def _row(prompt: object) -> dict[str, str]:
    return {"id": prompt.id, "prompt": prompt.prompt, "kind": prompt.kind}
