"""The answers of an audit in columns: of each prompt its outcome by each judge, a byte each."""

from collections.abc import Iterator, Sequence
from functools import cached_property

import numpy as np

from .answers import Answer
from .metrics import Metric
from .outcomes import OUTCOMES, Outcome, severity, worst
from .suites import Prompt, Suite
from .thoughts import after_thoughts

_NONE = 255


class Column:
    """What came of one suite under one condition."""

    def __init__(self, suite: Suite, judges: Sequence[str], score: Metric) -> None:
        self.suite, self._score = suite, score
        self._ranks: dict[Outcome, int | None] = {
            each: severity(suite.kind, each) for each in OUTCOMES
        }
        self._outcomes = {
            each: np.full(len(suite.prompts), _NONE, dtype=np.uint8) for each in judges
        }
        # of a task alone: what its metric gives, the best of several draws
        is_task = suite.kind == "task"
        self._scores = np.full(len(suite.prompts) if is_task else 0, np.nan)
        self.num = self.cut = 0

    def add(self, index: int, prompt: Prompt, answer: Answer) -> None:
        """Count one answer to one of its prompts."""
        self.num += 1
        self.cut += answer.truncated
        for judge, found in self._outcomes.items():
            # what is said without judges counts for all of them
            outcome = answer.verdicts.get(judge, answer).outcome
            rank = self._ranks[outcome]
            if rank is None:
                worst([outcome], self.suite.kind)  # says what is wrong
            found[index] = min(found[index], _NONE if rank is None else rank)
        if len(self._scores) and answer.outcome != "unscored":
            said = self._score(after_thoughts(answer.answer)[0], prompt.answer or "")
            self._scores[index] = np.fmax(self._scores[index], said)

    def outcomes(self, judge: str) -> list[Outcome]:
        """The outcome of each prompt, in order; of several draws the worst."""
        by_rank: dict[int, Outcome] = {
            rank: each for each, rank in self._ranks.items() if rank is not None
        }
        found = self._outcomes[judge]
        if (found == _NONE).any():
            worst([], self.suite.kind)  # a prompt without an answer
        return [by_rank[each] for each in found.tolist()]

    def scores(self) -> list[float | None]:
        """What the metric of a task gives each prompt; None where nothing was scored."""
        return [None if each != each else each for each in self._scores.tolist()]

    @cached_property
    def categories(self) -> list[str]:
        """The category of each prompt, in order."""
        return [each.category for each in self.suite.prompts]


def columns(
    answers: Sequence[Answer], suites: Sequence[Suite], judges: Sequence[str], score: Metric
) -> dict[tuple[str, str], Column]:
    """The answers by suite and condition.

    Args:
        answers: In any order; read once.
        suites: What they answer.
        judges: Whose verdicts count.
        score: The metric of tasks.
    """
    by_name = {each.name: each for each in suites}
    found: dict[tuple[str, str], Column] = {}
    places: dict[tuple[str, str], _Places] = {}
    for each in answers:
        key = (each.suite, each.condition)
        if key not in found:
            found[key] = Column(by_name[each.suite], judges, score)
            places[key] = _Places(by_name[each.suite].prompts)
        found[key].add(*places[key].of(each.id), each)
    return found


class _Places:
    """Number and prompt of an id; at once where answers come in the order of the prompts."""

    def __init__(self, prompts: Sequence[Prompt]) -> None:
        self._prompts = prompts
        self._rest: Iterator[tuple[int, Prompt]] = enumerate(prompts)
        self._here = next(self._rest)

    def of(self, id: str) -> tuple[int, Prompt]:
        if self._here[1].id != id:
            self._here = next(self._rest, self._here)
        if self._here[1].id != id:
            self._here = (index := self._by_id[id]), self._prompts[index]
        return self._here

    @cached_property
    def _by_id(self) -> dict[str, int]:
        return {each.id: index for index, each in enumerate(self._prompts)}
