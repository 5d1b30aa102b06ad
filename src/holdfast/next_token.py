"""What a model would say next, after token sequences of uneven length, padded on the left."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def padding_of(tokenizer: "PreTrainedTokenizerBase") -> int:
    """The id to pad with: the padding token, or the end of text; masked, so either will do."""
    padding: Any = tokenizer.pad_token_id
    end: Any = tokenizer.eos_token_id
    return end if padding is None else padding


def left_padded(
    rows: Sequence[Sequence[int]], padding: int
) -> tuple[Int64[Tensor, "batch time"], Int64[Tensor, "batch time"]]:
    """Token ids of one batch, padded on the left, and 1 where they are no padding.

    Example:
        >>> left_padded([[5, 6], [7]], 0)
        (tensor([[5, 6],
                [0, 7]]), tensor([[1, 1],
                [0, 1]]))
    """

    def padded(rows: list[Tensor], value: int) -> Tensor:
        return torch.nn.utils.rnn.pad_sequence(
            rows, batch_first=True, padding_value=value, padding_side="left"
        )

    ids = [torch.tensor(row, dtype=torch.int64) for row in rows]
    return padded(ids, padding), padded([torch.ones_like(row) for row in ids], 0)


@torch.inference_mode()
def generate(
    model: Any,
    rows: Sequence[Sequence[int]],
    *,
    padding: int,
    max_new_tokens: int,
    temperature: float = 0.0,
    **settings: Any,
) -> Any:
    """What `model.generate` returns for one batch in evaluation mode.

    Args:
        model: A causal language model of transformers, with or without an adapter, in any mode.
        rows: Token ids, one sequence or more.
        padding: Id to pad with; it is masked.
        max_new_tokens: How many tokens at most, 1 or more.
        temperature: 0 is greedy; above, tokens are drawn from the whole distribution.
        **settings: More for `generate`.
    """
    device = model.get_input_embeddings().weight.device
    ids, seen = left_padded(rows, padding)
    training = model.training
    model.eval()
    try:
        return model.generate(
            input_ids=ids.to(device),
            attention_mask=seen.to(device),
            max_new_tokens=max_new_tokens,
            do_sample=temperature > 0,
            temperature=temperature or None,
            # A model's own generation settings may bend the distribution; it is asked for its own.
            repetition_penalty=1.0,
            min_p=None,
            top_p=None,
            top_k=0 if temperature > 0 else None,
            pad_token_id=padding,
            **settings,
        )
    finally:
        model.train(training)


def next_token_nats(
    model: Any, rows: Sequence[Sequence[int]], *, padding: int
) -> Float[Tensor, "batch vocab"]:
    """Log-probabilities of the token that comes next, one row per sequence, in float32.

    It is one step of `generate`: transformers knows how each architecture counts positions under
    left padding, and computes logits at the last position only.
    """
    step = generate(
        model,
        rows,
        padding=padding,
        max_new_tokens=1,
        output_logits=True,
        return_dict_in_generate=True,
    )
    return step.logits[0].float().log_softmax(dim=-1)
