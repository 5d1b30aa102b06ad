"""A budget instead of a weight: a controller finds the weight while training.

A weight in squared logits is a guess that changes with model, data and attack. A budget b is what a
user can say: how far a safety token may move, as root mean square over positions and safety tokens,
in the unit of the form (logits, or nats of log-probability). Training then solves

    minimise the task loss, subject to  drift <= b^2

by dual ascent on the logarithm of the weight, after every optimizer step:

    error      = log(drift / b^2), of the drift averaged over the last steps, within [-1, 1]
    integral  <- integral + GAIN * error                      within [log LOWEST, log HIGHEST]
    weight     = exp(integral + PROPORTIONAL * error)         within [LOWEST, HIGHEST]
    weight    <= RATIO * (weight before) * |task gradient| / |drift gradient|

The first lines are a PI controller: where the drift stays at the budget, the weight stands still.
The last line keeps the drift's gradient from drowning the task's where both meet, at the last
hidden states: hosts clip the sum of both, and a step that is all drift learns nothing.

What it cannot see: whether the budget is small enough for the refusals to stay. An audit says that.
"""

import math
from collections.abc import Mapping

from ..errors import InputError

FIRST_WEIGHT = 1.0
LOWEST, HIGHEST = 1e-2, 1e3
GAIN, PROPORTIONAL = 0.15, 0.5
# Steps over which the drift is averaged: one batch with much poison is no reason to turn around.
_MEMORY = 0.7
RATIO = 10.0


class WeightController:
    """Finds the weight under which the drift stays within a budget.

    The same numbers in, the same weight out: processes that reduce what they measured hold equal
    weights, and a resumed run goes on with the state that it saved.

    Args:
        budget: Root mean square by which a safety token may move, above 0, in the form's unit.

    Raises:
        InputError: If the budget is not above 0.

    Example:
        >>> controller = WeightController(budget=0.1)
        >>> for _ in range(5):
        ...     controller.update(drift=0.04)  # twice the budget, squared
        >>> controller.weight > 1.0
        True
    """

    def __init__(self, budget: float) -> None:
        if not (isinstance(budget, int | float) and 0 < budget < math.inf):
            raise InputError(
                f"`budget` must be a number above 0, got {budget}: by how much a safety token may "
                "move (root mean square). Give `weight` 0 to measure without holding."
            )
        self.budget = float(budget)
        self._integral = math.log(FIRST_WEIGHT)
        self._drift: float | None = None
        self._error = 0.0
        self._cap = HIGHEST

    @property
    def weight(self) -> float:
        """The weight of the next step."""
        wanted = math.exp(self._integral + PROPORTIONAL * self._error)
        return min(max(wanted, LOWEST), HIGHEST, self._cap)

    def update(
        self, drift: float, task_norm: float | None = None, drift_norm: float | None = None
    ) -> None:
        """Settle the weight of the next step from what the last one measured.

        Args:
            drift: Mean over the positions of the whole step, over all processes.
            task_norm: Norm of the task's gradient; None if it was not measured.
            drift_norm: Norm of the gradient of weight * drift.

        Raises:
            InputError: If the drift is not finite; the weight is then left as it was.
        """
        if not math.isfinite(drift):
            raise InputError(
                f"The drift of the last step is {drift}, so training cannot be trusted from here. "
                "Resume from the last checkpoint with a smaller `learning_rate`."
            )
        if not all(math.isfinite(each) for each in (task_norm or 0.0, drift_norm or 0.0)):
            task_norm = drift_norm = None  # a step that the host's gradient scaler skips
        before = self.weight
        kept = drift if self._drift is None else self._drift
        self._drift = _MEMORY * kept + (1 - _MEMORY) * drift
        size = math.log(max(self._drift, 1e-30) / self.budget**2)
        self._error = min(max(size, -1.0), 1.0)
        moved = self._integral + GAIN * self._error
        self._integral = min(max(moved, math.log(LOWEST)), math.log(HIGHEST))
        if task_norm and drift_norm:  # a step of rows in conflict has no task to drown
            self._cap = max(RATIO * before * task_norm / drift_norm, LOWEST)

    def state(self) -> dict[str, float | None]:
        """All that the next weight depends on, for a checkpoint."""
        return {
            "budget": self.budget,
            "integral": self._integral,
            "drift": self._drift,
            "error": self._error,
            "cap": self._cap,
        }

    def load(self, state: Mapping[str, float | None]) -> None:
        """Go on from a saved state.

        Raises:
            InputError: If it is of another budget, or no such state.
        """
        if state.keys() != self.state().keys() or state["budget"] != self.budget:
            raise InputError(
                f"The checkpoint holds a controller of budget {state.get('budget')}, and this run "
                f"has {self.budget}. Resume with the same `budget`."
            )
        self._integral, self._error = float(state["integral"] or 0), float(state["error"] or 0)
        self._cap, self._drift = float(state["cap"] or 0), state["drift"]
