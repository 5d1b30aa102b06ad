"""A method to compare with in `moorline tune`: its flags, and the trainer that has it."""

import logging
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from trl import SFTTrainer

from ..baselines import METHODS, BaselineMixin, Materials, method_named
from ..chat.chat_model import ChatModel
from ..errors import InputError
from ..exports.trackers import check_tracker
from ..method import adapters
from ..method.safety_tokens import SafetyTokens
from ..trainer import STRTrainer

_log = logging.getLogger(__name__)

_OF_STR = ("str_weight", "str_budget", "str_anchors", "str_anchor_share",
           "str_anchor_weight", "str_conflicts")  # fmt: skip


@dataclass
class MethodConfig:
    """Which method keeps the refusals."""

    method: str = field(
        default="str",
        metadata={"help": f"What keeps the refusals: {', '.join(METHODS)}."},
    )
    method_strength: float | None = field(
        default=None, metadata={"help": "The method's one number; its own default if unset."}
    )
    method_file: str | None = field(
        default=None,
        metadata={"help": "Prompts, refusals or a phrase, for methods that read them."},
    )
    method_base: str | None = field(
        default=None,
        metadata={"help": "The unaligned base of the model, for methods that compare with it."},
    )

    check_prompts: int = field(
        default=0,
        metadata={
            "help": "Prompts of each kind asked before and after, to end with what was kept."
        },
    )
    log_files: str | None = field(
        default=None,
        metadata={
            "help": "Tracker that run.json, safety tokens and anchors are logged to as artifacts "
            "when the run ends: wandb or mlflow."
        },
    )

    def settle(self, training: Any, given: Collection[str]) -> None:
        """Check the settings, and put what they imply into `training`.

        Any other method than STR trains at weight 0, so that the drift is measured and not held.

        Args:
            training: The `STRConfig`; its weight and reference are set.
            given: Names that the user set.

        Raises:
            InputError: If the method is unknown, misses something, or two settings contradict.
        """
        if self.log_files is not None:
            check_tracker(str(self.log_files))
        if self.check_prompts < 0:
            raise InputError(f"`check_prompts` must be 0 or more, got {self.check_prompts}.")
        kind = method_named(self.method)
        kind.check(self.method_strength, file=self.method_file, base=self.method_base)
        if self.method_file is not None and not Path(self.method_file).is_file():
            raise InputError(f"{self.method_file}: no such file (`method_file`). Check the path.")
        if self.method == "str":
            if self.method_strength is not None:
                if clash := [each for each in ("str_weight", "str_budget") if each in given]:
                    raise InputError(
                        f"`method_strength` of 'str' is `str_weight`, but `{clash[0]}` is set too. "
                        "Leave one of them out."
                    )
                training.str_weight = self.method_strength
            return
        if clash := [each for each in _OF_STR if each in given]:
            raise InputError(
                f"`{clash[0]}` belongs to `method` 'str', but `method` is {self.method!r}. Leave "
                "it out."
            )
        training.str_weight = 0.0


class PeerTrainer(BaselineMixin, STRTrainer):
    """A method to compare with, in the trainer that prepares rows and measures the drift."""

    _tag_names = ["trl", "sft", "moorline"]
    _name, _paper = SFTTrainer._name, getattr(SFTTrainer, "_paper", {})

    def _aligned_model(self, given: Any) -> Any:
        return given or self.regularizer.reference.model


def with_method(
    settings: Any, chat: ChatModel, tokens: SafetyTokens, rows: Any, *, second: bool
) -> tuple[type[STRTrainer], dict[str, Any], Any]:
    """The trainer for the method of the settings, more arguments for it, and the training rows.

    Args:
        settings: Of `moorline tune`.
        chat: The aligned model, with its tokenizer; adapters on it are off meanwhile.
        tokens: The safety tokens.
        rows: The task's rows.
        second: Whether the aligned model is another one than the model to train.
    """
    config, training = settings.method, settings.training
    kind = method_named(config.method)
    if kind.by_trainer:
        return STRTrainer, {}, rows
    with adapters.aligned(chat.model):
        materials = Materials(
            chat=chat, tokens=tokens, file=config.method_file, base=config.method_base,
            seed=training.seed,
        )  # fmt: skip
        method = kind(materials, config.method_strength)
        rows = method.rows(rows)
    if kind.own_batches and training.str_reference == "auto":
        # no cache has the rows that the method brings
        off = (adapters.is_adapted(chat.model) or settings.model.use_peft) and not second
        training.str_reference = "adapter_off" if off else "frozen_copy"
    config.method_strength = method.value
    symbol = "" if kind.strength is None else kind.strength.symbol
    _log.info("Method: %s, %s %g.", config.method, symbol, method.value)
    return PeerTrainer, {"method": method}, rows
