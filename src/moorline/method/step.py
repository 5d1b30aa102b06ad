"""One optimizer step: which part of it a batch is, and what was measured in it."""

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from .gradients import GradientNorms

if TYPE_CHECKING:
    from .regularizer import Drift


class Part(NamedTuple):
    """Which part of a step a batch is: the micro-batches of all processes share its anchors."""

    step: int
    rows: int
    """Rows of the whole step, over all its parts."""

    index: int = 0
    num: int = 1
    seed: int = 0
    """Of the training: which anchors are drawn."""


class Found(NamedTuple):
    """What a step measured, over all processes."""

    drift: float
    """Mean over response positions."""

    anchors: float | None
    """The same of the anchors; None without."""

    task_norm: float | None
    """Norm of the gradient of the task loss at the last hidden states; None if not measured."""

    drift_norm: float | None
    """The same of weight * drift."""


class Measured:
    """Adds up what the batches of a step measure; on the device until the step is over."""

    def __init__(self) -> None:
        self._sums: list[tuple[Tensor, Tensor]] = []
        self._anchors: list[Tensor] = []
        self._norms: list[GradientNorms] = []

    def __len__(self) -> int:
        return len(self._sums)

    def add(self, drift: "Drift") -> None:
        """Keep one batch; its gradients are there once the backward pass is done."""
        if drift.sum is not None:
            self._sums.append((drift.sum.total.detach(), drift.sum.num_positions))
        if drift.anchors is not None:
            self._anchors.append(drift.anchors.total.detach() / drift.anchors.num_positions)
        if drift.gradients is not None:
            self._norms.append(drift.gradients)

    def over(self, reduce: Callable[[Tensor], Tensor]) -> Found:
        """The means and norms of the step.

        Args:
            reduce: Sums a tensor over all processes.
        """
        device = self._sums[0][0].device
        norms = [
            (each.task, each.drift)
            for each in self._norms
            if each.task is not None and each.drift is not None
        ]
        values = [
            sum(total for total, _ in self._sums),
            sum(num for _, num in self._sums),
            sum(self._anchors, 0.0),
            float(len(self._anchors)),
            sum(task for task, _ in norms),
            sum(drift for _, drift in norms),
            float(len(norms)),
        ]
        local = torch.stack([torch.as_tensor(each).to(device, torch.float32) for each in values])
        total, num, of_anchors, num_anchors, task, drift, num_norms = reduce(local).tolist()
        return Found(
            drift=total / max(num, 1.0),
            anchors=of_anchors if num_anchors else None,
            task_norm=math.sqrt(task) if num_norms else None,
            drift_norm=math.sqrt(drift) if num_norms else None,
        )
