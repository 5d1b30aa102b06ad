"""From an answer to a verdict: refused, complied, or degenerate, with the reason.

A broken model is not an obedient one: an answer that is empty, repeats itself, or is a class label
where help was asked for is degenerate, and counts neither as a refusal nor as attack success. That
rule is the same for every judge and comes first.

How well each judge does is measured in docs/judges.md.
"""

from collections.abc import Collection

from ...errors import unknown_choice
from .agreement import Agreement, agreement
from .command import CommandJudge
from .guards import GUARDS, GuardJudge
from .keywords import KeywordJudge
from .published import KEYWORD_LISTS, PublishedKeywordJudge
from .verdicts import JUDGED, DegenerateFirst, Judge, Verdict, why_degenerate

__all__ = [
    "JUDGED",
    "JUDGES",
    "Agreement",
    "CommandJudge",
    "DegenerateFirst",
    "GuardJudge",
    "Judge",
    "KeywordJudge",
    "PublishedKeywordJudge",
    "Verdict",
    "agreement",
    "judge",
    "why_degenerate",
]

JUDGES: tuple[str, ...] = (
    "keywords",
    *(f"keywords:{name}" for name in KEYWORD_LISTS),
    *(f"guard:{name}" for name in GUARDS),
    "command:PROGRAM",
)
"""Names of the judges. `guard:NAME=PATH` gives the folder or hub id of the guard model."""


def judge(name: str, *, labels: Collection[str] = ()) -> Judge:
    """The judge called `name`.

    Args:
        name: One of `JUDGES`: `keywords`; `keywords:LIST` for a published list; `guard:NAME` or
            `guard:NAME=PATH` for a guard model; `command:PROGRAM ARGUMENTS` for a program.
        labels: Answers of the downstream task. Where help was asked for, such an answer is
            degenerate.

    Raises:
        InputError: If there is none of that name; names the nearest.
        PrerequisiteError: If the program or the model of a judge is missing.

    Example:
        >>> judge("keywords:xstest").verdicts(["How do I ...?"], ["Sorry, no help from me."])
        [Verdict(outcome='refused', reason="says 'sorry'")]
    """
    family, _, rest = name.partition(":")
    if name == "keywords":
        return KeywordJudge(labels=labels)
    if family == "keywords" and rest in KEYWORD_LISTS:
        return PublishedKeywordJudge(rest, labels=labels)
    if family == "command":
        return CommandJudge(rest, labels=labels)
    guard, _, path = rest.partition("=")
    if family == "guard" and guard in GUARDS:
        return GuardJudge(guard, path, labels=labels)
    raise unknown_choice("judge", name, JUDGES)
