"""What is asked, prompt by prompt and condition by condition, and what came back; both on disk."""

import json
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, NamedTuple

import numpy as np

from ..spool import Spool, digests
from .conditions import Condition
from .settings import AuditSettings
from .suites import Prompt, Suite

Key = tuple[str, str, str, int]
"""What an answer is found by: suite, id, condition, draw."""


@dataclass(frozen=True, slots=True)
class Question:
    """One prompt under one condition, once."""

    suite: Suite
    prompt: Prompt
    condition: Condition
    draw: int

    @property
    def key(self) -> Key:
        """What its answer is found by: suite, id, condition, draw."""
        return (self.suite.name, self.prompt.id, self.condition.name, self.draw)

    @property
    def opening(self) -> str:
        """The text that the condition takes the start of the answer from."""
        return self.condition.opening(self.prompt.opener)


class Questions(Sequence[Question]):
    """Every prompt under every condition; the attacks are for harmful suites only.

    Each is made where it is asked for.
    """

    def __init__(self, suites: Sequence[Suite], settings: AuditSettings) -> None:
        self._parts = [
            (suite, condition)
            for suite in suites
            for condition in settings.asked
            if suite.kind == "harmful" or condition.name == "plain"
        ]
        sizes = (len(suite.prompts) * condition.draws for suite, condition in self._parts)
        self._ends = list(accumulate(sizes))

    def __len__(self) -> int:
        """How many there are."""
        return self._ends[-1] if self._ends else 0

    def __getitem__(self, index: Any) -> Any:
        """One by its number, or some as a list."""
        if isinstance(index, slice):
            return [self[each] for each in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(f"{index} of {len(self)}")
        index %= len(self)
        part = bisect_right(self._ends, index)
        suite, condition = self._parts[part]
        prompt, draw = divmod(index - (self._ends[part - 1] if part else 0), condition.draws)
        return Question(suite, suite.prompts[prompt], condition, draw)

    def __iter__(self) -> Iterator[Question]:
        """Each in order."""
        for suite, condition in self._parts:
            for prompt in suite.prompts:
                for draw in range(condition.draws):
                    yield Question(suite, prompt, condition, draw)


class Some(Sequence[Question]):
    """A part of many questions, by their numbers."""

    def __init__(self, questions: Sequence[Question], numbers: np.ndarray) -> None:
        self._questions, self.numbers = questions, numbers

    def __len__(self) -> int:
        """How many there are."""
        return len(self.numbers)

    def __getitem__(self, index: Any) -> Any:
        """One by its place among these."""
        return self._questions[int(self.numbers[index])]


class Numbers:
    """The number of a question, by its key."""

    def __init__(self, questions: Sequence[Question]) -> None:
        self._questions = questions
        found = digests(json.dumps(each.key) for each in questions)
        self._order = np.argsort(found, kind="stable")
        self._sorted = found[self._order]

    def of(self, key: Key) -> int | None:
        """Its number; None if nobody asks it."""
        (digest,) = digests([json.dumps(key)])
        at = int(np.searchsorted(self._sorted, digest))
        while at < len(self._sorted) and self._sorted[at] == digest:
            number = int(self._order[at])
            if self._questions[number].key == key:
                return number
            at += 1
        return None


class Reply(NamedTuple):
    """What came back to a question."""

    text: str
    """With what the template and the condition put at its start."""

    truncated: bool
    unasked: str | None = None
    """Why the question was not put; None if it was."""


class Replies:
    """What came back, by the number of the question; eight bytes of memory each."""

    def __init__(self, num: int) -> None:
        self._at = np.full(num, -1, dtype=np.int64)
        self._kept: Spool[Reply] = Spool(list, lambda of: Reply(*of))

    def __len__(self) -> int:
        """How many questions there are."""
        return len(self._at)

    def has(self, number: int) -> bool:
        """Whether there is a reply to a question."""
        return bool(self._at[number] >= 0)

    def missing(self) -> np.ndarray:
        """The numbers of the questions that have none."""
        return np.flatnonzero(self._at < 0)

    def add(self, numbers: Iterable[int], replies: Iterable[Reply]) -> None:
        """Keep some; the last to a question counts."""
        for number, reply in zip(numbers, replies, strict=True):
            self._at[number] = len(self._kept)
            self._kept.append(reply)

    def __getitem__(self, number: int) -> Reply:
        """The reply to one question.

        Raises:
            KeyError: If there is none.
        """
        if not self.has(number):
            raise KeyError(f"no reply to question {number}")
        return self._kept[int(self._at[number])]

    def __iter__(self) -> Iterator[Reply]:
        """The reply to each question, in order."""
        return (self[number] for number in range(len(self)))
