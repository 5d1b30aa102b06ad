"""Which rows a cache holds, and how many positions of each: told before anything is computed.

A column at a time, so that ten million rows are read in minutes and kept in forty bytes each.
"""

import hashlib
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

from ..chat.conversation import IGNORED_LABEL, positions_of_batch
from . import cache
from .cache import Collate
from .positions import PositionRule

# What a batch may hold beside: all of it follows from the columns that a row is known by.
_FOLLOWS = (
    "shift_labels", "cu_seq_lens_q", "cu_seq_lens_k", "max_length_q",
    "max_length_k", "seq_idx",
)  # fmt: skip
_ROWS_AT_A_TIME = 4096
# Rows on which the count from columns is compared with what the collator makes of them.
_TRIED = 32


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

    def part(self, chosen: np.ndarray) -> "Plan":
        """Some of the rows, by a mask or their indices, in the same order."""
        return Plan(self.keys[chosen], self.rows[chosen], self.num_positions[chosen])

    def among(self, keys: np.ndarray) -> np.ndarray:
        """Which of the rows are among some keys. Shape `(row,)`, bool."""
        every = np.concatenate([self.keys, keys])
        order = cache.order_of(every)
        group = np.empty(len(every), dtype=np.int64)
        group[order] = np.cumsum(np.r_[False, every[order][1:] != every[order][:-1]])
        return np.isin(group[: len(self.keys)], group[len(self.keys) :])

    def fingerprint(self) -> str:
        """SHA-256 of the rows, whatever their order."""
        order = cache.order_of(self.keys)
        digest = hashlib.sha256(self.keys[order].tobytes())
        digest.update(self.num_positions[order].tobytes())
        return digest.hexdigest()


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

    Costs a few microseconds a row where the rows stand in Arrow columns with labels among them, as
    trainers prepare them; where the collator finds the responses, it is asked about every row.

    Args:
        dataset: Prepared rows, as the trainer's data loader would see them.
        collate: The trainer's data collator; what it makes of a row says which positions count.
        rule: Which response positions count.
    """
    num = len(dataset)
    keys = np.empty(num, dtype="V16")
    lengths, counts = np.empty(num, dtype=np.int64), np.empty(num, dtype=np.int64)
    reads = _read_columns if _can_read_columns(dataset, collate, rule) else _read_rows
    at = 0
    for some, long, count in reads(dataset, collate, rule):
        here = slice(at, at + len(long))
        keys[here], lengths[here], counts[here] = some, long, count
        at += len(long)
    # Sorted by length, and by key among equals: the same pass, whatever order the data came in.
    order = cache.order_of(keys, lengths)
    keys = keys[order]
    is_first = np.ones(num, dtype=bool)
    is_first[1:] = keys[1:] != keys[:-1]
    order = order[is_first]
    return Plan(keys[is_first], order, counts[order])


_Read = Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]  # keys, lengths and counts of some rows


def _read_rows(dataset: Any, collate: Collate, rule: PositionRule) -> _Read:
    """Row by row, as the collator sees them."""
    for index in range(len(dataset)):
        example = dataset[index]
        key = np.frombuffer(cache.key_of(example), dtype="V16")
        count = int(rule(positions_of_batch(collate([example]))).sum())
        yield key, np.array([len(example["input_ids"])]), np.array([count])


def _can_read_columns(dataset: Any, collate: Collate, rule: PositionRule) -> bool:
    """Whether the columns of a data set say of some rows what the collator says."""
    names = getattr(dataset, "column_names", None)
    if not isinstance(names, list) or not {"input_ids", "labels"} <= set(names):
        return False
    if not hasattr(dataset, "with_format"):
        return False
    tried = dataset.select(sorted({*range(min(_TRIED, len(dataset))), len(dataset) - 1}))
    try:
        (found,) = list(_read_columns(tried, collate, rule))
    except _NotLists:
        return False
    slow = [np.concatenate(each) for each in zip(*_read_rows(tried, collate, rule), strict=True)]
    return all(np.array_equal(one, other) for one, other in zip(found, slow, strict=True))


class _NotLists(Exception):
    """A column is not one of lists of whole numbers, or misses some."""


class _Lists(NamedTuple):
    """Lists of numbers, one after another."""

    flat: np.ndarray
    starts: np.ndarray
    """Where each begins, and the last ends. Shape `(row + 1,)`."""


def _read_columns(dataset: Any, _collate: Collate, rule: PositionRule) -> _Read:
    """Some thousand rows at a time, from their columns."""
    names = [name for name in cache.KEYED if name in dataset.column_names]
    for table in dataset.with_format("arrow").iter(batch_size=_ROWS_AT_A_TIME):
        columns = {name: _lists(table.column(name)) for name in names}
        lengths = np.diff(columns["input_ids"].starts)
        counts = _counts(columns["labels"], columns.get("seq_lengths"), rule)
        yield _keys(columns, len(lengths)), lengths, counts


def _lists(column: Any) -> _Lists:
    import pyarrow.types as kinds

    column = column.combine_chunks()
    if hasattr(column, "chunks"):  # a table without rows, or an older pyarrow
        column = column.chunk(0)
    is_list = kinds.is_list(column.type) or kinds.is_large_list(column.type)
    if not is_list or not kinds.is_integer(column.type.value_type):
        raise _NotLists
    if column.null_count or column.values.null_count:
        raise _NotLists
    starts = column.offsets.to_numpy().astype(np.int64)
    flat = column.values.to_numpy()[starts[0] : starts[-1]].astype(np.int64)
    return _Lists(np.ascontiguousarray(flat), starts - starts[0])


def _keys(columns: Mapping[str, _Lists], num: int) -> np.ndarray:
    """What `cache.key_of` gives for each row."""
    digests = [hashlib.blake2b(digest_size=16) for _ in range(num)]
    for name, (flat, starts) in columns.items():
        raw, size, ends = flat.tobytes(), flat.itemsize, starts.tolist()
        begin = f"{name}:".encode()
        for digest, start, end in zip(digests, ends, ends[1:], strict=False):
            digest.update(b"%b%d;" % (begin, end - start))
            digest.update(raw[start * size : end * size])
    return np.frombuffer(b"".join(each.digest() for each in digests), dtype="V16")


def _counts(labels: _Lists, borders: _Lists | None, rule: PositionRule) -> np.ndarray:
    """How many response positions of each row count, as `chat.conversation` finds them."""
    flat, starts = labels
    counted = flat != IGNORED_LABEL
    firsts = [starts[:-1]]
    if borders is not None:  # documents of a packed row: nothing predicts their first tokens
        ends = np.cumsum(borders.flat)
        # from the end of one row's documents to where that row ends
        shift = starts[1:] - np.concatenate([[0], ends])[borders.starts[1:]]
        of_row = np.repeat(np.arange(len(shift)), np.diff(borders.starts))
        firsts.append(ends - borders.flat + shift[of_row])
    at = np.concatenate(firsts)
    counted[at[at < len(flat)]] = False
    if rule.first is not None:
        begins = counted.copy()
        begins[1:] &= ~counted[:-1]
        index = np.arange(len(flat))
        since = index - np.maximum.accumulate(np.where(begins, index, 0))
        counted &= since < rule.first
    total = np.concatenate([[0], np.cumsum(counted)])
    return total[starts[1:]] - total[starts[:-1]]
