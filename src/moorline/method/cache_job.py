"""The pass that fills a cache: every row's z0 computed once, before training.

Shards are written whole or not at all; a pass that was killed is resumed after its last shard.
"""

import contextlib
import logging
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import psutil
import torch
from filelock import FileLock, Timeout
from torch import Tensor, nn

from .. import records
from ..chat.conversation import positions_of_batch
from ..errors import InputError, PrerequisiteError, unknown_choice
from ..provenance import now, sha256_of
from . import cache
from .cache import Cache, Collate, Manifest, Shard
from .cache_plan import Plan
from .positions import PositionRule
from .reference import Reference

_log = logging.getLogger(__name__)

_LOCK = ".cache.lock"

# What a killed pass loses at most; some seconds on most machines.
_SHARD_BYTES = 1 << 26
_SHARD_ROWS = 4096


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

    def shards(self) -> dict[str, tuple[int, int]]:
        """The spans of rows that make a shard each, by file name: the same for the same plan."""
        size = self.planned.num_positions * self.job.num_safety
        spans, start, total = [], 0, 0
        for index, each in enumerate((size * cache.DTYPES[self.manifest.dtype].itemsize).tolist()):
            if index > start and (total + each > _SHARD_BYTES or index - start >= _SHARD_ROWS):
                spans.append((start, index))
                start, total = index, 0
            total += each
        spans.append((start, len(size)))
        return {
            f"shard-{number:05d}-of-{len(spans):05d}.arrow": span
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
    with _alone(folder, job):
        if job.process == 0:
            _claim(folder, manifest)
        job.wait()
        if not (folder / cache.MANIFEST).is_file():
            raise PrerequisiteError(
                f"{folder}: the first process began a cache there, and this one does not see it. "
                "Set `cache_dir` to a folder that all processes share."
            )
        if Manifest.load(folder).status != "finished":
            work = _Work(folder, manifest, planned, job)
            _write_missing(work)
            job.wait()
            if job.process == 0:
                _finish(work)
            job.wait()
    return Cache(folder)


def _write_missing(work: _Work) -> None:
    """Compute this process's share of what is not there yet."""
    folder, manifest, _, job = work
    missing = []
    for number, (name, span) in enumerate(work.shards().items()):
        if (folder / f"{name}.json").is_file():
            found = _record(folder / name)
            if found.belongs != cache.content_of(manifest.parts, manifest.dtype):
                raise InputError(
                    f"{folder / name}: a shard of another cache (`cache_dir`), of other weights, "
                    "data or settings. Give another folder, or remove this one."
                )
            found.check(folder / name)
        elif number % job.num_processes == job.process:
            missing.append((name, span))
    if missing:
        _say_cost(work, sum(stop - start for _, (start, stop) in missing))
    for name, span in missing:
        try:
            _write_shard(folder / name, span, work)
        except OSError as error:
            raise PrerequisiteError(
                f"{folder / name}: cannot be written ({error.strerror or error}). The cache needs "
                f"{manifest.bytes / 1e9:.2f} GB; free room, or set `cache_dir` or "
                "`cache_dtype`. What is there already stays, and the next run resumes from it."
            ) from error


def _record(path: Path) -> Shard:
    """What is written beside a shard."""
    return records.read(Shard, f"{path}.json", "record of a shard", remedy=cache.REMEDY)


def _finish(work: _Work) -> None:
    """Say in the manifest which shards there are, once all of them are."""
    folder, manifest, *_ = work
    shards = {}
    for name in work.shards():
        if not (folder / f"{name}.json").is_file():
            raise PrerequisiteError(
                f"{folder / name}: another process wrote it where this one cannot see it. Set "
                "`cache_dir` to a folder that all processes share."
            )
        shards[name] = _record(folder / name)
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
        _check_room(folder, manifest.bytes)
        records.write(folder / cache.MANIFEST, manifest)
        return
    there = Manifest.load(folder)
    _check_same(folder, there, manifest.parts, manifest.dtype)
    if there.status != "finished":
        for path in folder.glob("*.part"):
            if not psutil.pid_exists(int(path.name.split(".")[-2])):
                path.unlink(missing_ok=True)
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
    path = folder / cache.MANIFEST
    is_there = path.is_file() and Manifest.load(folder).status == "finished"
    if job.process > 0 or is_there:
        yield
        return
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / _LOCK)  # the system frees it when its process ends, however that ends
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


def _check_room(folder: Path, needed: int) -> None:
    there = sum(path.stat().st_size for path in folder.glob("*.arrow"))
    free = shutil.disk_usage(folder).free
    if needed - there > free:
        raise PrerequisiteError(
            f"The reference cache needs {needed / 1e9:.2f} GB in {folder}, and {free / 1e9:.2f} GB "
            "are free. Free room, set `cache_dir`, or halve it with `cache_dtype` float16."
        )


def _say_cost(work: _Work, rows: int) -> None:
    """Tell what the pass will take, by the time of one batch from its middle."""
    folder, manifest, planned, job = work
    middle = len(planned.rows) // 2
    chosen = planned.rows[middle : middle + job.batch_size]
    began = time.monotonic()
    _compute(_fetched(job.dataset, chosen), job)
    seconds = (time.monotonic() - began) * rows / len(chosen)
    _log.warning(
        "Reference cache: %d rows with %d response tokens, %.3g GB in %s; this process has %d rows "
        "to do, about %.0f s.",
        manifest.num_rows, manifest.num_positions, manifest.bytes / 1e9, folder, rows, seconds,
    )  # fmt: skip


def _write_shard(path: Path, span: tuple[int, int], work: _Work) -> None:
    """Compute the rows of one shard and write them, whole or not at all."""
    from datasets import Features, Value
    from datasets.arrow_writer import ArrowWriter

    _, manifest, planned, job = work
    features = Features({"key": Value("binary"), "values": Value("large_binary")})
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    max_abs, sum_square = 0.0, 0.0
    try:
        # A writer of our own stream: what it holds is on the disk before the file gets its name.
        with part.open("wb") as stream:
            writer = ArrowWriter(stream=stream, features=features)
            for start in range(*span, job.batch_size):
                indices = range(start, min(start + job.batch_size, span[1]))
                values = _compute(_fetched(job.dataset, planned.rows[start : indices.stop]), job)
                counts = planned.num_positions[start : indices.stop].tolist()
                kept = _kept(values, manifest.dtype, planned.rows[start : indices.stop], counts)
                rounding = (kept.to(values.dtype) - values).abs().double()
                max_abs = max(max_abs, rounding.max().item() if rounding.numel() else 0.0)
                sum_square += rounding.square().sum().item()
                split = [each.contiguous().view(torch.uint8) for each in kept.split(counts)]
                keys = [each.tobytes() for each in planned.keys[start : indices.stop]]
                raw = [each.numpy().tobytes() for each in split]
                writer.write_batch({"key": keys, "values": raw})
                job.advance(len(indices))
            writer.finalize(close_stream=False)
            stream.flush()
            os.fsync(stream.fileno())
        record = Shard(
            sha256=sha256_of(part), belongs=cache.content_of(manifest.parts, manifest.dtype),
            num_rows=span[1] - span[0], rounding={"max_abs": max_abs, "sum_square": sum_square},
        )  # fmt: skip
        os.replace(part, path)
        records.write(f"{path}.json", record)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def _kept(values: Tensor, dtype: str, rows: np.ndarray, counts: Sequence[int]) -> Tensor:
    """Safety logits in the precision of a cache; those of each row as many as it has positions."""
    kept = values.to(cache.DTYPES[dtype])
    bad = ~torch.isfinite(kept).all(dim=-1)
    if bad.any():
        pairs = zip(rows.tolist(), bad.split(list(counts)), strict=True)
        named = ", ".join(str(row + 1) for row, each in pairs if each.any())
        raise InputError(
            f"A safety logit of the reference is not finite as {dtype}, in row {named} of the "
            "prepared data. Use `cache_dtype` float32, and check these rows and the model."
        )
    return kept


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
