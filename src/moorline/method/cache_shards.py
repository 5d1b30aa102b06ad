"""One file of a cache: under its name it is whole, with a record beside it, or it is not there."""

import os
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

import numpy as np
import psutil
import torch
from torch import Tensor

from .. import records
from ..errors import InputError, PrerequisiteError
from ..provenance import sha256_of, size_in_words
from . import cache
from .cache import Manifest, Shard

# What a killed run loses at most; some seconds on most machines.
MAX_BYTES = 1 << 26
MAX_ROWS = 4096


class ShardWriter:
    """A shard in the making. Leave its block to give it its name, or call `close`.

    Args:
        path: Its name in the end.
        manifest: The cache that it is a part of.
    """

    def __init__(self, path: Path, manifest: Manifest) -> None:
        from datasets import Features, Value
        from datasets.arrow_writer import ArrowWriter

        features = Features({"key": Value("binary"), "values": Value("large_binary")})
        self.path, self.num_rows, self.bytes = path, 0, 0
        self._manifest = manifest
        self._max_abs, self._sum_square = 0.0, 0.0
        self._part = path.with_name(f"{path.name}.{os.getpid()}.part")
        # A writer of our own stream: what it holds is on the disk before the file gets its name.
        self._stream = self._part.open("wb")
        self._writer = ArrowWriter(stream=self._stream, features=features)

    def __enter__(self) -> "ShardWriter":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is None:
            self.close()
        else:
            self.discard()

    def add(self, values: Tensor, keys: np.ndarray, counts: Sequence[int], rows: list[int]) -> None:
        """Write some rows.

        Args:
            values: Their safety logits, one row after another. Shape `(position, safety)`.
            keys: One for each row.
            counts: How many positions each row has.
            rows: Where they stand in the data set, for messages.

        Raises:
            InputError: If a value is not finite in the precision of the cache; names the rows.
        """
        kept = _kept(values, self._manifest.dtype, rows, counts)
        rounding = (kept.to(values.dtype) - values).abs().double()
        self._max_abs = max(self._max_abs, rounding.max().item() if rounding.numel() else 0.0)
        self._sum_square += rounding.square().sum().item()
        split = [each.contiguous().view(torch.uint8) for each in kept.split(list(counts))]
        raw = [each.numpy().tobytes() for each in split]
        self._writer.write_batch({"key": [each.tobytes() for each in keys], "values": raw})
        self.num_rows += len(raw)
        self.bytes += sum(map(len, raw))

    def close(self) -> None:
        """Give it its name, and its record."""
        try:
            self._writer.finalize(close_stream=False)
            self._stream.flush()
            os.fsync(self._stream.fileno())
            record = Shard(
                sha256=sha256_of(self._part), belongs=_content(self._manifest),
                num_rows=self.num_rows,
                rounding={"max_abs": self._max_abs, "sum_square": self._sum_square},
            )  # fmt: skip
            os.replace(self._part, self.path)
            records.write(f"{self.path}.json", record)
        except BaseException:
            self.discard()
            raise
        self._stream.close()

    def discard(self) -> None:
        """Leave nothing of it."""
        self._part.unlink(missing_ok=True)
        try:
            self._stream.close()
        except OSError:  # what is still to be written does not go onto a full disk
            self._stream.raw.close()


def _kept(values: Tensor, dtype: str, rows: Sequence[int], counts: Sequence[int]) -> Tensor:
    """Safety logits in the precision of a cache; those of each row as many as it has positions."""
    kept = values.to(cache.DTYPES[dtype])
    bad = ~torch.isfinite(kept).all(dim=-1)
    if bad.any():
        pairs = zip(rows, bad.split(list(counts)), strict=True)
        named = ", ".join(str(row + 1) for row, each in pairs if each.any())
        raise InputError(
            f"A safety logit of the reference is not finite as {dtype}, in row {named} of the "
            "prepared data. Use `cache_dtype` float32, and check these rows and the model."
        )
    return kept


def _content(manifest: Manifest) -> str:
    return cache.content_of(manifest.parts, manifest.dtype)


def recorded(folder: Path, manifest: Manifest) -> dict[str, Shard]:
    """The whole shards of a folder by file name, each as it was written.

    Raises:
        InputError: If one belongs to another cache, or is damaged.
    """
    found = {}
    for path in sorted(folder.glob("*.arrow.json")):
        name = path.name.removesuffix(".json")
        found[name] = records.read(Shard, path, "record of a shard", remedy=cache.REMEDY)
        if found[name].belongs != _content(manifest):
            raise InputError(
                f"{folder / name}: a shard of another cache (`cache_dir`), of other weights, "
                "data or settings. Give another folder, or remove this one."
            )
        found[name].check(folder / name)
    return found


def remove_torn(folder: Path) -> None:
    """Remove what killed runs left: parts of processes that ended, shards without a record."""
    for path in folder.glob("*.arrow.*.part"):
        process = path.name.split(".")[-2]
        if process.isdecimal() and not psutil.pid_exists(int(process)):
            path.unlink(missing_ok=True)
    for path in _unrecorded(folder):
        path.unlink(missing_ok=True)


def check_unused(folder: Path) -> None:
    """Refuse a folder with Arrow files of somebody else: beside a cache they count as torn shards.

    Raises:
        InputError: If there is one, such as those that `datasets` saves.
    """
    if others := _unrecorded(folder):
        raise InputError(
            f"`cache_dir` {folder} holds {others[0].name}, which is no part of a cache. Give a "
            "folder of its own."
        )


def _unrecorded(folder: Path) -> list[Path]:
    paths = sorted(folder.glob("*.arrow"))
    return [each for each in paths if not each.with_name(f"{each.name}.json").is_file()]


def not_written(path: Path, manifest: Manifest, error: OSError) -> PrerequisiteError:
    """What to say of a shard that the disk did not take."""
    return PrerequisiteError(
        f"{path}: cannot be written ({error.strerror or error}). The cache needs "
        f"{size_in_words(manifest.bytes)}; free room, or set `cache_dir` or "
        "`cache_dtype`. What is there already stays, and the next run resumes from it."
    )
