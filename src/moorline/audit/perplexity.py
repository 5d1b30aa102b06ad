"""How well a model expects the responses of held-out rows: nats per response token."""

from collections.abc import Callable, Mapping, Sequence
from math import exp
from typing import Any, NamedTuple

import torch
from jaxtyping import Int64
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.nn.utils.rnn import pad_sequence

from ..chat.chat_model import ChatModel, in_batches
from ..chat.conversation import (
    IGNORED_LABEL,
    conversation_of,
    mark_responses,
    num_shared,
    response_positions,
)
from ..errors import InputError
from .statistics import mean_interval


class Perplexity(NamedTuple):
    """The perplexity of a model on some rows, with its interval over rows."""

    perplexity: float | None
    """exp(nats); None if no row has a response token."""

    low: float | None
    high: float | None
    nats: float | None
    """Mean negative log-likelihood of a response token."""

    num_tokens: int
    """Response tokens that were predicted."""

    num_rows: int
    """Rows that have one."""


def perplexity(
    chat: ChatModel,
    rows: Sequence[Mapping[str, Any]],
    *,
    batch_size: int = 8,
    max_length: int | None = None,
    seed: int = 0,
    progress: Callable[[int], None] | None = None,
) -> Perplexity:
    """The perplexity of a model on the responses of rows that it was not trained on.

        nats = - sum over response tokens of log p(token | what stands before it) / number of them
        perplexity = exp(nats)

    The response tokens are those that training learns from: what the assistant says, with its end
    of turn, in rows of `messages`, or of `prompt` and `completion` (texts are put into the chat
    template); all but the first token in rows of `text`. Without a chat template, a completion is
    all that follows the prompt. Plain texts end with the tokenizer's end-of-text token, as TRL has
    it. So the nats are the evaluation loss of `STRTrainer`.

    What it cannot see: whether an answer is right or useful; anything about models of another
    tokenizer, whose tokens are others.

    Args:
        chat: The model, with or without an adapter; for rows of `messages` its tokenizer has a chat
            template.
        rows: Held-out rows, each with `messages`, with `prompt` and `completion`, or with `text`.
        batch_size: Rows in one forward call, 1 or more.
        max_length: Tokens of a row after which the rest is left out, as in training; None for all.
        seed: Seed of the interval's bootstrap over rows.
        progress: Called with the number of rows done since the last call.

    Returns:
        Perplexity with its interval, and how many tokens and rows it comes from.

    Raises:
        InputError: If a row has none of these shapes or an argument is out of range.
    """
    if batch_size < 1 or (max_length is not None and max_length < 2):
        raise InputError(
            "`batch_size` must be 1 or more and `max_length` 2 or more, got "
            f"{batch_size} and {max_length}."
        )
    marked = [
        labelled(chat.tokenizer, row, f"row {number}", max_length)
        for number, row in enumerate(rows, start=1)
    ]
    nats, sizes = [0.0] * len(marked), [0] * len(marked)
    for batch in in_batches([ids for ids, _ in marked], batch_size):
        found = _nats(chat, [marked[index] for index in batch])
        for index, of_row in zip(batch, found, strict=True):
            nats[index], sizes[index] = sum(of_row), len(of_row)
        if progress is not None:
            progress(len(batch))
    kept = [index for index, size in enumerate(sizes) if size]
    of_rows = [sizes[index] for index in kept]
    mean = mean_interval([nats[index] for index in kept], sizes=of_rows, seed=seed)
    return Perplexity(
        *(None if each is None else exp(each) for each in (mean.mean, mean.low, mean.high)),
        nats=mean.mean,
        num_tokens=sum(of_rows),
        num_rows=mean.num,
    )


def labelled(
    tokenizer: Any, row: Mapping[str, Any], place: str, max_length: int | None
) -> tuple[list[int], list[int]]:
    """Token ids of a row, and their labels: the ids of response tokens, -100 elsewhere.

    Args:
        tokenizer: Its tokenizer.
        row: With `messages`, with `prompt` and `completion`, or with `text`.
        place: What to call the row in an error.
        max_length: Tokens after which the rest is left out; None for all.

    Raises:
        InputError: If the row has none of these shapes.
    """
    found = conversation_of(row, texts=bool(tokenizer.chat_template))
    if found is not None:
        marked = mark_responses(
            tokenizer, found.messages, after=found.num_prompt, **found.variables
        )
        ids, mask = marked["input_ids"], marked["assistant_masks"]
    elif isinstance(row.get("text"), str):
        ids = _ended(tokenizer, row["text"])
        mask = [1] * len(ids)
    elif isinstance(row.get("prompt"), str) and isinstance(row.get("completion"), str):
        ids = _ended(tokenizer, row["prompt"] + row["completion"])
        prompt = list(tokenizer(row["prompt"]).input_ids)
        # Where tokens merge at the border, the merged one is learned, as TRL has it.
        before = num_shared(prompt, ids)
        mask = [0] * before + [1] * (len(ids) - before)
    else:
        raise InputError(
            f"{place}: a row needs 'messages', 'text', or 'prompt' and 'completion' "
            f"(fields: {', '.join(map(repr, row)) or 'none'}). Rename the fields."
        )
    labels = [
        token if is_response else IGNORED_LABEL
        for token, is_response in zip(ids, mask, strict=True)
    ]
    return ids[:max_length], labels[:max_length]


def _ended(tokenizer: Any, text: str) -> list[int]:
    ids = list(tokenizer(text).input_ids)
    return ids if ids[-1:] == [tokenizer.eos_token_id] else [*ids, tokenizer.eos_token_id]


def right_padded(
    batch: Sequence[tuple[list[int], list[int]]],
) -> tuple[Int64[Tensor, "batch time"], Int64[Tensor, "batch time"], Int64[Tensor, "batch time"]]:
    """Token ids of a batch, padded on the right; 1 where they are no padding; their labels.

    Example:
        >>> right_padded([([5, 6], [-100, 6]), ([7], [7])])[2]
        tensor([[-100,    6],
                [   7, -100]])
    """
    rows, labels = ([torch.tensor(each) for each in part] for part in zip(*batch, strict=True))
    mask = [torch.ones_like(each) for each in rows]
    return (
        pad_sequence(rows, batch_first=True),
        pad_sequence(mask, batch_first=True),
        pad_sequence(labels, batch_first=True, padding_value=IGNORED_LABEL),
    )


def _nats(chat: ChatModel, batch: Sequence[tuple[list[int], list[int]]]) -> list[list[float]]:
    """For each row, the negative log-likelihood of each of its response tokens."""
    ids, mask, labels = right_padded(batch)
    positions = response_positions(labels)
    with chat.evaluating() as model:
        logits = model(
            input_ids=ids.to(chat.device), attention_mask=mask.to(chat.device), use_cache=False
        ).logits
        # float32: bfloat16 would round the nats of a token to two digits
        chosen = logits[positions.to(logits.device)].float()
        next_labels = labels.roll(-1, dims=1)[positions].to(chosen.device)
        nats = cross_entropy(chosen, next_labels, reduction="none")
    return [each.tolist() for each in nats.split(positions.sum(dim=1).tolist())]
