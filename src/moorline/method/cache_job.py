"""The pass that fills a cache: every row's z0 computed once, before training.

Shards are written whole or not at all; a pass that was killed is resumed after its last shard.
"""

import contextlib
import logging
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from filelock import FileLock, Timeout
from torch import Tensor, nn

from .. import records
from ..chat.conversation import positions_of_batch
from ..errors import InputError, PrerequisiteError, unknown_choice
from ..provenance import now, size_in_words
from . import cache, cache_shards
from .cache import Cache, Collate, Manifest
from .cache_plan import Plan
from .cache_shards import ShardWriter
from .positions import PositionRule
from .reference import Reference

_log = logging.getLogger(__name__)

_LOCK = ".cache.lock"


class CacheJob(NamedTuple):
    """How to compute what a plan lacks, and this process's share of it."""

    reference: Reference
    model: nn.Module
    dataset: Any
    collate: Collate
    rule: PositionRule
    num_safety: int
    batch_size: int
    device: torch.device
    autocast: Callable[[], contextlib.AbstractContextManager[Any]]
    """As training does."""

    advance: Callable[[int], Any]
    """Called with the number of rows done since the last call."""

    process: int = 0
    """Which of several processes this is, each of which computes its share of the shards."""
    num_processes: int = 1
    wait: Callable[[], None] = lambda: None


class _Work(NamedTuple):
    """One pass: what it makes, where, and how."""

    folder: Path
    manifest: Manifest
    planned: Plan
    job: CacheJob
    prefix: str = "shard"

    def shards(self) -> dict[str, tuple[int, int]]:
        """The spans of rows that make a shard each, by file name: the same for the same plan."""
        size = self.planned.num_positions * self.job.num_safety
        spans, start, total = [], 0, 0
        for index, each in enumerate((size * cache.DTYPES[self.manifest.dtype].itemsize).tolist()):
            full = total + each > cache_shards.MAX_BYTES
            if index > start and (full or index - start >= cache_shards.MAX_ROWS):
                spans.append((start, index))
                start, total = index, 0
            total += each
        spans.append((start, len(size)))
        return {
            f"{self.prefix}-{number:05d}-of-{len(spans):05d}.arrow": span
            for number, span in enumerate(spans)
        }


def finished(folder: str | Path, parts: Mapping[str, str], dtype: str) -> Cache:
    """The cache in a folder, which another job has computed.

    Args:
        folder: Where it is.
        parts: What it must be made from, by name.
        dtype: A name of `DTYPES`.

    Raises:
        InputError: If it is not there, not finished, or made from something else.
    """
    folder = Path(folder)
    if not (folder / cache.MANIFEST).is_file():
        raise InputError(
            f"{folder} holds no reference cache, and with a model in shards one is read only "
            "(`reference` 'cached' under FSDP and DeepSpeed). Compute it ahead with `moorline "
            "cache` and the same settings, in one process or under DDP."
        )
    _check_same(folder, Manifest.load(folder), parts, dtype)
    return Cache(folder)


def build(
    folder: str | Path, parts: Mapping[str, str], planned: Plan, job: CacheJob, dtype: str
) -> Cache:
    """The cache in a folder: opened if it is there, resumed if it was begun, or begun.

    Args:
        folder: Where it is or comes to be. With several processes, one that all of them see.
        parts: What it is made from, by name: weights, data, tokens, ... Anything that differs is
            refused by that name.
        planned: The rows.
        job: How to compute them.
        dtype: A name of `DTYPES`.

    Raises:
        InputError: If the folder holds a cache of something else, or a damaged file; says which.
        PrerequisiteError: If the disk is full. What was written before stays usable.
    """
    if dtype not in cache.DTYPES:
        raise unknown_choice("`cache_dtype`", dtype, cache.DTYPES)
    folder = Path(folder)
    with _alone(folder, job):
        return build_alone(folder, parts, planned, job, dtype)


def build_alone(
    folder: Path, parts: Mapping[str, str], planned: Plan, job: CacheJob, dtype: str
) -> Cache:
    """What `build` does, for a run that has the folder's lock."""
    manifest = claimed(folder, parts, planned, job, dtype)
    if not is_finished(folder):
        work = _work_of(_Work(folder, manifest, planned, job))
        job.wait()  # before anyone writes a shard that another takes for one that was there
        _write_missing(work)
        job.wait()
        if job.process == 0:
            _finish(work)
        job.wait()
    return Cache(folder)


def claimed(
    folder: Path, parts: Mapping[str, str], planned: Plan, job: CacheJob, dtype: str
) -> Manifest:
    """The manifest of a cache that is begun, or was; refuses a folder that holds another.

    Raises:
        InputError: By the first part that differs.
        PrerequisiteError: If there is no room, or the processes do not share the folder.
    """
    manifest = Manifest(
        status="begun",
        parts=dict(parts),
        dtype=dtype,
        num_safety=job.num_safety,
        num_rows=len(planned.keys),
        num_positions=int(planned.num_positions.sum()),
        bytes=planned.bytes(job.num_safety, dtype),
        at=now(),
    )
    if job.process == 0:
        _claim(folder, manifest)
    job.wait()
    if not (folder / cache.MANIFEST).is_file():
        raise PrerequisiteError(
            f"{folder}: the first process began a cache there, and this one does not see it. "
            "Set `cache_dir` to a folder that all processes share."
        )
    return manifest


def _work_of(whole: _Work) -> _Work:
    """The whole pass; or, where an epoch filled shards in its own order, what these lack."""
    found = cache_shards.recorded(whole.folder, whole.manifest)
    if found.keys() <= whole.shards().keys():
        return whole
    done = whole.planned.among(cache.keys_in([whole.folder / name for name in sorted(found)]))
    # Named by how much was there: a pass that is killed and resumed has other shards.
    return whole._replace(planned=whole.planned.part(~done), prefix=f"rest-{int(done.sum())}")


def _write_missing(work: _Work) -> None:
    """Compute this process's share of what is not there yet."""
    missing = [
        (name, span)
        for number, (name, span) in enumerate(work.shards().items())
        if number % work.job.num_processes == work.job.process
        and not (work.folder / f"{name}.json").is_file()
        and span[0] < span[1]
    ]
    if missing:
        _say_cost(work, sum(stop - start for _, (start, stop) in missing))
    for name, span in missing:
        try:
            _write_shard(work.folder / name, span, work)
        except OSError as error:
            raise cache_shards.not_written(work.folder / name, work.manifest, error) from error


def _finish(work: _Work) -> None:
    """Say in the manifest which shards there are, once all of them are."""
    folder, manifest, *_ = work
    shards = cache_shards.recorded(folder, manifest)
    for name, (start, stop) in work.shards().items():
        if start < stop and name not in shards:
            raise PrerequisiteError(
                f"{folder / name}: another process wrote it where this one cannot see it. Set "
                "`cache_dir` to a folder that all processes share."
            )
    num_values = max(1, manifest.num_positions * manifest.num_safety)
    roundings = [each.rounding for each in shards.values()]
    rounding = {
        "max_abs": max(each["max_abs"] for each in roundings),
        "mean_square": sum(each["sum_square"] for each in roundings) / num_values,
    }
    done = replace(manifest, status="finished", at=now(), shards=shards, rounding=rounding)
    records.write(folder / cache.MANIFEST, done)
    _log.info(
        "Reference cache finished: %s; kept as %s, rounded by %.2g at most (mean square %.2g).",
        folder, manifest.dtype, rounding["max_abs"], rounding["mean_square"],
    )  # fmt: skip


def _claim(folder: Path, manifest: Manifest) -> None:
    """Begin a cache in a folder, or refuse what is there by the first part that differs."""
    if not (folder / cache.MANIFEST).is_file():
        folder.mkdir(parents=True, exist_ok=True)
        cache_shards.check_unused(folder)
        _check_room(folder, manifest.bytes)
        records.write(folder / cache.MANIFEST, manifest)
        return
    there = Manifest.load(folder)
    _check_same(folder, there, manifest.parts, manifest.dtype)
    if there.status != "finished":
        cache_shards.remove_torn(folder)
        _check_room(folder, manifest.bytes)


def _check_same(folder: Path, there: Manifest, parts: Mapping[str, str], dtype: str) -> None:
    """Refuse a cache of something else, by the parts that differ."""
    wanted, found = {**parts, "dtype": dtype}, {**there.parts, "dtype": there.dtype}
    # By key and value: a part that only one of them has differs too.
    if differ := sorted({name for name, _ in wanted.items() ^ found.items()}):
        raise InputError(
            f"`cache_dir` {folder} holds the safety logits of something else (different: "
            f"{', '.join(differ)}). Give another folder, or remove this one."
        )


@contextlib.contextmanager
def _alone(folder: Path, job: CacheJob) -> Iterator[None]:
    """Keep other runs from building the same cache meanwhile; the first process locks for all.

    Raises:
        InputError: If another builds it, and there are several processes, which cannot wait: their
            connection would time out.
    """
    if job.process > 0 or is_finished(folder):
        yield
        return
    folder.mkdir(parents=True, exist_ok=True)
    lock = lock_of(folder)
    try:
        lock.acquire(blocking=False)
    except Timeout as error:
        if job.num_processes > 1:
            raise InputError(
                f"Another run is building the reference cache {folder}. Wait for it to end, or "
                "give another `cache_dir`."
            ) from error
        _log.warning("Reference cache: another run is building %s; waiting for it.", folder)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def check_folder(folder: Path, parts: Mapping[str, str], dtype: str) -> None:
    """Refuse a folder that holds a cache of something else, or another's Arrow files."""
    if (folder / cache.MANIFEST).is_file():
        _check_same(folder, Manifest.load(folder), parts, dtype)
    else:
        cache_shards.check_unused(folder)


def is_finished(folder: Path) -> bool:
    """Whether a folder holds a cache that is complete."""
    return (folder / cache.MANIFEST).is_file() and Manifest.load(folder).status == "finished"


def lock_of(folder: Path) -> FileLock:
    """What a run that builds a cache holds; the system frees it however its process ends."""
    return FileLock(folder / _LOCK)


def _check_room(folder: Path, needed: int) -> None:
    there = sum(path.stat().st_size for path in folder.glob("*.arrow"))
    free = shutil.disk_usage(folder).free
    if needed - there > free:
        raise PrerequisiteError(
            f"The reference cache needs {size_in_words(needed)} in {folder}, and "
            f"{size_in_words(free)} are free. Free room, set `cache_dir`, or halve it with "
            "`cache_dtype` float16."
        )


def _say_cost(work: _Work, rows: int) -> None:
    """Tell what the pass will take, by the time of one batch from its middle."""
    folder, manifest, planned, job, _ = work
    middle = len(planned.rows) // 2
    chosen = planned.rows[middle : middle + job.batch_size]
    began = time.monotonic()
    _compute(_fetched(job.dataset, chosen), job)
    seconds = (time.monotonic() - began) * rows / len(chosen)
    _log.warning(
        "Reference cache: %d rows with %d response tokens, %s in %s; this process has %d rows to "
        "do, about %.0f s.", manifest.num_rows, manifest.num_positions,
        size_in_words(manifest.bytes), folder, rows, max(seconds, 1),
    )  # fmt: skip


def _write_shard(path: Path, span: tuple[int, int], work: _Work) -> None:
    """Compute the rows of one shard and write them, whole or not at all."""
    _, manifest, planned, job, _ = work
    with ShardWriter(path, manifest) as writer:
        for start in range(*span, job.batch_size):
            here = slice(start, min(start + job.batch_size, span[1]))
            rows = planned.rows[here]
            values = _compute(_fetched(job.dataset, rows), job)
            counts = planned.num_positions[here].tolist()
            writer.add(values, planned.keys[here], counts, rows.tolist())
            job.advance(len(rows))


def _fetched(dataset: Any, rows: np.ndarray) -> list[Any]:
    """Some rows of a data set, in one reading where it can."""
    many = getattr(dataset, "__getitems__", None)
    return [dataset[each] for each in rows.tolist()] if many is None else many(rows.tolist())


def _compute(examples: list[Any], job: CacheJob) -> Tensor:
    """Safety logits of some rows, one after another, on the CPU. Shape `(position, safety)`."""
    batch = {
        name: value.to(job.device) if isinstance(value, Tensor) else value
        for name, value in job.collate(examples).items()
    }
    positions = job.rule(positions_of_batch(batch))
    if not positions.any():
        return torch.zeros(0, job.num_safety)
    with job.autocast():
        return job.reference.safety_logits(job.model, batch, positions).cpu()


def folder_of(root: str | Path | None, parts: Mapping[str, str], dtype: str, role: str) -> Path:
    """Where a cache lies: in the folder that was asked for, or beside the prepared data sets.

    Args:
        root: The setting `cache_dir`, or None for a folder of its own for each content in the
            cache of `datasets`.
        parts: What the cache is made from.
        dtype: Its precision.
        role: Which data set it belongs to ("train", "eval"); names the folder inside `root`.
    """
    if root is not None:
        return Path(root) / role
    import datasets

    return (
        Path(datasets.config.HF_DATASETS_CACHE) / "moorline" / cache.content_of(parts, dtype)[:24]
    )
