"""Holdfast keeps a chat model's refusals in place while you fine-tune it.

from holdfast import STRConfig, STRTrainer, mine_safety_tokens
tokens = mine_safety_tokens(model, tokenizer)
STRTrainer(model, args=STRConfig(...), safety_tokens=tokens, train_dataset=...).train()
"""

import importlib
from typing import TYPE_CHECKING, Any

from .errors import HoldfastError, InputError, PrerequisiteError

if TYPE_CHECKING:
    from .constraint import Constraint, STRMixin
    from .mining import mine_safety_tokens
    from .safety_tokens import SafetyTokens
    from .trainer import STRConfig, STRTrainer

__version__ = "0.1.0"

# Loaded when first asked for: `holdfast --help` needs no torch, and the core needs no trl.
_ROOMS = {
    "Constraint": "constraint",
    "STRConfig": "trainer",
    "STRMixin": "constraint",
    "STRTrainer": "trainer",
    "SafetyTokens": "safety_tokens",
    "mine_safety_tokens": "mining",
}

__all__ = [
    "Constraint",
    "HoldfastError",
    "InputError",
    "PrerequisiteError",
    "STRConfig",
    "STRMixin",
    "STRTrainer",
    "SafetyTokens",
    "mine_safety_tokens",
]


def __getattr__(name: str) -> Any:
    if name not in _ROOMS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        return getattr(importlib.import_module(f".{_ROOMS[name]}", __name__), name)
    except ModuleNotFoundError as error:
        if error.name in ("trl", "peft", "datasets"):
            raise PrerequisiteError(
                f"{name} needs {error.name}, which is not installed. Run "
                "`pip install 'holdfast[tune]'`."
            ) from error
        raise
