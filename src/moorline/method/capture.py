"""Safety logits from a model: the last hidden state times the rows of the head that matter.

Never through `outputs.logits`: hosts with a fused head build none, or build them without gradient,
and a penalty on those trains nothing. The captured logits leave the model as a field of its output,
so that wrappers which hook what a forward returns (DDP, FSDP) see them.

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
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers.utils import ModelOutput

from ..errors import InputError

_log = logging.getLogger(__name__)

_INSTALLED = "_moorline_capture"
# 128 MiB of float32 logits at a time, and as much again in the backward pass.
_CHUNK_ELEMENTS = 1 << 25
# 16 MiB of float32 hidden states at a time.
_CHUNK_HIDDEN = 1 << 22
_NOT_FOR_BACKBONE = ("labels", "shift_labels", "num_items_in_batch", "fused_lm_head")


@dataclasses.dataclass
class SafetyOutput(ModelOutput):
    """What a model returns when only its safety logits are asked for."""

    safety_logits: Any = None  # a tensor; accelerate rebuilds outputs from a dict of their fields
    """Logits or log-probabilities. Shape `(position, safety)`, float32 (float64 for a float64
    model)."""


class Processing(NamedTuple):
    """What an architecture does to its logits after the head."""

    scale: float
    softcap: float | None


def processing_of(config: Any) -> Processing:
    """Scale and soft-cap of the logits, read from a model's configuration.

    The names differ between architectures: `logit_scale` (Cohere), `output_multiplier`,
    `lm_head_multiplier` (Falcon-H1), `logits_scaling` (a divisor in Granite, a factor in HyperCLOVA
    X), `final_logit_softcapping` (Gemma 2), `logits_soft_cap` (RecurrentGemma).

    Source:
        The rule of `add_fused_lm_head` in trl 1.16.0, `trl/trainer/utils.py`, and RecurrentGemma's
        name beside it. What the rule misses is caught by `check_capture`.
    """
    text = config.get_text_config()
    scale = None
    for name in ("logit_scale", "output_multiplier", "lm_head_multiplier"):
        scale = getattr(text, name, None) if scale is None else scale
    if scale is None and (divisor := getattr(text, "logits_scaling", None)) is not None:
        scale = divisor if text.model_type == "hyperclovax" else 1 / divisor
    softcap = getattr(text, "final_logit_softcapping", None)
    if softcap is None:
        softcap = getattr(text, "logits_soft_cap", None)
    return Processing(1.0 if scale is None else float(scale), softcap or None)


def project(
    hidden: Float[Tensor, "position hidden"],
    weight: Float[Tensor, "vocabulary hidden"],
    bias: Float[Tensor, " vocabulary"] | None,
    ids: Int64[Tensor, " safety"],
    processing: Processing,
    *,
    beside_loss: bool = False,
) -> Float[Tensor, "position safety"]:
    """Safety logits from hidden states, in float32 outside autocast.

        z = softcap(scale * (h W[S]^T + b[S])),  softcap(z) = c tanh(z / c)

    Args:
        hidden: Last hidden states after the final norm, at the positions that count.
        weight: The head's weight; only the rows in `ids` are read.
        bias: The head's bias, or None.
        ids: Safety tokens.
        processing: Scale and soft-cap of the architecture.
        beside_loss: Whether the head has a gradient from a loss in the same graph too. That of
            these rows is then sparse and added into the other in place; otherwise it is a matrix of
            the head's size that is zero but for these rows, as optimizers expect it.

    Returns:
        z as sampling sees it, before temperature. Shape `(position, safety)`.
    """
    dtype = torch.promote_types(hidden.dtype, torch.float32)
    with torch.autocast(hidden.device.type, enabled=False):
        rows = _rows(weight, ids, sparse=beside_loss).to(dtype).T
        # Some positions at a time: a float32 copy of all hidden states is twice what they take.
        size = max(1, _CHUNK_HIDDEN // hidden.shape[1])
        logits = torch.cat([chunk.to(dtype) @ rows for chunk in hidden.split(size)])
        if bias is not None:
            logits = logits + bias[ids].to(dtype)
        return _processed(logits, processing)


def _rows(weight: Tensor, ids: Tensor, *, sparse: bool) -> Tensor:
    # What FSDP 2 gathers is no leaf, and cannot hand a sparse gradient on.
    trained = weight.is_leaf and weight.requires_grad and torch.is_grad_enabled()
    if sparse and trained and not torch.compiler.is_compiling():
        return nn.functional.embedding(ids, weight, sparse=True)
    return weight[ids]


def log_normaliser(
    hidden: Float[Tensor, "position hidden"],
    weight: Float[Tensor, "vocabulary hidden"],
    bias: Float[Tensor, " vocabulary"] | None,
    processing: Processing,
) -> Float[Tensor, " position"]:
    """Logarithm of the sum over the vocabulary of exp(z), in float32.

    Some positions at a time, and again in the backward pass, so that the logits of all positions
    are never in memory together.

    Args:
        hidden: Last hidden states after the final norm, at the positions that count.
        weight: The head's weight.
        bias: The head's bias, or None.
        processing: Scale and soft-cap of the architecture.

    Returns:
        One number per position, in nats.
    """

    def some(chunk: Tensor) -> Tensor:
        # The product in the head's own dtype: a float32 copy of the head would cost gigabytes.
        with torch.autocast(chunk.device.type, enabled=False):
            logits = chunk.to(weight.dtype) @ weight.T
            logits = logits.to(torch.promote_types(weight.dtype, torch.float32))
            logits = logits if bias is None else logits + bias
            return _processed(logits, processing).logsumexp(dim=-1)

    size = max(1, _CHUNK_ELEMENTS // weight.shape[0])
    if not torch.is_grad_enabled():
        return torch.cat([some(chunk) for chunk in hidden.split(size)])
    return torch.cat([checkpoint(some, chunk, use_reentrant=False) for chunk in hidden.split(size)])


def _processed(logits: Tensor, processing: Processing) -> Tensor:
    logits = logits * processing.scale
    if processing.softcap is None:
        return logits
    return processing.softcap * torch.tanh(logits / processing.softcap)


def base_of(model: Any) -> Any:
    """The causal language model inside an adapter wrapper, or the model itself."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def head_of(model: nn.Module) -> Any:
    """The module that turns hidden states into logits.

    Raises:
        InputError: If the model has none, so that it is no causal language model.
    """
    head = base_of(model).get_output_embeddings()
    if head is None or getattr(head, "weight", None) is None:
        raise InputError(
            f"{type(base_of(model)).__name__} has no output head with a weight, so it has no "
            "safety logits. Load it as a causal language model (`AutoModelForCausalLM`)."
        )
    return head


def install(model: nn.Module, ids: Int64[Tensor, " safety"], *, normalised: bool = False) -> None:
    """Teach a model to return its safety logits; changes `model.forward`, once.

    Afterwards `model(..., safety_positions=mask)` runs as before and returns the same output with
    one more field, `safety_logits`; `model(..., safety_positions=mask, safety_only=True)` runs the
    backbone alone, without the vocabulary-sized projection, and returns a `SafetyOutput`. Calls
    without these arguments are untouched, so generation is.

    The gradient of a trained head from `safety_logits` is sparse, to be added into that of the loss
    of the same call; on its own it is not what most optimizers take.

    Install after the host has patched the model's forward, and before it is wrapped for several
    devices.

    Args:
        model: A causal language model of transformers, with or without a PEFT wrapper.
        ids: Safety tokens; replaced by a second call.
        normalised: Return log-probabilities over the whole vocabulary rather than logits; costs one
            projection to the vocabulary at the positions that count. Replaced by a second call.
    """
    base = base_of(model)
    installed = getattr(base, _INSTALLED, None)
    if installed is not None and installed["forward"] is base.__dict__.get("forward"):
        installed.update(ids=ids, normalised=normalised)
        return
    inner = base.forward
    state: dict[str, Any] = {"ids": ids, "normalised": normalised}
    processing = processing_of(base.config)

    # The signature stays that of the class: `generate` and the trainers inspect it.
    @functools.wraps(type(base).forward)
    def forward(
        self: Any,
        *args: Any,
        safety_positions: Tensor | None = None,
        safety_only: bool = False,
        **kwargs: Any,
    ) -> Any:
        if safety_positions is None:
            return inner(*args, **kwargs)
        output: Any
        if safety_only:
            for name in _NOT_FOR_BACKBONE:
                kwargs.pop(name, None)
            kwargs["use_cache"] = False
            hidden, output = self.base_model(*args, **kwargs).last_hidden_state, None
        else:
            with _last_hidden_state(self) as seen:
                output = inner(*args, **kwargs)
            hidden = seen["hidden"]
        head = self.get_output_embeddings()
        hidden = hidden.to(head.weight.device)
        with _whole(head.weight, getattr(head, "bias", None)) as (weight, bias):
            hidden = hidden[safety_positions.to(hidden.device)]
            logits = project(
                hidden, weight, bias, state["ids"].to(hidden.device), processing,
                beside_loss=not safety_only,
            )  # fmt: skip
            if state["normalised"]:
                logits = logits - log_normaliser(hidden, weight, bias, processing)[:, None]
        return SafetyOutput(logits) if output is None else _extended(output, logits)

    base.forward = types.MethodType(forward, base)
    state["forward"] = base.forward
    setattr(base, _INSTALLED, state)


@contextlib.contextmanager
def _last_hidden_state(base: Any) -> Iterator[dict[str, Tensor]]:
    """What enters the head while the model runs, or what leaves the backbone if none is called."""
    seen: dict[str, Tensor] = {}

    def from_backbone(_module: nn.Module, _args: Any, output: Any) -> None:
        # Where the head is called, what enters it is the better witness: some architectures
        # transform the backbone's output first, or call a part of the backbone only.
        if "head" not in seen and hasattr(output, "last_hidden_state"):
            seen["hidden"] = output.last_hidden_state

    def into_head(_module: nn.Module, args: tuple[Tensor, ...]) -> None:
        seen["hidden"] = seen["head"] = args[0]

    hooks = [base.get_output_embeddings().register_forward_pre_hook(into_head)]
    if base.base_model is not base:
        hooks.append(base.base_model.register_forward_hook(from_backbone))
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()
    if "hidden" not in seen:
        raise InputError(_unsupported(base, "its forward calls neither its backbone nor its head"))


@contextlib.contextmanager
def _whole(weight: Tensor, bias: Tensor | None) -> Iterator[tuple[Tensor, Tensor | None]]:
    """The head's parameters in one piece, where FSDP2 or DeepSpeed keep them in shards."""
    if hasattr(weight, "full_tensor"):
        yield weight.full_tensor(), None if bias is None else bias.full_tensor()
    elif hasattr(weight, "ds_id"):
        import deepspeed  # pyright: ignore[reportMissingImports]

        with deepspeed.zero.GatheredParameters([weight] if bias is None else [weight, bias]):
            yield weight, bias
    else:
        yield weight, bias


@functools.cache
def _extended_type(output_type: type) -> type:
    """An output type with one more field: a real one, which survives pytrees and accelerate."""
    extra = ("safety_logits", Tensor | None, dataclasses.field(default=None))
    return dataclasses.make_dataclass(
        f"Safety{output_type.__name__}", [extra], bases=(output_type,)
    )


def _extended(output: Any, logits: Tensor) -> ModelOutput:
    values = {each.name: getattr(output, each.name) for each in dataclasses.fields(output)}
    return _extended_type(type(output))(**values, safety_logits=logits)


def _unsupported(base: nn.Module, why: str) -> str:
    config = getattr(base, "config", None)
    name = getattr(config, "model_type", "?")
    return (
        f"The architecture {type(base).__name__} (model_type {name!r}) cannot be held: {why}. "
        "Training would be unprotected, so it is refused; please report the architecture."
    )


def check_capture(model: nn.Module, ids: Int64[Tensor, " safety"]) -> float:
    """Compare both routes to the safety logits with the model's own logits, on a short probe.

    This stands for a list of architectures: whatever a model does between hidden state and logits
    that `project` does not know shows as a difference.

    Args:
        model: A model on which `install` was called.
        ids: The same safety tokens.

    Returns:
        The largest difference, in logits; NaN where the weights are not in memory (meta device or
        partitioned), and then nothing was checked.

    Raises:
        InputError: If a route differs from the model's own logits by more than rounding; names the
            architecture.
    """
    base = base_of(model)
    weight = head_of(model).weight
    if weight.is_meta or weight.numel() == 0:
        _log.warning("The weights are not in memory yet, so the capture probe was skipped.")
        return float("nan")
    device = base.get_input_embeddings().weight.device
    tokens = (torch.arange(8, device=device) * 7 + 3) % weight.shape[0]
    inputs = {"input_ids": tokens[None], "attention_mask": torch.ones_like(tokens)[None]}
    positions = torch.ones_like(tokens, dtype=torch.bool)[None]
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.no_grad():
            own = base(**inputs, use_cache=False).logits[0].float()
            if vars(base)[_INSTALLED]["normalised"]:
                own = own.log_softmax(dim=-1)
            own = own[:, ids.to(weight.device)]
            routes = {
                "training": base(**inputs, use_cache=False, safety_positions=positions),
                "reference": base(**inputs, safety_positions=positions, safety_only=True),
            }
    except InputError:
        raise
    except Exception as error:
        raise InputError(_unsupported(base, f"the probe fails with {error!r}")) from error
    finally:
        for module, training in modes:
            module.training = training
    # The model's own logits are rounded to its dtype at each of a few steps; 8 of them are ample.
    epsilon = torch.finfo(weight.dtype).eps if weight.dtype.is_floating_point else 2**-8
    allowed = 8 * max(epsilon, 2**-17) * max(1.0, own.abs().max().item())
    worst = 0.0
    for route, output in routes.items():
        difference = (output.safety_logits.float() - own).abs().max().item()
        if not difference <= allowed:
            why = (
                f"the {route} pass gives safety logits that differ from the model's own by "
                f"{difference:.3g} (allowed: {allowed:.1g})"
            )
            raise InputError(_unsupported(base, why))
        worst = max(worst, difference)
    return worst
