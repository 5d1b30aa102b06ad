"""The drift: how far the safety logits of the model have moved from those of the reference.

Axis names, used in every signature of this module:
    position   response positions that count, of all rows of a batch in order
    safety     vocabulary entries listed in a `SafetyTokens`
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from ..errors import unknown_choice


class DriftSum(NamedTuple):
    """A drift added up over positions, with the count that it was added up over.

    The two travel together so that one place, the regularizer, divides: by the count over all
    devices and accumulated micro-batches, not by the count of one of them.
    """

    total: Float[Tensor, ""]
    """Sum over positions of the drift at one position, in squared logits or squared nats. Carries
    the gradient."""

    num_positions: Int64[Tensor, ""]
    """Number of positions added up."""

    max_abs: Float[Tensor, ""]
    """Largest |z - z0| of any position and safety token; detached, 0 without positions."""


def difference(
    values: Float[Tensor, "position safety"], reference_values: Float[Tensor, "position safety"]
) -> Float[Tensor, "position safety"]:
    """Z - z0 in float32 (float64 for float64 values); the gradient flows to z only."""
    # bfloat16 carries 8 significant bits: a small difference of large logits would round away.
    dtype = torch.promote_types(values.dtype, torch.float32)
    return values.to(dtype) - reference_values.detach().to(dtype)


def squared_drift(difference: Float[Tensor, "position safety"]) -> DriftSum:
    r"""Squared difference of what is compared, logits or log-probabilities of the safety tokens.

        drift(t) = mean over v in S of (z(v,t) - z0(v,t))^2
        total    = sum over t of drift(t)

    It is exactly 0, and so is its gradient, where the two are equal.

    What it cannot see, for logits: softmax is blind to a common shift, so while these logits stand
    still all other logits may rise, and the probability of the safety tokens then falls with the
    drift at 0. Log-probabilities have no such hole. For both: any token outside S.

    Args:
        difference: z - z0, of the model in training and the frozen aligned model in the same
            contexts. Shape `(position, safety)`, in float32 or wider.

    Returns:
        The sum in the dtype given, the number of positions, and the largest difference. Without
        positions the sum is exactly 0 and still attached to the graph.

    Source:
        Safety token regularization: Bach and Tran 2026, arXiv:2604.17210, Eq. 2-3, on logits.
        Whether the paper's Eq. 2 sums or averages over S is not known to us; we average. On
        log-probabilities: ours, to close the hole above.

    Example:
        >>> z = torch.tensor([[1.0, 2.0], [0.0, 0.0]])
        >>> z0 = torch.tensor([[1.0, 4.0], [1.0, -1.0]])
        >>> squared_drift(z - z0)  # (0 + 4) / 2 + (1 + 1) / 2
        DriftSum(total=tensor(3.), num_positions=tensor(2), max_abs=tensor(2.))
    """
    magnitude = difference.detach().abs()
    return DriftSum(
        total=difference.square().mean(dim=-1).sum(),
        num_positions=torch.tensor(difference.shape[0], device=difference.device),
        max_abs=magnitude.amax() if magnitude.numel() else magnitude.new_zeros(()),
    )


def kl_drift(
    difference: Float[Tensor, "position safety"], reference_values: Float[Tensor, "position safety"]
) -> DriftSum:
    r"""KL divergence of the model from the aligned one, where all but the safety tokens are one.

        drift(t) = sum over v in S of p(v) log(p(v) / p0(v))  +  r log(r / r0)      in nats
        r        = 1 - sum over v in S of p(v)                 the rest of the vocabulary, as one

    It is the price of saying what the aligned model would not. Where that one would not refuse, a
    task costs next to nothing: an answer outside S, however sure, costs -log r0 at most, whatever
    S said before. Where it would refuse, r0 is near 0, and the answer costs its full surprise.
    Against a row that answers there, weight w leaves the answer the probability q that solves

        log(q / (1 - q)) = log(r0 / (1 - r0)) + 1 / (w q)

    What it cannot see: any exchange of tokens outside S. What it cannot do: bring back a refusal
    that is lost. Its gradient is p(v) (log(p(v) / p0(v)) - drift), and goes out with p(v). So it
    wants anchors beside it.

    Args:
        difference: log p - log p0. Shape `(position, safety)`, in float32 or wider.
        reference_values: log p0. Shape `(position, safety)`.

    Returns:
        As `squared_drift`, `total` in nats. It is 0 where the two are equal, and so is its gradient
        to rounding.

    Source:
        Kullback and Leibler 1951, of the distribution with all other tokens in one. In the
        direction of the penalty of Ziegler et al. 2019, arXiv:1909.08593. On safety tokens: ours.

    Example:
        >>> p, p0 = torch.tensor([[0.25]]), torch.tensor([[0.5]])
        >>> kl_drift(p.log() - p0.log(), p0.log()).total  # log(1/2) / 4 + 3 log(3/2) / 4
        tensor(0.1308)
    """
    of_reference = reference_values.detach().to(difference.dtype)
    log_p = of_reference + difference
    rest0, rest = _rest(of_reference), _rest(log_p)
    of_tokens = (log_p.exp() * difference).sum(dim=-1)
    total = (of_tokens + rest * (rest.log() - rest0.log())).sum()
    return squared_drift(difference)._replace(total=total)


def _rest(log_p: Float[Tensor, "position safety"]) -> Float[Tensor, " position"]:
    """The probability of all other tokens, no less than rounding makes of it."""
    return (1 - log_p.exp().sum(dim=-1)).clamp(min=torch.finfo(log_p.dtype).eps)


def _squares(difference: Tensor, _reference_values: Tensor) -> DriftSum:
    return squared_drift(difference)


class Form(NamedTuple):
    """A member of the family: what is compared, and how its drift is measured."""

    drift: Callable[[Tensor, Tensor], DriftSum]
    """From z - z0 and z0 at each position to the drift."""

    normalised: bool
    """Whether z are log-probabilities over the whole vocabulary, rather than logits."""

    scaled: bool
    """Whether z - z0 is divided by the spread of each logit before (`spread.py`)."""

    weight: float
    """The weight that is taken where none is given (docs/method.md says what was measured)."""

    anchor_weight: float
    """The same of the anchor drift, which is in squared nats whatever the form."""

    wants_anchors: bool = False
    """Whether it holds next to nothing where no row of the training would be refused."""

    skips: bool = False
    """Whether rows in conflict (`conflicts.py`) are skipped where nothing is said of them."""


FORMS: dict[str, Form] = {
    "logit": Form(_squares, normalised=False, scaled=False, weight=10.0, anchor_weight=3.0),
    "logprob": Form(_squares, normalised=True, scaled=False, weight=10.0, anchor_weight=3.0),
    "standardised": Form(_squares, normalised=False, scaled=True, weight=10.0, anchor_weight=3.0),
    "kl": Form(
        kl_drift,
        normalised=True,
        scaled=False,
        weight=3.0,
        anchor_weight=0.1,
        wants_anchors=True,
        skips=True,
    ),
}
"""The forms of the drift by name: `logit` is the paper's; `logprob` closes its hole; `standardised`
is `logit` in the unit of each logit's spread, so that a weight means more alike in other models;
`kl` holds where the aligned model would refuse."""


def form(name: str) -> Form:
    """The form of the drift called `name`.

    Raises:
        InputError: If there is none of that name; names the nearest.
    """
    if name not in FORMS:
        raise unknown_choice("`form`", name, FORMS)
    return FORMS[name]
