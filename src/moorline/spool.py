"""A long list of small things that lie on disk and not in memory."""

import hashlib
import json
import os
import tempfile
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from typing import Any, Generic, TypeVar, overload

import numpy as np

_Item = TypeVar("_Item")
_APART = 16  # items between two places that are kept: one byte of memory for two items
_PIECE = 1 << 18  # bytes that are written, or read in order, at once

IN_MEMORY = 4096
"""Items that are kept in memory; with one more they all go to disk."""


class Spool(Sequence[_Item], Generic[_Item]):
    """A list that can only grow, and whose items go to disk once there are more than `IN_MEMORY`.

    Each is a line of JSON in a temporary file that has no name, so that nothing is left of it
    whatever ends the process; in memory stays half a byte an item. The file lies where `TMPDIR`
    says: a folder that is memory itself saves none.

    What it cannot do: change an item, or be read while another thread appends.

    Args:
        encode: An item as a value of JSON.
        decode: The item of such a value.

    Example:
        >>> squares = Spool(encode=int, decode=int)
        >>> squares.extend(each * each for each in range(10_000))
        >>> len(squares), squares[9_999], squares[2:4], sum(squares) == 333_283_335_000
        (10000, 99980001, (4, 9), True)
    """

    def __init__(self, encode: Callable[[_Item], Any], decode: Callable[[Any], _Item]) -> None:
        self._encode, self._decode = encode, decode
        self._items: list[_Item] = []
        self._file: Any = None
        self._starts, self._unwritten = array("Q"), bytearray()
        self._num = self._size = 0

    def append(self, item: _Item) -> None:
        """Add one at the end."""
        self._num += 1
        if self._file is None:
            self._items.append(item)
            if self._num <= IN_MEMORY:
                return
            self._file, items = tempfile.TemporaryFile(), self._items  # noqa: SIM115
            self._items = []
            for index, each in enumerate(items):
                self._write(index, each)
            return
        self._write(self._num - 1, item)

    def extend(self, items: Iterable[_Item]) -> None:
        """Add some at the end."""
        for each in items:
            self.append(each)

    def _write(self, index: int, item: _Item) -> None:
        line = json.dumps(self._encode(item), separators=(",", ":")).encode() + b"\n"
        if index % _APART == 0:
            self._starts.append(self._size)
        self._size += len(line)
        self._unwritten += line
        if len(self._unwritten) >= _PIECE:
            self._flush()

    def _flush(self) -> None:
        if self._unwritten:
            self._file.write(self._unwritten)
            self._file.flush()
            self._unwritten.clear()

    def __len__(self) -> int:
        """How many there are."""
        return self._num

    @overload
    def __getitem__(self, index: int) -> _Item: ...

    @overload
    def __getitem__(self, index: slice) -> tuple[_Item, ...]: ...

    def __getitem__(self, index: int | slice) -> Any:
        """One of them, or some as a tuple."""
        if isinstance(index, slice):
            return tuple(self[each] for each in range(*index.indices(self._num)))
        if not -self._num <= index < self._num:
            raise IndexError(f"{index} of {self._num}")
        index %= self._num
        if self._file is None:
            return self._items[index]
        self._flush()
        first, rest = divmod(index, _APART)
        start = self._starts[first]
        end = self._starts[first + 1] if first + 1 < len(self._starts) else self._size
        # Read by place and not mapped: the pages of a map would count as this process's memory.
        lines = os.pread(self._file.fileno(), end - start, start).split(b"\n", rest + 1)
        return self._decode(json.loads(lines[rest]))

    def __iter__(self) -> Iterator[_Item]:
        """Each in order."""
        if self._file is None:
            yield from self._items
            return
        self._flush()
        at, rest = 0, b""
        while at < self._size:
            piece = os.pread(self._file.fileno(), min(_PIECE, self._size - at), at)
            at += len(piece)
            *lines, rest = (rest + piece).split(b"\n")
            for each in lines:
                yield self._decode(json.loads(each))

    def __eq__(self, other: object) -> bool:
        """Whether another sequence holds the same."""
        if not isinstance(other, Sequence) or len(other) != self._num:
            return False
        return all(one == two for one, two in zip(self, other, strict=True))

    __hash__ = None  # pyright: ignore[reportAssignmentType]

    def settled(self) -> Sequence[_Item]:
        """A tuple where the items never went to disk, else the list itself."""
        return tuple(self._items) if self._file is None else self


def pieces(items: Iterable[_Item], size: int) -> Iterator[tuple[_Item, ...]]:
    """So many at a time.

    Example:
        >>> list(pieces("abcde", 2))
        [('a', 'b'), ('c', 'd'), ('e',)]
    """
    several = iter(items)
    while piece := tuple(islice(several, size)):
        yield piece


def digests(texts: Iterable[str]) -> np.ndarray:
    """Eight bytes of a hash of each text; two texts can have the same, if very seldom."""
    found = array("Q")
    for each in texts:
        encoded = each.encode("utf-8", "surrogatepass")
        found.append(int.from_bytes(hashlib.blake2b(encoded, digest_size=8).digest(), "little"))
    return np.frombuffer(found, dtype=np.uint64) if found else np.zeros(0, dtype=np.uint64)


def repeats(texts: Callable[[], Iterable[str]]) -> dict[int, int]:
    """Which of many texts stood there before, and where first; by number.

    Args:
        texts: Gives them, in order, as often as it is called: once, and once more where two have
            one digest.

    Example:
        >>> repeats(lambda: ["a", "b", "a", "a"])
        {2: 0, 3: 0}
    """
    found = digests(texts())
    order = np.sort(found)
    twice = set(order[1:][order[1:] == order[:-1]].tolist())
    first: dict[str, int] = {}
    later: dict[int, int] = {}
    if twice:
        suspects = np.isin(found, np.array(sorted(twice), dtype=np.uint64))
        for index, each in enumerate(texts()):
            if suspects[index] and first.setdefault(each, index) != index:
                later[index] = first[each]
    return later
