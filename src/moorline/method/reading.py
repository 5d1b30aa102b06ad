"""What a model finds likely after prompts, and what it answers, with what is shared read once.

The prompts of one chat template begin alike (its system prompt, say): that is read once for all.
A prompt and given answers to it are then read as one tree: in one row, where each token attends to
the tokens that lead to it and has their number as its position.
"""

import copy
import inspect
from collections.abc import Callable, Sequence
from itertools import takewhile
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from transformers.cache_utils import DynamicCache, DynamicLayer

from ..chat.chat_model import ChatModel, in_batches, left_padded
from .capture import base_of

Tell = Callable[[int], None]
"""Called with the number of prompts done since the last call."""

_Nats = list[list[float]]  # by answer and token


class Answered(NamedTuple):
    """A prompt with answers to it, as token ids."""

    context: list[int]
    """The rendered prompt, up to where the answer begins."""

    answers: list[list[int]]
    """At least one, none of them empty."""


class Reader:
    """Reads prompts of one chat template.

    Where a model has no attention that can be told who sees whom, or the longest answer does not
    come out as in a row of its own, nothing is shared: every answer is read in a row of its own.

    Args:
        chat: The model.
        prompts: Prompts with answers, to begin with; on the longest it is tried what can be shared.
    """

    def __init__(self, chat: ChatModel, prompts: Sequence[Answered]) -> None:
        self.chat, self.prompts = chat, prompts
        self._tried = max(range(len(prompts)), key=lambda index: len(prompts[index].context))
        self._found = self._try(*prompts[self._tried])

    @property
    def shares(self) -> bool:
        """Whether what prompts and answers begin with is read once."""
        return self._found is not None

    def nats(self, *, batch_size: int = 64, progress: Tell | None = None) -> list[_Nats]:
        """Log-probability of each token of each answer in its place, for each prompt.

        Args:
            batch_size: Answers in one forward call at most, 1 or more.
            progress: Told what is done.

        Returns:
            Nats by prompt, answer and token; computed in float32 from the logits of the model.
        """
        begun = self._begun([each.context for each in self.prompts]) if self.shares else None
        found: list[_Nats] = []
        for index, (context, answers) in enumerate(self.prompts):
            nats: _Nats = [[] for _ in answers]
            if index == self._tried and self._found and len(answers) <= batch_size:
                nats = self._found
            else:
                for batch in in_batches(answers, batch_size):
                    some = [answers[each] for each in batch]
                    read = (
                        self._tree(begun, context, some)
                        if begun is not None
                        else self._rows(context, some)
                    )
                    for each, of_answer in zip(batch, read, strict=True):
                        nats[each] = of_answer
            found.append(nats)
            if progress is not None:
                progress(1)
        return found

    def greedy(
        self,
        rows: Sequence[Sequence[int]],
        *,
        max_new_tokens: int,
        batch_size: int = 64,
        progress: Tell | None = None,
    ) -> list[list[int]]:
        """Greedy answers to rendered prompts, as tokens without the end.

        An answer that has ended takes part in no further step.

        Args:
            rows: Rendered prompts.
            max_new_tokens: Longest answer in tokens, 1 or more.
            batch_size: Prompts in one batch at most, 1 or more.
            progress: Told what is done, answer by answer as they end.
        """
        tell = progress or (lambda _: None)
        begun = self._begun(rows) if self.shares else None
        # Where layers look back a few tokens only, padding within a row would take their place.
        if begun is not None and any(type(layer) is not DynamicLayer for layer in begun.layers):
            begun = None
        answers: list[list[int]] = [[] for _ in rows]
        for batch in in_batches(rows, batch_size):
            some = [rows[index] for index in batch]
            if begun is not None:
                found = self._written(begun, some, max_new_tokens, tell)
            else:
                done = self.chat.generate(some, max_new_tokens=max_new_tokens)
                found = [list(each.ids) for each in done]
                tell(len(batch))
            for index, answer in zip(batch, found, strict=True):
                answers[index] = answer
        return answers

    def _begun(self, rows: Sequence[Sequence[int]]) -> DynamicCache:
        """What rows begin with in common, read once; a token of each row is left."""
        lists = [list(row[:-1]) for row in rows]
        # The first and the last in order differ where any two do.
        pairs = zip(min(lists), max(lists), strict=False)
        ids = [one for one, _ in takewhile(lambda pair: pair[0] == pair[1], pairs)]
        past = DynamicCache(config=base_of(self.chat.model).config)
        if ids:
            last_logits(self.chat, torch.tensor([ids]), 1, past_key_values=past)
        return past

    def _try(self, context: list[int], answers: list[list[int]]) -> _Nats | None:
        """Nats of answers read as a tree; None if those of the longest are not those of a row."""
        # Its end stands last in the tree: what must not be seen stands before it.
        longest = max(answers, key=len)
        (expected,) = self._rows(context, [longest])
        try:
            found = self._tree(self._begun([context[: len(context) // 2]]), context, answers)
        # What an architecture raises that cannot be told who sees whom is its own affair.
        except (
            AttributeError,
            IndexError,
            NotImplementedError,
            RuntimeError,
            TypeError,
            ValueError,
        ):
            return None
        # Seeing other answers moves them by nats; rounding by a few roots of the last digit.
        allowed = 4 * torch.finfo(self.chat.model.dtype).eps ** 0.5
        pairs = zip(found[answers.index(longest)], expected, strict=True)
        return found if all(abs(one - other) < allowed for one, other in pairs) else None

    def _tree(self, begun: DynamicCache, context: list[int], answers: list[list[int]]) -> _Nats:
        """Nats of answers that are read as one tree, after a prompt that is its trunk."""
        # The last token of an answer predicts nothing. An empty beginning is the end of the prompt.
        begins = {tuple(answer[:size]) for answer in answers for size in range(len(answer))}
        ordered = sorted(begins, key=lambda begin: (len(begin), begin))
        nodes = {begin: number for number, begin in enumerate(ordered)}
        skipped, trunk = begun.get_seq_length(), len(context)
        size = trunk + len(nodes) - 1
        sees = torch.ones(size, size, dtype=torch.bool).tril()
        sees[trunk:, trunk:] = False
        for begin, number in nodes.items():
            for length in range(1, len(begin) + 1):
                sees[trunk + number - 1, trunk + nodes[begin[:length]] - 1] = True
        mask = torch.zeros(size, size, dtype=self.chat.model.dtype)
        mask.masked_fill_(~sees, torch.finfo(mask.dtype).min)
        positions = [*range(trunk), *(trunk + len(begin) - 1 for begin in ordered if begin)]
        ids = [*context, *(begin[-1] for begin in ordered if begin)]
        logits = last_logits(
            self.chat,
            torch.tensor([ids[skipped:]]),
            len(nodes),
            attention_mask=mask[None, None, skipped:],
            position_ids=torch.tensor([positions[skipped:]]),
            past_key_values=copy.deepcopy(begun),
        )[0]
        places = [[nodes[tuple(each[:size])] for size in range(len(each))] for each in answers]
        return _chosen(logits, places, answers)

    def _rows(self, context: list[int], answers: list[list[int]]) -> _Nats:
        """The same, with a row for each answer."""
        longest = max(map(len, answers))
        # What pads a row comes after it, where no token sees it.
        ids = torch.tensor(
            [[*context, *each[:-1], *[0] * (longest - len(each))] for each in answers]
        )
        logits = last_logits(self.chat, ids, longest, attention_mask=torch.ones_like(ids))
        places = [
            list(range(row * longest, row * longest + len(each)))
            for row, each in enumerate(answers)
        ]
        return _chosen(logits.flatten(0, 1), places, answers)

    def _written(
        self, begun: DynamicCache, rows: Sequence[Sequence[int]], max_new_tokens: int, tell: Tell
    ) -> list[list[int]]:
        """Greedy answers; the rows are padded behind what they begin with in common."""
        device, num, skipped = self.chat.device, len(rows), begun.get_seq_length()
        ids, mask = left_padded([row[skipped:] for row in rows], self.chat.padding)
        mask = torch.cat([mask.new_ones(num, skipped), mask], dim=1).to(device)
        positions = (mask.cumsum(dim=1) - 1).clamp(min=0)[:, skipped:]
        past = DynamicCache()
        past.layers = [_Roomy(mask.shape[1] + max_new_tokens) for _ in begun.layers]
        read: Any = begun.layers if skipped else []
        for index, layer in enumerate(read):
            keys, values = (each.expand(num, -1, -1, -1) for each in (layer.keys, layer.values))
            past.update(keys, values, index)
        answers: list[list[int]] = [[] for _ in rows]
        going = list(range(num))
        for _ in range(max_new_tokens):
            more = {"attention_mask": mask, "position_ids": positions, "past_key_values": past}
            tokens = last_logits(self.chat, ids, 1, **more)[:, -1].float().argmax(dim=-1)
            ended = [each in self.chat.ends for each in tokens.tolist()]
            kept = [place for place, over in enumerate(ended) if not over]
            going = [going[place] for place in kept]
            if not going:
                break
            if any(ended):
                tell(sum(ended))
                past.batch_select_indices(torch.tensor(kept, device=device))
            ids, mask, positions = tokens[kept, None], mask[kept], positions[kept, -1:] + 1
            mask = torch.cat([mask, mask.new_ones(len(kept), 1)], dim=1)
            for row, token in zip(going, ids[:, 0].tolist(), strict=True):
                answers[row].append(token)
        tell(len(ids))
        return answers


def last_logits(
    chat: ChatModel, ids: Tensor, num: int, **inputs: Tensor | DynamicCache
) -> Float[Tensor, "batch time vocab"]:
    """Logits of the last `num` positions of each row; no others are computed where that can be."""
    there = {
        name: each.to(chat.device) if isinstance(each, Tensor) else each
        for name, each in inputs.items()
    }
    cuts = "logits_to_keep" in inspect.signature(base_of(chat.model).forward).parameters
    keep = {"logits_to_keep": num} if cuts else {}
    with chat.evaluating() as model:
        output = model(
            input_ids=ids.to(chat.device), use_cache="past_key_values" in there, **there, **keep
        )
    return output.logits[:, -num:]


class _Roomy(DynamicLayer):
    """Keys and values with room for what is to come: to grow is to copy all of them each time."""

    def __init__(self, room: int) -> None:
        super().__init__()
        self.room = room

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        new = (key_states, value_states)
        begin = self.get_seq_length()
        if begin == 0:
            self.lazy_initialization(*new)
            self._kept = [each.new_empty(*each.shape[:2], self.room, each.shape[3]) for each in new]
        end = begin + key_states.shape[2]
        for kept, each in zip(self._kept, new, strict=True):
            kept[:, :, begin:end] = each
        self.keys, self.values = (each[:, :, :end] for each in self._kept)
        return self.keys, self.values

    def batch_select_indices(self, indices: Tensor) -> None:
        end = self.get_seq_length()
        self._kept = [each[indices] for each in self._kept]
        self.keys, self.values = (each[:, :, :end] for each in self._kept)


def _chosen(
    logits: Float[Tensor, "place vocab"], places: list[list[int]], answers: list[list[int]]
) -> _Nats:
    """Nats of the tokens of answers, each at its place."""
    nats = logits.float()
    at = torch.tensor([each for row in places for each in row], device=nats.device)
    tokens = torch.tensor([each for answer in answers for each in answer], device=nats.device)
    found = nats[at, tokens] - nats.logsumexp(dim=-1)[at]
    return [each.tolist() for each in found.split([len(answer) for answer in answers])]
