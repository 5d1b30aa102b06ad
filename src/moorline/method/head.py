"""The output head: from last hidden states to logits, of the safety tokens alone, and its shards.

Axis names, used in every signature of this module:
    hidden     width of the last hidden state
    position   response positions that count, of all rows of the batch in order
    vocabulary rows of the head
    safety     vocabulary entries listed in a `SafetyTokens`
"""

import contextlib
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ..errors import InputError

# 128 MiB of float32 logits at a time, and as much again in the backward pass.
_CHUNK_ELEMENTS = 1 << 25
# 16 MiB of float32 hidden states at a time.
_CHUNK_HIDDEN = 1 << 22


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
    are never in memory together. What ZeRO-3 keeps in shards is gathered in both.

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
        with gathered(weight, bias), torch.autocast(chunk.device.type, enabled=False):
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


def check_whole(model: nn.Module) -> None:
    """Refuse a model that DeepSpeed partitioned as it was loaded: nothing can be read from it.

    Raises:
        InputError: If so.
    """
    if any(hasattr(each, "ds_id") and each.numel() == 0 for each in model.parameters()):
        raise InputError(
            "The model is in shards before training begins (ZeRO-3 with `zero3_init_flag`), so "
            "there is no whole model to mine from and to compare with. Set `zero3_init_flag: "
            "false`."
        )


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


@contextlib.contextmanager
def whole(head: Any) -> Iterator[tuple[Tensor, Tensor | None]]:
    """The head's parameters in one piece, where FSDP2, tensor parallelism or ZeRO-3 shard them.

    A head that is an FSDP2 unit of its own is gathered as its own forward would gather it: then its
    gradient is summed over the processes after the backward pass, and a host with a fused head
    finds it whole. `full_tensor()` would take the gradient for the same on each process, which it
    is under tensor parallelism only.
    """
    with unsharded(head):
        weight, bias = head.weight, getattr(head, "bias", None)
        if hasattr(weight, "full_tensor"):
            weight, bias = weight.full_tensor(), None if bias is None else bias.full_tensor()
        with gathered(weight, bias):
            yield weight, bias


@contextlib.contextmanager
def unsharded(head: Any) -> Iterator[None]:
    """What FSDP2 shards of a head is whole for a while, with a gradient until it is computed."""
    units = units_of(head)
    for unit in units:
        unit.unshard()
    try:
        yield
    finally:
        if not torch.is_grad_enabled():  # else the backward pass does it
            for unit in units:
                unit.reshard()


def units_of(module: Any) -> list[Any]:
    """The modules within a module that FSDP2 shards as units of their own."""
    if not torch.distributed.is_available() or not torch.distributed.is_initialized():
        return []
    from torch.distributed.fsdp import FSDPModule

    return [each for each in module.modules() if isinstance(each, FSDPModule)]


@contextlib.contextmanager
def gathered(weight: Tensor, bias: Tensor | None) -> Iterator[None]:
    """What ZeRO-3 keeps in shards is whole for a while; what is whole already stays so after."""
    # Gathering an AVAILABLE parameter (a tied head in use) would shard it again on the way out.
    parts = [
        each
        for each in (weight, bias)
        if hasattr(each, "ds_id") and each.ds_status.name != "AVAILABLE"  # pyright: ignore
    ]
    if not parts:
        yield
        return
    import deepspeed  # pyright: ignore[reportMissingImports]

    with deepspeed.zero.GatheredParameters(parts):
        yield
