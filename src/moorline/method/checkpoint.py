"""What the method keeps in a trainer's checkpoint: the state of its controllers."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import TrainerCallback
from transformers.trainer_utils import get_last_checkpoint

from ..errors import InputError
from ..provenance import read_json, write_json

if TYPE_CHECKING:
    from accelerate import Accelerator

    from .regularizer import Regularizer

STATE = "moorline_state.json"
"""The file in a checkpoint."""


class Settling(TrainerCallback):
    """Settles the weights after every step, and writes their state into every checkpoint."""

    def __init__(self, regularizer: "Regularizer", accelerator: "Accelerator") -> None:
        self._regularizer, self._accelerator = regularizer, accelerator

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """After the optimizer's step, on every process."""
        self._regularizer.strength.next_step(lambda local: self._accelerator.reduce(local, "sum"))  # pyright: ignore

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """After the host has written a checkpoint."""
        folder = Path(args.output_dir, f"checkpoint-{state.global_step}")
        if state.is_world_process_zero and folder.is_dir():
            write_json(folder / STATE, self._regularizer.strength.state())


def load_state(regularizer: "Regularizer", checkpoint: Any, output_dir: str | None) -> None:
    """Give a regularizer the state that a checkpoint holds; nothing without a checkpoint.

    Args:
        regularizer: Of the training that is resumed.
        checkpoint: As the host's `train` takes it: a folder, True for the newest, or nothing.
        output_dir: Where the newest is.

    Raises:
        InputError: If the checkpoint lacks a state that this run needs, or has another's.
    """
    if not checkpoint:
        return
    folder = get_last_checkpoint(output_dir or ".") if checkpoint is True else str(checkpoint)
    if folder is None or not regularizer.strength.is_found:
        return
    path = Path(folder, STATE)
    if not path.is_file():
        raise InputError(
            f"{path} is missing, so the weight that `budget` had found is lost. Resume from a "
            "checkpoint that has it, or begin anew."
        )
    regularizer.strength.load(read_json(path, "state of the regularizer"))
