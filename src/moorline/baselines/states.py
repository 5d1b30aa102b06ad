"""Last hidden states of the model in training and of the aligned one, and full logits in chunks.

Never through `outputs.logits`: hosts with a fused head build none.

Axis names, used in every signature of this module:
    batch      sequences in the batch
    time       positions of a sequence
    hidden     width of the last hidden state
    position   response positions of the batch, of all rows in order
    vocabulary rows of the head
"""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ..chat.chat_model import evaluating
from ..errors import InputError
from ..method import adapters
from ..method.capture import REPLACED, backbone_arguments, probe
from ..method.head import Processing, base_of, head_of, processing_of, project
from ..method.reference import build_reference

# 64 MiB of float32 logits at a time, of the model and of the aligned one.
_CHUNK_ELEMENTS = 1 << 24


class States(NamedTuple):
    """Last hidden states at some positions, with the head that reads them."""

    hidden: Float[Tensor, "position hidden"]
    weight: Float[Tensor, "vocabulary hidden"]
    bias: Float[Tensor, " vocabulary"] | None
    processing: Processing

    def logits(self) -> Float[Tensor, "position vocabulary"]:
        """All logits, in float32 outside autocast; the product in the head's own dtype."""
        dtype = torch.promote_types(self.weight.dtype, torch.float32)
        with torch.autocast(self.hidden.device.type, enabled=False):
            logits = (self.hidden.to(self.weight.dtype) @ self.weight.T).to(dtype)
            logits = logits if self.bias is None else logits + self.bias
            logits = logits * self.processing.scale
            cap = self.processing.softcap
            return logits if cap is None else cap * torch.tanh(logits / cap)

    def logits_of(self, ids: Int64[Tensor, " token"]) -> Float[Tensor, "position token"]:
        """The logits of a few tokens, in float32."""
        return project(self.hidden, self.weight, self.bias, ids, self.processing)


def in_chunks(
    function: Callable[..., Tensor], trained: States, aligned: States, *columns: Tensor
) -> Float[Tensor, " position"]:
    """A function of both full logits at each position, some positions at a time.

    It is computed again in the backward pass, so that the logits of all positions are never in
    memory together.

    Args:
        function: From logits, logits of the aligned model, and `columns`, of some positions, to one
            number for each.
        trained: Of the model in training.
        aligned: Of the aligned model.
        *columns: More values with one entry per position.
    """

    def some(hidden: Tensor, hidden0: Tensor, *more: Tensor) -> Tensor:
        with torch.no_grad():
            z0 = aligned._replace(hidden=hidden0).logits()
        return function(trained._replace(hidden=hidden).logits(), z0, *more)

    size = max(1, _CHUNK_ELEMENTS // trained.weight.shape[0])
    parts = zip(
        *(each.split(size) for each in (trained.hidden, aligned.hidden, *columns)), strict=True
    )
    if not torch.is_grad_enabled():
        return torch.cat([some(*part) for part in parts])
    return torch.cat(
        [checkpoint(some, *part, use_reentrant=False, preserve_rng_state=False) for part in parts]  # pyright: ignore
    )


class Reader:
    """Reads last hidden states from the model in training and from the aligned model.

    The aligned model is the model with its adapters off, or a frozen copy made now, or the one
    given. Both are read in evaluation mode but for the host's own call, so a fresh adapter with
    dropout agrees with the aligned model exactly.

    Args:
        model: The model in training, with its adapters, not yet wrapped.
        reference_model: The aligned model where it is another one, or its path or hub id.
        autocast: The host's precision.
        keep: Whether the aligned model is read in training too, and not only before it. Full
            fine-tuning then keeps a frozen copy.

    Raises:
        InputError: If an adapter is on the head, the adapters do not leave the aligned model as it
            was, or hidden states and head do not give the model's own logits.
    """

    def __init__(
        self,
        model: nn.Module,
        reference_model: nn.Module | str | None = None,
        autocast: Callable[[], Any] = contextlib.nullcontext,
        *,
        keep: bool = True,
    ) -> None:
        self.model, self.autocast = model, autocast
        self.base: Any = base_of(model)
        adapters.check_head(model)
        self.reference = None
        if reference_model is not None or (keep and not adapters.is_adapted(model)):
            self.reference = build_reference("frozen_copy", model, reference_model)
        elif adapters.is_adapted(model):
            self.reference = build_reference("adapter_off", model)
        self._layers = adapters.adapter_layers(model)
        self._kept = adapters.frozen_beneath(model)
        self._check()

    def _check(self) -> None:
        """Whether head times last hidden state is what the model itself says."""
        ids = torch.arange(head_of(self.model).weight.shape[0])
        own = probe(self.model, ids)
        if own is None:
            return
        tokens = (torch.arange(len(own.logits)) * 7 + 3) % len(ids)  # those of the probe
        inputs = {"input_ids": tokens[None].to(self.base.get_input_embeddings().weight.device)}
        with torch.no_grad(), evaluating(self.model):
            hidden = self.base.base_model(**inputs, use_cache=False).last_hidden_state
            found = self.states(hidden, torch.ones_like(inputs["input_ids"]).bool()).logits()
        worst = (found.float().cpu() - own.logits).abs().max().item()
        if not worst <= own.allowed:
            raise InputError(
                f"The architecture {type(self.base).__name__} cannot be compared: its head gives "
                f"logits that differ from the model's own by {worst:.3g} (allowed: "
                f"{own.allowed:.1g})."
            )

    def states(
        self, hidden: Float[Tensor, "batch time hidden"], mask: Bool[Tensor, "batch time"]
    ) -> States:
        """The states of the model in training at `mask`, of its last hidden states."""
        return _states(self.base, hidden, mask)

    def hidden(self, inputs: Mapping[str, Any]) -> Float[Tensor, "batch time hidden"]:
        """Last hidden states of the model in training, with gradient, without dropout."""
        with evaluating(self.model), self.autocast():
            return self.base.base_model(**inputs, use_cache=False).last_hidden_state

    def aligned(self, inputs: Mapping[str, Any], mask: Bool[Tensor, "batch time"]) -> States:
        """The states of the aligned model at `mask`, without gradient."""
        inputs = backbone_arguments(inputs)
        inputs = {name: each for name, each in inputs.items() if not name.startswith("safety_")}
        second = None if self.reference is None else self.reference.model
        base: Any = self.base if second is None else base_of(second)
        with torch.no_grad(), evaluating(base), self.autocast(), self._off():
            hidden = base.base_model(**{**inputs, "use_cache": False}).last_hidden_state
            return _states(base, hidden, mask)

    def check_beneath(self, name: str) -> None:
        """Refuse an adapter on a model that is not the aligned one.

        Raises:
            InputError: If a reference model was given and adapters train.
        """
        given = self.reference is not None and self.reference.model is not None
        if given and adapters.is_adapted(self.model):
            raise InputError(
                f"`method` {name!r} goes back towards the model beneath the adapter, but the "
                "aligned model is another one here. Put the adapter on the aligned model."
            )

    @contextlib.contextmanager
    def _off(self) -> Iterator[None]:
        if self.reference is not None and self.reference.model is not None:
            yield
            return
        with adapters.adapters_off(self._layers, self._kept):
            yield

    @contextlib.contextmanager
    def recorded(self, model: nn.Module) -> Iterator[dict[str, Any]]:
        """Note the arguments and the last hidden states of the host's call of the model.

        Args:
            model: The model as the host calls it, wrapped or not.

        Yields:
            `inputs` and `hidden`, there once the block is left.

        Raises:
            InputError: If no such call could be recorded.
        """
        found: dict[str, Any] = {}

        def begins(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            if not kwargs.get("safety_only"):  # a pass of the reference, of STR beside us
                found.clear()
                found["inputs"] = dict(kwargs)

        def from_backbone(_module: nn.Module, _args: Any, output: Any) -> None:
            if "head" not in found and hasattr(output, "last_hidden_state"):
                found["hidden"] = output.last_hidden_state

        def into_head(_module: nn.Module, args: tuple[Tensor, ...]) -> None:
            found["hidden"] = found["head"] = args[0]

        hooks = [
            model.register_forward_pre_hook(begins, with_kwargs=True),
            self.base.base_model.register_forward_hook(from_backbone),
            self.base.get_output_embeddings().register_forward_pre_hook(into_head),
        ]
        try:
            yield found
        finally:
            for hook in hooks:
                hook.remove()
        if "hidden" not in found or "inputs" not in found:
            raise InputError(REPLACED)


def _states(base: Any, hidden: Tensor, mask: Tensor) -> States:
    head = base.get_output_embeddings()
    chosen = hidden.to(head.weight.device)[mask.to(head.weight.device)]
    bias = getattr(head, "bias", None)
    return States(chosen, head.weight, bias, processing_of(base.config))
