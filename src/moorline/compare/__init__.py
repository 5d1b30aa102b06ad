"""Methods x strengths x seeds x data sets x models at equal conditions, cell by cell.

In order: the plan is read, its prompts are split, safety tokens are mined, every cell that is not
there yet is tuned and audited by command lines of Moorline, and what all cells came to is counted.
"""

import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import replace
from pathlib import Path

from filelock import FileLock, Timeout

from ..errors import InputError, MoorlineError
from ..records import write
from .cells import Found, Job, RunLine, Start, cells, jobs, lines_of, start_of
from .doing import finished, left
from .engines import check_engine, run_jobs
from .plan import ALIGNED, Plan, read_plan
from .record import COMPARE, Compared, read_compared, without_times
from .splits import Files, Split, write_splits
from .summary import compared, witness

__all__ = ["Compared", "Plan", "compare", "read_compared", "read_plan", "without_times"]

Say = Callable[[str], None]
"""Called with a line about what is being done."""


def compare(
    plan: Plan,
    output: str | Path,
    run: RunLine,
    *,
    check: Callable[[Sequence[str]], object] = lambda words: None,
    engine: str = "processes",
    workers: int = 1,
    address: str | None = None,
    say: Say = print,
) -> Compared:
    """Do what a plan asks for and is not done yet, and write `compare.json`.

    A run that was stopped, however hard, goes on where it was, cell by cell; the same plan gives
    the same file again, times aside. What failed is tried again.

    Args:
        plan: What to compare.
        output: Folder for everything.
        run: Runs one command line of Moorline: mine, tune, audit. A function of a module, so that
            other processes find it.
        check: Refuses the words of a `tune` command line that do not fit, before any is run.
        engine: "processes" or "ray".
        workers: How many cells at a time.
        address: Of a Ray cluster.
        say: Called with lines of progress.

    Returns:
        The content of `compare.json`.

    Raises:
        InputError: If the plan does not fit what is there, or another comparison runs in `output`.
        PrerequisiteError: If the engine is missing.
    """
    began, output = time.monotonic(), Path(output).resolve()
    check_engine(engine, workers)
    with _locked(output):
        files = write_splits(plan, output / "suites")
        starts = {each.name: start_of(each.path) for each in plan.models}
        _check_lines(plan, output, files, starts, check)
        starts = {name: _mined(name, each, output, run, say) for name, each in starts.items()}
        every = jobs(plan, output, files, starts, run)
        todo = [job for job in every if finished(job) is None]
        clock = _Clock(plan, every, todo, workers, say)
        run_jobs(
            todo, clock.done, engine=engine, workers=workers, address=address,
            gpus_per_cell=plan.gpus_per_cell,
        )  # fmt: skip
        found = [each for job in every if (each := left(job)) is not None]
        result = compared(plan, found, time.monotonic() - began)
        write(output / COMPARE, result)
    return result


class _Clock:
    """Says what is done, and how long the rest will take: the median of finished tunings each.

    An audit without a tuning takes a small part of a cell's time, so it is not reckoned with.
    """

    def __init__(
        self, plan: Plan, every: Sequence[Job], todo: Sequence[Job], workers: int, say: Say
    ) -> None:
        ready = [found for job in every if (found := finished(job)) is not None]
        self._seconds = [each.seconds for each in ready if each.training]
        self._total, self._left = len(every), len(todo)
        self._plan, self._workers, self._say = plan, workers, say
        say(f"{self._total} cells, {self._total - self._left} of them done.")
        for each in ready if todo else ():
            self._warn(each)

    def done(self, job: Job) -> None:
        """One more is done."""
        self._left -= 1
        found = left(job)
        failed = found is None or found.failed is not None
        if found is not None and not failed and found.training:
            self._seconds.append(found.seconds)
        took = "" if found is None else found.failed or f"{found.seconds:.0f} s"
        self._say(
            f"[{self._total - self._left}/{self._total}] {job.cell.name}: "
            f"{'FAILED: ' if failed else ''}{took}{self._rest()}"
        )
        if found is not None and not failed:
            self._warn(found)

    def _warn(self, found: Found) -> None:
        """Say before the tunings that a model can show nothing."""
        if found.cell.method != ALIGNED:
            return
        if (why := witness(self._plan, found).why_not) is not None:
            self._say(
                f"Warning: {found.cell.model}, {found.cell.data}: {why}. So nothing will be said "
                "of its safety. The tunings go on; Ctrl+C stops them. Take a model that refuses "
                "more, or prompts that it refuses."
            )

    def _rest(self) -> str:
        if not (self._left and self._seconds):
            return ""
        rest = statistics.median(self._seconds) * self._left / self._workers
        return f"; about {rest / 60:.0f} min left" if rest > 90 else f"; about {rest:.0f} s left"


def _check_lines(
    plan: Plan,
    output: Path,
    files: Mapping[str, Mapping[Split, Files]],
    starts: Mapping[str, Start],
    check: Callable[[Sequence[str]], object],
) -> None:
    """Refuse training settings that do not fit, in the words of `tune`, before hours of work."""
    for cell, strength in cells(plan):
        if cell.seed not in (None, plan.seeds[0]) or cell.model != plan.models[0].name:
            continue
        start, folder = starts[cell.model], output / cell.path
        for words in lines_of(plan, cell, strength, start, folder, files[cell.data]):
            if words[0] == "tune":
                try:
                    check(words[1:])
                except InputError as error:
                    where = f"data {cell.data!r}, method {cell.method!r}"
                    raise InputError(f"{where}: {error}") from error


def _mined(name: str, start: Start, output: Path, run: RunLine, say: Say) -> Start:
    """A model with its safety tokens; without them where none can be mined."""
    tokens = output / "models" / f"{name}-{start.known_by[:12]}" / "safety_tokens.json"
    if not tokens.is_file():
        say(f"Mining the safety tokens of {name}.")
        tokens.parent.mkdir(parents=True, exist_ok=True)
        try:
            with (
                (tokens.parent / "log.txt").open("w", encoding="utf-8") as log,
                redirect_stdout(log),
                redirect_stderr(log),
            ):
                run(["mine", start.path, "--output", str(tokens)])
        except MoorlineError as error:
            say(f"No safety tokens of {name}: {error}")
            return start
    return replace(start, tokens=tokens)


@contextmanager
def _locked(output: Path) -> Iterator[None]:
    """Keep other comparisons out of a folder; the system opens the lock when we are gone."""
    if output.exists() and not output.is_dir():
        raise InputError(f"`output` {output} is a file. Give a folder.")
    lock = FileLock(output / ".lock")
    try:
        output.mkdir(parents=True, exist_ok=True)
        lock.acquire(blocking=False)
    except Timeout as error:
        raise InputError(
            f"`output` {output}: another comparison runs in it. Give another folder, or wait."
        ) from error
    except OSError as error:
        raise InputError(
            f"`output` {output} cannot be written ({error.strerror}). Give another folder."
        ) from error
    try:
        yield
    finally:
        lock.release()
