"""Kill Moorline again and again, and see that the same command ends as if nothing had happened.

    python benchmarks/stress.py [--kills 60] [--minutes 50] [--seed 0] [--only tune ...] [--pytest]

Five jobs run on the embedded model: mine, tune, cache (a tuning whose reference fills a cache),
audit, compare. Each is first run unbroken. Then it is killed (SIGKILL) at chosen points, which are
before and after each file gets its name, and at random moments; three times in a row in one folder,
each time by the same command (tune: with `--resume_from_checkpoint true` once there is a whole
checkpoint). Then the command runs to its end, and every file is compared with that of the unbroken
run: byte by byte, but for times and paths. Beside that: two runs into one folder, and Ctrl-C.

One line per class: kills tried, survived, lost. Exit code 1 if any was lost. It stops by itself:
after `--minutes` what is left is not tried, and that is said.

Each command runs in a process of its own, forked from this one, so that the libraries are loaded
once.
"""

import argparse
import contextlib
import json
import os
import random
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
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
from moorline.method import cache_shards
from moorline.method.checkpoint import whole_checkpoints
from moorline.provenance import now, write_json

KILLS_IN_A_ROW = 3
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

    seconds: float = 0.0
    files: int = 0
    wanted: dict[str, str] = field(default_factory=dict)


@dataclass
class Count:
    """What came of the kills of one class."""

    tried: int = 0
    survived: int = 0
    lost: list[str] = field(default_factory=list)


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
    sys.stdout.flush()
    counter = folder / "files.count"
    counter.write_text("0")
    child = os.fork()
    if child == 0:
        _be(words, folder, kill, counter)
    if kill is not None and kill.at_file is None:
        deadline = time.monotonic() + kill.share * seconds
        while time.monotonic() < deadline:
            done, status = os.waitpid(child, os.WNOHANG)
            if done:
                return _code(status), int(counter.read_text() or 0)
            time.sleep(0.005)
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    return _code(status), int(counter.read_text() or 0)


def _code(status: int) -> int:
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


def settled(path: Path, folder: Path) -> str:
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


def left(job: Job, folder: Path) -> dict[str, str]:
    """The files that count, by name."""
    paths = [path for path in sorted(folder.glob(job.kept)) if path.is_file()]
    names = {str(path.relative_to(folder)): path for path in paths}
    return {
        name: settled(path, folder) for name, path in names.items() if not _PASSED_OVER.search(name)
    }


def jobs(shared: Path) -> list[Job]:
    """The five jobs; what they read lies in `shared`."""
    model, tokens, rows = embedded.aligned_path(), shared / "tokens.json", shared / "rows.jsonl"
    rows.write_text(
        "".join(json.dumps(row) + "\n" for row in embedded.training_rows("plans", num=32))
    )
    suite = shared / "suite.jsonl"
    prompts = [each for of in embedded.suites() for each in of.prompts[:12]]
    suite.write_text("".join(json.dumps(_row(each)) + "\n" for each in prompts))
    training = shlex.split(
        "--use_peft --lora_target_modules all-linear --lora_r 4 --bf16 false --use_cpu "
        "--report_to none --per_device_train_batch_size 4 --learning_rate 0.004 --max_steps 8 "
        "--gradient_checkpointing false --save_steps 2 --logging_steps 1 --dtype float32"
    )
    start = ["tune", "--model_name_or_path", model, "--dataset_name", str(rows), "--str_tokens",
             str(tokens), "--output_dir", "out", *training]  # fmt: skip
    plan = shared / "plan.json.yaml"
    plan.write_text(json.dumps({
        "models": [{"name": "small", "path": model}],
        "data": [{"name": "plans", "train": str(rows), "tasks": ["embedded:plans"]}],
        "methods": [{"name": "plain"}, {"name": "str", "weights": [1.0]}],
        "training": {"max_steps": 2, "use_peft": True, "lora_r": 4, "use_cpu": True, "bf16": False,
                     "lora_target_modules": "all-linear", "report_to": "none",
                     "gradient_checkpointing": False, "dtype": "float32"},
        "audit": {"harmful": [str(suite)], "harmless": [str(suite)], "limit": 8,
                  "max_new_tokens": 8},
    }))  # fmt: skip

    def resumed(words: list[str]) -> Callable[[Path], list[str]]:
        budget = "--str_budget" in words

        def again(folder: Path) -> list[str]:
            resumes = whole_checkpoints(folder / "out", with_state=budget)
            return [*words, *(["--resume_from_checkpoint", "true"] if resumes else [])]

        return again

    budgeted = [*start, "--str_form", "logprob", "--str_budget", "0.3"]
    cached = [*start, "--str_reference", "cached", "--str_cache_dir", "kept"]
    asked = ["audit", model, "--suite", str(suite), "--max-new-tokens", "24", "--batch-size", "4",
             "--output", "out"]  # fmt: skip
    return [
        Job("mine", lambda _: ["mine", model, "--output", "out/tokens.json"], "out/*"),
        Job("tune", lambda _: budgeted, "out/**/*", resumed(budgeted)),
        Job("cache", lambda _: cached, "[ok]*/**/*", resumed(cached)),
        Job("audit", lambda _: asked, "out/**/*"),
        Job("compare", lambda _: ["compare", str(plan), "--output", "out"], "out/compare.json"),
    ]


def _row(prompt: object) -> dict[str, str]:
    return {"id": prompt.id, "prompt": prompt.prompt, "kind": prompt.kind}


def points(job: Job, num: int, chance: random.Random) -> list[Kill]:
    """Where to kill: before and after each file by turns, and at random moments between."""
    files = [Kill(at_file=1 + each // 2, after=each % 2 == 1) for each in range(2 * job.files)]
    chance.shuffle(files)
    chosen = files[: num // 2]
    return chosen + [Kill(share=chance.uniform(0.02, 0.98)) for _ in range(num - len(chosen))]


def unbroken(job: Job, folder: Path) -> None:
    """What a job leaves where nobody kills it; twice the same, or it could not be compared."""
    began = time.monotonic()
    code, job.files = run(job.words(folder), folder)
    job.seconds = time.monotonic() - began
    if code:
        raise SystemExit(f"{job.name} fails unbroken:\n{(folder / 'log.txt').read_text()[-2000:]}")
    job.wanted = left(job, folder)


def chain(job: Job, kills: Sequence[Kill], folder: Path, count: Count) -> None:
    """Kill a job several times in one folder, finish it, and compare."""
    words, told = job.words(folder), []
    for kill in kills:
        code, _ = run(words, folder, kill, job.seconds)
        told.append(f"{kill}{'' if code == -9 else f' (ended before, {code})'}")
        words = (job.again or job.words)(folder)
        if code == 0:
            break
    else:
        code, _ = run(words, folder)
    count.tried += len(told)
    found = left(job, folder)
    differs = sorted(
        name for name in job.wanted.keys() | found if job.wanted.get(name) != found.get(name)
    )
    if code == 0 and not differs:
        count.survived += len(told)
        return
    why = f"exit code {code}" if code else f"differs: {', '.join(differs[:4])}"
    tail = (folder / "log.txt").read_text(errors="replace").strip().splitlines()[-1:]
    count.lost.append(f"killed {', '.join(told)}: {why}; {' '.join(tail)[:200]}")


def two_at_once(job: Job, folder: Path, count: Count) -> None:
    """A second run of a job into the folder of the first: refused, and the first is unharmed."""
    first = os.fork()
    if first == 0:
        _be(job.words(folder), folder, None, folder / "files.count")
    deadline = time.monotonic() + 60
    while not list(folder.glob("out/.*lock")) and time.monotonic() < deadline:
        time.sleep(0.005)
    code, _ = run(job.words(folder), folder)
    _, status = os.waitpid(first, 0)
    said = "runs in it" in (folder / "log.txt").read_text(errors="replace")
    fine = code == 2 and said and _code(status) == 0 and left(job, folder) == job.wanted
    count.tried += 1
    count.survived += fine
    if not fine:
        count.lost.append(f"{job.name}: second {code}, first {_code(status)}, said {said}")


def interrupted(job: Job, folder: Path, count: Count) -> None:
    """Ctrl-C in the middle: says what is kept, and the same command goes on."""
    child = os.fork()
    if child == 0:
        _be(job.words(folder), folder, None, folder / "files.count")
    time.sleep(0.6 * job.seconds)
    os.kill(child, signal.SIGINT)
    _, status = os.waitpid(child, 0)
    text = (folder / "log.txt").read_text(errors="replace")
    said = "Stopped" in text and "same command" in text
    code, _ = run((job.again or job.words)(folder), folder)
    fine = _code(status) != 0 and said and code == 0 and left(job, folder) == job.wanted
    count.tried += 1
    count.survived += fine
    if not fine:
        count.lost.append(
            f"{job.name}: ended with {_code(status)}, said {said}, then {code}: {text[-200:]}"
        )


TESTS = {
    "bad input": ["tests/test_bad_input.py"],
    "properties": ["tests/test_properties.py", "tests/test_records.py", "tests/test_tables.py"],
    "inert protection": ["tests/method/test_inert.py"],
    "hostile text": ["tests/test_hostile.py"],
    "several devices": ["tests/method/test_shards.py", "tests/test_launch.py"],
}


def tested(name: str, files: Sequence[str], seconds: float) -> Count:
    """A class that stands in the tests: its cases, as pytest counts them."""
    there = [each for each in files if Path(each).exists()]
    if not there:
        return Count()
    words = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *there]
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=seconds, check=False)
    except subprocess.TimeoutExpired:
        return Count(tried=1, lost=[f"{name}: not done in {seconds:.0f} s"])
    counts = {
        what: int(num) for num, what in re.findall(r"(\d+) (passed|failed|error)", done.stdout)
    }
    wrong = counts.get("failed", 0) + counts.get("error", 0)
    lost = re.findall(r"^(?:FAILED|ERROR) .*", done.stdout, re.MULTILINE)[:5] if wrong else []
    return Count(counts.get("passed", 0) + wrong, counts.get("passed", 0), lost)


@contextlib.contextmanager
def fresh(root: Path) -> Iterator[Path]:
    """A folder for one chain."""
    folder = Path(tempfile.mkdtemp(dir=root))
    (folder / "out").mkdir()
    (folder / "out").rmdir()
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def main() -> None:
    """Run it, print one line per class, and keep the figures."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--kills", type=int, default=60)
    parser.add_argument("--minutes", type=float, default=50.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="*", help="jobs; all if left out")
    parser.add_argument("--pytest", action="store_true", help="the classes that are tests, too")
    parser.add_argument("--output", type=Path, help="JSON file for the figures")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    began = time.monotonic()
    deadline = began + 60 * asked.minutes
    counts, chance = {}, random.Random(asked.seed)
    with tempfile.TemporaryDirectory(prefix="moorline-stress-") as scratch:
        root = Path(scratch)
        todo = [each for each in jobs(root) if not asked.only or each.name in asked.only]
        (root / "mine").mkdir()
        code, _ = run(["mine", embedded.aligned_path(), "--output", str(root / "tokens.json")],
                      root / "mine")  # fmt: skip
        assert code == 0, (root / "mine" / "log.txt").read_text()
        for job in todo:
            with fresh(root) as folder:
                unbroken(job, folder)
            say(f"{job.name}: unbroken in {job.seconds:.1f} s, {job.files} files")
        each_gets = -(-asked.kills // len(todo))
        plans = {job.name: points(job, each_gets, chance) for job in todo}
        for start in range(0, each_gets, KILLS_IN_A_ROW):
            for job in todo:
                kills = plans[job.name][start : start + KILLS_IN_A_ROW]
                count = counts.setdefault(f"kill {job.name}", Count())
                if time.monotonic() > deadline or not kills:
                    continue
                with fresh(root) as folder:
                    chain(job, kills, folder, count)
        for what, of, names in (
            ("two runs in one folder", two_at_once, ("tune", "audit", "compare")),
            ("Ctrl-C", interrupted, ("mine", "tune", "cache", "audit", "compare")),
        ):
            count = counts.setdefault(what, Count())
            for job in todo:
                if job.name in names and time.monotonic() < deadline:
                    with fresh(root) as folder:
                        of(job, folder, count)
    for name, files in TESTS.items() if asked.pytest else ():
        counts[name] = tested(name, files, max(60.0, deadline - time.monotonic()))
    minutes = (time.monotonic() - began) / 60
    for name, count in counts.items():
        say(f"{name:<24} tried {count.tried:>4}  survived {count.survived:>4}  "
            f"lost {count.tried - count.survived:>3}")  # fmt: skip
        for each in count.lost:
            say(f"    {each}")
    kills = sum(each.tried for name, each in counts.items() if name.startswith("kill "))
    say(f"{kills} kills in {minutes:.1f} min" + (
        "; the rest ended before, or time ran out" if kills < asked.kills else ""))  # fmt: skip
    if asked.output:
        classes = {
            name: {"tried": each.tried, "survived": each.survived, "lost": each.lost}
            for name, each in counts.items()
        }
        found = {"at": now(), "minutes": round(minutes, 1), "seed": asked.seed, "classes": classes}
        write_json(asked.output, found)
    sys.exit(any(each.tried > each.survived for each in counts.values()))


def say(line: str) -> None:
    """One line, at once."""
    print(line, flush=True)


if __name__ == "__main__":
    main()
