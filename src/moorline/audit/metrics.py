"""Whether an answer of a task is right: pure functions of the answer and the right one, 0 to 1."""

import re
from collections.abc import Callable

from ..errors import InputError, unknown_choice

Metric = Callable[[str, str], float]

_LETTER = re.compile(
    r"""
    \((?P<bracketed>[A-Za-z])\)
    | (?<!\w)(?P<closed>[A-Za-z])\)
    # 'I' is a word, and so is 'A' unless it stands before a verb or the end of its clause.
    | (?<![\w'])(?P<bare>A(?!\ (?!is\b|because\b|since\b|and\b|or\b)[a-z])|[B-HJ-Z])(?![\w'])
    | ^\W*(?P<alone>[A-Za-z])\W*$
    """,
    re.VERBOSE,
)
_NUMBER = re.compile(r"(?<![\w.])[-+]?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?")
_WORD = re.compile(r"\w+")


def exact_match(answer: str, right: str) -> float:
    r"""1 if the answer equals the right one but for case, white space and final punctuation.

    What it cannot see: the same answer in other words; that case or a final mark may matter, for
    which there is `exact_match_strict`.

    Example:
        >>> exact_match(" Paris.\n", "paris"), exact_match("It is Paris.", "Paris")
        (1.0, 0.0)
    """
    return float(_normal(answer) == _normal(right))


def exact_match_strict(answer: str, right: str) -> float:
    r"""1 if the answer equals the right one but for white space at its ends, else 0.

    What it cannot see: the same answer in other words, case or punctuation.

    Example:
        >>> exact_match_strict(" Paris\n", "Paris"), exact_match_strict("Paris.", "Paris")
        (1.0, 0.0)
    """
    return float(answer.strip() == right.strip())


def choice(answer: str, right: str) -> float:
    """1 if the first option named in the answer is the right one, else 0.

    If the right one is a letter, the first option letter counts, in brackets ("(b)", "b)"), bare in
    upper case ("The answer is B."), or alone. "I" and the article "A" are not options. If it is a
    number, the first number counts, by value: "1,000" is 1000.0.

    What it cannot see: an option repeated by its text; a first number that is part of the working;
    an answer that names a wrong option only to dismiss it.

    Args:
        answer: What the model answered.
        right: One letter or one number.

    Raises:
        InputError: If `right` is neither.

    Example:
        >>> choice("I think (B) is right, not (C).", "B"), choice("About 1,000 of 7.", "1000")
        (1.0, 1.0)
    """
    sought = right.strip()
    if re.fullmatch(r"[A-Za-z]", sought):
        letter = _LETTER.search(answer)
        return float(letter is not None and letter[letter.lastindex or 0].upper() == sought.upper())
    if _NUMBER.fullmatch(sought):
        number = _NUMBER.search(answer)
        return float(number is not None and _value(number.group()) == _value(sought))
    raise InputError(
        f"`right` must be one letter or one number for the metric 'choice', got {right!r}. Use "
        "'exact_match' or 'rouge_l' for texts."
    )


def rouge_l(answer: str, right: str) -> float:
    """The share of words that two texts have in common in one order, as an F-measure.

        precision = L / words of the answer,  recall = L / words of the right one
        F = 2 * precision * recall / (precision + recall)

    L is the length of their longest common subsequence. Words are runs of letters, digits and
    underscores, in lower case; nothing is stemmed. Two texts without words are equal: 1.

    What it cannot see: synonyms, negation, whether any of it is true.

    Source:
        Lin 2004, "ROUGE: A Package for Automatic Evaluation of Summaries", section 3, with beta 1.

    Example:
        >>> round(rouge_l("The cat sat.", "the cat sat on the mat"), 4)  # 2 * 3 / (3 + 6)
        0.6667
    """
    given, sought = _WORD.findall(answer.lower()), _WORD.findall(right.lower())
    if not given and not sought:
        return 1.0
    # One row of the table at a time: longest[j] for the words of `given` so far and `sought[:j]`.
    longest = [0] * (len(sought) + 1)
    for word in given:
        diagonal = 0
        for index, other in enumerate(sought, start=1):
            above = longest[index]
            longest[index] = diagonal + 1 if word == other else max(above, longest[index - 1])
            diagonal = above
    return 2 * longest[-1] / (len(given) + len(sought))


METRICS: dict[str, Metric] = {
    "exact_match": exact_match,
    "exact_match_strict": exact_match_strict,
    "choice": choice,
    "rouge_l": rouge_l,
}
"""Metrics of a task by name."""


def metric(name: str) -> Metric:
    """The metric called `name`.

    Raises:
        InputError: If there is none of that name; names the nearest.
    """
    if name not in METRICS:
        raise unknown_choice("metric", name, METRICS)
    return METRICS[name]


def _normal(text: str) -> str:
    """A text in small letters, with single spaces and no final punctuation."""
    small = " ".join(text.casefold().split())
    # A text of marks alone is what it is.
    return small.rstrip(" .!?,;:\u2026\u3002") or small


def _value(number: str) -> float:
    return float(number.replace(",", ""))
