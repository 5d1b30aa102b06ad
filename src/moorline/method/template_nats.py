"""How likely a model finds given answers to a prompt, token by token, with the prompt read once."""

import inspect
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from ..chat.chat_model import ChatModel, in_batches
from .capture import base_of


class Answered(NamedTuple):
    """A prompt with answers to it, as token ids."""

    context: list[int]
    """The rendered prompt, up to where the answer begins."""

    answers: list[list[int]]
    """At least one, none of them empty."""


_Nats = list[list[float]]  # by answer and token


def answer_nats(
    chat: ChatModel,
    prompts: Sequence[Answered],
    *,
    batch_size: int = 64,
    progress: Callable[[int], None] | None = None,
) -> list[_Nats]:
    """Log-probability of each token of each answer in its place, for each prompt.

    A prompt and its answers are read as one tree: in one row, where each token attends to the
    tokens that lead to it and has their number as its position. So the prompt is read once, and so
    is what answers begin with in common. Only the positions that predict a token of an answer are
    projected to the vocabulary. Where a model has no attention that can be told so, or the longest
    answer does not come out as in a row of its own, every answer is read in a row of its own.

    Args:
        chat: The model.
        prompts: Prompts with their answers.
        batch_size: Answers in one forward call at most, 1 or more.
        progress: Called with the number of prompts done since the last call.

    Returns:
        Nats by prompt, answer and token; computed in float32 from the logits of the model.
    """
    read = _tree if _reads_trees(chat, prompts) else _rows
    found = []
    for each in prompts:
        of_prompt: _Nats = [[] for _ in each.answers]
        for batch in in_batches(each.answers, batch_size):
            nats = read(chat, each.context, [each.answers[index] for index in batch])
            for index, of_answer in zip(batch, nats, strict=True):
                of_prompt[index] = of_answer
        found.append(of_prompt)
        if progress is not None:
            progress(1)
    return found


def _tree(chat: ChatModel, context: list[int], answers: list[list[int]]) -> _Nats:
    """Nats of answers that are read as one tree, after a prompt that is its trunk."""
    # The last token of an answer predicts nothing. An empty beginning is the end of the prompt.
    begins = {tuple(answer[:size]) for answer in answers for size in range(len(answer))}
    nodes = {
        begin: number for number, begin in enumerate(sorted(begins, key=lambda b: (len(b), b)))
    }
    trunk, size = len(context), len(context) + len(nodes) - 1
    sees = torch.ones(size, size, dtype=torch.bool).tril()
    sees[trunk:, trunk:] = False
    for begin, number in nodes.items():
        for length in range(1, len(begin) + 1):
            sees[trunk + number - 1, trunk + nodes[begin[:length]] - 1] = True
    mask = torch.zeros(size, size, dtype=chat.model.dtype)
    mask.masked_fill_(~sees, torch.finfo(mask.dtype).min)
    positions = [*range(trunk), *(trunk + len(begin) - 1 for begin in nodes if begin)]
    logits = _logits(
        chat,
        torch.tensor([[*context, *(begin[-1] for begin in nodes if begin)]]),
        len(nodes),
        attention_mask=mask[None, None],
        position_ids=torch.tensor([positions]),
    )[0]
    return [
        _chosen(logits[[nodes[tuple(each[:size])] for size in range(len(each))]], each)
        for each in answers
    ]


def _rows(chat: ChatModel, context: list[int], answers: list[list[int]]) -> _Nats:
    """The same, with a row for each answer."""
    longest = max(map(len, answers))
    # What pads a row comes after it, where no token sees it.
    rows = [[*context, *each[:-1], *[0] * (longest - len(each))] for each in answers]
    ids = torch.tensor(rows)
    logits = _logits(chat, ids, longest, attention_mask=torch.ones_like(ids))
    return [_chosen(row[: len(each)], each) for row, each in zip(logits, answers, strict=True)]


def _logits(
    chat: ChatModel, ids: Tensor, num: int, **inputs: Tensor
) -> Float[Tensor, "batch time vocab"]:
    """Logits of the last `num` positions of each row."""
    there = {name: each.to(chat.device) for name, each in inputs.items()}
    parameters = inspect.signature(base_of(chat.model).forward).parameters
    keep = {"logits_to_keep": num} if "logits_to_keep" in parameters else {}
    with chat.evaluating() as model:
        output = model(input_ids=ids.to(chat.device), use_cache=False, **there, **keep)
    return output.logits[:, -num:]


def _chosen(logits: Float[Tensor, "time vocab"], answer: list[int]) -> list[float]:
    nats = logits.float()
    chosen = nats.gather(1, torch.tensor(answer, device=nats.device)[:, None])[:, 0]
    return (chosen - nats.logsumexp(dim=-1)).tolist()


def _reads_trees(chat: ChatModel, prompts: Sequence[Answered]) -> bool:
    """Whether the longest answer to the longest prompt has the same nats in a tree and in a row."""
    context, answers = max(prompts, key=lambda each: len(each.context))
    # Its end stands last in the tree: what must not be seen stands before it.
    longest = max(answers, key=len)
    (expected,) = _rows(chat, context, [longest])
    try:
        found = _tree(chat, context, answers)[answers.index(longest)]
    # What an architecture raises that cannot be told who sees whom is its own affair.
    except (AttributeError, IndexError, NotImplementedError, RuntimeError, TypeError, ValueError):
        return False
    # Seeing other answers moves them by nats; rounding by a few roots of the last digit.
    allowed = 4 * torch.finfo(chat.model.dtype).eps ** 0.5
    return all(abs(one - other) < allowed for one, other in zip(found, expected, strict=True))
