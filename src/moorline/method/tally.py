"""What was measured since the last log, kept on the device until someone asks."""

import logging
import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .conflicts import Conflicts
from .gradients import GradientNorms
from .penalty import DriftSum

if TYPE_CHECKING:
    from accelerate import Accelerator

_log = logging.getLogger(__name__)

# Ratios of the two gradients: above the first a clipped step goes to the drift alone, below the
# second, once training is under way, it goes to the task alone.
_DROWNED, _UNFELT = 100.0, 1e-6
_UNDER_WAY = 10


class Tally:
    """Sums over the batches of one mode, training or evaluation."""

    def __init__(self) -> None:
        self.sums: dict[str, Tensor] = {}
        self.max_abs: Tensor | None = None
        self.num_batches = 0
        self._gradients: tuple[int, list[GradientNorms]] = (-1, [])

    def add(
        self,
        loss: Tensor,
        weighted: Tensor,
        drift: DriftSum,
        anchors: DriftSum | None = None,
        share: float | None = None,
        conflicts: Conflicts | None = None,
    ) -> None:
        """Count one batch: the host's loss, what is added to it, the drift.

        With anchors also that of those read beside it, and the batch's share of a step; and how
        much of its responses was skipped.
        """
        values = {
            "ce_loss": loss,
            "weighted": weighted,
            "drift": drift.total,
            "positions": drift.num_positions,
        }
        if share is not None:
            nothing = torch.zeros_like(drift.total)
            values["anchors"] = (
                nothing if anchors is None else anchors.total / anchors.num_positions
            )
            values["steps"] = torch.full_like(nothing, share)
        if conflicts is not None:
            values["skipped"], values["asked"] = conflicts.num, conflicts.num_positions
        for name, value in values.items():
            value = value.detach().double() if value.device.type != "mps" else value.detach()
            self.sums[name] = self.sums[name] + value if name in self.sums else value
        highest = drift.max_abs
        self.max_abs = highest if self.max_abs is None else torch.maximum(self.max_abs, highest)
        self.num_batches += 1

    def add_gradients(self, step: int, gradients: GradientNorms | None) -> None:
        """Keep what the backward pass of one batch will measure; those of the last step stay."""
        if gradients is None:
            return
        if self._gradients[0] != step:
            self._gradients = step, []
        self._gradients[1].append(gradients)

    def _norms(self) -> Tensor:
        """Squared norms of the task's and the drift's gradient; NaN where not measured."""
        found = [
            torch.stack([each.task, each.drift])
            for each in self._gradients[1]
            if each.task is not None and each.drift is not None
        ]
        nothing = torch.full(
            (2,), math.nan, device=None if self.max_abs is None else self.max_abs.device
        )
        return torch.stack(found).sum(dim=0) if found else nothing

    def metrics(self, accelerator: "Accelerator", divisor: int | None) -> dict[str, float]:
        """What hosts log, over all processes; empty if nothing was measured.

        Args:
            accelerator: The host's.
            divisor: What the losses are divided by for their mean; the number of batches if None.
        """
        if self.max_abs is None:
            return {}
        names = sorted(self.sums)
        sums_now = torch.stack([self.sums[name].float() for name in names])
        local = torch.cat([sums_now, self._norms().to(sums_now)])
        *totals, task, drift = accelerator.reduce(local, "sum").tolist()  # pyright: ignore
        sums = dict(zip(names, totals, strict=True))
        max_abs = accelerator.gather(self.max_abs.reshape(1)).max().item()  # pyright: ignore
        times = (divisor or self.num_batches) * accelerator.num_processes
        found = {
            "ce_loss": sums["ce_loss"] / times,
            "str/drift": sums["drift"] / max(sums["positions"], 1),
            "str/weighted": sums["weighted"] / times,
            "str/max_abs": max_abs,
        }
        if sums.get("steps"):
            found["str/anchor_drift"] = sums["anchors"] / sums["steps"]
        if sums.get("asked"):
            found["str/skipped"] = sums["skipped"] / sums["asked"]
        if not math.isnan(task):
            # Each process has the gradient of its own rows, times the number of processes; and
            # float16 training scales the loss.
            scale = 1.0 if accelerator.scaler is None else accelerator.scaler.get_scale()
            scale *= accelerator.num_processes
            found["ce_grad_norm"] = math.sqrt(task) / scale
            found["str/grad_norm"] = math.sqrt(drift) / scale
        return found


def warn_of_gradients(metrics: dict[str, float], step: int, *, holds: bool) -> bool:
    """Say that the drift pulls far harder than the task, or not at all; True if so.

    Args:
        metrics: What is logged.
        step: How many steps are done; the drift of the first is 0, and so is its gradient.
        holds: Whether anything is to be held.
    """
    if "str/grad_norm" not in metrics or not holds:
        return False
    task, drift = metrics["ce_grad_norm"], metrics["str/grad_norm"]
    if task == 0:  # a step in which every row is in conflict
        return False
    if drift > _DROWNED * task:
        _log.warning(
            "The gradient of the weighted drift is %.3g at the last hidden states, that of the "
            "task %.3g: clipped steps then learn little of the task. Use a smaller `weight`.",
            drift, task,
        )  # fmt: skip
    elif step >= _UNDER_WAY and drift < _UNFELT * task:
        _log.warning(
            "The gradient of the weighted drift is %.3g at the last hidden states, that of the "
            "task %.3g: the drift holds nothing. Use a larger `weight`, and check `safety_tokens` "
            "and `reference`.",
            drift, task,
        )  # fmt: skip
    else:
        return False
    return True


def warn_if_moved(step: int, drift: DriftSum) -> None:
    """Say that the model has left the reference before it was trained."""
    moved = drift.max_abs.item()
    if step == 0 and moved > 1e-2:
        _log.warning(
            "Before the first step a safety logit already differs from the reference by %.3g. "
            "That is right where a tuned model is trained further, or where the base has dropout; "
            "with a fresh adapter it is not: check `reference`.",
            moved,
        )
