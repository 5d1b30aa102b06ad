"""Where z0 comes from: the frozen aligned model, in the way that costs least.

adapter off   the model itself with its adapters switched off; no second model in memory, one
              backbone pass without gradient per batch
frozen copy   a second model in memory, the same pass; for full fine-tuning, and for adapters
              that rewrite the base
"""

import contextlib
import copy
import logging
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, Protocol

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from . import capture
from .errors import InputError, unknown_choice

if TYPE_CHECKING:
    from accelerate import Accelerator

_log = logging.getLogger(__name__)

REFERENCES = ("auto", "adapter_off", "frozen_copy")
"""The choices of `str_reference`."""

_REWRITES_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")


class Reference(Protocol):
    """Gives the safety logits of the frozen aligned model for a batch in training."""

    name: str

    def safety_logits(
        self, model: nn.Module, inputs: Mapping[str, Any], positions: Bool[Tensor, "batch time"]
    ) -> Float[Tensor, "position safety"]:
        """z0 at `positions` of the batch, detached.

        Args:
            model: The model in training, wrapped as the host runs it.
            inputs: The batch as the host hands it to the model.
            positions: Response positions.
        """
        ...


class AdapterOff:
    """The model with its adapters off is the aligned model: nothing is copied.

    Costs one forward pass of the backbone without gradient per batch, and no memory beyond its
    activations of one layer at a time.
    """

    name = "adapter_off"

    def __init__(self, model: nn.Module) -> None:
        self._layers = adapter_layers(model)

    def safety_logits(
        self, model: nn.Module, inputs: Mapping[str, Any], positions: Bool[Tensor, "batch time"]
    ) -> Float[Tensor, "position safety"]:
        """z0 at `positions` of the batch, detached."""
        with torch.no_grad(), _evaluating(model), adapters_off(self._layers):
            return model(**inputs, safety_positions=positions, safety_only=True).safety_logits


class FrozenCopy:
    """A second, frozen model beside the one in training.

    Costs the memory of its weights and one forward pass of its backbone per batch. Same dtype and
    attention implementation as the model, or else the drift of an untouched model is not 0.
    """

    name = "frozen_copy"

    def __init__(self, reference_model: nn.Module) -> None:
        self.model = reference_model.requires_grad_(False).eval()

    @classmethod
    def of(cls, model: nn.Module) -> "FrozenCopy":
        """A copy of the model as it is at this moment."""
        # A forward patched onto the instance is bound to the original, and a copy of it would run
        # the original's weights; the class's own forward serves the copy.
        patched = model.__dict__.pop("forward", None)
        captured = model.__dict__.pop("_holdfast_capture", None)
        try:
            return cls(copy.deepcopy(model))
        finally:
            if patched is not None:
                model.__dict__["forward"] = patched
            if captured is not None:
                model.__dict__["_holdfast_capture"] = captured

    @classmethod
    def load(cls, reference_model: nn.Module | str, *, like: nn.Module) -> "FrozenCopy":
        """A given model, or one read from a path or hub id in the dtype and attention of `like`."""
        if isinstance(reference_model, nn.Module):
            return cls(reference_model)
        config = capture.base_of(like).config
        loaded = AutoModelForCausalLM.from_pretrained(
            reference_model,
            dtype=capture.base_of(like).dtype,
            attn_implementation=config._attn_implementation,
        )
        return cls(loaded)

    def place(self, accelerator: "Accelerator") -> None:
        """Put the copy where the model in training runs.

        Raises:
            InputError: Under FSDP or DeepSpeed, where a second model is not supported yet.
        """
        kind = str(accelerator.distributed_type).rsplit(".", maxsplit=1)[-1]
        if kind in ("FSDP", "DEEPSPEED"):
            raise InputError(
                f"str_reference='frozen_copy' does not run under {kind} yet. Use a LoRA adapter "
                "with str_reference='adapter_off', or DDP."
            )
        self.model = accelerator.prepare_model(self.model, evaluation_mode=True)

    def safety_logits(
        self, model: nn.Module, inputs: Mapping[str, Any], positions: Bool[Tensor, "batch time"]
    ) -> Float[Tensor, "position safety"]:
        """z0 at `positions` of the batch, detached."""
        with torch.no_grad():
            output = self.model(**inputs, safety_positions=positions, safety_only=True)
        return output.safety_logits


def choose(
    kind: str, model: nn.Module, reference_model: nn.Module | str | None = None
) -> AdapterOff | FrozenCopy:
    """The reference called `kind` for a model in training.

    Args:
        kind: One of `REFERENCES`; `auto` takes adapter off where there is an adapter.
        model: The model in training, before it is wrapped for several devices.
        reference_model: A model to take as the reference instead, or its path or hub id; kept in
            memory as a second model.

    Raises:
        InputError: If `kind` is unknown, or does not fit the model.
    """
    if kind not in REFERENCES:
        raise unknown_choice("`str_reference`", kind, REFERENCES)
    for config in getattr(model, "peft_config", {}).values():
        check_adapter(config, reference_given=reference_model is not None)
    adapted = bool(adapter_layers(model)) or bool(getattr(model, "peft_config", None))
    if reference_model is not None:
        if kind == "adapter_off":
            raise InputError(
                "str_reference='adapter_off' takes the model itself as the reference, but a "
                "reference model was given too. Leave one of them out."
            )
        return FrozenCopy.load(reference_model, like=model)
    if kind == "auto":
        kind = "adapter_off" if adapted else "frozen_copy"
        why = "an adapter can be switched off" if adapted else "full fine-tuning needs a copy"
        _log.info("Reference: %s (%s).", kind, why)
    if kind == "adapter_off":
        if not adapted:
            raise InputError(
                "str_reference='adapter_off' needs a PEFT adapter, but this is full fine-tuning. "
                "Use 'frozen_copy', or pass `peft_config`."
            )
        return AdapterOff(model)
    if adapted:
        raise InputError(
            "str_reference='frozen_copy' with an adapter needs the aligned model itself: give "
            "`str_reference_model`, or use 'adapter_off'."
        )
    return FrozenCopy.of(model)


def check_adapter(config: Any, *, reference_given: bool) -> None:
    """Refuse an adapter that cannot be held, or whose absence is not the aligned model.

    Args:
        config: A PEFT configuration.
        reference_given: Whether the reference is a model of its own rather than this one with its
            adapter off.

    Raises:
        InputError: For prompt learning always; for initialisations that rewrite the base weights
            and for trained biases unless a reference is given. Says what to use instead.
    """
    if getattr(config, "is_prompt_learning", False):
        raise InputError(
            f"`peft_config` is a {type(config).__name__}: it learns virtual tokens, which shift "
            "the positions that the drift compares. Use LoRA or full fine-tuning."
        )
    if reference_given:
        return
    init = getattr(config, "init_lora_weights", True)
    if isinstance(init, str) and init.lower().startswith(_REWRITES_BASE):
        raise InputError(
            f"init_lora_weights={init!r} rewrites the base weights, so switching the adapter off "
            "is not the reference. Give `str_reference_model`, or use another initialisation."
        )
    bias = getattr(config, "bias", "none")
    if bias != "none":
        raise InputError(
            f"bias={bias!r} trains biases of the base, so switching the adapter off is not the "
            "reference. Use bias='none', or give `str_reference_model`."
        )


def check_head(model: nn.Module) -> None:
    """Refuse an adapter on the output head: the safety logits are read from its weight alone.

    Raises:
        InputError: If the head is an adapter layer (LoRA on `lm_head`).
    """
    head = capture.head_of(model)
    if hasattr(head, "base_layer"):
        raise InputError(
            "`target_modules` puts an adapter on the output head (`lm_head`), whose part in the "
            "safety logits would be neither held nor seen. Remove 'lm_head' from `target_modules`."
        )


def adapter_layers(model: nn.Module) -> list[Any]:
    """The modules of a model that have an adapter to switch off, of PEFT or of transformers."""
    return [module for module in model.modules() if hasattr(module, "_disable_adapters")]


@contextlib.contextmanager
def adapters_off(layers: list[Any]) -> Iterator[None]:
    """Switch adapters off for a while, and leave everything else as it was.

    PEFT's own `disable_adapter()` switches `requires_grad` on for weights that the user had frozen,
    and inspects the whole model at each call. Here only the flag that each layer reads is flipped.
    """
    # getattr by vars(): the wrapper of `modules_to_save` forwards unknown names to what it wraps.
    before = [vars(layer).get("_disable_adapters", False) for layer in layers]
    for layer in layers:
        layer._disable_adapters = True
    try:
        yield
    finally:
        for layer, disabled in zip(layers, before, strict=True):
            layer._disable_adapters = disabled


@contextlib.contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode for a while: dropout of the base would make the reference noisy."""
    training = [module for module in model.modules() if module.training]
    for module in training:
        module.training = False
    try:
        yield
    finally:
        for module in training:
            module.training = True
