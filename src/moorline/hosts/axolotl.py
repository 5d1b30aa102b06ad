"""Axolotl's plug-in: settings in its YAML, and the trainer that it is to make.

plugins: [moorline.hosts.axolotl.MoorlinePlugin]
str_tokens: safety_tokens.json

Nothing here imports `axolotl.core`: that merges the settings of all plug-ins when first imported.
"""

from collections.abc import Mapping
from dataclasses import field, make_dataclass
from typing import Any

from axolotl.integrations.base import BasePlugin  # pyright: ignore[reportMissingImports]
from pydantic import create_model

from ..errors import InputError
from ..method.mixin import STRMixin
from . import given

_FIELDS: Any = {name: (kind | None, None) for name, kind in given.NAMES.items()}
_FIELDS["str_anchors"] = (str | bool | None, None)  # YAML makes False of a bare `off`

# Axolotl writes `from moorline.hosts.axolotl import NAME`, so each name must be no other plug-in's.
MoorlineArgs = create_model(
    "MoorlineArgs",
    __doc__="The `str_` settings in Axolotl's YAML; `moorline tune --help` says what they mean.",
    **_FIELDS,
)
MoorlineTrainingArgs = make_dataclass(
    "MoorlineTrainingArgs",
    [(name, kind | None, field(default=None)) for name, kind in given.NAMES.items()],
    namespace={"__doc__": "The same among the arguments of Axolotl's trainer."},
)

_CLASHES = {
    "rl": "trains by another loss",
    "reward_model": "trains by another loss",
    "process_reward_model": "trains by another loss",
    "orpo_alpha": "computes its loss without the trainer's",
    "kd_trainer": "brings a trainer of its own",
    "trainer_cls": "names another trainer",
    "pretraining_dataset": "has no responses to hold",
}
"""Settings of Axolotl beside which nothing would be held, each with why."""


class MoorlinePlugin(BasePlugin):
    """Holds the refusals in Axolotl's trainer, where `str_tokens` is set."""

    def register(self, cfg: Any) -> None:
        """Refuse what the host would do beside, before anything is loaded.

        Raises:
            InputError: If a setting of Axolotl's clashes, or one of ours is unknown or alone.
        """
        if given.is_on(cfg):
            refuse_clashes(cfg)

    def get_input_args(self) -> str:
        """Where Axolotl finds what its YAML may hold."""
        return f"{__name__}.MoorlineArgs"

    def get_training_args_mixin(self) -> str:
        """Where Axolotl finds what its trainer's arguments may hold."""
        return f"{__name__}.MoorlineTrainingArgs"

    def get_training_args(self, cfg: Any) -> dict[str, Any]:
        """What of the YAML goes to the trainer's arguments."""
        return {name: cfg[name] for name in given.NAMES if cfg.get(name) is not None}

    def get_trainer_cls(self, cfg: Any) -> type | None:
        """The trainer that holds; None where nothing is to be held."""
        if not cfg.get("str_tokens"):
            return None
        from .axolotl_trainer import AxolotlSTRTrainer

        return AxolotlSTRTrainer

    def post_trainer_create(self, cfg: Any, trainer: Any) -> None:
        """See that no other plug-in's trainer was taken.

        Raises:
            InputError: If one was; names it.
        """
        if cfg.get("str_tokens") and not isinstance(trainer, STRMixin):
            raise InputError(
                f"`str_tokens` is set, but another plug-in made the trainer "
                f"({type(trainer).__name__}), so nothing would be held. Leave that plug-in out."
            )


def refuse_clashes(cfg: Mapping[str, Any]) -> None:
    """Refuse settings of Axolotl beside which the drift would be missing or wrong.

    Raises:
        InputError: Names the setting, why, and what to do.
    """
    for name, why in _CLASHES.items():
        if cfg.get(name):
            raise InputError(
                f"`{name}` {why}, so `str_tokens` would hold nothing. Leave one of the two out."
            )
    for name in ("context_parallel_size", "sequence_parallel_degree"):
        if (cfg.get(name) or 1) > 1:
            raise InputError(
                f"`{name}` {cfg[name]} splits sequences, where no process sees a whole response. "
                "Set it to 1."
            )
    cacheable = cfg.get("str_reference") in ("cached", "write_through") or not cfg.get("adapter")
    running = cfg.get("str_reference") in ("adapter_off", "frozen_copy")
    if cfg.get("train_on_inputs") and cfg.get("sample_packing") and cacheable and not running:
        raise InputError(
            "`train_on_inputs` with `sample_packing` trains on a row's first token too, which a "
            "cached reference has no value for. Set `str_reference: frozen_copy`, or adapter_off "
            "with an adapter."
        )
