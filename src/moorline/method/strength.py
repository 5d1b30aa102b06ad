"""The weights of a step: given, or found from what the step before measured."""

import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from ..errors import InputError
from ..provenance import fingerprint
from .budget import WeightController
from .gradients import GradientNorms
from .settings import STRSettings

if TYPE_CHECKING:
    from transformers import Trainer

    from .regularizer import Drift


class Part(NamedTuple):
    """Which part of a step a batch is: the micro-batches of all processes share its anchors."""

    step: int
    rows: int
    """Rows of the whole step, over all its parts."""

    number: int = 0
    """Which of the parts, from 0; counted on where a host computes more losses in a step."""

    num: int = 1
    """How many parts the step has."""

    readers: int = 1
    """Processes that read batches of their own; each of them calls the model as often as others."""

    seed: int = 0
    """Of the training: which anchors are drawn."""

    def chance(self, of: str) -> int:
        """A seed for what is drawn, from what a resumed run knows too."""
        return int(fingerprint([of, str(self.seed), str(self.step), str(self.number)])[:15], 16)


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


class _Measured:
    """Adds up what the batches of a step measure; on the device until the step is over."""

    def __init__(self) -> None:
        self._sums: list[tuple[Tensor, Tensor]] = []
        self._anchors: list[Tensor] = []
        self._norms: list[GradientNorms] = []
        self._own_steps = 0

    def __len__(self) -> int:
        return len(self._sums)

    def add(self, drift: "Drift") -> None:
        """Keep one batch; its gradients are there once the backward pass is done."""
        if drift.sum is not None:
            self._sums.append((drift.sum.total.detach(), drift.sum.num_positions))
        if drift.anchors is not None:
            self._anchors.append(drift.anchors.total.detach() / drift.anchors.num_positions)
            self._own_steps += drift.is_own_step
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
            sum(self._anchors, 0.0) / max(self._own_steps, 1),
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


# Batches of one step at most, before a forgotten `next_step` is told of.
_UNSETTLED = 4096


class Strength:
    """The weights of the drift and of the anchor drift, step by step.

    Args:
        settings: A weight, or a budget.
        anchored: Whether there are anchors.
    """

    def __init__(self, settings: STRSettings, *, anchored: bool) -> None:
        self._given = {
            "drift": settings.first_weight,
            "anchors": settings.first_anchor_weight,
        }
        self._measured, self._used = _Measured(), dict[str, float]()
        self._controllers: dict[str, WeightController] = {}
        if settings.budget is not None:
            names = ("drift", "anchors") if anchored else ("drift",)
            self._controllers = {each: WeightController(settings.budget) for each in names}

    @property
    def is_found(self) -> bool:
        """Whether the weights are found while training, rather than given."""
        return bool(self._controllers)

    def weight_of(self, name: str) -> float:
        """The weight of 'drift' or 'anchors' in the present step."""
        controller = self._controllers.get(name)
        return self._given[name] if controller is None else controller.weight

    def logged(self) -> dict[str, float]:
        """The weights of the last step, as a host logs them; none where they are given."""
        return self._used if self._used else self._weights()

    def _weights(self) -> dict[str, float]:
        names = {"drift": "str/weight", "anchors": "str/anchor_weight"}
        return {names[name]: each.weight for name, each in self._controllers.items()}

    def observe(self, drift: "Drift") -> None:
        """Keep what a batch measured.

        Raises:
            InputError: If `next_step` was forgotten.
        """
        if not self.is_found:
            return
        self._measured.add(drift)
        if len(self._measured) > _UNSETTLED:
            raise InputError(
                f"{_UNSETTLED} batches were trained on and the weight was never settled. With a "
                "budget, call `next_step()` after each `optimizer.step()`."
            )

    def next_step(self, reduce: Callable[[Tensor], Tensor] = lambda local: local) -> None:
        """Settle the weights of the next step from what the last one measured.

        Args:
            reduce: Sums a tensor over all processes, so that they find the same weights.

        Raises:
            InputError: If what was measured is not finite.
        """
        measured, self._measured = self._measured, _Measured()
        if not len(measured):
            return
        found, self._used = measured.over(reduce), self._weights()
        self._controllers["drift"].update(found.drift, found.task_norm, found.drift_norm)
        if "anchors" in self._controllers and found.anchors is not None:
            self._controllers["anchors"].update(found.anchors)

    def state(self) -> dict[str, Mapping[str, float | None]]:
        """What a resumed training needs, for a checkpoint."""
        return {name: each.state() for name, each in self._controllers.items()}

    def load(self, state: Mapping[str, Mapping[str, float | None]]) -> None:
        """Go on from a saved state.

        Raises:
            InputError: If it is that of another budget, or of a training with other anchors.
        """
        if state.keys() != self._controllers.keys():
            raise InputError(
                "The checkpoint was written by a training with other `budget` or `anchors`. Resume "
                "with the same ones."
            )
        for name, each in self._controllers.items():
            each.load(state[name])


class StepCounter:
    """Which part of its step a host's batch is."""

    def __init__(self) -> None:
        self.num_batches = 1
        """Batches of the present step in one process."""
        self._next = 0

    def begin(self, num_batches: int) -> None:
        """A step begins, or begins anew."""
        self.num_batches, self._next = max(num_batches, 1), 0

    def part(self, step: int, host: "Trainer") -> Part:
        """The next batch of a step.

        Args:
            step: Number of the step.
            host: The trainer.
        """
        batch, self._next = self._next, self._next + 1
        readers = num_readers(host)
        number = batch * readers + host.args.process_index * readers // host.args.world_size
        num = self.num_batches * readers
        rows = host.args.train_batch_size * num
        return Part(step, rows, number, num, readers, seed=host.args.seed)


def num_readers(host: "Trainer") -> int:
    """How many processes read batches of their own; those of tensor parallelism share one."""
    return host.accelerator.num_processes // host.get_tp_size()
