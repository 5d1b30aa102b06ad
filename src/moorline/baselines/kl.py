"""KL: stay close to the whole distribution of the aligned model at every response position.

    loss = CE + lambda * mean over response positions of KL(p0 || p)

Source:
    Learning without forgetting and its like; for fine-tuned chat models as "anchored" fine-tuning.
    Its direction, KL(p0 || p), and lambda 0.1 are those of Kaczer et al. 2025, arXiv:2508.06249, as
    read in a note, and of LLaMA-Factory's `use_asft_loss`.

Where we differ: LLaMA-Factory's re-weights the task loss as well (DFT); here it is plain CE.
"""

from jaxtyping import Float
from torch import Tensor

from .peer import Need, Peer, Responses, Strength
from .states import in_chunks


def kl_of(
    logits: Float[Tensor, "position vocabulary"], aligned: Float[Tensor, "position vocabulary"]
) -> Float[Tensor, " position"]:
    """KL(p0 || p) in nats over the whole vocabulary, at each position.

    Example:
        >>> import torch
        >>> kl_of(torch.tensor([[0.0, 0.0]]), torch.tensor([[0.0, 0.0]]))
        tensor([0.])
    """
    nats0 = aligned.log_softmax(dim=-1)
    return (nats0.exp() * (nats0 - logits.log_softmax(dim=-1))).sum(dim=-1)


class KL(Peer):
    """KL to the aligned model over the full vocabulary; zero at the untouched model."""

    name = "kl"
    source = "Kaczer et al. 2025, arXiv:2508.06249; LLaMA-Factory"
    strength = Strength(
        symbol="lambda", meaning="weight of the KL beside the task loss, nats per nat",
        default=0.1, grid=(0.01, 0.03, 0.1, 0.3, 1.0, 3.0),
    )  # fmt: skip
    needs = (Need.ALIGNED_REFERENCE,)
    cost = "a forward pass of the aligned model and two full heads per batch"
    at_responses = True

    def of_responses(self, responses: Responses) -> Float[Tensor, " position"]:
        """KL(p0 || p) at each position."""
        return in_chunks(kl_of, responses.trained, responses.aligned)
