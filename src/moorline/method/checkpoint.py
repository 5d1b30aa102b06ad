"""What the method keeps in a trainer's checkpoint, and which checkpoints are whole."""

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import TrainerCallback

from ..errors import InputError
from ..provenance import read_json, write_json

if TYPE_CHECKING:
    from accelerate import Accelerator

    from .regularizer import Regularizer
    from .settings import STRSettings

_log = logging.getLogger(__name__)

# The last file that the host writes into a checkpoint.
_LAST = "trainer_state.json"
STATE = "moorline_state.json"
"""The file in a checkpoint."""


class Settling(TrainerCallback):
    """Settles the weights after every step, and writes into every checkpoint by what it is held."""

    def __init__(self, regularizer: "Regularizer", accelerator: "Accelerator") -> None:
        self._regularizer, self._accelerator = regularizer, accelerator

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """After the optimizer's step, on every process."""
        self._regularizer.strength.next_step(lambda local: self._accelerator.reduce(local, "sum"))  # pyright: ignore

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """After the host has written a checkpoint."""
        folder = Path(args.output_dir, f"checkpoint-{state.global_step}")
        if state.is_world_process_zero and folder.is_dir():
            held = {"held": _held(self._regularizer.settings)}
            write_json(folder / STATE, held | self._regularizer.strength.state())


def _held(settings: "STRSettings") -> Mapping[str, Any]:
    """By what a training is held, as far as a resumed one must be held by the same."""
    weight = None if settings.budget is not None else settings.first_weight
    conflicts = "skip" if settings.skips else "learn"
    return {
        "form": settings.form, "weight": weight, "positions": settings.positions,
        "conflicts": conflicts,
    }  # fmt: skip


def whole_checkpoints(output: str | Path, *, with_state: bool = False) -> list[Path]:
    """The checkpoints in a folder that were written to their end, the newest last.

    A run that is killed while it writes one leaves a torn one, which would not load.

    Args:
        output: The output folder of a run.
        with_state: Whether the run has a budget, so that its state belongs to a checkpoint.
    """
    found = {
        int(path.name.partition("-")[2]): path
        for path in Path(output).glob("checkpoint-*")
        if path.name.partition("-")[2].isdigit() and _is_whole(path, with_state)
    }
    return [found[step] for step in sorted(found)]


def _is_whole(folder: Path, with_state: bool) -> bool:
    try:
        json.loads((folder / _LAST).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return not with_state or (folder / STATE).is_file()


def resumed(checkpoint: Any, output: str | None, *, with_state: bool) -> Any:
    """What a host is to resume from: of `True` the newest checkpoint that is whole.

    Raises:
        InputError: If there is none.
    """
    if checkpoint is not True:
        return checkpoint
    whole = whole_checkpoints(output or ".", with_state=with_state)
    if not whole:
        raise InputError(
            f"`resume_from_checkpoint` is set but {output} holds no whole checkpoint. Leave it out "
            "to begin anew."
        )
    newest = int(whole[-1].name.partition("-")[2])
    torn = [
        path.name
        for path in sorted(Path(output or ".").glob("checkpoint-*"))
        if path.name.partition("-")[2].isdigit() and int(path.name.partition("-")[2]) > newest
    ]
    if torn:
        _log.warning("%s was not written to its end, and is passed over.", ", ".join(torn))
    return str(whole[-1])


def load_state(regularizer: "Regularizer", checkpoint: Any) -> None:
    """Give a regularizer the state that a checkpoint holds; nothing without a checkpoint.

    A checkpoint that was held by another form is refused; one with another weight or other
    positions, and one that does not say, are told of.

    Args:
        regularizer: Of the training that is resumed.
        checkpoint: As `resumed` gives it.

    Raises:
        InputError: If the checkpoint lacks a state that this run needs, or has another's.
    """
    if not checkpoint:
        return
    path, found = Path(str(checkpoint), STATE), regularizer.strength.is_found
    if found and not path.is_file():
        raise InputError(
            f"{path} is missing, so the weight that `budget` had found is lost. Resume from a "
            "checkpoint that has it, or begin anew."
        )
    state = read_json(path, "state of the regularizer") if path.is_file() else {}
    _check_held(path, state.pop("held", None), regularizer.settings)
    if found:
        regularizer.strength.load(state)


def _check_held(path: Path, then: Any, settings: "STRSettings") -> None:
    """Refuse another form of the drift than the checkpoint's; tell of what else differs."""
    now = _held(settings)
    if not isinstance(then, dict) or then.keys() != now.keys():
        if settings.holds:
            _log.warning(
                "%s does not say by which form the training was held: an earlier version of "
                "Moorline wrote it, or another trainer. It goes on with `form` %r at `weight` %s. "
                "The default was 'logit' at 10 before it was 'kl': if the run began with another, "
                "stop it and give that one.", path.parent, now["form"], now["weight"],
            )  # fmt: skip
        return
    if then["form"] != now["form"] and then["weight"] != 0 and settings.holds:
        raise InputError(
            f"{path.parent} was written by a training with `form` {then['form']!r}, and this one "
            f"has {now['form']!r}. Resume with the same `form` (and its `weight`, "
            f"{then['weight']}), or begin anew."
        )
    differ = [
        f"`{name}` was {then[name]!r} and is {now[name]!r}"
        for name in ("weight", "positions", "conflicts")
        if then[name] != now[name]
    ]
    if differ:
        _log.warning("%s is resumed with other settings: %s.", path.parent, "; ".join(differ))
