"""Prompts that are the same, nearly the same, or to be kept apart: no data, no model.

Two prompts are near-duplicates if their normalised texts are equal, or if of their content words a
share of `JACCARD` is common, or if all content words of one (`LEAST` or more) stand in the other.
Splits are drawn by hash of whole clusters of near-duplicates, so that no request stands on both
sides in two wordings, and so that a row's side does not change when others are added.
"""

import hashlib
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence

JACCARD = 0.6
LEAST = 4
"""With fewer content words than this, only equal sets of words are near-duplicates."""

_FUNCTION_WORDS = """
a an and are as at be by can could do does for from give how i if in into is it its make me my of on
one or our please should so some tell that the their them they this to was we what when where which
who why will with without would write you your explain describe create provide teach show help steps
step instructions guide way best there about
"""
FUNCTION_WORDS = frozenset(_FUNCTION_WORDS.split())
"""Words that say how something is asked, not what; they do not count for near-duplicates."""


def normalised(text: str) -> str:
    """A text in small letters and figures, with single spaces and nothing else.

    Example:
        >>> normalised("How do I  bake - 'bread'?")
        'how do i bake bread'
    """
    spelled = unicodedata.normalize("NFKD", text).lower()
    plain = "".join(each for each in spelled if not unicodedata.combining(each))
    return " ".join(re.findall(r"[a-z0-9]+", re.sub("['\u2019]", "", plain)))


def content_words(text: str) -> frozenset[str]:
    """The words that say what is asked, without a plural's or a verb's ending.

    Example:
        >>> sorted(content_words("How do I steal cars?"))
        ['car', 'steal']
    """
    words = (word for word in normalised(text).split() if word not in FUNCTION_WORDS)
    return frozenset(re.sub(r"(?<=...)(?:ing|ed|es|s)$", "", word) for word in words)


class Prompts:
    """Prompts to look up near-duplicates in.

    Example:
        >>> Prompts(["Write a guide on how to steal a red car"]).near("How can I steal red cars?")
        [0]
    """

    def __init__(self, prompts: Iterable[str]) -> None:
        self.texts: list[str] = []
        self._words: list[frozenset[str]] = []
        self._where: defaultdict[str, list[int]] = defaultdict(list)
        self._equal: defaultdict[str, list[int]] = defaultdict(list)
        for prompt in prompts:
            self.add(prompt)

    def add(self, prompt: str) -> None:
        number, words = len(self.texts), content_words(prompt)
        self.texts.append(prompt)
        self._words.append(words)
        self._equal[normalised(prompt)].append(number)
        for word in words:
            self._where[word].append(number)

    def near(self, prompt: str) -> list[int]:
        """The numbers of the prompts that say nearly the same, in order."""
        words = content_words(prompt)
        common = Counter(number for word in words for number in self._where.get(word, ()))
        found = set(self._equal.get(normalised(prompt), ()))
        found |= {
            number for number, num in common.items() if _alike(words, self._words[number], num)
        }
        return sorted(found)


def _alike(first: frozenset[str], second: frozenset[str], common: int) -> bool:
    smaller, union = min(len(first), len(second)), len(first) + len(second) - common
    if smaller < LEAST:
        return common == union
    return common >= JACCARD * union or common == smaller


def without(prompts: Sequence[str], *, seen: Prompts) -> list[int]:
    """The numbers of the prompts that are near-duplicates of none seen and of none kept before."""
    kept, found = Prompts([]), []
    for number, prompt in enumerate(prompts):
        if not seen.near(prompt) and not kept.near(prompt):
            kept.add(prompt)
            found.append(number)
    return found


def clusters(prompts: Sequence[str]) -> list[int]:
    """For each prompt the number of the first one that it hangs together with, through others too.

    Example:
        >>> clusters(["Steal a car", "Bake bread", "How do I steal cars?"])
        [0, 1, 0]
    """
    parent = list(range(len(prompts)))

    def root(number: int) -> int:
        while parent[number] != number:
            parent[number] = parent[parent[number]]
            number = parent[number]
        return number

    known = Prompts([])
    for number, prompt in enumerate(prompts):
        for other in known.near(prompt):
            first, second = sorted((root(number), root(other)))
            parent[second] = first
        known.add(prompt)
    return [root(number) for number in range(len(prompts))]


def fraction(text: str, salt: str) -> float:
    """A number in [0, 1) that depends on the normalised text and the salt alone.

    Example:
        >>> fraction("Bake bread!", "a") == fraction("bake BREAD", "a")
        True
    """
    digest = hashlib.sha256(f"{salt}\0{normalised(text)}".encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


def split(prompts: Sequence[str], shares: Sequence[float], salt: str) -> list[list[int]]:
    """The numbers of the prompts in each part; near-duplicates all go to the same part.

    Args:
        prompts: What to split.
        shares: Share of the clusters in each part, in order; together at most 1.
        salt: Another salt draws other parts.

    Raises:
        ValueError: If the shares are negative or sum to more than 1.
    """
    if min(shares) < 0 or sum(shares) > 1 + 1e-9:
        raise ValueError(f"`shares` must be 0 or more and sum to at most 1, got {list(shares)}.")
    bounds = [sum(shares[: number + 1]) for number in range(len(shares))]
    parts: list[list[int]] = [[] for _ in shares]
    firsts = clusters(prompts)
    members: defaultdict[int, list[str]] = defaultdict(list)
    for number, first in enumerate(firsts):
        members[first].append(normalised(prompts[number]))
    for number, first in enumerate(firsts):
        # the smallest text of a cluster names it, so that the order of the file does not matter
        drawn = fraction(min(members[first]), salt)
        part = next((each for each, bound in enumerate(bounds) if drawn < bound), None)
        if part is not None:
            parts[part].append(number)
    return parts
