"""Adapters: which can be trained under the method, switching them off, and the weights beneath.

The model without the adapters that train is the aligned model. An adapter that is active and does
not train, beneath one that does, is part of it.
"""

import contextlib
import hashlib
import json
from collections.abc import Collection, Iterator
from typing import Any

import torch
from jaxtyping import Int64
from torch import Tensor, nn

from ..errors import InputError
from . import capture

# What PEFT calls the module that it put an adapter around.
_WRAPPED = ("base_layer", "original_module")
_REWRITES_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")
# Settings of PEFT under which the model without its adapter is not the model before.
_REBUILDS_BASE = {
    "kasa_config": "cuts the smallest singular values of the base weights",
    "layer_replication": "builds a deeper base from copies of its layers",
}
_UNFIT = {
    "ADAPTION_PROMPT": "it swaps attention modules and has nothing to switch off",
    "POLY": "it needs `task_ids` in every call of the model",
}


def check_adapter(config: Any, *, reference_given: bool) -> None:
    """Refuse an adapter that cannot be trained under the method, or whose absence is not the base.

    Args:
        config: A PEFT configuration.
        reference_given: Whether the reference is a model of its own rather than this one with its
            adapter off.

    Raises:
        InputError: For prompt learning, AdaptionPrompt and Poly always; for what rewrites the base
            weights and for trained biases unless a reference is given. Says what to use instead.
    """
    name = type(config).__name__
    if getattr(config, "is_prompt_learning", False):
        raise InputError(
            f"`peft_config` is a {name}: it learns virtual tokens, which shift the positions that "
            "the drift compares. Use LoRA or full fine-tuning."
        )
    kind = str(getattr(config, "peft_type", "")).rpartition(".")[2]
    if kind in _UNFIT:
        raise InputError(
            f"`peft_config` is a {name}: {_UNFIT[kind]}. Use LoRA or full fine-tuning."
        )
    if reference_given:
        return
    init = getattr(config, "init_lora_weights", True)
    if isinstance(init, str) and init.lower().startswith(_REWRITES_BASE):
        raise InputError(
            f"init_lora_weights={init!r} rewrites the base weights, so switching the adapter off "
            "is not the reference. Give `reference_model`, or use another initialisation."
        )
    for setting, does in _REBUILDS_BASE.items():
        if getattr(config, setting, None):
            raise InputError(
                f"`{setting}` {does}, so switching the adapter off is not the reference. Give "
                f"`reference_model`, or leave `{setting}` out."
            )
    bias = getattr(config, "bias", "none")
    if bias != "none":
        raise InputError(
            f"bias={bias!r} trains biases of the base, so switching the adapter off is not the "
            "reference. Use bias='none', or give `reference_model`."
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
            "safety logits would be missing. Remove 'lm_head' from `target_modules`."
        )


def trained_base_weight(model: nn.Module) -> str | None:
    """The first weight of the base that is trained beside the adapters; None if none is."""
    base = capture.base_of(model)
    added = _adapter_weights(base)
    trained = (name for name, each in base.named_parameters() if each.requires_grad)
    return next((name for name in trained if name not in added), None)


def check_same_base(
    model: nn.Module, ids: Int64[Tensor, " safety"], before: "capture.Probe | None"
) -> None:
    """Refuse an adapter that changed the base it was put around.

    Args:
        model: The model with its adapters.
        ids: Safety tokens.
        before: What `capture.probe` said of the model before; None where nobody knows.

    Raises:
        InputError: If the model without its adapters says something else.
    """
    if before is None:
        return
    with aligned(model):
        now = capture.probe(model, ids)
    if now is None:
        return
    moved = (now.logits - before.logits).abs().max().item()
    if not moved <= max(before.allowed, now.allowed):
        raise InputError(
            "`peft_config` changes the base weights themselves: with the adapter off a safety "
            f"logit differs by {moved:.3g} from the model as it was given, so that is not the "
            "reference. Give `reference_model`, or use another kind of adapter."
        )


def adapter_layers(model: nn.Module) -> list[Any]:
    """The modules of a model that have an adapter to switch off, of PEFT or of transformers."""
    return [module for module in model.modules() if hasattr(module, "_disable_adapters")]


def is_adapted(model: nn.Module) -> bool:
    """Whether a model has adapters, of PEFT or of transformers."""
    return bool(adapter_layers(model)) or bool(getattr(model, "peft_config", None))


def frozen_beneath(model: nn.Module) -> tuple[str, ...]:
    """The active adapters that do not train, where others do: part of the aligned model."""
    active: set[str] = set()
    for layer in adapter_layers(model):
        active |= set(getattr(layer, "active_adapters", ()))
    paths = [name.split(".") for name, each in model.named_parameters() if each.requires_grad]
    trained = {name for name in active if any(name in path for path in paths)}
    return tuple(sorted(active - trained)) if trained else ()


@contextlib.contextmanager
def adapters_off(layers: list[Any], kept: Collection[str] = ()) -> Iterator[None]:
    """Switch adapters off for a while, all but those in `kept`, and leave the rest as it was.

    PEFT's own `disable_adapter()` switches `requires_grad` on for weights that the user had frozen,
    and inspects the whole model at each call. Here only what each layer reads is flipped.
    """
    names = ("_disable_adapters", "_active_adapter")
    # vars(): the wrapper of `modules_to_save` forwards unknown names to what it wraps.
    before = [
        {name: vars(layer)[name] for name in names if name in vars(layer)} for layer in layers
    ]
    for layer in layers:
        if beneath := [name for name in getattr(layer, "active_adapters", ()) if name in kept]:
            layer._active_adapter = beneath
        else:
            layer._disable_adapters = True
    try:
        yield
    finally:
        for layer, found in zip(layers, before, strict=True):
            for name in names:
                vars(layer).pop(name, None)
            vars(layer).update(found)


@contextlib.contextmanager
def aligned(model: Any, second: Any = None) -> Iterator[Any]:
    """The aligned model for a while: `second`, or the model with its trained adapters off."""
    if second is not None:
        yield second
        return
    layers = adapter_layers(model)
    with adapters_off(layers, frozen_beneath(model) if layers else ()):
        yield model


def weights_fingerprint(model: nn.Module, kept: Collection[str] = ()) -> str:
    """SHA-256 of the weights of the aligned model: those of `model` without its adapters.

    The same for a model and for that model with any adapter around it. Reads every weight once:
    seconds per ten gigabytes.

    Args:
        model: A model, with or without adapters.
        kept: Names of adapters that are part of the aligned model.
    """
    digest = hashlib.sha256()
    base = capture.base_of(model)
    configs = getattr(model, "peft_config", {})
    for name in sorted(kept):
        settings = configs[name].to_dict() if name in configs else {}
        digest.update(json.dumps([name, settings], sort_keys=True, default=str).encode())
    left_out = {
        name for name in _adapter_weights(base) if not set(kept).intersection(name.split("."))
    }
    weights = {
        ".".join(word for word in name.split(".") if word not in _WRAPPED): tensor
        for name, tensor in base.state_dict().items()
        if name not in left_out
    }
    for name, tensor in sorted(weights.items()):
        tensor = tensor.detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)};".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _adapter_weights(base: nn.Module) -> set[str]:
    """The names of the weights that adapters added."""
    return {
        f"{prefix}.{name}"
        for prefix, module in base.named_modules()
        if hasattr(module, "_disable_adapters")
        for name in module.state_dict()
        if name.partition(".")[0] not in _WRAPPED
    }
