"""The pass that fills a cache: every row's z0 computed once, before training.

Shards are written whole or not at all; a pass that was killed is resumed after its last shard.
"""

import contextlib
import hashlib
import logging
import os
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import psutil
import torch
from torch import Tensor, nn

from .. import records
from ..chat.conversation import positions_of_batch
from ..errors import InputError, PrerequisiteError, unknown_choice
from ..provenance import now, sha256_of
from . import cache
from .cache import Cache, Collate, Manifest, Shard
from .positions import PositionRule
from .reference import Reference

_log = logging.getLogger(__name__)

# What a killed pass loses at most; some seconds on most machines.
_SHARD_BYTES = 1 << 26
_SHARD_ROWS = 4096
# What a batch may hold beside: all of it follows from the columns above.
_FOLLOWS = (
    "shift_labels", "cu_seq_lens_q", "cu_seq_lens_k", "max_length_q",
    "max_length_k", "seq_idx",
)  # fmt: skip


class Plan(NamedTuple):
    """What a pass over a data set would compute, told before it is computed."""

    keys: np.ndarray
    """One key of 16 bytes for each distinct row, in the order of the pass. Shape `(row,)`."""

    rows: np.ndarray
    """Where each of them first stands in the data set. Shape `(row,)`, int64."""

    num_positions: np.ndarray
    """How many positions of each count. Shape `(row,)`, int64."""

    def bytes(self, num_safety: int, dtype: str) -> int:
        """Size of the safety logits on disk."""
        return int(self.num_positions.sum()) * num_safety * cache.DTYPES[dtype].itemsize


def why_not(dataset: Any, collate: Collate) -> str | None:
    """Why the rows of a data set cannot be cached; None if they can."""
    if not hasattr(dataset, "__len__") or not hasattr(dataset, "__getitem__"):
        return "a data set is a stream, whose rows cannot be read twice"
    if not len(dataset):
        return "a data set is empty"
    example = dataset[0]
    if not isinstance(example, Mapping) or "input_ids" not in example:
        return "the rows of a data set are tokenized only as they are loaded"
    batch = collate([example])
    other = sorted(
        name
        for name, value in batch.items()
        if isinstance(value, Tensor) and name not in (*cache.KEYED, *_FOLLOWS)
    )
    return f"a batch holds {other[0]!r}, which no row is known by" if other else None


def plan(dataset: Any, collate: Collate, rule: PositionRule) -> Plan:
    """Read the prepared data once and lay out the pass: like lengths together, each row once.

    Args:
        dataset: Prepared rows, as the trainer's data loader would see them.
        collate: The trainer's data collator; what it makes of a row says which positions count.
        rule: Which response positions count.
    """
    first: dict[bytes, tuple[int, int, int]] = {}
    for index in range(len(dataset)):
        example = dataset[index]
        key = cache.key_of(example)
        if key not in first:
            positions = rule(positions_of_batch(collate([example])))
            first[key] = (len(example["input_ids"]), index, int(positions.sum()))
    # Sorted by length, and by key among equals: the same pass, whatever order the data came in.
    order = sorted(first, key=lambda key: (first[key][0], key))
    return Plan(
        np.array(order, dtype="V16"),
        np.array([first[key][1] for key in order], dtype=np.int64),
        np.array([first[key][2] for key in order], dtype=np.int64),
    )


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
    if job.process == 0:
        _claim(folder, manifest)
    job.wait()
    if not (folder / cache.MANIFEST).is_file():
        raise PrerequisiteError(
            f"{folder}: the first process began a cache there, and this one does not see it. Set "
            "`cache_dir` to a folder that all processes share."
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
    wanted = {**manifest.parts, "dtype": manifest.dtype}
    found = {**there.parts, "dtype": there.dtype}
    # By key and value: a part that only one of them has differs too.
    if differ := sorted({name for name, _ in wanted.items() ^ found.items()}):
        raise InputError(
            f"`cache_dir` {folder} holds the safety logits of something else (different: "
            f"{', '.join(differ)}). Give another folder, or remove this one."
        )
    if there.status != "finished":
        for path in folder.glob("*.part"):
            if not psutil.pid_exists(int(path.name.split(".")[-2])):
                path.unlink(missing_ok=True)
        _check_room(folder, manifest.bytes)


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
    _compute([job.dataset[int(each)] for each in chosen], job)
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
                values = _compute([job.dataset[int(planned.rows[each])] for each in indices], job)
                counts = planned.num_positions[start : indices.stop].tolist()
                kept = _kept(values, manifest.dtype, planned.rows[start : indices.stop], counts)
                rounding = (kept.to(values.dtype) - values).abs().double()
                max_abs = max(max_abs, rounding.max().item() if rounding.numel() else 0.0)
                sum_square += rounding.square().sum().item()
                for index, rows in zip(indices, kept.split(counts), strict=True):
                    raw = rows.contiguous().view(torch.uint8).numpy().tobytes()
                    writer.write({"key": planned.keys[index].tobytes(), "values": raw})
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


def data_fingerprint(planned: Plan) -> str:
    """SHA-256 of the rows of a data set, whatever their order."""
    order = np.argsort(planned.keys)
    digest = hashlib.sha256(planned.keys[order].tobytes())
    digest.update(planned.num_positions[order].tobytes())
    return digest.hexdigest()
