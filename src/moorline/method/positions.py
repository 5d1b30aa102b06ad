"""Where in a batch the drift is measured, and the part of the batch that the reference must read.

Axis names, used in every signature of this module:
    batch   sequences in the batch
    time    positions; position t holds the logits that predict token t + 1

A *document* is what attention keeps to itself: a row of a padded batch, or a stretch of the one row
of a padding-free batch, where `position_ids` begin anew.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Int64
from torch import Tensor

from ..errors import InputError

# Where attention kernels are told of the documents of a padding-free row; told from `position_ids`
# where these are absent.
_BORDERS = ("cu_seq_lens_q", "cu_seq_lens_k", "max_length_q", "max_length_k", "seq_idx")

_FIRST = re.compile(r"first:([1-9]\d*)")


@dataclass(frozen=True, slots=True)
class PositionRule:
    """Which response positions count: all of them, or the first few of each response.

    Example:
        >>> PositionRule.parse("first:16").first
        16
    """

    first: int | None = None
    """How many positions of each response, counted from its first token; all if None."""

    @classmethod
    def parse(cls, text: str) -> "PositionRule":
        """Read 'all' or 'first:K'.

        Raises:
            InputError: If it is neither.
        """
        if text == "all":
            return cls()
        if found := _FIRST.fullmatch(text):
            return cls(int(found.group(1)))
        raise InputError(
            f"`positions` must be 'all' or 'first:K' with K of 1 or more, got {text!r}."
        )

    def __call__(self, positions: Bool[Tensor, "batch time"]) -> Bool[Tensor, "batch time"]:
        """The positions among `positions` that count.

        A response is a stretch of neighbouring response positions; a conversation of several turns
        has several.

        Example:
            >>> PositionRule(1)(torch.tensor([[False, True, True, False, True]])).int()
            tensor([[0, 1, 0, 0, 1]], dtype=torch.int32)
        """
        if self.first is None:
            return positions
        return positions & (indices_in_response(positions) <= self.first)


def indices_in_response(
    positions: Bool[Tensor, "batch time"],
) -> Int64[Tensor, "batch time"]:
    """The index of each response position in its response, from 1; 0 elsewhere.

    Example:
        >>> indices_in_response(torch.tensor([[False, True, True, False, True]]))
        tensor([[0, 1, 2, 0, 1]])
    """
    index = torch.arange(1, positions.shape[1] + 1, device=positions.device)
    # The last index so far that is no response position: the count of a response starts there.
    return index - torch.where(positions, 0, index).cummax(dim=1).values


def beginnings(
    inputs: Mapping[str, Any], positions: Bool[Tensor, "batch time"]
) -> Bool[Tensor, "batch time"]:
    """The first token of each document.

    Example:
        >>> padded = {"attention_mask": torch.tensor([[0, 1, 1]])}
        >>> beginnings(padded, torch.tensor([[False, True, True]])).int()
        tensor([[0, 1, 0]], dtype=torch.int32)
    """
    seen, ids = inputs.get("attention_mask"), inputs.get("position_ids")
    real = torch.ones_like(positions)
    if isinstance(seen, Tensor) and seen.shape == positions.shape:
        real = seen.to(positions.device).bool()
    before = torch.cat([torch.zeros_like(real[:, :1]), real[:, :-1]], dim=1)
    found = real & ~before
    if isinstance(ids, Tensor) and ids.shape == positions.shape:
        found = found | (real & (ids.to(positions.device) == 0))
    return found


def draw_rows(
    inputs: Mapping[str, Any],
    positions: Bool[Tensor, "batch time"],
    fraction: float,
    generator: torch.Generator,
) -> Bool[Tensor, "batch time"]:
    """The positions of a random part of the documents of a batch.

    Of n documents, fraction * n are drawn without replacement, rounded up or down at random such
    that this is the number on average. Each document is then drawn with probability `fraction`,
    whatever n is, so that a sum over the drawn ones divided by `fraction` has the sum over all as
    its mean.

    Args:
        inputs: The batch, for its borders between documents.
        positions: Positions to choose from.
        fraction: Above 0, up to 1.
        generator: Where chance comes from; on the CPU.

    Returns:
        `positions`, and False in documents that were not drawn.
    """
    documents = _documents(inputs, positions)
    num = int(documents.max()) + 1
    expected = fraction * num
    drawn = math.floor(expected + torch.rand((), generator=generator).item())
    chosen = torch.zeros(num, dtype=torch.bool)
    chosen[torch.randperm(num, generator=generator)[:drawn]] = True
    return positions & chosen.to(positions.device)[documents]


def needed_part(
    inputs: Mapping[str, Any], positions: Bool[Tensor, "batch time"]
) -> tuple[dict[str, Any], Bool[Tensor, "part_batch part_time"]]:
    """The smallest part of a batch in which the logits at some positions are what they were.

    Documents without such a position are left out, and what follows the last such position of
    every row, or of each document of a padding-free row: attention looks back only. Never less
    than one token is left, so that every process of a sharded model still takes part in the pass.

    Args:
        inputs: The batch as the host hands it to the model.
        positions: Where logits are wanted.

    Returns:
        The part, and the positions in it, in the same order. The whole batch where it holds a
        tensor that cannot be cut along batch and time.
    """
    batch, time = positions.shape
    whole = dict(inputs)
    if _is_padding_free(inputs):
        inputs = {name: value for name, value in inputs.items() if name not in _BORDERS}
    along = {name for name, value in inputs.items() if _runs_along(value, batch, time)}
    if any(isinstance(value, Tensor) and name not in along for name, value in inputs.items()):
        return whole, positions
    if _is_padding_free(inputs):
        documents = _documents(inputs, positions)[0]
        index = torch.arange(time, device=positions.device)
        last = torch.full((int(documents.max()) + 1,), -1, device=positions.device)
        last = last.scatter_reduce(0, documents, torch.where(positions[0], index, -1), "amax")
        kept = index <= last[documents]
        kept[0] |= ~kept.any()
        part = {name: inputs[name][:, kept] if name in along else inputs[name] for name in inputs}
        return part, positions[:, kept]
    rows, columns = positions.any(dim=1), positions.any(dim=0)
    rows[0] |= ~rows.any()
    end = int(columns.nonzero().max()) + 1 if columns.any() else 1
    part = {name: inputs[name][rows, :end] if name in along else inputs[name] for name in inputs}
    return part, positions[rows, :end]


def _runs_along(value: Any, batch: int, time: int) -> bool:
    return isinstance(value, Tensor) and value.shape == (batch, time)


def _is_padding_free(inputs: Mapping[str, Any]) -> bool:
    """Whether the batch is one row in which `position_ids` alone tell documents apart."""
    ids = inputs.get("position_ids")
    return ids is not None and ids.shape[0] == 1 and inputs.get("attention_mask") is None


def _documents(
    inputs: Mapping[str, Any], positions: Bool[Tensor, "batch time"]
) -> Int64[Tensor, "batch time"]:
    """The number of the document, from 0, that each token belongs to."""
    if _is_padding_free(inputs):
        begins = inputs["position_ids"] == 0
        begins[:, 0] = True
        return begins.long().cumsum(dim=1) - 1
    rows = torch.arange(positions.shape[0], device=positions.device)
    return rows[:, None].expand(positions.shape)
