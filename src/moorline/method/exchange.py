"""What goes into one forward pass for its safety logits, and what comes out."""

import dataclasses
from typing import Any

from torch import Tensor
from transformers.utils import ModelOutput

from .gradients import GradientNorms


@dataclasses.dataclass
class SafetyOutput(ModelOutput):
    """What a model returns when only its safety logits are asked for."""

    safety_logits: Any = None  # a tensor; accelerate rebuilds outputs from a dict of their fields
    """Logits or log-probabilities. Shape `(position, safety)`, float32 (float64 for a float64
    model)."""


class Exchange:
    """What goes into one forward pass, and comes out of it, past the wrappers around the model.

    An FSDP2 root rounds every tensor among arguments and outputs to bfloat16, and a z0 rounded that
    way hides small drifts. It does not look into an object like this one.
    """

    def __init__(
        self,
        reference: Tensor | None = None,
        gradients: GradientNorms | None = None,
        *,
        normalised: bool | None = None,
    ) -> None:
        self.reference = reference
        """z0 going in: the output's field is then `safety_difference`, z - z0."""
        self.gradients = gradients
        """What is to watch the gradient at the last hidden states; None for nothing."""
        self.normalised = normalised
        """Whether log-probabilities are asked for; None for what `install` said."""
        self.values: Tensor | None = None
        """z coming out, where there is no gradient."""
