"""How hard the task and the drift each pull, from one backward pass."""

import torch
from torch import Tensor


class GradientNorms:
    """Squared norms of the gradients of the task loss and of the weighted drift.

    Both with regard to the last hidden states, before the head: there the two gradients meet, and
    two hooks see them in the backward pass that runs anyway. It is not the norm over the weights
    that hosts log as `grad_norm`; of interest is the ratio. What it does not see: the part that
    reaches a trained head directly. Compiled models are not watched, and give nothing.
    """

    def __init__(self) -> None:
        self.task: Tensor | None = None
        """Sum of squares of the task's gradient; None before the backward pass."""
        self.drift: Tensor | None = None
        """The same of the drift's, as it was weighted."""

    def attach(self, hidden: Tensor, chosen: Tensor, positions: Tensor) -> None:
        """Watch the backward pass of one call of the model.

        Args:
            hidden: Last hidden states. Shape `(batch, time, hidden)`.
            chosen: Those at `positions`, from which the drift alone is computed.
            positions: Shape `(batch, time)`.
        """
        if torch.compiler.is_compiling():
            return
        parts: list[Tensor] = []

        def of_drift(gradient: Tensor) -> None:
            parts.append(gradient.float())

        def of_both(gradient: Tensor) -> None:
            task = gradient.float()  # a copy, or else the backward pass would see what follows
            task = task.clone() if task is gradient else task
            self.drift = task.new_zeros(())
            if parts:
                task[positions] -= parts[0]
                self.drift = parts[0].square().sum()
            self.task = task.square().sum()

        chosen.register_hook(of_drift)
        hidden.register_hook(of_both)
