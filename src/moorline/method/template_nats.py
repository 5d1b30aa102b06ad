"""How likely a model finds given answers to a prompt, token by token, with the prompt read once."""

import copy
import inspect
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from ..chat.chat_model import ChatModel, in_batches
from .capture import base_of

# measured: benchmarks/mining.py; more rows of one length are rare, and padding costs more
_ROWS = 12


class Answered(NamedTuple):
    """A prompt with answers to it, as token ids."""

    context: list[int]
    """The rendered prompt, up to where the answer begins."""

    answers: list[list[int]]
    """At least one, none of them empty."""


def answer_nats(
    chat: ChatModel,
    prompts: Sequence[Answered],
    *,
    batch_size: int = 32,
    progress: Callable[[int], None] | None = None,
) -> list[list[list[float]]]:
    """Log-probability of each token of each answer in its place, for each prompt.

    A prompt is read once, and its keys and values are handed to all its answers; only the positions
    that predict a token of an answer are projected to the vocabulary. Where a model has no cache
    that can be shared, or the longest row does not come out as without one, rows are read whole.

    Args:
        chat: The model.
        prompts: Prompts with their answers.
        batch_size: Answers per forward pass at most, 1 or more.
        progress: Called with the number of prompts done since the last call.

    Returns:
        Nats, float32 rounded by the model's own dtype: by prompt, by answer, by token.
    """
    read = _shared if _can_share(chat, prompts) else _whole
    found = []
    for each in prompts:
        of_prompt: list[list[float]] = [[] for _ in each.answers]
        with chat.evaluating():
            for batch, nats in read(chat, each, min(batch_size, _ROWS)):
                for index, of_answer in zip(batch, nats, strict=True):
                    of_prompt[index] = of_answer
        found.append(of_prompt)
        if progress is not None:
            progress(1)
    return found


_Read = tuple[list[int], list[list[float]]]


def _shared(chat: ChatModel, asked: Answered, batch_size: int) -> list[_Read]:
    """Nats of a prompt's answers, batch by batch, from one reading of the prompt."""
    context = torch.tensor([asked.context], device=chat.device)
    first = _forward(chat, context, keep=1, use_cache=True)
    found = []
    for batch in in_batches(asked.answers, batch_size):
        answers = [asked.answers[index] for index in batch]
        before = first.logits[:, -1:].expand(len(batch), -1, -1)
        ids = _padded([each[:-1] for each in answers]).to(chat.device)
        if ids.shape[1] == 0:
            found.append((batch, _chosen(before, answers)))
            continue
        cache = copy.deepcopy(first.past_key_values)
        cache.batch_repeat_interleave(len(batch))
        mask = torch.ones(len(batch), context.shape[1] + ids.shape[1], device=chat.device)
        then = _forward(
            chat, ids, keep=ids.shape[1], past_key_values=cache, attention_mask=mask.long(),
            use_cache=True,
        ).logits  # fmt: skip
        found.append((batch, _chosen(torch.cat([before, then], dim=1), answers)))
    return found


def _whole(chat: ChatModel, asked: Answered, batch_size: int) -> list[_Read]:
    """The same, with the prompt read again before each answer."""
    found = []
    for batch in in_batches(asked.answers, batch_size):
        answers = [asked.answers[index] for index in batch]
        # The last token of an answer predicts nothing; what pads a row comes after it.
        ids = _padded([[*asked.context, *each[:-1]] for each in answers]).to(chat.device)
        keep = ids.shape[1] - len(asked.context) + 1
        logits = _forward(
            chat, ids, keep=keep, attention_mask=torch.ones_like(ids), use_cache=False
        ).logits
        found.append((batch, _chosen(logits, answers)))
    return found


def _forward(chat: ChatModel, ids: Tensor, *, keep: int, **more: Any) -> Any:
    """A forward pass that has logits of the last `keep` positions."""
    if "logits_to_keep" in inspect.signature(base_of(chat.model).forward).parameters:
        more["logits_to_keep"] = keep
    output = chat.model(input_ids=ids, **more)
    output.logits = output.logits[:, -keep:]
    return output


def _chosen(
    logits: Float[Tensor, "batch time vocab"], answers: Sequence[Sequence[int]]
) -> list[list[float]]:
    """The log-probabilities of the tokens of answers; what pads them is left out."""
    found = []
    for row, answer in zip(logits, answers, strict=True):
        kept = row[: len(answer)].float()
        chosen = kept.gather(1, torch.tensor(answer, device=kept.device)[:, None])[:, 0]
        found.append((chosen - kept.logsumexp(dim=-1)).tolist())
    return found


def _padded(rows: Sequence[Sequence[int]]) -> Tensor:
    longest = max(map(len, rows))
    return torch.tensor([[*row, *[0] * (longest - len(row))] for row in rows], dtype=torch.int64)


def _can_share(chat: ChatModel, prompts: Sequence[Answered]) -> bool:
    """Whether a shared prompt gives what whole rows give, tried on the longest of them."""
    context = max((each.context for each in prompts), key=len)
    longest = max((answer for each in prompts for answer in each.answers), key=len)
    # Two rows, so that a cache which cannot be repeated shows.
    row = Answered(context, [longest, longest[:1]])
    try:
        with chat.evaluating():
            ((batch, shared),) = _shared(chat, row, 2)
            ((_, whole),) = _whole(chat, row, 2)
    # What an architecture without a cache of keys and values raises is its own affair.
    except (AttributeError, IndexError, NotImplementedError, RuntimeError, TypeError, ValueError):
        return False
    index = batch.index(0)
    dtype = next(chat.model.parameters()).dtype
    # A wrong cache moves them by nats; rounding by some times the square root of the last digit.
    allowed = 4 * torch.finfo(dtype).eps ** 0.5 if dtype.is_floating_point else 0.5
    return all(
        abs(one - other) < allowed for one, other in zip(shared[index], whole[index], strict=True)
    )
