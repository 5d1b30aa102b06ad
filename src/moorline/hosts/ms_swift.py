"""ms-swift's trainer with the refusals held: a file for `--external_plugins` imports this one.

ms-swift refuses flags that it does not know, and reads them before it imports the file. So the
settings stand in a YAML file that the environment names: MOORLINE_SETTINGS=str.yaml
"""

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml
from swift.trainers import (  # pyright: ignore[reportMissingImports]
    Seq2SeqTrainer,
    TrainerFactory,
)

from ..errors import InputError
from ..method import adapters
from ..method.mixin import STRMixin
from . import given

VARIABLE = "MOORLINE_SETTINGS"
"""The environment variable that names the file of settings."""


class SwiftSTRTrainer(STRMixin, Seq2SeqTrainer):
    """ms-swift's trainer for `swift sft`, with the drift in its loss.

    The reference runs in every step (the adapter off, or a frozen copy): rows of ms-swift are
    encoded as they are read, so there are none to compute a cache from.

    Raises:
        InputError: For what `STRMixin` and `refuse_clashes` refuse, or if the settings are missing.
    """

    # ms-swift's own losses read the labels after the model's call; its smoothing is not told how
    # many tokens a step has.
    takes_own_loss, smooths_by_mean = True, True

    def __init__(self, model: Any, args: Any, template: Any, *more: Any, **kwargs: Any) -> None:
        refuse_clashes(args, template)
        found = given.read(settings_file())
        super().__init__(
            model, args, template, *more,
            safety_tokens=found.safety_tokens,
            settings=replace(found.settings, reference=_running(found, model)),
            reference_model=found.reference_model,
            **kwargs,
        )  # fmt: skip


def settings_file() -> Mapping[str, Any]:
    """The settings, from the file that the environment names.

    Raises:
        InputError: If the variable is not set, or the file is missing or holds no settings.
    """
    named = os.environ.get(VARIABLE)
    if not named:
        raise InputError(
            f"The environment variable {VARIABLE} is not set. Set it to a YAML file with "
            "`str_tokens: safety_tokens.json` and the other `str_` settings."
        )
    path = Path(named)
    if not path.is_file():
        raise InputError(
            f"{VARIABLE} names {named}, which is no file. Give the path of a YAML file."
        )
    values = yaml.safe_load(path.read_text(encoding="utf-8"))
    if not isinstance(values, dict):
        raise InputError(f"{named}: holds no settings. Write `str_tokens: safety_tokens.json`.")
    for name in values:
        if not str(name).startswith("str_"):
            raise InputError(
                f"{named}: {name!r} is no setting of the method; those begin with `str_`. Give "
                "the others to `swift sft`."
            )
    return values


def refuse_clashes(args: Any, template: Any) -> None:
    """Refuse settings of ms-swift beside which the drift would be missing or wrong.

    Raises:
        InputError: Names the setting, why, and what to do.
    """
    if args.use_logits_to_keep is not False:
        raise InputError(
            "`use_logits_to_keep` cuts the labels to the responses before the loss, so the safety "
            "tokens' positions are lost. Give `--use_logits_to_keep false`."
        )
    if template.sequence_parallel_size > 1:
        raise InputError(
            f"`sequence_parallel_size` {template.sequence_parallel_size} splits sequences, where "
            "no process sees a whole response. Set it to 1."
        )
    if args.predict_with_generate:
        raise InputError(
            "`predict_with_generate` evaluates without a loss, so no drift is measured. Leave it "
            "out, and measure answers with `moorline audit`."
        )
    if getattr(args, "tuner_backend", None) == "unsloth":
        raise InputError(
            "`tuner_backend` 'unsloth' within ms-swift is not tested. Give `--tuner_backend peft`, "
            "or use Unsloth itself."
        )


def _running(found: given.Given, model: Any) -> str:
    """A reference that runs: the one asked for, or what fits the model."""
    if found.settings.reference in ("cached", "write_through"):
        raise InputError(
            f"`str_reference` {found.settings.reference!r} is not possible in ms-swift, which "
            "encodes rows as it reads them. Use 'adapter_off' or 'frozen_copy'."
        )
    if found.settings.reference != "auto":
        return found.settings.reference
    own = found.reference_model is None and adapters.is_adapted(model)
    return "adapter_off" if own else "frozen_copy"


TrainerFactory.TRAINER_MAPPING["causal_lm"] = f"{__name__}.{SwiftSTRTrainer.__name__}"
