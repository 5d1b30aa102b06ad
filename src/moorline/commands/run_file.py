"""The record of a tuning, `run.json`, and the lock that keeps a second one out of its folder."""

import json
import os
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import MISSING, asdict, dataclass, fields
from pathlib import Path
from types import UnionType
from typing import Any, get_origin

from ..errors import InputError, PrerequisiteError
from ..provenance import read_json, write_json

RUN = "run.json"
TOKENS = "safety_tokens.json"
_LOCK = ".tuning.lock"
_SCHEMA = 2


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
class Run:
    """What `run.json` says of a tuning."""

    status: str
    """'running', 'stopped' or 'finished'."""

    model: str
    """What was tuned, as it was given."""

    weights_from: str
    """Whole path or hub id of the weights that were loaded; an adapter stands on these."""

    base: Aligned
    chain: tuple[Link, ...]
    """The tunings before, and this one last."""

    reference: str
    fingerprint: str
    safety_tokens: Mapping[str, Any]
    settings: Mapping[str, Any]
    versions: Mapping[str, str]
    machine: Mapping[str, Any]
    started: str
    finished: str | None = None
    seconds: float | int | None = None
    steps: int | None = None
    train_loss: float | int | None = None
    log: tuple[Mapping[str, Any], ...] = ()

    def to_json(self) -> dict[str, Any]:
        """As plain values, for a file."""
        return {"schema": _SCHEMA, **asdict(self)}

    def write(self, folder: Path) -> None:
        """Write `run.json` into a folder."""
        write_json(folder / RUN, self.to_json())

    @classmethod
    def read(cls, folder: Path) -> "Run":
        """The run in a folder.

        Raises:
            InputError: If its `run.json` is missing, damaged, or of another version.
        """
        path = folder / RUN
        values = read_json(path, "run file")
        if values.get("schema") != _SCHEMA:
            raise InputError(
                f"{path} was written by another version of Moorline (schema "
                f"{values.get('schema')!r}, this one reads {_SCHEMA}). Tune again, or give the "
                "model itself and its aligned model as `str_reference_model`."
            )
        values["base"] = _made(Aligned, values.get("base"), path, "base")
        chain = values.get("chain")
        if not isinstance(chain, list) or not chain:
            raise _damaged(path, "chain", chain)
        values["chain"] = tuple(_made(Link, each, path, "chain") for each in chain)
        if isinstance(values.get("log"), list):
            values["log"] = tuple(values["log"])
        return _made(cls, values, path, "")


def _made(kind: Any, values: Any, path: Path, where: str) -> Any:
    """A dataclass from what a file holds, each of its values checked."""
    if not isinstance(values, Mapping):
        raise _damaged(path, where, values)
    known = {}
    for each in fields(kind):
        name = f"{where}.{each.name}".strip(".")
        if each.name not in values:
            if each.default is MISSING:
                raise _damaged(path, name, None)
            continue
        expected = get_origin(each.type)
        if expected is None or expected is UnionType:  # str, or str | None
            expected = each.type
        if not isinstance(values[each.name], expected):  # pyright: ignore[reportArgumentType]
            raise _damaged(path, name, values[each.name])
        known[each.name] = values[each.name]
    return kind(**known)


def _damaged(path: Path, where: str, value: Any) -> InputError:
    return InputError(
        f"{path}: damaged: {where!r} holds {json.dumps(value, default=str)[:60]}. "
        "Restore the file, or give the model itself and its aligned model as `str_reference_model`."
    )


def check_free(
    output: Path, settings: Mapping[str, Any], fingerprint: str, *, resumes: bool
) -> None:
    """Refuse an output folder that holds another run, or this one where it is not resumed.

    Args:
        output: The folder.
        settings: Those of the run that wants it.
        fingerprint: Of the settings among them that steer the training, and of the data.
        resumes: Whether the run in it is to be resumed.

    Raises:
        InputError: If it may not be used.
    """
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
    stopped_early = other.status != "finished" and not any(output.glob("checkpoint-*"))
    if not resumes and not stopped_early:
        raise InputError(
            f"`output_dir` {output} holds this run already ({other.status}). Resume it with "
            "--resume_from_checkpoint true, or give another folder."
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
def locked(output: Path) -> Iterator[None]:
    """Keep other tunings out of a folder while one runs in it; makes the folder.

    Raises:
        InputError: If another tuning runs in it, or the path is a file.
        PrerequisiteError: If the folder cannot be made or written.
    """
    if int(os.environ.get("RANK", "0")) > 0:  # the first process locks for all
        yield
        return
    if output.exists() and not output.is_dir():
        raise InputError(f"`output_dir` {output} is a file. Give a folder.")
    new, lock = not output.exists(), output / _LOCK
    try:
        output.mkdir(parents=True, exist_ok=True)
        if _is_stale(lock):
            lock.unlink(missing_ok=True)
        with lock.open("x", encoding="utf-8") as stream:
            json.dump({"process": os.getpid(), "host": socket.gethostname()}, stream)
    except FileExistsError as error:
        raise InputError(
            f"`output_dir` {output}: another tuning runs in it ({_owner(lock)}). Give another "
            f"folder; if it does not run any more, delete {lock}."
        ) from error
    except OSError as error:
        raise PrerequisiteError(
            f"`output_dir` {output} cannot be written ({error.strerror}). Give another folder."
        ) from error
    try:
        yield
    finally:
        lock.unlink(missing_ok=True)
        if new:
            with suppress(OSError):  # whatever was written stays
                output.rmdir()


def _owner(lock: Path) -> str:
    try:
        values = read_json(lock, "lock")
    except InputError:
        return "unknown process"
    return f"process {values.get('process')} on {values.get('host')}"


def _is_stale(lock: Path) -> bool:
    """Whether the process that wrote a lock has ended; of other machines nobody knows."""
    if not lock.is_file():
        return False
    try:
        values = read_json(lock, "lock")
    except InputError:
        return True  # written in part: its process ended meanwhile
    process = values.get("process")
    if values.get("host") != socket.gethostname() or not isinstance(process, int):
        return False
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return True
    except OSError:
        return False
    return process == os.getpid()
