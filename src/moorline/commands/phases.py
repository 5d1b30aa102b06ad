"""One line of progress for each phase of a tuning that takes its time, with the time left."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from tqdm.auto import tqdm
from transformers import TrainerCallback

from ..processes import rank

_DELAY = 2.0  # seconds: what is done sooner needs no line


@contextmanager
def phase(what: str, *, hidden: bool | None) -> Iterator[Callable[[int, int], None]]:
    """A line for one phase; gives a function that is told how much is done, and of how much."""
    with tqdm(desc=what, delay=_DELAY, disable=bool(hidden) or rank() != 0) as bar:

        def tell(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        yield tell


class TrainingLine(TrainerCallback):
    """One line for the training: steps, task loss and drift."""

    _bar: Any = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Begin the line."""
        hidden = args.disable_tqdm or not state.is_world_process_zero
        self._bar = tqdm(
            desc="Training", total=state.max_steps, initial=state.global_step, unit=" steps",
            disable=hidden,
        )  # fmt: skip

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Count a step."""
        self._bar.update(state.global_step - self._bar.n)
        if state.global_step in (1, state.max_steps):  # for the first and last figures of the run
            control.should_log = True

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        """Say how it goes."""
        if self._bar is not None and logs and "ce_loss" in logs:
            drift = logs.get("str/drift", 0.0)
            self._bar.set_postfix_str(f"task loss {logs['ce_loss']:.3g}, drift {drift:.2g}")

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """End the line."""
        self._bar.close()
