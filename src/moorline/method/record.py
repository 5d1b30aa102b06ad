"""One call of the model in training: z0 before it, its labels, the safety logits out of it."""

import contextlib
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from ..chat.conversation import positions_of_batch
from ..errors import InputError
from . import capture
from .conflicts import LABELS, Conflicts, HostBatch, conflicts
from .gradients import GradientNorms
from .reference import Reference

if TYPE_CHECKING:
    from .regularizer import Regularizer


class Record:
    """Hooks, and not a stand-in for the model: a host that inspects the model sees the model."""

    def __init__(
        self,
        regularizer: "Regularizer",
        reference: Reference,
        batch: Mapping[str, Any],
        positions: Tensor,
        gradients: GradientNorms | None,
        editable: HostBatch | None,
    ) -> None:
        self.regularizer, self.reference = regularizer, reference
        self.batch, self.positions, self.gradients = batch, positions, gradients
        self.host = editable
        # a host may take labels out of its batch, and goes on with these tensors all the same
        self.editable = None if editable is None else dict(editable)
        self.conflicts: Conflicts | None = None
        self.is_counted = False  # whether the model's loss is divided by skipped tokens too
        self._is_count_given = editable is not None and editable.is_counted
        self.is_asked, self.is_recorded = False, False
        self.difference: Tensor | None = None
        self.z0: Tensor | None = None
        self.loss: Tensor | None = None

    @contextlib.contextmanager
    def hooks(self, model: nn.Module) -> Iterator[None]:
        """Watch the first call of the model in this block."""
        # First of all hooks: FSDP gathers weights in its own, and the reference calls the model.
        asking = model.register_forward_pre_hook(self._ask, with_kwargs=True, prepend=True)
        keeping = model.register_forward_hook(self._keep)
        try:
            yield
        finally:
            asking.remove()
            keeping.remove()

    def _ask(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if self.is_asked:  # the reference's own call, or a later one of the host
            return None
        self.is_asked = True
        _check_call(args, kwargs, self.positions)
        # Before the model's own pass: its activations are not in memory yet, and the adapters are
        # on again when checkpointed layers are recomputed in the backward pass.
        inputs = self.batch if self.reference.reads_batch else kwargs
        z0 = self.regularizer.reference_values(self.reference, module, inputs, self.positions)
        self.is_recorded, self.z0 = True, z0
        self._is_count_given |= kwargs.get("num_items_in_batch") is not None
        exchange = capture.Exchange(z0, self.gradients)
        asked = {"safety_positions": self.positions, "safety_exchange": exchange}
        return args, {**self._without_conflicts(kwargs, z0), **asked}

    def _keep(self, _module: nn.Module, _args: Any, output: Any) -> Any:
        if not self.is_recorded or self.difference is not None:
            return None
        own, self.difference = capture.take_difference(output)
        self.loss = getattr(own, "loss", None)
        if self.loss is not None and self.conflicts is not None:
            counted = self._is_count_given
            self.loss = own["loss"] = self.conflicts.of_task(self.loss, counted=counted)
            self.is_counted = True
        return own

    def _without_conflicts(self, kwargs: Mapping[str, Any], z0: Tensor) -> Mapping[str, Any]:
        """The arguments of the model's call, with no labels where a row is in conflict."""
        if not self.regularizer.skips_now():
            return kwargs
        responses = positions_of_batch(self.batch)
        ids = self.regularizer.tokens.tensor()
        self.conflicts = conflicts(z0, self.positions, self.batch, responses, ids)
        without = self.conflicts.skip(kwargs)
        if self.editable is not None:
            self.conflicts.skip_in_place(self.editable)
        has_labels = bool(LABELS.keys() & kwargs.keys())
        self.regularizer.told.of(self.conflicts, has_labels=has_labels, host=self.host)
        return without


def _check_call(args: tuple[Any, ...], kwargs: Mapping[str, Any], positions: Tensor) -> None:
    if args:
        raise InputError(
            "The model was called with positional arguments, so the reference cannot be called the "
            "same way. Call it as `model(**batch)`."
        )
    ids = kwargs.get("input_ids")
    pruned = isinstance(ids, Tensor) and ids.shape[:2] != positions.shape
    kept = kwargs.get("logits_to_keep", kwargs.get("num_logits_to_keep"))
    if pruned or isinstance(kept, Tensor) or kept:
        raise InputError(
            "The host computes logits for a part of the sequence only (`logits_to_keep`), so "
            "labels and positions do not fit. Switch that off."
        )
