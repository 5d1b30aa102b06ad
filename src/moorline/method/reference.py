"""Where z0 comes from: the frozen aligned model, in the way that costs least.

adapter off   the model itself with its adapters switched off; no second model in memory, one
              backbone pass without gradient per batch
frozen copy   a second model in memory, the same pass; for full fine-tuning, and for adapters
              that rewrite the base
cached        z0 computed by one of these before training and kept on disk (`cache.py`)
"""

import contextlib
import copy
import hashlib
import logging
import os
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from ..chat.loading import load
from ..errors import InputError, unknown_choice
from . import capture

if TYPE_CHECKING:
    from accelerate import Accelerator

_log = logging.getLogger(__name__)

REFERENCES = ("auto", "adapter_off", "frozen_copy", "cached")
"""The choices of `str_reference`."""

# What PEFT calls the module that it put an adapter around.
_WRAPPED = ("base_layer", "original_module")
_REWRITES_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")


@runtime_checkable
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
        captured = model.__dict__.pop("_moorline_capture", None)
        try:
            return cls(copy.deepcopy(model))
        finally:
            if patched is not None:
                model.__dict__["forward"] = patched
            if captured is not None:
                model.__dict__["_moorline_capture"] = captured

    @classmethod
    def load(cls, reference_model: nn.Module | str, *, like: nn.Module) -> "FrozenCopy":
        """A given model, or one read from a path or hub id in the dtype and attention of `like`."""
        if isinstance(reference_model, nn.Module):
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
                    "str_reference='frozen_copy' does not run under FSDP 1. Set fsdp_version: 2, "
                    "or use a LoRA adapter with str_reference='adapter_off'."
                )
            # Layer by layer as the model: `fully_shard` on the root alone would gather it whole.
            from accelerate.utils.fsdp_utils import fsdp2_prepare_model

            self.model = fsdp2_prepare_model(accelerator, self.model)
        elif kind == "DEEPSPEED":
            self.model = _prepared_by_deepspeed(self.model, accelerator)
        else:
            self.model = accelerator.prepare_model(self.model, evaluation_mode=True)

    def safety_logits(
        self, model: nn.Module, inputs: Mapping[str, Any], positions: Bool[Tensor, "batch time"]
    ) -> Float[Tensor, "position safety"]:
        """z0 at `positions` of the batch, detached."""
        with torch.no_grad():
            output = self.model(**inputs, safety_positions=positions, safety_only=True)
        return output.safety_logits


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


class Work(NamedTuple):
    """What is known of a training before it begins, to choose a reference by."""

    epochs: float
    """How often each row is seen."""

    no_cache: str | None
    """Why z0 cannot be kept on disk; None if it can."""


def decide(kind: str, model: nn.Module, work: Work, *, reference_given: bool = False) -> str:
    """Which reference to take, told in one line where the choice is ours.

    Live costs a pass of the backbone in every step, cached one pass in all; so `auto` caches where
    rows are seen twice or more, and where a copy of the model would crowd the memory.

    Args:
        kind: One of `REFERENCES`.
        model: The model in training, before it is wrapped for several devices.
        work: What is known of the training.
        reference_given: Whether a reference model is given.

    Returns:
        adapter_off, frozen_copy or cached.

    Raises:
        InputError: If `kind` is unknown or cannot be had.
    """
    if kind not in REFERENCES:
        raise unknown_choice("`str_reference`", kind, REFERENCES)
    if kind == "cached" and work.no_cache is not None:
        raise InputError(f"str_reference='cached' is not possible here: {work.no_cache}.")
    if kind != "auto":
        return kind
    needs_copy = reference_given or not _is_adapted(model)
    live = "frozen_copy" if needs_copy else "adapter_off"
    if work.no_cache is not None:
        chosen, why = live, f"no cache: {work.no_cache}"
    elif work.epochs >= 2:
        chosen, why = (
            "cached",
            f"one pass before training instead of one in {work.epochs:.3g} epochs",
        )
    elif needs_copy and (size := _bytes_of(model)) > _free_bytes(model) / 4:
        chosen, why = "cached", f"a frozen copy would take {size / 1e9:.1f} GB of memory"
    elif needs_copy:
        chosen, why = live, "full fine-tuning, each row seen about once, and memory for a copy"
    else:
        chosen, why = live, "the adapter can be switched off, and each row is seen about once"
    _log.info("Reference: %s (%s).", chosen, why)
    return chosen


def live(
    kind: str, model: nn.Module, reference_model: nn.Module | str | None = None
) -> AdapterOff | FrozenCopy:
    """A reference that runs, or the one to fill a cache with.

    Args:
        kind: adapter_off, frozen_copy, or cached; for the last what computes z0 before training:
            the model itself, without its adapters, or the reference model.
        model: The model in training, before it is wrapped for several devices.
        reference_model: A model to take as the reference instead, or its path or hub id; kept in
            memory as a second model.

    Raises:
        InputError: If `kind` does not fit the model.
    """
    for config in getattr(model, "peft_config", {}).values():
        check_adapter(config, reference_given=reference_model is not None)
    if reference_model is not None:
        if kind == "adapter_off":
            raise InputError(
                "str_reference='adapter_off' takes the model itself as the reference, but a "
                "reference model was given too. Leave one of them out."
            )
        return FrozenCopy.load(reference_model, like=model)
    if kind == "cached":
        return AdapterOff(model)
    if kind == "adapter_off":
        if not _is_adapted(model):
            raise InputError(
                "str_reference='adapter_off' needs a PEFT adapter, but this is full fine-tuning. "
                "Use 'frozen_copy' or 'cached', or pass `peft_config`."
            )
        _check_base_is_frozen(model)
        return AdapterOff(model)
    if _is_adapted(model):
        raise InputError(
            "str_reference='frozen_copy' with an adapter needs the aligned model itself: give "
            "`str_reference_model`, or use 'adapter_off'."
        )
    return FrozenCopy.of(model)


def _check_base_is_frozen(model: nn.Module) -> None:
    base = capture.base_of(model)
    added = _adapter_weights(base)
    for name, each in base.named_parameters():
        if each.requires_grad and name not in added:
            raise InputError(
                "str_reference='adapter_off' takes the model without its adapter as the reference, "
                f"but {name} is trained beside the adapter, so that would move along. Freeze it, "
                "list its module in `modules_to_save`, or use 'cached'."
            )


def _is_adapted(model: nn.Module) -> bool:
    return bool(adapter_layers(model)) or bool(getattr(model, "peft_config", None))


def _bytes_of(model: nn.Module) -> int:
    return sum(each.numel() * each.element_size() for each in model.parameters())


def _free_bytes(model: nn.Module) -> int:
    """Memory that is free where the model is."""
    device = next(model.parameters()).device
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    if hasattr(os, "sysconf") and "SC_AVPHYS_PAGES" in os.sysconf_names:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES")
    return 1 << 62  # unknown: a copy is not what it fails on


def weights_fingerprint(model: nn.Module) -> str:
    """SHA-256 of the weights of the aligned model: those of `model` without its adapters.

    The same for a model and for that model with any adapter around it. Reads every weight once:
    seconds per ten gigabytes.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(_base_weights(capture.base_of(model)).items()):
        tensor = tensor.detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)};".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _base_weights(base: nn.Module) -> dict[str, Tensor]:
    """The weights of a model by the names they have without adapters."""
    added = _adapter_weights(base)
    return {
        ".".join(word for word in name.split(".") if word not in _WRAPPED): tensor
        for name, tensor in base.state_dict().items()
        if name not in added
    }


def _adapter_weights(base: nn.Module) -> set[str]:
    """The names of the weights that adapters added."""
    return {
        f"{prefix}.{name}"
        for prefix, module in base.named_modules()
        if hasattr(module, "_disable_adapters")
        for name in module.state_dict()
        if name.partition(".")[0] not in _WRAPPED
    }


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
