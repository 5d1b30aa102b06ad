"""z0 on disk, read with each batch in place of a reference.

A cache is a folder of Arrow shards and one `cache.json`, which says what it was made from. Each row
of the prepared data has its safety logits there under a key made from the row's own tokens, so a
cache serves any order of the rows: later epochs, seeds, weights and batch sizes. `cache_job.py`
makes one.
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from .. import records
from ..errors import InputError
from ..provenance import fingerprint, sha256_of

if TYPE_CHECKING:
    from accelerate import Accelerator

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
"""Precisions that a cache can be kept in, by name."""

COLUMN = "str_reference_logits"
"""What carries z0 in a batch, from the data collator to the regularizer."""

KEYS = "str_reference_keys"
"""What carries the keys of a batch's rows, while training fills a cache. Shape `(row, 16)`."""

MANIFEST = "cache.json"
"""The file of a cache's `Manifest`."""

REMEDY = "Remove the folder, and the next run computes it again."
"""What to do about a cache whose files are damaged."""

KEYED = (
    "input_ids", "attention_mask", "labels", "seq_lengths", "position_ids", "completion_mask",
    "assistant_masks",
)  # fmt: skip
"""The columns that a row is known by: what the model reads, and where the responses are."""
Collate = Callable[[list[Any]], Any]
"""A data collator: examples to a batch."""


@dataclass(frozen=True, kw_only=True)
class Shard:
    """What is known of one file of a cache; written beside it, and into the manifest in the end."""

    sha256: str
    belongs: str
    """`content_of` the cache that it is a part of."""
    num_rows: int
    rounding: dict[str, float]
    """What the cache's precision changed: max_abs, and sum_square over all safety logits."""

    def check(self, path: Path) -> None:
        """Refuse a shard that is not as it was written.

        Raises:
            InputError: If it is missing, cut short or edited; names it.
        """
        if not path.is_file() or sha256_of(path) != self.sha256:
            raise InputError(
                f"{path}: a file of the reference cache is missing, cut short or edited. {REMEDY}"
            )


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What a cache was made from, and which shards it has."""

    SCHEMA: ClassVar[int] = 1

    status: str
    """begun or finished."""
    parts: dict[str, str]
    dtype: str
    num_safety: int
    num_rows: int
    num_positions: int
    bytes: int
    at: str
    shards: dict[str, Shard] = field(default_factory=dict)
    rounding: dict[str, float] = field(default_factory=dict)
    """What its precision changed: max_abs and mean_square."""

    @classmethod
    def load(cls, folder: Path) -> "Manifest":
        """Read that of a folder.

        Raises:
            InputError: If it is missing or damaged.
        """
        found = records.read(cls, folder / MANIFEST, "reference cache", remedy=REMEDY)
        for name in found.shards:
            if Path(name).name != name or name in ("", "..", "."):
                raise InputError(f"{folder / MANIFEST}: shard {name!r} is no file name. {REMEDY}")
        return found


def content_of(parts: Mapping[str, str], dtype: str) -> str:
    """A fingerprint of what a cache is made from, and its precision."""
    return fingerprint([*(f"{key}={parts[key]}" for key in sorted(parts)), dtype])


def key_of(example: Mapping[str, Any]) -> bytes:
    """What a prepared row is known by: a hash of its tokens, mask, labels and borders."""
    digest = hashlib.blake2b(digest_size=16)
    for name in KEYED:
        if example.get(name) is not None:
            values = np.asarray(example[name], dtype=np.int64)
            digest.update(f"{name}:{values.size};".encode() + values.tobytes())
    return digest.digest()


def order_of(keys: np.ndarray, first: np.ndarray | None = None) -> np.ndarray:
    """The order that sorts keys of 16 bytes, by `first` before if given; equal ones as they stand.

    Example:
        >>> order_of(np.array([b"b" * 16, b"a" * 16], dtype="V16")).tolist()
        [1, 0]
    """
    halves = np.ascontiguousarray(keys).view(">u8").reshape(-1, 2).astype(np.uint64)
    by = (halves[:, 1], halves[:, 0])
    return np.lexsort(by if first is None else (*by, first))


def _fixed(column: Any) -> np.ndarray:
    """A column of values of 16 bytes, as one array."""
    chunks = []
    for chunk in column.chunks:
        starts = np.frombuffer(chunk.buffers()[1], dtype=np.int32)[chunk.offset :]
        begin = int(starts[0]) if len(chunk) else 0
        raw = np.frombuffer(chunk.buffers()[2], dtype=np.uint8)
        chunks.append(raw[begin : begin + 16 * len(chunk)].view("V16"))
    return np.concatenate(chunks)


class Cache:
    """Safety logits of a data set, memory-mapped.

    Costs no memory beyond the pages that are being read, and no pass of a reference.

    Raises:
        InputError: If the folder holds no finished cache, or a file of it is not as it was written.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        manifest = Manifest.load(self.folder)
        if manifest.status != "finished":
            raise InputError(f"{self.folder}: the reference cache is not finished. Run it again.")
        self.num_safety, self.dtype = manifest.num_safety, manifest.dtype
        for name, shard in manifest.shards.items():
            shard.check(self.folder / name)
        self._values = _concatenated([self.folder / name for name in sorted(manifest.shards)])
        keys = _fixed(self._values.column("key"))
        self._order = order_of(keys)
        self._keys = keys[self._order]

    def __len__(self) -> int:
        return len(self._keys)

    def find(self, key: bytes) -> int | None:
        """The index of a row in the cache; None if it is not there."""
        wanted = np.array([key], dtype="V16")
        index = int(np.searchsorted(self._keys, wanted)[0])
        if index < len(self._keys) and self._keys[index] == wanted[0]:
            return int(self._order[index])
        return None

    def values(self, index: int) -> np.ndarray:
        """The bytes of one row's safety logits."""
        return np.frombuffer(self._values.column("values")[index].as_buffer(), dtype=np.uint8)


class WithReference:
    """A data collator that adds z0 from caches to what another collator makes of the examples.

    A batch with a row that is in none of the caches is left without z0: the reference then has to
    run for it. Some hosts pack lists of rows, which stand one after another in the batch.

    Args:
        inner: The other collator.
        caches: Where to look, in this order.
        with_keys: Whether a batch without z0 gets the keys of its rows, under `KEYS`.
    """

    def __init__(self, inner: Collate, caches: Sequence[Cache], *, with_keys: bool = False) -> None:
        self.inner, self.caches, self.with_keys = inner, tuple(caches), with_keys

    def __call__(self, examples: list[Any]) -> Any:
        """The batch, with z0 of its rows one after another under `COLUMN`."""
        lists = [each if isinstance(each, list) else [each] for each in examples]
        keys = [key_of(row) for rows in lists for row in rows]
        found = [self._values(each) for each in keys]
        batch = self.inner(examples)
        known = [each for each in found if each is not None]
        if len(known) == len(found):
            cache = self.caches[0]
            flat = torch.from_numpy(np.concatenate(known)).view(DTYPES[cache.dtype])
            batch[COLUMN] = flat.view(-1, cache.num_safety)
        elif self.with_keys:
            raw = np.frombuffer(b"".join(keys), dtype=np.uint8)
            batch[KEYS] = torch.from_numpy(raw.reshape(-1, 16).copy())
        return batch

    def _values(self, key: bytes) -> np.ndarray | None:
        for cache in self.caches:
            if (index := cache.find(key)) is not None:
                return cache.values(index)
        return None


class Cached:
    """z0 as read from disk with each batch.

    Costs |S| numbers per response token on disk, one pass before training, and nothing after. In
    low precision the pass sees other batches than training does, so the drift of an untouched model
    is not 0 but a small floor: about 1e-3 squared logits in bfloat16, 1e-11 in float32.
    """

    name = "cached"
    reads_batch = True
    model = None

    def __init__(self, caches: Sequence[Cache]) -> None:
        self.caches = tuple(caches)

    def place(self, accelerator: "Accelerator") -> None:
        """Nothing: it is on disk."""

    def safety_logits(
        self, model: nn.Module, inputs: Mapping[str, Any], positions: Bool[Tensor, "batch time"]
    ) -> Float[Tensor, "position safety"]:
        """z0 at `positions` of the batch, as its collator read it."""
        if COLUMN not in inputs:
            raise InputError(
                "The batch has no cached safety logits: a row of it was not among the data sets "
                "given to the trainer, these change from one reading to the next, or "
                "`data_collator` was replaced after the trainer was built. Give both to the "
                "trainer when building it, or use another `reference`."
            )
        found = inputs[COLUMN]
        if len(found) != int(positions.sum()):
            raise InputError(
                f"The reference cache has {len(found)} positions for a batch of "
                f"{int(positions.sum())}: the data collator changes rows at random or cuts them. "
                "Use another `reference`."
            )
        return found.to(torch.promote_types(found.dtype, torch.float32))


def keys_in(paths: Sequence[Path]) -> np.ndarray:
    """The keys of the rows of some shards. Shape `(row,)`."""
    return _fixed(_concatenated(paths).column("key"))


def _concatenated(paths: Sequence[Path]) -> Any:
    from datasets import Dataset, concatenate_datasets

    return concatenate_datasets([Dataset.from_file(str(path)) for path in paths]).data
