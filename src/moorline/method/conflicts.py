"""Rows that answer where the aligned model would refuse: they carry no task loss.

In such a row the task loss and the drift ask for opposite things of the same logits. Held at equal
strength both lose: the refusals weaken, and what pulls them back makes the model refuse its
neighbours too. So one of them gives way, and by default it is the task.

Axis names, used in every signature of this module:
    batch     sequences in the batch
    time      positions; position t holds the logits that predict token t + 1
    position  response positions that are measured, of all rows of a batch in order
    safety    vocabulary entries listed in a `SafetyTokens`
"""

import logging
from collections.abc import Mapping, MutableMapping
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from ..chat.conversation import IGNORED_LABEL
from .positions import beginnings, indices_in_response

_log = logging.getLogger(__name__)

REFUSES = 0.5
"""The aligned model would refuse where its safety tokens together get more than this."""

LABELS = {"labels": 1, "shift_labels": 0}
"""The labels in a batch: by how many places a token's label stands after its position."""


class HostBatch(dict[str, Any]):
    """A host's own copy of a batch: its labels may be masked where a row is in conflict."""

    is_counted: bool = False
    """Whether the host divides its loss by all tokens of the step, whatever labels are left."""

    is_known: bool = True
    """Whether a loss that the host takes itself is read from these labels after the model's call,
    as `Trainer` does with label smoothing or a `compute_loss_func`."""


class Conflicts(NamedTuple):
    """The responses of one batch that are in conflict."""

    positions: Bool[Tensor, "batch time"]
    """The response positions of all of them."""

    num: Int64[Tensor, ""]
    """How many positions these are."""

    num_positions: Int64[Tensor, ""]
    """How many response positions the batch has."""

    num_unknown: Int64[Tensor, ""]
    """How many of them stand in responses that have no prompt before them: they are learned."""

    leaves_nothing: bool
    """Whether every response is in conflict. A mean over no token is no number: labels are then
    left as they are, and the loss is to be taken times 0."""

    @property
    def kept(self) -> Float[Tensor, ""]:
        """The share of the response positions that is learned."""
        return 1 - self.num / self.num_positions.clamp(min=1)

    def of_task(self, loss: Tensor, *, counted: bool) -> Tensor:
        """The task's loss with the skipped tokens counted in what it is divided by.

        The whole of the host's loss is meant: what a router of experts adds to it goes along.

        Args:
            loss: Of the labels that are left.
            counted: Whether it is divided by all tokens already. If not it is a mean over those
                that are left, which would pull the harder the fewer there are.
        """
        if self.leaves_nothing:
            return 0 * loss
        return loss if counted else loss * self.kept.to(loss.device)

    def skip(self, inputs: Mapping[str, Any]) -> Mapping[str, Any]:
        """The arguments of the model's call without the labels of these responses."""
        return inputs if self.leaves_nothing else {**inputs, **self._masked(inputs)}

    def skip_in_place(self, batch: MutableMapping[str, Any]) -> None:
        """The same in tensors of a host that takes its loss from labels of its own."""
        if not self.leaves_nothing:
            for name, masked in self._masked(batch).items():
                batch[name].copy_(masked)

    def _masked(self, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        masked = {}
        for name, after in LABELS.items():
            if isinstance(labels := batch.get(name), Tensor):
                # the last position predicts nothing, so nothing is rolled round
                skipped = torch.roll(self.positions, after, dims=1).to(labels.device)
                masked[name] = labels.masked_fill(skipped, IGNORED_LABEL)
        return masked


class Told:
    """Says once what rows in conflict need of whoever trains, and what cannot be known of them."""

    def __init__(self) -> None:
        self._of_loss = self._of_unknown = False

    def of(self, found: Conflicts, *, has_labels: bool, host: HostBatch | None) -> None:
        """Look at one batch.

        Args:
            found: Its rows in conflict.
            has_labels: Whether the model was called with labels, so that it takes the loss.
            host: The host's own copy of the batch; None in a loop of one's own.
        """
        if not self._of_unknown and found.num_unknown:
            self._of_unknown = True
            _log.warning(
                "%d of the %d response tokens of a batch have no prompt before them (a loss on the "
                "whole conversation, or answers cut in two by packing). Whether the aligned model "
                "would refuse there is not known, so they are learned. Train on the responses "
                "alone, packed whole, or set `conflicts` to 'learn'.",
                found.num_unknown, found.num_positions,
            )  # fmt: skip
        is_seen = has_labels or (host is not None and host.is_known)
        if is_seen or self._of_loss or not found.num:
            return
        self._of_loss = True
        if host is None:
            _log.warning(
                "The model was called without labels, so the loss is one of your own: leave out "
                "`drift.conflicts.positions` there, where the aligned model would refuse, or set "
                "`conflicts` to 'learn'."
            )
        else:
            _log.warning(
                "The trainer's `compute_loss` takes a loss of its own. Rows in conflict are masked "
                "in the labels of its batch when the model is called: a loss that copied the "
                "labels before learns them, and a mean over each row has nothing left there. Give "
                "the loss as `compute_loss_func`, or set `conflicts` to 'learn'."
            )


def conflicts(
    reference_values: Float[Tensor, "position safety"],
    measured: Bool[Tensor, "batch time"],
    batch: Mapping[str, Any],
    responses: Bool[Tensor, "batch time"],
    safety_ids: Int64[Tensor, " safety"],
) -> Conflicts:
    r"""The responses that begin otherwise where the aligned model begins a refusal.

        response r is in conflict   iff   sum over v in S of p0(v, t) > 1/2  and  y(t) not in S

    t is the position before its first token y(t). A response that begins with a safety token is
    none, however it goes on: a refusal in other words can be learned.

    What it cannot see: a row that answers and yet begins with a safety token ("I can do that: ...",
    where "I" is one); a response without a prompt before it, as with a loss on the whole
    conversation, or where packing has cut an answer in two (`num_unknown` counts them); a refusal
    that the aligned model begins with other tokens, or only later, as after a thought; and one that
    it says in less than half of all draws. Where a safety token is also the usual beginning of
    harmless answers, such a row is taken for a conflict.

    Args:
        reference_values: log p0 at the measured positions.
        measured: Where they are; of every response at least the first.
        batch: The batch, for the tokens that follow.
        responses: All response positions.
        safety_ids: The safety tokens.

    Source:
        Ours (docs/method.md, "Rows in conflict").

    Example:
        >>> says_sorry = torch.tensor([[0.9], [0.1]]).log()
        >>> batch = {"labels": torch.tensor([[-100, -100, 5, 6]])}
        >>> at = torch.tensor([[False, True, True, False]])
        >>> conflicts(says_sorry, at, batch, at, torch.tensor([7])).positions.int()
        tensor([[0, 1, 1, 0]], dtype=torch.int32)
    """
    device = reference_values.device
    measured, responses = measured.to(device), responses.to(device)
    begins = indices_in_response(responses) == 1
    mass = torch.zeros(responses.shape, dtype=torch.float32, device=device)
    mass[measured] = reference_values.detach().float().exp().sum(dim=-1)
    is_own = torch.isin(_following(batch).to(device), safety_ids.to(device))
    starts = beginnings(batch, responses)
    # a document's own first token is predicted, if at all, by padding or by another document
    headless = begins & (starts | torch.nn.functional.pad(starts[:, 1:], (0, 1)))
    opposed = begins & (mass > REFUSES) & ~is_own & ~headless
    # each position belongs to the response that began last in its row
    of_response = begins.flatten().long().cumsum(dim=0).view(begins.shape) - 1

    def belonging(to: Tensor) -> Tensor:
        padded = torch.cat([to[begins], to.new_zeros(1)])  # index -1: before any response
        return responses & padded[of_response]

    positions, found = belonging(opposed), opposed[begins]
    return Conflicts(
        positions=positions,
        num=positions.sum(),
        num_positions=responses.sum(),
        num_unknown=belonging(headless).sum(),
        leaves_nothing=bool(found.numel()) and bool(found.all()),
    )


def _following(batch: Mapping[str, Any]) -> Int64[Tensor, "batch time"]:
    """The label of the token after each position."""
    if (shifted := batch.get("shift_labels")) is not None:
        return shifted
    return torch.roll(batch["labels"], -1, dims=1)
