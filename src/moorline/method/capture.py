"""Safety logits from a model: the last hidden state times the rows of the head that matter.

Never through `outputs.logits`: hosts with a fused head build none, or build them without gradient,
and a penalty on those trains nothing. What carries a gradient leaves the model as a field of its
output, so that wrappers which hook what a forward returns (DDP, FSDP) see it; what carries none
goes in and out through an `Exchange`, which wrappers do not round.

Axis names, used in every signature of this module:
    batch      sequences in the batch
    time       positions of a sequence
    hidden     width of the last hidden state
    position   response positions that count, of all rows of the batch in order
    safety     vocabulary entries listed in a `SafetyTokens`
"""

import contextlib
import dataclasses
import functools
import logging
import types
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn
from transformers.utils import ModelOutput

from ..chat.chat_model import evaluating
from ..errors import InputError
from .exchange import Exchange, SafetyOutput
from .head import (
    base_of,
    head_of,
    log_normaliser,
    processing_of,
    project,
    units_of,
    unsharded,
    whole,
)
from .penalty import difference

_log = logging.getLogger(__name__)

_INSTALLED = "_moorline_capture"
_NOT_FOR_BACKBONE = (
    "labels", "shift_labels", "num_items_in_batch", "fused_lm_head", "logits_to_keep",
    "num_logits_to_keep",
)  # fmt: skip
_PROBE_LENGTH = 8

REPLACED = (
    "The host's loss did not come from a call of the model that could be recorded, so the safety "
    "logits are missing and training would be unprotected. Something replaced the model's forward "
    "afterwards (a fused-loss kernel?), or the loss does not call the model: switch that off."
)
"""What is wrong where no safety logits come out of a forward pass."""


def install(model: nn.Module, ids: Int64[Tensor, " safety"], *, normalised: bool = False) -> bool:
    """Teach a model to return its safety logits; changes `model.forward`, once.

    Afterwards `model(..., safety_positions=mask)` runs as before and returns the same output with
    one more field, `safety_logits`; `model(..., safety_positions=mask, safety_only=True)` runs the
    backbone alone, without the vocabulary-sized projection, and returns a `SafetyOutput`. With
    `safety_exchange=Exchange(z0)` the field is `safety_difference`, z - z0. Calls without these
    arguments are untouched, so generation is.

    The gradient of a trained head from the field is sparse, to be added into that of the loss of
    the same call; on its own it is not what most optimizers take.

    Install after the host has patched the model's forward, and before it is wrapped for several
    devices.

    Args:
        model: A causal language model of transformers, with or without a PEFT wrapper.
        ids: Safety tokens; replaced by a second call.
        normalised: Return log-probabilities over the whole vocabulary rather than logits; costs one
            projection to the vocabulary at the positions that count. Replaced by a second call.

    Returns:
        Whether `model.forward` was changed: False where it had been taught before and still is.
    """
    base = base_of(model)
    state = getattr(base, _INSTALLED, None)
    if state is not None and is_installed(model):
        state.update(ids=ids, normalised=normalised)
        return False
    inner = base.forward
    patched = "forward" in base.__dict__
    found = {"ids": ids, "normalised": normalised, "processing": processing_of(base.config)}
    found["patched"] = patched
    state = (state or {}) | found

    # The signature stays that of the class: `generate` and the trainers inspect it.
    @functools.wraps(type(base).forward)
    def forward(
        self: Any,
        *args: Any,
        safety_positions: Tensor | None = None,
        safety_only: bool = False,
        safety_exchange: Exchange | None = None,
        **kwargs: Any,
    ) -> Any:
        if safety_positions is None:
            return inner(*args, **kwargs)
        output: Any = None
        if safety_only:
            arguments = {**backbone_arguments(kwargs), "use_cache": False}
            hidden = self.base_model(*args, **arguments).last_hidden_state
        else:
            # Before the host's own loss: a fused one reads a head in shards by itself, and wrongly.
            with unsharded(self.get_output_embeddings()), _last_hidden_state(self) as found:
                output = inner(*args, **kwargs)
            hidden = found["hidden"]
        values = _safety_values(self, hidden, safety_positions, state, safety_exchange, output)
        name = "safety_logits"
        if safety_exchange is not None and safety_exchange.reference is not None:
            name = "safety_difference"
            values = difference(values, safety_exchange.reference.to(values.device))
        elif safety_exchange is not None:
            safety_exchange.values = values
        return SafetyOutput(values) if output is None else _extended(output, name, values)

    base.forward = types.MethodType(forward, base)
    state["forward"] = forward
    setattr(base, _INSTALLED, state)
    return True


def mark_trained(model: nn.Module) -> None:
    """Note on a model that it was trained, so that nobody takes it for the aligned one later."""
    vars(base_of(model))[_INSTALLED]["trained"] = True


def warn_if_trained(model: nn.Module) -> None:
    """Say that a model which was trained here before is about to become its own reference."""
    if vars(base_of(model)).get(_INSTALLED, {}).get("trained"):
        _log.warning(
            "This model was fully trained under the method before, and the reference is now the "
            "model as that left it, not the aligned one. Give the aligned model as "
            "`reference_model`."
        )


def check_replaceable(model: nn.Module) -> None:
    """Refuse a forward that was replaced since `install`, and with it a patch of the host's.

    Raises:
        InputError: If so; a forward that replaced ours alone can be taught again.
    """
    if not is_installed(model) and vars(base_of(model))[_INSTALLED]["patched"]:
        raise InputError(REPLACED)


def is_installed(model: nn.Module) -> bool:
    """Whether the forward of a model is still ours, or a wrapper around it as accelerate's is."""
    base = base_of(model)
    forward, ours = base.__dict__.get("forward"), vars(base)[_INSTALLED]["forward"]
    while forward is not None:
        forward = getattr(forward, "__func__", forward)
        if forward is ours:
            return True
        forward = getattr(forward, "__wrapped__", None)
    return False


def _safety_values(
    base: Any,
    hidden: Tensor,
    positions: Tensor,
    state: Mapping[str, Any],
    exchange: Exchange | None,
    output: Any,
) -> Tensor:
    """Z at some positions of the last hidden states. Shape `(position, safety)`."""
    head, processing = base.get_output_embeddings(), state["processing"]
    hidden = hidden.to(head.weight.device)
    positions = positions.to(hidden.device)
    with whole(head) as (weight, bias):
        chosen = hidden[positions]
        if exchange is not None and exchange.gradients is not None and chosen.requires_grad:
            exchange.gradients.attach(hidden, chosen, positions)
        values = project(
            chosen, weight, bias, state["ids"].to(hidden.device), processing,
            beside_loss=output is not None and not units_of(base),  # FSDP2 reduces no sparse one
        )  # fmt: skip
        asked = None if exchange is None else exchange.normalised
        if state["normalised"] if asked is None else asked:
            values = values - log_normaliser(chosen, weight, bias, processing)[:, None]
    return values


def backbone_arguments(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Of what a host passes to a model, what the backbone takes."""
    return {name: each for name, each in arguments.items() if name not in _NOT_FOR_BACKBONE}


def safety_logits(
    model: nn.Module,
    inputs: Mapping[str, Any],
    positions: Bool[Tensor, "batch time"],
    *,
    normalised: bool | None = None,
) -> Float[Tensor, "position safety"]:
    """Z of a model on which `install` was called, from its backbone alone, unrounded.

    With `normalised` log-probabilities or logits, whatever `install` said.

    Raises:
        InputError: If something replaced its forward since.
    """
    exchange = Exchange(normalised=normalised)
    model(**inputs, safety_positions=positions, safety_only=True, safety_exchange=exchange)
    if exchange.values is None:
        raise InputError(REPLACED)
    return exchange.values


@contextlib.contextmanager
def explaining_replaced_forward(model: nn.Module) -> Iterator[None]:
    """Say what it means where something stumbles since the forward of a model was replaced."""
    try:
        yield
    except (TypeError, AttributeError) as error:
        if is_installed(model):
            raise
        raise InputError(REPLACED) from error


def take_difference(output: Any) -> tuple[Any, Tensor | None]:
    """The host's own output, and z - z0 that its forward added to it; None if it is not there."""
    found = getattr(output, "safety_difference", None)
    if found is None:
        return output, None
    own = type(output).__mro__[1]
    return own(**{each.name: getattr(output, each.name) for each in dataclasses.fields(own)}), found


@contextlib.contextmanager
def _last_hidden_state(base: Any) -> Iterator[dict[str, Tensor]]:
    """What enters the head while the model runs, or what leaves the backbone if none is called."""
    found: dict[str, Tensor] = {}

    def from_backbone(_module: nn.Module, _args: Any, output: Any) -> None:
        # Where the head is called, what enters it is the better witness: some architectures
        # transform the backbone's output first, or call a part of the backbone only.
        if "head" not in found and hasattr(output, "last_hidden_state"):
            found["hidden"] = output.last_hidden_state

    def into_head(_module: nn.Module, args: tuple[Tensor, ...]) -> None:
        found["hidden"] = found["head"] = args[0]

    hooks = [base.get_output_embeddings().register_forward_pre_hook(into_head)]
    if base.base_model is not base:
        hooks.append(base.base_model.register_forward_hook(from_backbone))
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()
    if "hidden" not in found:
        raise InputError(_unsupported(base, "its forward calls neither its backbone nor its head"))


@functools.cache
def _extended_type(output_type: type, name: str) -> type:
    """An output type with one more field: a real one, which survives pytrees and accelerate."""
    extra = (name, Tensor | None, dataclasses.field(default=None))
    return dataclasses.make_dataclass(
        f"Safety{output_type.__name__}", [extra], bases=(output_type,)
    )


def _extended(output: Any, name: str, values: Tensor) -> ModelOutput:
    if not dataclasses.is_dataclass(output):
        raise InputError(
            f"The model returned a {type(output).__name__} instead of a ModelOutput, so there is "
            "nowhere to put its safety logits. Leave `return_dict` at True."
        )
    found = {each.name: getattr(output, each.name) for each in dataclasses.fields(output)}
    return _extended_type(type(output), name)(**found, **{name: values})


def _unsupported(base: nn.Module, why: str) -> str:
    config = getattr(base, "config", None)
    name = getattr(config, "model_type", "?")
    return (
        f"The architecture {type(base).__name__} (model_type {name!r}) cannot be held: {why}. "
        "Training would be unprotected, so it is refused; please report the architecture."
    )


class Probe(NamedTuple):
    """What a model itself says on a few tokens, without any capture."""

    logits: Float[Tensor, "position safety"]
    """Its logits of the safety tokens at each of them, in float32 on the CPU."""

    log_probabilities: Float[Tensor, "position safety"]
    """The same over the whole vocabulary."""

    allowed: float
    """By how much rounding may move a logit of this model."""


def probe(
    model: nn.Module, ids: Int64[Tensor, " safety"], length: int = _PROBE_LENGTH
) -> Probe | None:
    """The model's own logits on a short probe; None where its weights are not in memory."""
    weight = head_of(model).weight
    if weight.is_meta or weight.numel() == 0:
        return None
    base = base_of(model)
    with evaluating(model), torch.no_grad():
        logits = base(**_probe_inputs(base, length), use_cache=False).logits[0].float().cpu()
    # The model's own logits are rounded to its dtype at each of a few steps; 8 of them are ample.
    quantised = getattr(base, "is_quantized", False) or not weight.dtype.is_floating_point
    epsilon = 2**-7 if quantised else max(torch.finfo(weight.dtype).eps, 2**-17)
    own = logits[:, ids]
    allowed = 8 * epsilon * max(1.0, own.abs().max().item())
    return Probe(own, logits.log_softmax(dim=-1)[:, ids], allowed)


def _probe_inputs(base: Any, length: int) -> dict[str, Tensor]:
    device = base.get_input_embeddings().weight.device
    tokens = (torch.arange(length, device=device) * 7 + 3) % head_of(base).weight.shape[0]
    return {"input_ids": tokens[None], "attention_mask": torch.ones_like(tokens)[None]}


def check_capture(model: nn.Module, ids: Int64[Tensor, " safety"]) -> float:
    """Compare both routes to the safety logits with the model's own logits, on a short probe.

    This stands for a list of architectures: whatever a model does between hidden state and logits
    that `project` does not know shows as a difference. So does a model that looks ahead: half of
    the probe alone then gives other logits than it does within the whole.

    Args:
        model: A model on which `install` was called.
        ids: The same safety tokens.

    Returns:
        The largest difference, in logits; NaN where the weights are not in memory (meta device or
        partitioned), and then nothing was checked.

    Raises:
        InputError: If a route differs from the model's own logits by more than rounding, or the
            model looks ahead; names the architecture.
    """
    base = base_of(model)
    try:
        full, half = probe(model, ids), probe(model, ids, _PROBE_LENGTH // 2)
        if full is None or half is None:
            _log.warning("The weights are not in memory yet, so the capture probe was skipped.")
            return float("nan")
        with evaluating(model), torch.no_grad():
            inputs = _probe_inputs(base, _PROBE_LENGTH)
            asked = {**inputs, "safety_positions": torch.ones_like(inputs["input_ids"]).bool()}
            routes = {
                "training": base(**asked, use_cache=False),
                "reference": base(**asked, safety_only=True),
            }
    except InputError:
        raise
    except Exception as error:
        raise InputError(_unsupported(base, f"the probe fails with {error!r}")) from error
    if not torch.isfinite(full.log_probabilities).all():
        raise InputError(
            f"{base.config._name_or_path or type(base).__name__}: its logits are NaN or infinite "
            f"on a probe of {_PROBE_LENGTH} tokens, in {base.dtype}. Its weights are damaged, or "
            "need another dtype (bfloat16 or float32): check them, or download the model again."
        )
    ahead = (full.logits[: len(half.logits)] - half.logits).abs().max().item()
    # Sums over another number of rows are rounded in another order.
    if not ahead <= 4 * full.allowed:
        why = f"its logits depend on tokens that come later (by {ahead:.3g}), as in an encoder"
        raise InputError(_unsupported(base, why))
    normalised = vars(base)[_INSTALLED]["normalised"]
    own = full.log_probabilities if normalised else full.logits
    worst = 0.0
    for route, output in routes.items():
        found = (output.safety_logits.float().cpu() - own).abs().max().item()
        if not found <= full.allowed:
            why = (
                f"the {route} pass gives safety logits that differ from the model's own by "
                f"{found:.3g} (allowed: {full.allowed:.1g})"
            )
            raise InputError(_unsupported(base, why))
        worst = max(worst, found)
    return worst
