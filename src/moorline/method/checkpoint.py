"""What the method keeps in a trainer's checkpoint, and which checkpoints are whole."""

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any
from zipfile import is_zipfile

from safetensors import SafetensorError, safe_open
from transformers import TrainerCallback

from ..errors import InputError
from ..provenance import fingerprint, read_json, write_json
from .host import is_sharded
from .inert import check_weights

if TYPE_CHECKING:
    from accelerate import Accelerator
    from transformers import Trainer

    from .regularizer import Regularizer

    _Host = Trainer
else:
    _Host = object

_log = logging.getLogger(__name__)

# The last file that the host writes into a checkpoint.
_LAST = "trainer_state.json"
STATE = "moorline_state.json"
"""The file in a checkpoint."""


class WholeCheckpoints(_Host):
    """A host trainer that saves no weight that is no number, and says by what it is held.

    The state is in a checkpoint's folder before the host's own last file is. So a checkpoint that
    counts as whole has it, however the run ends.
    """

    regularizer: "Regularizer"

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """The host's saving, on every process: of a checkpoint, and in the end."""
        # Each process has all weights, unless they are spread: a script may save from the first
        # one alone, which would wait for the others.
        others = self.accelerator if is_sharded(self) else None
        check_weights(self.model, self.state.global_step, others)  # pyright: ignore
        super().save_model(output_dir, _internal_call)
        if _internal_call and output_dir and self.is_world_process_zero():
            # Without the optimizer nothing goes on as it would have, in however many processes.
            processes = 0 if self.args.save_only_model else self.args.world_size
            state = {"held": _held(self.regularizer), "processes": processes}
            write_json(Path(output_dir) / STATE, state | self.regularizer.strength.state())

    def _save_rng_state(self, output_dir: str) -> None:
        """The host's; the first process writes the last file once all have written theirs."""
        super()._save_rng_state(output_dir)
        self.accelerator.wait_for_everyone()


class Settling(TrainerCallback):
    """Settles the weights after every step."""

    def __init__(self, regularizer: "Regularizer", accelerator: "Accelerator") -> None:
        self._regularizer, self._accelerator = regularizer, accelerator

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """After the optimizer's step, on every process."""
        self._regularizer.strength.next_step(lambda local: self._accelerator.reduce(local, "sum"))  # pyright: ignore


def _held(regularizer: "Regularizer") -> Mapping[str, Any]:
    """By what a training is held, as far as a resumed one must be held by the same."""
    settings, anchors = regularizer.settings, regularizer.anchors
    return {
        "form": settings.form,
        "weight": None if settings.budget is not None else settings.first_weight,
        "positions": settings.positions,
        "conflicts": "skip" if settings.skips else "learn",
        "anchors": None
        if anchors is None
        else fingerprint([str(each) for each in anchors.prompts]),
    }


def whole_checkpoints(output: str | Path, *, with_state: bool = False) -> list[Path]:
    """The checkpoints in a folder that were written to their end, the newest last.

    A run that is killed while it writes one leaves a torn one, which would not load, or would go on
    with other random numbers.

    Args:
        output: The output folder of a run.
        with_state: Whether the run has a budget, so that its state belongs to a checkpoint.
    """
    found = {
        step: path for path in Path(output).glob("checkpoint-*")
        if (step := _step_of(path)) is not None and _is_whole(path, with_state)
    }  # fmt: skip
    return [found[step] for step in sorted(found)]


def _step_of(folder: Path) -> int | None:
    step = folder.name.partition("-")[2]
    return int(step) if step.isdecimal() else None


def _is_whole(folder: Path, with_state: bool) -> bool:
    own = folder / STATE
    try:
        last = json.loads((folder / _LAST).read_text(encoding="utf-8"))
        state = json.loads(own.read_text("utf-8")) if own.is_file() or with_state else {}
        for each in folder.glob("*.safetensors"):
            with safe_open(each, framework="pt"):  # fails where the file is cut short
                pass
    except (OSError, ValueError, SafetensorError):
        return False
    archives = [each for each in folder.iterdir() if each.suffix in (".pt", ".pth")]
    if not (isinstance(last, dict) and isinstance(state, dict) and all(map(is_zipfile, archives))):
        return False
    processes = state.get("processes")
    if not isinstance(processes, int):  # of an earlier version, or of another trainer
        return True
    parts = [""] if processes == 1 else [f"_{each}" for each in range(processes)]
    return processes > 0 and all((folder / f"rng_state{part}.pth").is_file() for part in parts)


def resumed(checkpoint: Any, output: str | None, *, with_state: bool) -> Any:
    """What a host is to resume from: of `True` the newest checkpoint that is whole.

    Raises:
        InputError: If there is none, or a folder that is given is none, or torn.
    """
    if checkpoint is not True:
        if checkpoint and not _is_whole(Path(str(checkpoint)), False):
            raise InputError(
                f"`resume_from_checkpoint` {checkpoint} is no whole checkpoint: {_LAST} is missing "
                "or damaged, or optimizer and random numbers are (`save_only_model` saves none). "
                "Give another, or begin anew."
            )
        return checkpoint
    whole = whole_checkpoints(output or ".", with_state=with_state)
    if not whole:
        raise InputError(
            f"`resume_from_checkpoint` is set but {output} holds no whole checkpoint (with "
            "`save_only_model` none is). Leave it out to begin anew."
        )
    newest = _step_of(whole[-1])
    torn = [
        path.name
        for path in sorted(Path(output or ".").glob("checkpoint-*"))
        if (_step_of(path) or 0) > (newest or 0)
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
    state.pop("processes", None)
    _check_held(path, state.pop("held", None), regularizer)
    if found:
        regularizer.strength.load(state)


def _check_held(path: Path, then: Any, regularizer: "Regularizer") -> None:
    """Refuse another form of the drift than the checkpoint's; tell of what else differs."""
    now, settings = _held(regularizer), regularizer.settings
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
    if then["anchors"] != now["anchors"]:
        differ.append("`anchors` were other prompts")
    if differ:
        _log.warning("%s is resumed with other settings: %s.", path.parent, "; ".join(differ))
