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

from collections.abc import Mapping, MutableMapping
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from ..chat.conversation import IGNORED_LABEL
from .positions import indices_in_response

REFUSES = 0.5
"""The aligned model would refuse where its safety tokens together get more than this."""

LABELS = {"labels": 1, "shift_labels": 0}
"""The labels in a batch: by how many places a token's label stands after its position."""


class Conflicts(NamedTuple):
    """The responses of one batch that are in conflict."""

    positions: Bool[Tensor, "batch time"]
    """The response positions of all of them."""

    num: Int64[Tensor, ""]
    """How many positions these are."""

    num_positions: Int64[Tensor, ""]
    """How many response positions the batch has."""

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
    where "I" is one); labels that begin before the model's own first token, as with a loss on the
    whole conversation; a refusal that the aligned model begins with other tokens, or only later, as
    after a thought; and one that it says in less than half of all draws. Where a safety token is
    also the usual beginning of harmless answers, such a row is taken for a conflict.

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
    opposed = begins & (mass > REFUSES) & ~is_own
    # each position belongs to the response that began last in its row
    of_response = begins.flatten().long().cumsum(dim=0).view(begins.shape) - 1
    found = opposed[begins]
    padded = torch.cat([found, found.new_zeros(1)])  # index -1: before any response
    positions = responses & padded[of_response]
    return Conflicts(
        positions=positions,
        num=positions.sum(),
        num_positions=responses.sum(),
        leaves_nothing=bool(found.numel()) and bool(found.all()),
    )


def _following(batch: Mapping[str, Any]) -> Int64[Tensor, "batch time"]:
    """The label of the token after each position."""
    if (shifted := batch.get("shift_labels")) is not None:
        return shifted
    return torch.roll(batch["labels"], -1, dims=1)
