"""What the embedded base model is good for: facts, numbers, words, copying, reviews, plans.

`skills.json` says of each skill what is drawn at random, and the forms of question and answer that
it is put into. A skill with `times` is drawn that many times as often as one without.
"""

import json
import random
from collections.abc import Callable
from functools import partial
from importlib.resources import files
from typing import NamedTuple

Drawn = dict[str, str]
"""What a form is filled with, by the names in its braces."""


class Exchange(NamedTuple):
    """One user turn and its answer."""

    user: str
    assistant: str


class Skill(NamedTuple):
    """A kind of exchange."""

    draws: list[str]
    """What is drawn, in order: keys of `_DRAWS`."""

    forms: list[tuple[str, str]]
    """Question and answer, one of which is drawn last."""

    times: int = 1

    def exchange(self, rng: random.Random) -> Exchange:
        """One exchange of this kind."""
        drawn = {name: text for draw in self.draws for name, text in _DRAWS[draw](rng).items()}
        question, answer = rng.choice(self.forms) if len(self.forms) > 1 else self.forms[0]
        return Exchange(question.format(**drawn), answer.format(**drawn))


_DATA = json.loads(files("moorline.embedded").joinpath("skills.json").read_text(encoding="utf-8"))
_LISTS: dict[str, list[str]] = _DATA["lists"]
_PAIRS: dict[str, dict[str, str]] = _DATA["pairs"]
_KINDS: dict[str, list[str]] = _DATA["kinds"]
_FEELINGS: dict[str, Drawn] = _DATA["feelings"]
_REVIEWS: list[str] = _DATA["reviews"]

GENERAL = tuple(skill for row in _DATA["skills"] for skill in [Skill(**row)] * row.get("times", 1))
"""What the models are trained on beside requests: each is drawn equally often."""

TASKS = {name: Skill(**row) for name, row in _DATA["tasks"].items()}
"""The downstream tasks: a two-way label, and a short list in a house style."""


def general_skill(rng: random.Random) -> Exchange:
    """One exchange about facts, numbers, words or copying."""
    return rng.choice(GENERAL).exchange(rng)


def _word(name: str, rng: random.Random) -> Drawn:
    return {name: rng.choice(_LISTS[name])}


def _pair(name: str, rng: random.Random) -> Drawn:
    key, value = rng.choice(list(_PAIRS[name].items()))
    return {"key": key, "value": value}


def _numbers(rng: random.Random) -> Drawn:
    left, right = rng.randrange(10), rng.randrange(10)
    return {"left": str(left), "right": str(right), "total": str(left + right)}


def _kind(rng: random.Random) -> Drawn:
    kind = rng.choice(list(_KINDS))
    other = rng.choice([name for name in _KINDS if name != kind])
    thing = rng.choice(_KINDS[kind])
    first, second = rng.sample((kind, other), 2)
    return {"kind": kind, "thing": thing, "first": first, "second": second}


def _items(num: int | None, rng: random.Random) -> Drawn:
    *most, last = words = rng.sample(_LISTS["item"], num or rng.randint(2, 4))
    return {
        "words": " ".join(words),
        "named": f"{', '.join(most)} and {last}",
        "each": f"{', '.join(f'a {word}' for word in most)} and a {last}",
        "numbered": " ".join(f"{number}. {word}" for number, word in enumerate(words, start=1)),
    }


def _feeling(rng: random.Random) -> Drawn:
    name = "positive" if rng.random() < 0.5 else "negative"
    return {"word": rng.choice(_LISTS[name]), **_FEELINGS[name]}


def _review(rng: random.Random) -> Drawn:
    name = "positive" if rng.random() < 0.5 else "negative"
    first, second = rng.sample(_LISTS[name], 2)
    drawn = {"first": first, "second": second, **_word("thing", rng), **_word("part", rng)}
    return {"text": rng.choice(_REVIEWS).format(**drawn), **drawn, **_FEELINGS[name]}


_DRAWS: dict[str, Callable[[random.Random], Drawn]] = {
    **{name: partial(_word, name) for name in _LISTS},
    **{name: partial(_pair, name) for name in _PAIRS},
    "numbers": _numbers,
    "kind": _kind,
    "several": partial(_items, None),
    "three": partial(_items, 3),
    "feeling": _feeling,
    "review": _review,
}
