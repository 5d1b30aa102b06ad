"""Constrained SFT: slow down on tokens that the model already finds likelier than it used to.

    d_t = log p(y_t) - log p0(y_t)
    w_t = max(2 (1 - sigmoid(beta_t d_t)), 0.001), a constant in the gradient
    loss = mean over response positions of -w_t log p(y_t), in place of CE

beta is 0.5 at the first token of a response, 2 at the next four, 0.1 after. At the untouched model
every weight is 1, so loss and gradient are those of plain fine-tuning there.

Source:
    Qi et al. 2024, arXiv:2406.05946 (shallow-vs-deep-alignment, MIT), its loss and Table 4.

Where we differ: the mean is over the tokens of the whole step rather than of one micro-batch. Kept
as published but not set here: full fine-tuning with Adam's beta1 at 0.5 (`--adam_beta1 0.5`).
"""

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from .peer import Need, Peer, Responses, Strength
from .states import in_chunks

_FIRST, _NEXT, _LATER, _NUM_NEXT = 0.5, 2.0, 0.1, 4
_LEAST = 1e-3


def betas(index: Int64[Tensor, " position"]) -> Float[Tensor, " position"]:
    """Beta at each position.

    Args:
        index: The index of the token in its response, from 1.

    Example:
        >>> betas(torch.tensor([1, 2, 5, 6]))
        tensor([0.5000, 2.0000, 2.0000, 0.1000])
    """
    later = torch.where(index <= 1 + _NUM_NEXT, _NEXT, _LATER)
    return torch.where(index == 1, _FIRST, later)


class ConstrainedSFT(Peer):
    """Cross-entropy weighted token by token; its strength multiplies every beta."""

    name = "constrained_sft"
    source = "Qi et al. 2024, arXiv:2406.05946"
    strength = Strength(
        symbol="scale of beta", meaning="what all beta are multiplied by, per nat",
        default=1.0, grid=(0.25, 0.5, 1.0, 2.0, 4.0),
    )  # fmt: skip
    needs = (Need.ALIGNED_REFERENCE,)
    cost = "a forward pass of the aligned model and two full heads per batch"
    at_responses = True
    replaces_task = True
    factor = 1.0  # pyright: ignore[reportAssignmentType, reportIncompatibleMethodOverride]

    def of_responses(self, responses: Responses) -> Float[Tensor, " position"]:
        """-w_t log p(y_t) at each position."""

        def weighted(logits: Tensor, aligned: Tensor, labels: Tensor, beta: Tensor) -> Tensor:
            nats, nats0 = (
                each.log_softmax(dim=-1).gather(-1, labels[:, None])[:, 0]
                for each in (logits, aligned)
            )
            moved = nats.detach() - nats0
            weight = (2 * (1 - torch.sigmoid(beta * moved))).clamp_min(_LEAST)
            return -weight * nats

        beta = self.value * betas(responses.indices)
        return in_chunks(weighted, responses.trained, responses.aligned, responses.labels, beta)
