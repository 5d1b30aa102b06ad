"""Moorline keeps a chat model's refusals in place while you fine-tune it.

from moorline import STRConfig, STRTrainer, mine_safety_tokens
tokens = mine_safety_tokens(model, tokenizer)
STRTrainer(model, args=STRConfig(...), safety_tokens=tokens, train_dataset=...).train()
"""

import importlib
from typing import TYPE_CHECKING, Any

from .errors import InputError, MoorlineError, PrerequisiteError

if TYPE_CHECKING:
    from .method.mining import mine_safety_tokens
    from .method.mixin import STRMixin
    from .method.regularizer import Regularizer
    from .method.safety_tokens import SafetyTokens
    from .method.settings import STRSettings
    from .trainer import STRConfig, STRTrainer

__version__ = "0.1.0"

# Loaded when first asked for: `moorline --help` needs no torch, and the core needs no trl.
_HOMES = {
    "Regularizer": "method.regularizer",
    "STRConfig": "trainer",
    "STRMixin": "method.mixin",
    "STRSettings": "method.settings",
    "STRTrainer": "trainer",
    "SafetyTokens": "method.safety_tokens",
    "mine_safety_tokens": "method.mining",
}

__all__ = [
    "InputError",
    "MoorlineError",
    "PrerequisiteError",
    "Regularizer",
    "STRConfig",
    "STRMixin",
    "STRSettings",
    "STRTrainer",
    "SafetyTokens",
    "mine_safety_tokens",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        return getattr(importlib.import_module(f".{_HOMES[name]}", __name__), name)
    except ModuleNotFoundError as error:
        if error.name in ("trl", "peft", "datasets"):
            raise PrerequisiteError(
                f"{name} needs {error.name}, which is not installed. Run "
                "`pip install 'moorline[tune]'`."
            ) from error
        raise


def __dir__() -> list[str]:
    return sorted(__all__)
