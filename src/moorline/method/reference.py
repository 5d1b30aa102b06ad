"""Where z0 comes from: the frozen aligned model, in the way that costs least.

adapter off   the model itself with its adapters switched off; no second model in memory, one
              backbone pass without gradient per batch
frozen copy   a second model in memory, the same pass; for full fine-tuning, and for adapters
              that rewrite the base
cached        z0 computed by one of these before training and kept on disk (`cache.py`)
write_through z0 computed by one of these in the first epoch, and read from disk in the later ones
              (`write_through.py`)
"""

import copy
import logging
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, runtime_checkable

import psutil
import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from ..chat.chat_model import evaluating
from ..chat.loading import load
from ..errors import InputError, unknown_choice
from ..provenance import size_in_words
from . import adapters, capture

if TYPE_CHECKING:
    from accelerate import Accelerator

_log = logging.getLogger(__name__)

REFERENCES = ("auto", "adapter_off", "frozen_copy", "cached", "write_through")
"""The choices of the setting `reference`."""


@runtime_checkable
class Reference(Protocol):
    """Gives the safety logits of the frozen aligned model for a batch in training."""

    name: str

    reads_batch: bool
    """Whether z0 is read from what the data collator made, rather than computed from what the host
    passes to the model."""

    @property
    def model(self) -> nn.Module | None:
        """The second model in memory; None if there is none."""
        ...

    def place(self, accelerator: "Accelerator") -> None:
        """Put what it has in memory where the model in training runs."""
        ...

    def safety_logits(
        self, model: nn.Module, inputs: Mapping[str, Any], positions: Bool[Tensor, "batch time"]
    ) -> Float[Tensor, "position safety"]:
        """z0 at `positions` of the batch, detached.

        Args:
            model: The model in training, wrapped as the host runs it.
            inputs: What the host passes to the model; the batch, if `reads_batch`.
            positions: Response positions.
        """
        ...


class AdapterOff:
    """The model with its trained adapters off is the aligned model: nothing is copied.

    Costs one forward pass of the backbone without gradient per batch, and no memory beyond its
    activations of one layer at a time.
    """

    name = "adapter_off"
    reads_batch = False
    model = None

    def __init__(self, model: nn.Module) -> None:
        self._layers = adapters.adapter_layers(model)
        self._kept = adapters.frozen_beneath(model)

    def place(self, accelerator: "Accelerator") -> None:
        """Nothing: it is the model in training."""

    def safety_logits(
        self, model: nn.Module, inputs: Mapping[str, Any], positions: Bool[Tensor, "batch time"]
    ) -> Float[Tensor, "position safety"]:
        """z0 at `positions` of the batch, detached."""
        with torch.no_grad(), evaluating(model), adapters.adapters_off(self._layers, self._kept):
            return capture.safety_logits(model, inputs, positions)


class FrozenCopy:
    """A second, frozen model beside the one in training.

    Costs the memory of its weights and one forward pass of its backbone per batch. Same dtype and
    attention implementation as the model, or else the drift of an untouched model is not 0.
    """

    name = "frozen_copy"
    reads_batch = False

    def __init__(self, reference_model: nn.Module) -> None:
        self.model: nn.Module = reference_model.requires_grad_(False).eval()

    @classmethod
    def of(cls, model: nn.Module) -> "FrozenCopy":
        """A copy of the model as it is at this moment."""
        # A forward patched onto the instance is bound to the original, and a copy of it would run
        # the original's weights; the class's own forward serves the copy.
        own = vars(model)
        patched = {name: own.pop(name) for name in ("forward", "_moorline_capture") if name in own}
        try:
            return cls(copy.deepcopy(model))
        finally:
            own.update(patched)

    @classmethod
    def load(cls, reference_model: nn.Module | str, *, like: nn.Module) -> "FrozenCopy":
        """A given model, or one read from a path or hub id in the dtype and attention of `like`."""
        if isinstance(reference_model, nn.Module):
            _check_apart(reference_model, like)
            return cls(reference_model)
        config = capture.base_of(like).config
        loaded = load(
            AutoModelForCausalLM,
            reference_model,
            dtype=capture.base_of(like).dtype,
            attn_implementation=config._attn_implementation,
        )
        return cls(loaded)

    def place(self, accelerator: "Accelerator") -> None:
        """Put the copy where the model in training runs, in shards where that one is in shards.

        Raises:
            InputError: Under FSDP 1, which cannot wrap a second model by itself.
        """
        kind = str(accelerator.distributed_type).rsplit(".", maxsplit=1)[-1]
        if kind == "FSDP":
            if not getattr(accelerator, "is_fsdp2", False):
                raise InputError(
                    "`reference` 'frozen_copy' does not run under FSDP 1. Set fsdp_version: 2, "
                    "or use a LoRA adapter with 'adapter_off'."
                )
            # Layer by layer as the model: `fully_shard` on the root alone would gather it whole.
            # Looked up now: hosts put their own in its place there.
            import accelerate.accelerator as placed

            self.model = placed.fsdp2_prepare_model(accelerator, self.model)
        elif kind == "DEEPSPEED":
            self.model = _prepared_by_deepspeed(self.model, accelerator)
        else:
            self.model = accelerator.prepare_model(self.model, evaluation_mode=True)

    def safety_logits(
        self, model: nn.Module, inputs: Mapping[str, Any], positions: Bool[Tensor, "batch time"]
    ) -> Float[Tensor, "position safety"]:
        """z0 at `positions` of the batch, detached."""
        with torch.no_grad():
            return capture.safety_logits(self.model, inputs, positions)


def _check_apart(reference_model: nn.Module, model: nn.Module) -> None:
    trained = {id(each) for each in model.parameters()}
    if any(id(each) in trained for each in reference_model.parameters()):
        raise InputError(
            "`reference_model` is the model in training, or shares weights with it, and would be "
            "frozen with it or move along. Leave it out, or give a model loaded for itself."
        )


def _prepared_by_deepspeed(model: nn.Module, accelerator: "Accelerator") -> nn.Module:
    """A model that only answers: in shards under ZeRO-3, whole on each device otherwise.

    Source:
        `prepare_deepspeed` of trl 1.16.0, `trl/models/utils.py`.
    """
    import deepspeed  # pyright: ignore[reportMissingImports]

    plugin: Any = accelerator.state.deepspeed_plugin
    settings = copy.deepcopy(plugin.deepspeed_config)
    # Without an optimizer to attach to, these would make the set-up fail.
    settings.pop("optimizer", None)
    settings.pop("scheduler", None)
    settings["zero_optimization"].pop("offload_optimizer", None)
    if settings["zero_optimization"]["stage"] != 3:
        settings["zero_optimization"]["stage"] = 0
    engine, *_ = deepspeed.initialize(model=model, config=settings)
    return engine.eval()


class TrainingPlan(NamedTuple):
    """What is known of a training before it begins, to choose a reference by."""

    epochs: float = 1.0
    """How often each row is read."""

    no_cache: str | None = None
    """Why z0 cannot be kept on disk; None if it can."""

    reads_cache: bool = False
    """Whether it can be read from there all the same, once another job has put it there."""


def choose_reference(
    kind: str, model: nn.Module, plan: Callable[[], TrainingPlan], *, reference_given: bool = False
) -> str:
    """Which reference to take, told in one line where the choice is ours.

    A running reference costs a pass of the backbone in every step, a cached one a single pass; so
    `auto` caches where rows are read twice or more, and where a copy of the model would crowd the
    memory.

    Args:
        kind: One of `REFERENCES`.
        model: The model in training, before it is wrapped for several devices.
        plan: What is known of the training; asked only where a cache may be taken.
        reference_given: Whether a reference model is given.

    Returns:
        adapter_off, frozen_copy, cached or write_through.

    Raises:
        InputError: If `kind` is unknown or cannot be had.
    """
    if kind not in REFERENCES:
        raise unknown_choice("`reference`", kind, REFERENCES)
    if kind not in ("auto", "cached", "write_through"):
        return kind
    planned = plan()
    if kind != "auto":
        reads = kind == "cached" and planned.reads_cache
        if planned.no_cache is not None and not reads:
            raise InputError(f"`reference` {kind!r} is not possible here: {planned.no_cache}.")
        return kind
    chosen, why = _chosen(model, planned, reference_given or not adapters.is_adapted(model))
    _log.info("Reference: %s (%s).", chosen, why)
    return chosen


def _chosen(model: nn.Module, plan: TrainingPlan, needs_copy: bool) -> tuple[str, str]:
    """What `auto` takes, and why."""
    running = "frozen_copy" if needs_copy else "adapter_off"
    if plan.no_cache is not None:
        return running, f"no cache: {plan.no_cache}"
    if plan.epochs >= 2:
        return "cached", f"one pass before training instead of one in {plan.epochs:.3g} epochs"
    if not needs_copy:
        return running, "the adapter can be switched off, and each row is read about once"
    if (size := _bytes_of(model)) > _free_bytes(model) / 4:
        return "cached", f"a frozen copy would take {size_in_words(size)} of memory"
    return running, "full fine-tuning, each row read about once, and memory for a copy"


def build_reference(
    kind: str, model: nn.Module, reference_model: nn.Module | str | None = None
) -> AdapterOff | FrozenCopy:
    """A reference that runs, or the one to fill a cache with.

    Args:
        kind: adapter_off, frozen_copy, cached or write_through. For cached what computes z0 before
            training: the model itself, without its adapters, or the reference model. For
            write_through what runs in the first epoch: the adapter switched off, or a copy.
        model: The model in training, before it is wrapped for several devices.
        reference_model: A model to take as the reference instead, or its path or hub id; kept in
            memory as a second model.

    Raises:
        InputError: If `kind` does not fit the model.
    """
    for config in getattr(model, "peft_config", {}).values():
        adapters.check_adapter(config, reference_given=reference_model is not None)
    if reference_model is not None:
        if kind == "adapter_off":
            raise InputError(
                "`reference` 'adapter_off' takes the model itself as the reference, but a "
                "reference model was given too. Leave one of them out."
            )
        return FrozenCopy.load(reference_model, like=model)
    if kind == "cached":
        return AdapterOff(model)
    if kind == "adapter_off" or (kind == "write_through" and adapters.is_adapted(model)):
        if not adapters.is_adapted(model):
            raise InputError(
                "`reference` 'adapter_off' needs a PEFT adapter, but this is full fine-tuning. "
                "Use 'frozen_copy' or 'cached', or put an adapter on the model."
            )
        if (name := adapters.trained_base_weight(model)) is not None:
            raise InputError(
                f"`reference` {kind!r} takes the model without its adapter as the reference, "
                f"but {name} is trained beside the adapter, so that would move along. Freeze it, "
                "list its module in `modules_to_save`, or use 'cached'."
            )
        return AdapterOff(model)
    if adapters.is_adapted(model):
        raise InputError(
            "`reference` 'frozen_copy' with an adapter needs the aligned model itself: give "
            "`reference_model`, or use 'adapter_off'."
        )
    return FrozenCopy.of(model)


def _bytes_of(model: nn.Module) -> int:
    return sum(each.numel() * each.element_size() for each in model.parameters())


def _free_bytes(model: nn.Module) -> int:
    """Memory that is free where the model is."""
    device = next(model.parameters()).device
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return psutil.virtual_memory().available
