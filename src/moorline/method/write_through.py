"""A cache that training fills: the first epoch's live reference, kept for the later ones.

The reference runs on each batch of the first epoch as it would without a cache, and each process
writes what it got into shards of its own, as they come. At the end of the epoch rows that none of
them met are computed (`cache_job.py`), the cache is finished, and later epochs read it.
"""

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from filelock import FileLock, Timeout
from jaxtyping import Bool, Float
from torch import Tensor, nn
from transformers import TrainerCallback

from ..errors import InputError
from ..processes import from_first
from ..provenance import size_in_words
from . import cache, cache_job, cache_shards
from .cache import COLUMN, KEYS, Cache, Cached, Manifest
from .cache_job import CacheJob
from .cache_plan import Plan
from .cache_shards import ShardWriter
from .reference import Reference

if TYPE_CHECKING:
    from accelerate import Accelerator

    from .regularizer import Regularizer

_log = logging.getLogger(__name__)


class Recorded:
    """A running reference, and what it gave last."""

    reads_batch = False

    def __init__(self, running: Reference) -> None:
        self.running, self.name = running, running.name
        self.last: Tensor | None = None

    @property
    def model(self) -> nn.Module | None:
        """That of the running reference."""
        return self.running.model

    def place(self, accelerator: "Accelerator") -> None:
        """Put it where the model in training runs."""
        self.running.place(accelerator)

    def safety_logits(
        self, model: nn.Module, inputs: Mapping[str, Any], positions: Bool[Tensor, "batch time"]
    ) -> Float[Tensor, "position safety"]:
        """z0 at `positions` of the batch, detached."""
        self.last = self.running.safety_logits(model, inputs, positions)
        return self.last


class Target(NamedTuple):
    """The cache that comes to be."""

    folder: Path
    parts: Mapping[str, str]
    planned: Plan
    job: CacheJob
    dtype: str


class WriteThrough(TrainerCallback):
    """Keeps z0 of each batch while its cache is not finished, and reads it afterwards.

    Args:
        target: The cache, and how to compute what the epoch leaves out.
        recorded: What gives z0 meanwhile.
        regularizer: Told to read the cache once that is finished.
        opened: Called with the cache then.
    """

    def __init__(
        self,
        target: Target,
        recorded: Recorded,
        regularizer: "Regularizer",
        opened: Callable[[Cache], None],
    ) -> None:
        self._target: Target | None = target
        self._recorded: Recorded | None = recorded
        self._regularizer = regularizer
        self._opened: Callable[[Cache], None] | None = opened
        self._cache: Cache | None = None
        self._lock: FileLock | None = None
        self._writer: ShardWriter | None = None
        self._manifest: Manifest | None = None
        self._order = cache.order_of(target.planned.keys)
        self._sorted = target.planned.keys[self._order]
        self._is_kept = np.zeros(len(self._order), dtype=bool)

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Claim the folder, and see which rows it has from a run that was broken off.

        Raises:
            InputError: If another run fills it, or it holds a cache of something else.
        """
        if self._target is None:
            return
        self.release()  # what an earlier call left that an error broke off
        folder, parts, planned, job, dtype = self._target
        from_first(self._acquire)
        self._manifest = cache_job.claimed(folder, parts, planned, job, dtype)
        if Manifest.load(folder).status == "finished":  # by another run since this one was built
            self._finish()
            return
        found = cache_shards.recorded(folder, self._manifest)
        job.wait()
        self._is_kept[:] = False  # of an earlier call what is not in a whole shard is lost
        if found:
            self._is_kept = planned.among(cache.keys_in([folder / name for name in found]))
        _log.info(
            "Reference cache: the first epoch fills %s, up to %s; %d of %d rows are there.",
            folder, size_in_words(self._manifest.bytes), int(self._is_kept.sum()),
            len(self._is_kept),
        )  # fmt: skip

    def read(self, batch: Mapping[str, Any]) -> Mapping[str, Any]:
        """A batch with z0 from the finished cache, where its collator did not know of that."""
        if self._recorded is not None:
            self._recorded.last = None
        if self._cache is None or KEYS not in batch or COLUMN in batch:
            return batch
        indices = [self._cache.find(each.tobytes()) for each in _keys_of(batch)]
        if None in indices:
            return batch
        values = np.concatenate([self._cache.values(each) for each in indices if each is not None])
        flat = torch.from_numpy(values).view(cache.DTYPES[self._cache.dtype])
        found = flat.view(-1, self._cache.num_safety).to(batch[KEYS].device)
        return {**batch, COLUMN: found}

    def keep(self, batch: Mapping[str, Any]) -> None:
        """Write what the reference just gave for a batch of the training.

        Raises:
            InputError: If a row of it was not in the data set when training began.
            PrerequisiteError: If the disk is full.
        """
        z0 = None if self._recorded is None else self._recorded.last
        if self._target is None or self._manifest is None or z0 is None:
            return
        planned, job = self._target.planned, self._target.job
        indices = self._found(batch)
        counts = planned.num_positions[indices]
        if counts.sum() != len(z0):
            raise InputError(
                f"The rows of a batch have {counts.sum()} positions in the data set and {len(z0)} "
                "in the batch: the data collator changes rows at random or cuts them, so the next "
                "epoch would read what is not theirs. Use another `reference`."
            )
        is_new = ~self._is_kept[indices]
        is_new &= np.isin(np.arange(len(indices)), np.unique(indices, return_index=True)[1])
        if not is_new.any():
            return
        chosen, mask = indices[is_new], torch.from_numpy(np.repeat(is_new, counts))
        values = z0.detach().cpu()[mask]
        try:
            if self._writer is None:
                self._writer = ShardWriter(self._free_name(job.process), self._manifest)
            self._writer.add(
                values, planned.keys[chosen], counts[is_new].tolist(), planned.rows[chosen].tolist()
            )
            self._is_kept[chosen] = True
            if (
                self._writer.bytes >= cache_shards.MAX_BYTES
                or self._writer.num_rows >= cache_shards.MAX_ROWS
            ):
                self._flush()
        except OSError as error:
            raise self._not_written(error) from error

    def _found(self, batch: Mapping[str, Any]) -> np.ndarray:
        """Where the rows of a batch stand in the plan."""
        if KEYS in batch:
            keys = _keys_of(batch)
            at = np.minimum(np.searchsorted(self._sorted, keys), len(self._sorted) - 1)
            if (self._sorted[at] == keys).all():
                return self._order[at]
        raise InputError(
            "A row of the batch was not among the data sets given to the trainer, these change "
            "from one reading to the next, or `data_collator` was replaced after the trainer was "
            "built, so the next epoch would find no safety logits for it. Give both to the trainer "
            "when building it, or use another `reference`."
        )

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Before a checkpoint is written: what was met so far stays with it."""
        if control.should_save:
            self._flush()

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Finish the cache, and read from it from here on."""
        if self._target is None or self._manifest is None:
            return
        self._flush()
        folder, _, planned, job, _ = self._target
        job.wait()
        there = cache_shards.recorded(folder, self._manifest)
        job.wait()
        if control.should_training_stop:
            keys = [cache.keys_in([folder / name for name in there])] if there else []
            num = int(planned.among(np.concatenate(keys)).sum()) if keys else 0
            if num < len(planned.keys):
                _log.warning(
                    "Reference cache: the training ends before its first epoch does; %d of %d rows "
                    "are in %s. The next run with the same settings fills it up.",
                    num, len(planned.keys), folder,
                )  # fmt: skip
                return
        self._finish()

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Keep what there is, and let other runs have the folder."""
        self._flush()
        self.release()

    def release(self) -> None:
        """Let go of the folder; what is not in a whole shard is lost."""
        if self._writer is not None:
            self._writer.discard()
            self._writer = None
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    def _acquire(self) -> None:
        assert self._target is not None
        folder = self._target.folder
        folder.mkdir(parents=True, exist_ok=True)
        self._lock = cache_job.lock_of(folder)
        try:
            self._lock.acquire(blocking=False)
        except Timeout as error:
            self._lock = None
            raise InputError(
                f"Another run is building the reference cache {folder}. Wait for it to end, give "
                "another `cache_dir`, or use a `reference` that keeps nothing."
            ) from error

    def _free_name(self, process: int) -> Path:
        """A name that no shard of this process has yet."""
        assert self._target is not None
        number = 0
        while True:
            path = self._target.folder / f"epoch-{process:05d}-{number:05d}.arrow"
            if not path.is_file():
                return path
            number += 1

    def _flush(self) -> None:
        """Give the shard in the making its name."""
        if self._writer is None:
            return
        writer, self._writer = self._writer, None
        try:
            writer.close()
        except OSError as error:
            self._writer = writer
            raise self._not_written(error) from error

    def _not_written(self, error: OSError) -> Exception:
        assert self._manifest is not None
        assert self._writer is not None
        path = self._writer.path
        self._writer.discard()
        self._writer = None
        return cache_shards.not_written(path, self._manifest, error)

    def _finish(self) -> None:
        """Compute what is missing, open the cache, and let go of the reference."""
        assert self._target is not None
        assert self._recorded is not None
        assert self._opened is not None
        regularizer, running = self._regularizer, self._recorded.running
        self._cache = cache_job.build_alone(*self._target)
        others = regularizer.reference.caches if isinstance(regularizer.reference, Cached) else ()
        regularizer.reference = regularizer.running = running
        regularizer.read_from(Cached([self._cache, *others]))
        self._opened(self._cache)
        self._target = self._recorded = self._manifest = self._opened = None
        self.release()


def _keys_of(batch: Mapping[str, Any]) -> np.ndarray:
    """The keys of a batch's rows, one after another. Shape `(row,)`."""
    return np.ascontiguousarray(batch[KEYS].cpu().numpy()).view("V16").ravel()
