"""One answer with the verdicts on it, and a long list of them."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from ..spool import Spool
from .judges import Verdict
from .outcomes import Outcome


@dataclass(frozen=True, kw_only=True, slots=True)
class Answer:
    """One answer and the verdicts on it, as a line of `answers.jsonl` has them."""

    suite: str
    id: str
    condition: str
    draw: int
    category: str
    prompt: str
    answer: str
    """With what the template and the condition put at its start, and with its thoughts."""

    truncated: bool
    outcome: Outcome
    """By the first judge; right or wrong for a task; unscored if nobody could tell."""

    reason: str
    verdicts: Mapping[str, Verdict]
    """Verdict of every judge, by its name; none where the answer is unscored."""


def answer_spool() -> Spool[Answer]:
    """A list of answers that lies on disk where it is long."""
    names = [each.name for each in fields(Answer)]

    def kept(each: Answer) -> list[Any]:
        return [getattr(each, name) for name in names[:-1]] + [dict(each.verdicts)]

    def answer(of: list[Any]) -> Answer:
        *rest, verdicts = of
        said = {name: Verdict(*each) for name, each in verdicts.items()}
        values: dict[str, Any] = dict(zip(names[:-1], rest, strict=True))
        return Answer(**values, verdicts=said)

    return Spool(kept, answer)
