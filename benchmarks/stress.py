"""Kill Moorline again and again, and see that the same command ends as if nothing had happened.

    python benchmarks/stress.py [--kills 63] [--minutes 50] [--seed 0] [--only tune ...] [--pytest]

The jobs of `stress_jobs.py` run on the embedded model: mine, cache, tune (with a budget; with a
cache; filling a cache by `write_through`), audit, compare. Each is first run unbroken. Then it is
killed (SIGKILL) at chosen points, which are before and after each file gets its name, and at random
moments; three times in a row in one folder, each time by the same command (tune: with
`--resume_from_checkpoint true` once there is a whole checkpoint). Then the command runs to its end,
and every file is compared with that of the unbroken run: byte by byte, but for times and paths.
Beside that: two runs into one folder, and Ctrl-C.

With `--pytest` then the classes that stand in the tests: bad input, properties at high counts,
inert protection, hostile text, DDP and FSDP2 in processes of their own.

One line per class: tried, survived, lost. Exit code 1 if any was lost. It stops by itself: after
`--minutes` what is left is not tried, and that is said. Two jobs or classes run at a time
(`--at-once`), each in a process of its own.
"""

import argparse
import contextlib
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path

from stress_jobs import Job, Kill, begun, ended, jobs, left, run  # isort: skip  sets the environment

import torch

from moorline import embedded
from moorline.provenance import machine, now, versions, write_json

KILLS_IN_A_ROW = 3
EXAMPLES = 1000
"""Of each property."""


@dataclass
class Count:
    """What came of one class."""

    tried: int = 0
    survived: int = 0
    lost: list[str] = field(default_factory=list)
    seconds: float = 0.0


def points(job: Job, num: int, chance: random.Random) -> list[Kill]:
    """Where to kill: before and after each file by turns, and at random moments between."""
    files = [Kill(at_file=1 + each // 2, after=each % 2 == 1) for each in range(2 * job.files)]
    chance.shuffle(files)
    chosen = files[: num // 2]
    return chosen + [Kill(share=chance.uniform(0.02, 0.9)) for _ in range(num - len(chosen))]


def unbroken(job: Job, folder: Path) -> None:
    """What a job leaves where nobody kills it."""
    began = time.monotonic()
    code, job.files = run(job.words(folder), folder)
    job.seconds = time.monotonic() - began
    if code:
        raise SystemExit(f"{job.name} fails unbroken:\n{(folder / 'log.txt').read_text()[-2000:]}")
    job.wanted = left(job, folder)
    if not job.wanted:
        raise SystemExit(f"{job.name} leaves nothing that could be compared.")


def chain(job: Job, kills: Sequence[Kill], folder: Path, count: Count) -> None:
    """Kill a job several times in one folder, finish it, and compare.

    A run that ends before its kill counts as none.
    """
    words, told, killed = job.words(folder), [], 0
    for kill in kills:
        code, _ = run(words, folder, kill, job.seconds)
        killed += code == -signal.SIGKILL
        told.append(f"{kill}{'' if code == -signal.SIGKILL else f' (ended before, {code})'}")
        words = (job.again or job.words)(folder)
        if code != -signal.SIGKILL:
            break
    else:
        code, _ = run(words, folder)
    count.tried += killed
    found = left(job, folder)
    differs = sorted(
        name for name in job.wanted.keys() | found if job.wanted.get(name) != found.get(name)
    )
    if code == 0 and not differs:
        count.survived += killed
        return
    count.tried += killed == 0  # one that fails unkilled is lost all the same
    why = f"exit code {code}" if code else f"differs: {', '.join(differs[:4])}"
    tail = (folder / "log.txt").read_text(errors="replace").strip().splitlines()[-1:]
    count.lost.append(f"killed {', '.join(told)}: {why}; {' '.join(tail)[:200]}")


def two_at_once(job: Job, folder: Path, count: Count) -> None:
    """A second run of a job into the folder of the first: refused, and the first is unharmed."""
    first = begun(job.words(folder), folder)
    deadline = time.monotonic() + 60
    while not list(folder.glob("out/.*lock")) and time.monotonic() < deadline:
        time.sleep(0.005)
    code, _ = run(job.words(folder), folder)
    first_code = ended(first)
    said = "runs in it" in (folder / "log.txt").read_text(errors="replace")
    fine = code == 2 and said and first_code == 0 and left(job, folder) == job.wanted
    count.tried += 1
    count.survived += fine
    if not fine:
        count.lost.append(f"{job.name}: second {code}, first {first_code}, said {said}")


def interrupted(job: Job, folder: Path, count: Count) -> None:
    """Ctrl-C in the middle: says what is kept, and the same command goes on.

    The middle is where half of its files have their names; of one file, half of the time.
    """
    counter, until = folder / "files.count", time.monotonic() + 0.5 * job.seconds
    counter.write_text("0")
    child = begun(job.words(folder), folder)
    late = until + 10 * job.seconds  # should it fail before
    while time.monotonic() < (until if job.files < 2 else late) and not (
        job.files > 1 and _num(counter) >= job.files // 2
    ):
        time.sleep(0.005)
    os.kill(child, signal.SIGINT)
    first = ended(child)
    if first == 0:  # it was done before
        return
    text = (folder / "log.txt").read_text(errors="replace")
    said = "Stopped" in text and "same command" in text
    code, _ = run((job.again or job.words)(folder), folder)
    fine = first != 0 and said and code == 0 and left(job, folder) == job.wanted
    count.tried += 1
    count.survived += fine
    if not fine:
        count.lost.append(
            f"{job.name}: ended with {first}, said {said}, then {code}: {text[-200:]}"
        )


def _num(counter: Path) -> int:
    return int(counter.read_text() or 0)


TESTS = {
    "bad input": ["tests/test_bad_input.py"],
    f"properties, {EXAMPLES} each": [
        "tests/test_properties.py", "tests/test_spool.py", "tests/test_provenance.py",
        "tests/audit/test_statistics.py", "tests/audit/test_metrics.py",
        "tests/method/test_penalty.py", "tests/method/test_safety_tokens.py",
    ],
    "inert protection": ["tests/method/test_inert.py"],
    "hostile text": ["tests/test_hostile.py"],
    "FSDP2": [
        "tests/method/test_shards.py", "tests/test_launch.py", "-k", "fsdp2 or shards or copy",
    ],
    "DDP 2 and 4": [
        "tests/test_launch.py::test_several_processes_equal_one_through_the_command_line",
        "tests/test_launch.py::test_no_ddp_wrapper_outlives_its_group",
        "tests/audit/test_audit_processes.py",
        "tests/method/test_cache.py::test_two_processes_share_one_cache_and_equal_one_process",
        "tests/method/test_write_through.py"
        "::test_two_processes_fill_one_cache_and_equal_one_live_process",
        "tests/method/test_anchors.py::test_two_processes_hold_the_anchors_that_one_holds",
    ],
}  # fmt: skip


def tested(name: str, tests: Sequence[str], deadline: float) -> dict[str, Count]:
    """A class that stands in the tests: its cases, as pytest counts them."""
    words = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *tests]
    environment = {**os.environ, "MOORLINE_EXAMPLES": str(EXAMPLES)}
    began = time.monotonic()
    seconds = max(60.0, deadline - began)
    try:
        done = subprocess.run(
            words, capture_output=True, text=True, timeout=seconds, check=False, env=environment,
            cwd=Path(__file__).parents[1],
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return {name: Count(1, 0, [f"not done in {seconds:.0f} s"], seconds)}
    counts = {
        what: int(num) for num, what in re.findall(r"(\d+) (passed|failed|error)", done.stdout)
    }
    wrong, passed = counts.get("failed", 0) + counts.get("error", 0), counts.get("passed", 0)
    lost = re.findall(r"^(?:FAILED|ERROR) .*", done.stdout, re.MULTILINE)[:5] if wrong else []
    if not passed and not wrong:  # nothing was collected
        wrong, lost = 1, [(done.stdout + done.stderr)[-300:]]
    return {name: Count(passed + wrong, passed, lost, time.monotonic() - began)}


@contextlib.contextmanager
def fresh(root: Path) -> Iterator[Path]:
    """A folder for one chain."""
    folder = Path(tempfile.mkdtemp(dir=root))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def killed(job: Job, root: Path, num: int, seed: int, deadline: float) -> dict[str, Count]:
    """One job killed so many times; two runs of it into one folder; Ctrl-C."""
    chance, counts = random.Random(f"{seed} {job.name}"), {f"kill {job.name}": Count()}
    with fresh(root) as folder:
        unbroken(job, folder)
    say(f"{job.name}: unbroken in {job.seconds:.1f} s, {job.files} files")
    count = counts[f"kill {job.name}"]
    for _ in range(num):  # of each chain one at least is killed, or something is wrong
        short = num - count.tried
        if short > 0 and time.monotonic() < deadline:
            kills = points(job, max(short, 2 * KILLS_IN_A_ROW), chance)
            with fresh(root) as folder, timed(count):
                chain(job, chance.sample(kills, min(short, KILLS_IN_A_ROW)), folder, count)
    for what, of, names in (
        ("two runs in one folder", two_at_once, ("tune", "audit", "compare")),
        ("Ctrl-C", interrupted, (job.name,)),
    ):
        if job.name in names and time.monotonic() < deadline:
            count = counts[what] = Count()
            with fresh(root) as folder, timed(count):
                of(job, folder, count)
    return counts


def all_of(
    tasks: Sequence[tuple[str, Callable[[], dict[str, Count]]]], at_once: int, root: Path
) -> dict[str, Count]:
    """What comes of some tasks, each in a process of its own, so many at a time."""
    counts: dict[str, Count] = {}
    waiting, running = list(enumerate(tasks)), {}
    while waiting or running:
        if waiting and len(running) < at_once:
            number, (name, does) = waiting.pop(0)
            sys.stdout.flush()
            child = os.fork()
            if child == 0:
                _do(does, name, root / f"found-{number}.json")
            running[child] = root / f"found-{number}.json"
            continue
        child, _ = os.wait()
        for name, of in json.loads(running.pop(child).read_text()).items():
            whole, one = counts.setdefault(name, Count()), Count(**of)
            whole.tried, whole.survived = whole.tried + one.tried, whole.survived + one.survived
            whole.lost, whole.seconds = whole.lost + one.lost, whole.seconds + one.seconds
    return counts


def _do(does: Callable[[], dict[str, Count]], name: str, path: Path) -> None:
    try:
        found = does()
    except BaseException as error:  # what cannot be tried at all is lost
        found = {name: Count(tried=1, lost=[repr(error)[:2000]])}
    path.write_text(json.dumps({each: asdict(count) for each, count in found.items()}))
    sys.stdout.flush()
    os._exit(0)


@contextlib.contextmanager
def timed(count: Count) -> Iterator[None]:
    """Adds the seconds that something takes."""
    began = time.monotonic()
    yield
    count.seconds += time.monotonic() - began


def main() -> None:
    """Run it, print one line per class, and keep the figures."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--kills", type=int, default=63)
    parser.add_argument("--minutes", type=float, default=50.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="*", help="jobs; all if left out, none if empty")
    parser.add_argument("--at-once", type=int, default=2, help="processes at a time")
    parser.add_argument("--pytest", action="store_true", help="the classes that are tests, too")
    parser.add_argument("--classes", nargs="*", help="of these classes; all if left out")
    parser.add_argument("--output", type=Path, help="JSON file for the figures")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    began = time.monotonic()
    deadline = began + 60 * asked.minutes
    with tempfile.TemporaryDirectory(prefix="moorline-stress-") as scratch:
        root = Path(scratch)
        todo = [each for each in jobs(root) if asked.only is None or each.name in asked.only]
        (root / "mine").mkdir()
        words = ["mine", embedded.aligned_path(), "--output", str(root / "tokens.json")]
        code, _ = run(words, root / "mine")
        assert code == 0, (root / "mine" / "log.txt").read_text()
        # what the tests need is left to them, should the kills take long
        until = began + 60 * asked.minutes * (0.5 if asked.pytest else 1)
        num = -(-asked.kills // max(len(todo), 1))
        tasks = [(each.name, partial(killed, each, root, num, asked.seed, until)) for each in todo]
        if asked.pytest:
            tasks += [
                (name, partial(tested, name, tests, deadline))
                for name, tests in TESTS.items()
                if asked.classes is None or name in asked.classes
            ]
        counts = all_of(tasks, asked.at_once, root)
    minutes = (time.monotonic() - began) / 60
    for name, count in counts.items():
        say(f"{name:<26} tried {count.tried:>4}  survived {count.survived:>4}  "
            f"lost {count.tried - count.survived:>3}  {count.seconds:>5.0f} s")  # fmt: skip
        for each in count.lost:
            say(f"    {each}")
    kills = sum(each.tried for name, each in counts.items() if name.startswith("kill "))
    short = "; the rest was not tried, as time ran out" if todo and kills < asked.kills else ""
    say(f"{kills} kills; {minutes:.1f} min in all{short}")
    if asked.output:
        classes = {
            name: {"tried": each.tried, "survived": each.survived,
                   "seconds": round(each.seconds), "lost": each.lost}
            for name, each in counts.items()
        }  # fmt: skip
        write_json(asked.output, {
            "at": now(), "minutes": round(minutes, 1), "seed": asked.seed, "kills": kills,
            "machine": machine(), "versions": versions(), "classes": classes,
        })  # fmt: skip
    sys.exit(any(each.tried > each.survived for each in counts.values()))


def say(line: str) -> None:
    """One line, at once."""
    print(line, flush=True)


if __name__ == "__main__":
    main()
