"""Axolotl's trainer with the refusals held; `axolotl.py` hands it out."""

from typing import Any

from axolotl.core.trainers import AxolotlTrainer  # pyright: ignore[reportMissingImports]

from ..method.mixin import STRMixin
from . import given


class AxolotlSTRTrainer(STRMixin, AxolotlTrainer):
    """Axolotl's trainer with the drift in its loss; reads tokens and settings from its arguments.

    Axolotl packs rows and drops an attention mask on the way to the model; the reference is given
    what the model is given. Its collators for training and evaluation both read a cache.

    Raises:
        InputError: For what `STRMixin` refuses.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        found = given.read({name: getattr(kwargs["args"], name, None) for name in given.NAMES})
        super().__init__(
            *args,
            safety_tokens=found.safety_tokens,
            settings=found.settings,
            reference_model=found.reference_model,
            **kwargs,
        )

    def _set_signature_columns_if_needed(self) -> None:
        """Axolotl's, once: with packing its second call fails, and a cache has made the first."""
        if self._signature_columns is None:
            super()._set_signature_columns_if_needed()
