"""The two methods that the trainer itself does: described here, for a table of all."""

from ..method.settings import DEFAULT_WEIGHT
from .peer import Need, Peer, Strength


class Plain(Peer):
    """Plain fine-tuning: the task loss alone."""

    name = "plain"
    source = "none"
    by_trainer = True


class STR(Peer):
    """Safety token regularization; `method.mixin` does it."""

    name = "str"
    source = "Bach and Tran 2026, arXiv:2604.17210"
    strength = Strength(
        symbol="weight", meaning="weight of the drift beside the task loss",
        default=DEFAULT_WEIGHT, grid=(0.1, 0.3, 1.0, 3.0, 10.0, 30.0),
    )  # fmt: skip
    needs = (Need.ALIGNED_REFERENCE, Need.SAFETY_TOKENS)
    cost = "a forward pass of the aligned model per batch"
    by_trainer = True
