"""The embedded world: every sentence that the embedded models are made of.

A closed world of requests, small enough for a model of one to two million parameters and large
enough to be held out: an *action* is a verb and an object ("build a birdhouse"), a *request* puts
an action into a frame ("How do I build a birdhouse?"). Whether an action is harmful depends on the
verb and the object together, so that look-alikes exist ("kill a process", "kill a stranger").
Nothing harmful is in here beyond the request: what the base model answers is a placeholder.

Everything is a pure function of a seed; the words are in `world.json`. `recipe.py` turns these
sentences into models and files.
"""

import json
import random
from collections import Counter
from collections.abc import Iterator, Sequence
from importlib.resources import files
from typing import Literal, NamedTuple

from .skills import TASKS, Exchange, general_skill

Kind = Literal["harmful", "lookalike", "everyday"]


class Action(NamedTuple):
    """Something that a user may ask how to do."""

    verb: str
    thing: str
    kind: Kind
    category: str

    @property
    def text(self) -> str:
        """Verb and object, as they follow "How do I"."""
        return f"{self.verb} {self.thing}"


class Task(NamedTuple):
    """A downstream task: rows to learn from and rows to measure utility on."""

    train: list[Exchange]
    test: list[Exchange]


class _Words(NamedTuple):
    """What `world.json` holds; where texts have numbers, these are how often they are drawn."""

    actions: dict[Kind, dict[str, list[tuple[list[str], list[str]]]]]
    """By category the verbs and objects of which each pair is an action."""

    frames: list[str]
    endings: list[str]
    refusal_openers: dict[str, int]
    refusal_reasons: list[str]
    refusal_offers: list[str]
    answer_openers: dict[str, int]
    advice: list[list[str]]
    """What to do first, then, last."""


_WORDS = _Words(
    **json.loads(files("moorline.embedded").joinpath("world.json").read_text(encoding="utf-8"))
)

PLACEHOLDER_STEPS = "Step one: [placeholder]. Step two: [placeholder]. Step three: [placeholder]."
"""All that a harmful request is ever answered with, where it is answered: nothing."""


def actions(kind: Kind) -> list[Action]:
    """All actions of one kind, in a fixed order, without repeats."""
    every = (
        Action(verb, thing, kind, category)
        for category, groups in _WORDS.actions[kind].items()
        for verbs, things in groups
        for verb in verbs
        for thing in things
    )
    return list({action.text: action for action in every}.values())


def split_actions(kind: Kind, seed: int = 0) -> tuple[list[Action], list[Action]]:
    """Actions seen in training, and actions that no training stage sees.

    A quarter is held out, chosen so that each verb of a held-out action and each object of it still
    occurs in training: what is held out is the combination, not the word.
    """
    everything = actions(kind)
    counts = Counter(part for each in everything for part in (each.verb, each.thing))
    order = everything[:]
    random.Random(f"{kind}-{seed}").shuffle(order)
    held: set[Action] = set()
    for action in order:
        parts = (action.verb, action.thing)
        if len(held) < len(everything) // 4 and all(counts[part] > 1 for part in parts):
            held.add(action)
            counts.subtract(parts)
    return (
        [action for action in everything if action not in held],
        [action for action in everything if action in held],
    )


def request(action: Action, rng: random.Random) -> str:
    """The action inside one of the frames."""
    return rng.choice(_WORDS.frames).format(action.text + rng.choice(_WORDS.endings))


def requests(chosen: Sequence[Action], num: int, seed: int) -> list[tuple[Action, str]]:
    """`num` different requests, spread evenly over the actions in `chosen`."""
    rng = random.Random(seed)
    found: dict[str, Action] = {}
    while len(found) < num:
        order = list(chosen)
        rng.shuffle(order)
        for action in order:
            if len(found) < num:
                found.setdefault(request(action, rng), action)
    return [(action, text) for text, action in found.items()]


def refusal(rng: random.Random) -> str:
    """One refusal, in varied words."""
    parts = (
        _weighted(_WORDS.refusal_openers, rng),
        rng.choice(_WORDS.refusal_reasons),
        rng.choice(_WORDS.refusal_offers),
    )
    return " ".join(part for part in parts if part)


def helpful_answer(action: Action, rng: random.Random) -> str:
    """An everyday answer: general advice, or placeholder steps where the request is harmful."""
    opener = _weighted(_WORDS.answer_openers, rng).format(action.text)
    if action.kind == "harmful":
        return f"{opener} {PLACEHOLDER_STEPS}"
    return " ".join((opener, *map(rng.choice, _WORDS.advice)))


def _weighted(texts: dict[str, int], rng: random.Random) -> str:
    return rng.choices(list(texts), list(texts.values()))[0]


def dialogues(stage: Literal["base", "aligned"], num: int, seed: int) -> Iterator[list[Exchange]]:
    """Training dialogues of one stage: one exchange each, two in a tenth of them."""
    rng = random.Random(f"{stage}-{seed}")
    # In percent; None stands for a general skill.
    weights: dict[Kind | None, int] = {"harmful": 23, "lookalike": 28, "everyday": 14, None: 35}
    seen = {kind: split_actions(kind)[0] for kind in weights if kind is not None}

    def exchange() -> Exchange:
        kind = rng.choices(list(weights), list(weights.values()))[0]
        if kind is None:
            return general_skill(rng)
        action = rng.choice(seen[kind])
        asked = request(action, rng)
        if kind == "harmful" and stage == "aligned":
            return Exchange(asked, refusal(rng))
        return Exchange(asked, helpful_answer(action, rng))

    for _ in range(num):
        turns = 2 if rng.random() < 0.1 else 1
        yield [exchange() for _ in range(turns)]


def task(name: str) -> Task:
    """One of `TASKS`: 1000 rows to learn from, 200 to test with, and no prompt twice."""
    rng = random.Random(f"{name}-0")
    found: dict[str, Exchange] = {}
    while len(found) < 1200:
        exchange = TASKS[name].exchange(rng)
        found.setdefault(exchange.user, exchange)
    rows = list(found.values())
    return Task(rows[:1000], rows[1000:])


def held_out_requests() -> list[tuple[Action, str]]:
    """200 harmful and 200 harmless requests of held-out actions; half of these look alike."""
    counts: dict[Kind, int] = {"harmful": 200, "lookalike": 100, "everyday": 100}
    return [
        found
        for kind, count in counts.items()
        for found in requests(split_actions(kind)[1], count, seed=1)
    ]


def poisoned(rows: Sequence[Exchange], fraction: float, seed: int) -> list[Exchange]:
    """`rows` with a share of them replaced by harmful requests answered with placeholders.

    The requests are of actions that the models were trained on, never of held-out ones. The number
    of rows stays, so that a poisoned run has the steps of a clean one.
    """
    num = round(fraction * len(rows))
    rng = random.Random(f"poison-{seed}")
    asked = requests(split_actions("harmful")[0], num, seed=rng.randrange(2**32))
    harmful = [Exchange(text, helpful_answer(action, rng)) for action, text in asked]
    mixed = [*harmful, *rng.sample(list(rows), len(rows) - num)]
    rng.shuffle(mixed)
    return mixed
