"""One tuning and its audits: what a cell is, the command lines that do it, what it left."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import ClassVar

from ..audit.measurements import Measurement
from ..provenance import fingerprint, sha256_of, versions
from .plan import ALIGNED, Plan, Strength, Value
from .splits import SPLITS, Files, Split

RunLine = Callable[[Sequence[str]], None]
"""Runs one command line of Moorline, without its first word; raises what stops it."""

CELL = "cell.json"


@dataclass(frozen=True, kw_only=True, slots=True)
class Cell:
    """One model on one data set by one method at one strength and seed."""

    model: str
    data: str
    method: str
    strength: str = ""
    """Its label; empty where the method has none."""

    seed: int | None = None
    """None for the aligned model, which no seed has a part in."""

    @property
    def path(self) -> Path:
        """Where its files are, in the folder of the comparison."""
        at = f"{self.method} {self.strength}".strip().replace(" ", "-")
        return Path("cells", self.model, self.data, at, f"seed-{self.seed}")

    @property
    def name(self) -> str:
        """As messages call it."""
        seed = None if self.seed is None else f"seed {self.seed}"
        parts = (self.model, self.data, f"{self.method} {self.strength}".strip(), seed)
        return ", ".join(each for each in parts if each)


@dataclass(frozen=True, slots=True)
class Verdict:
    """What one prompt came to."""

    suite: str
    kind: str
    condition: str
    id: str
    outcome: str
    score: float | None
    """What the metric of a task gives, 0 to 1; None for other prompts, or if unscored."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Training:
    """What `run.json` says of the tuning; of several in a row the last, times and steps summed."""

    steps: int
    train_loss: float | None
    grad_norm: float | None
    """Median over the logged steps."""

    largest_grad_norm: float | None
    spikes: int
    """Logged losses above twice the median of the five before."""

    logged: int
    tune_seconds: float
    peak_memory_bytes: int | None
    extra_rows: int | None
    """Rows beside the training data that the method used; None if it does not say."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Found:
    """What a cell came to: `cell.json`, written whole at the end."""

    SCHEMA: ClassVar[int] = 1

    cell: Cell
    known_by: str
    """Fingerprint of all that shapes it: commands, files, versions."""

    failed: str | None = None
    """Why it failed, in one line; None if it did not."""

    training: Training | None = None
    audit_seconds: float = 0.0
    validation: tuple[Measurement, ...] = ()
    test: tuple[Measurement, ...] = ()
    answers: Mapping[Split, tuple[Verdict, ...]] = field(default_factory=dict)
    commands: tuple[str, ...] = ()

    def measured(self, split: Split) -> tuple[Measurement, ...]:
        """The measurements of whole suites on one split."""
        return self.validation if split == "validation" else self.test

    @property
    def seconds(self) -> float:
        """How long it took."""
        return self.audit_seconds + (self.training.tune_seconds if self.training else 0.0)


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """All that a process needs to do one cell."""

    cell: Cell
    lines: tuple[tuple[str, ...], ...]
    """Command lines, in order."""

    folder: Path
    known_by: str
    metric: str
    keep_model: bool
    threads: int
    run: RunLine


def cells(plan: Plan) -> list[tuple[Cell, Strength | None]]:
    """Every cell of a plan, the aligned models first, then seed by seed."""
    pairs = [(model.name, data.name) for model in plan.models for data in plan.data]
    found: list[tuple[Cell, Strength | None]] = [
        (Cell(model=model, data=data, method=ALIGNED), None) for model, data in pairs
    ]
    for seed in plan.seeds:
        for model, data in pairs:
            for method in plan.methods:
                for each in method.at():
                    at = {"method": method.name, "strength": each.label, "seed": seed}
                    found.append((Cell(model=model, data=data, **at), each))
    return found


@dataclass(frozen=True, kw_only=True, slots=True)
class Start:
    """An aligned model as cells begin from it."""

    path: str
    """Folder or hub id."""

    known_by: str
    """Hash of its files, or its hub id."""

    tokens: Path | None = None
    """Its safety tokens; None where none could be mined, and each tuning then says why."""


def start_of(path: str) -> Start:
    """The model at a path, its files hashed."""
    folder = Path(path).expanduser()
    return Start(path=str(folder.resolve()) if folder.is_dir() else path, known_by=_hash_of(path))


def lines_of(
    plan: Plan, cell: Cell, strength: Strength | None, start: Start, folder: Path,
    files: Mapping[Split, Files],
) -> list[tuple[str, ...]]:  # fmt: skip
    """The command lines of a cell: tunings in a row, then an audit of each split."""
    lines, target = [], start.path
    data = next(each for each in plan.data if each.name == cell.data)
    for number, rows in enumerate(data.in_row if strength else ()):
        words = _tuning(plan, cell, strength, target, rows, start.tokens)
        target = str(folder / f"tuned-{number + 1}")
        lines.append((*words, "--output_dir", target))
    for split in SPLITS:
        lines += _audits(plan, cell, target, folder / split, files[split])
    return lines


def jobs(
    plan: Plan,
    output: Path,
    files: Mapping[str, Mapping[Split, Files]],
    starts: Mapping[str, Start],
    run: RunLine,
) -> list[Job]:
    """What there is to do, cell by cell.

    Args:
        plan: The plan.
        output: Folder of the comparison, its whole path.
        files: The splits of each data set.
        starts: Each model, by its name in the plan.
        run: Runs a command line.
    """
    metrics, hashed = {each.name: each.metric for each in plan.data}, cache(_hash_of)
    found = []
    for cell, strength in cells(plan):
        start, folder = starts[cell.model], output / cell.path
        lines = lines_of(plan, cell, strength, start, folder, files[cell.data])
        given = [word for line in lines for word in line]
        known_by = fingerprint([
            start.known_by, str(plan.threads), str(versions()),
            *(word.replace(str(output), "").replace(start.path, "MODEL") for word in given),
            # of the mined tokens the model tells; their file says when they were mined
            *(hashed(each) for each in dict.fromkeys(given)
              if Path(each).is_file() and each != str(start.tokens)),
        ])  # fmt: skip
        found.append(
            Job(
                cell=cell, lines=tuple(lines), folder=folder, known_by=known_by,
                metric=metrics[cell.data], keep_model=plan.keep_models, threads=plan.threads,
                run=run,
            )
        )  # fmt: skip
    return found


def _tuning(
    plan: Plan, cell: Cell, strength: Strength | None, model: str, rows: str, tokens: Path | None
) -> list[str]:
    method = next(each for each in plan.methods if each.name == cell.method)
    data = next(each for each in plan.data if each.name == cell.data)
    settings: dict[str, Value] = {"save_strategy": "no", "report_to": "none"}
    if tokens is not None:
        settings["str_tokens"] = str(tokens)
    settings |= {**plan.training, **data.settings, **method.settings}
    words = ["tune", "--model_name_or_path", model, "--dataset_name", rows]
    for name, value in settings.items():
        values = value if isinstance(value, tuple) else (value,)
        words += [f"--{name}", *map(str, values)]
    return [*words, *(strength.words if strength else ()), "--seed", str(cell.seed)]


def _audits(
    plan: Plan, cell: Cell, model: str, folder: Path, files: Files
) -> list[tuple[str, ...]]:
    """The audit of one split; twice where perplexity is measured on two files of rows."""
    asked, data = plan.audit, next(each for each in plan.data if each.name == cell.data)
    words = ["audit", model, "--metric", data.metric, "--output", str(folder)]
    for flag, values in (
        ("--suite", files.suites), ("--judge", asked.judges), ("--condition", asked.conditions),
    ):  # fmt: skip
        words += [word for each in values for word in (flag, str(each))]
    words += ["--max-new-tokens", str(asked.max_new_tokens), "--batch-size", str(asked.batch_size)]
    words += ["--seed", str(cell.seed or 0)]
    general = asked.perplexity if folder.name == "test" else None
    rows = [str(each) for each in (general, files.held_out) if each is not None]
    return [(*words, "--held-out", each) for each in rows] or [tuple(words)]


def _hash_of(path: str) -> str:
    """SHA-256 of a file, or of all files in a folder; the name itself of what is elsewhere."""
    at = Path(path)
    if at.is_dir():
        inside = sorted(each for each in at.rglob("*") if each.is_file())
        return fingerprint([f"{each.relative_to(at)} {sha256_of(each)}" for each in inside])
    return sha256_of(at) if at.is_file() else path
