"""The record of a tuning, `run.json`, and the lock that keeps a second run out of a folder."""

import os
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from annotated_types import MinLen
from filelock import FileLock, Timeout

from .. import records
from ..errors import InputError, PrerequisiteError
from ..method.checkpoint import whole_checkpoints
from ..processes import rank
from .refused_rows import RefusedRows

RUN = "run.json"
TOKENS = "safety_tokens.json"
_REMEDY = (
    "Restore the file, or tune again, or give the model itself and its aligned model as "
    "`str_reference_model`."
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Aligned:
    """The aligned model that a run is held to."""

    name: str
    """Whole path of its folder, or hub id."""

    weights: str
    """Fingerprint of its weights."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Link:
    """One tuning of a chain of several in a row."""

    output_dir: str
    fingerprint: str
    """Of the settings that steer the training, and of its data."""

    dataset: str | None
    tokens: str
    """Fingerprint of the safety tokens."""

    reference: str
    steps: int | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Check:
    """A few prompts, asked after the training and, with an adapter, of the aligned model too."""

    harmful: int
    """How many were asked and scored."""

    refused: int
    harmless: int
    answered: int
    refused_before: int | None
    answered_before: int | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Run:
    """What `run.json` says of a tuning."""

    SCHEMA: ClassVar[int] = 2

    status: Literal["running", "stopped", "finished"]

    model: str
    """What was tuned, as it was given."""

    weights_from: str
    """Whole path or hub id of the weights that were loaded; an adapter stands on these."""

    weights: str | None = None
    """Fingerprint of these weights, adapters left out; None in runs of an earlier version."""

    base: Aligned
    chain: Annotated[tuple[Link, ...], MinLen(1)]
    """The tunings before, and this one last."""

    reference: str
    fingerprint: str
    safety_tokens: Mapping[str, Any]
    settings: Mapping[str, Any]
    versions: Mapping[str, str]
    machine: Mapping[str, Any]
    started: str
    refused_rows: RefusedRows | None = None
    """Training prompts that the aligned model refuses; None if it was not asked."""

    finished: str | None = None
    seconds: float | None = None
    """From the first step's preparation to the last file."""

    training_seconds: float | None = None
    """Of the training alone."""

    peak_memory_bytes: int | None = None
    """The most that this tuning held, loading included, in the first process."""

    peak_memory_of: Literal["cuda", "process"] | None = None
    """Whether that is memory of its GPUs, or the resident set of the process where it used none."""

    steps: int | None = None
    train_loss: float | None = None
    log: tuple[Mapping[str, Any], ...] = ()
    check: Check | None = None
    """Of `check_prompts`; None without."""

    @classmethod
    def read(cls, folder: Path) -> "Run":
        """The run in a folder; refused where it is missing, damaged, or of another version."""
        return records.read(cls, folder / RUN, "run file", remedy=_REMEDY, others=True)

    def write(self, folder: Path) -> None:
        """Write `run.json` into a folder."""
        records.write(folder / RUN, self)


def check_free(
    output: Path, settings: Mapping[str, Any], fingerprint: str, *, resumes: bool
) -> None:
    """Refuse an output folder that holds another run, or this one where it is not resumed."""
    if not (output / RUN).is_file():
        return
    other = Run.read(output)
    if other.fingerprint != fingerprint:
        # One that is unset now may have been settled by the run.
        changed = [
            name
            for name, value in sorted(settings.items())
            if value not in (None, other.settings.get(name)) and not is_idle(name)
        ]
        raise InputError(
            f"`output_dir` {output} holds another run (started {other.started}; different: "
            f"{', '.join(changed[:5]) or 'the data'}). Give another folder."
        )
    stopped_early = other.status != "finished" and not whole_checkpoints(
        output, with_state=settings.get("str_budget") is not None
    )
    if not resumes and not stopped_early:
        raise InputError(
            f"`output_dir` {output} holds this run already ({other.status}). Resume it with "
            "--resume_from_checkpoint true, or give another folder."
        )


def check_unchanged(output: Path, base: Aligned, weights: str) -> None:
    """Refuse to resume a run whose model or aligned model has other weights than when it began.

    Raises:
        InputError: If it has; or the run file is damaged.
    """
    if not (output / RUN).is_file():
        return
    before = Run.read(output)
    for name, then, now in (
        (base.name, before.base.weights, base.weights),
        (before.model, before.weights or weights, weights),
    ):
        if then != now:
            raise InputError(
                f"{name} has other weights than when the run in {output} began, and would go on "
                "otherwise. Put these weights back, or give another `output_dir`."
            )


# Settings that change nothing of what is learned; all others do, also those to come.
_IDLE = (
    "output_dir", "str_tokens", "str_cache_dir", "resume_from_checkpoint", "disable_tqdm",
    "report_to", "run_name", "project", "trackio_", "push_to_hub", "hub_", "logging_", "log_",
    "save_",
    "eval_strategy", "eval_steps", "eval_delay", "eval_on_start", "eval_accumulation_steps",
    "per_device_eval_batch_size", "prediction_loss_only", "include_", "dataset_num_proc",
    "dataset_test_split", "dataloader_num_workers", "dataloader_pin_memory",
    "dataloader_persistent_workers", "dataloader_prefetch_factor", "skip_memory_metrics", "debug",
    "use_cpu", "torch_empty_cache_steps", "ddp_timeout", "enable_jit_checkpoint",
    "restore_callback_states", "dataset_name",
)  # fmt: skip


def is_idle(name: str) -> bool:
    """Whether a setting changes nothing of what is learned."""
    return any(name == each or (each.endswith("_") and name.startswith(each)) for each in _IDLE)


@contextmanager
def locked(output: Path, *, what: str = "tuning", setting: str = "output_dir") -> Iterator[None]:
    """Keep others of one kind out of a folder while one runs in it; makes the folder.

    Args:
        output: The folder.
        what: What runs in it: a tuning, or an audit, which may go beside a tuning's files.
        setting: What the folder is called in messages.

    Raises:
        InputError: If another one runs in it, or the path is a file.
        PrerequisiteError: If the folder cannot be made or written.
    """
    if rank() > 0:  # the first process locks for all
        yield
        return
    if output.exists() and not output.is_dir():
        raise InputError(f"`{setting}` {output} is a file. Give a folder.")
    new, path = not output.exists(), output / f".{what}.lock"
    lock = FileLock(path)  # the system frees it when its process ends, however that ends
    try:
        output.mkdir(parents=True, exist_ok=True)
        lock.acquire(blocking=False)
        path.write_text(f"{os.getpid()}\n{socket.gethostname()}\n", encoding="utf-8")
    except Timeout as error:
        owner = path.read_text(encoding="utf-8").split() if path.is_file() else []
        named = f"process {owner[0]} on {owner[1]}" if len(owner) > 1 else "unknown process"
        raise InputError(
            f"`{setting}` {output}: another {what} runs in it ({named}). Give another folder, or "
            "wait for it to end."
        ) from error
    except OSError as error:
        raise PrerequisiteError(
            f"`{setting}` {output} cannot be written ({error.strerror}). Give another folder."
        ) from error
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
        lock.release()
        if new:
            with suppress(OSError):  # whatever was written stays
                output.rmdir()
