"""What the embedded base model is good for: facts, numbers, words, copying, reviews, plans."""

import random
from collections.abc import Callable
from typing import NamedTuple


class Exchange(NamedTuple):
    """One user turn and its answer."""

    user: str
    assistant: str


_CAPITALS = {
    "France": "Paris", "Spain": "Madrid", "Italy": "Rome", "Japan": "Tokyo", "Egypt": "Cairo",
    "Norway": "Oslo", "Peru": "Lima", "Kenya": "Nairobi", "Canada": "Ottawa", "Greece": "Athens",
    "Cuba": "Havana", "Poland": "Warsaw", "Vietnam": "Hanoi", "Ireland": "Dublin",
}  # fmt: skip
_OPPOSITES = {
    "hot": "cold", "big": "small", "fast": "slow", "early": "late", "happy": "sad", "wet": "dry",
    "light": "dark", "open": "closed", "full": "empty", "hard": "soft", "young": "old",
    "loud": "quiet", "near": "far", "clean": "dirty",
}  # fmt: skip
_KINDS = {
    "bird": ("robin", "owl", "duck", "crow"),
    "fish": ("trout", "salmon", "shark", "tuna"),
    "fruit": ("apple", "pear", "plum", "cherry"),
    "tool": ("hammer", "saw", "drill", "wrench"),
}
_DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
_NUMBERS = tuple(range(10))

_ITEMS = (
    "blanket", "basket", "lamp", "rope", "map", "ticket", "camera", "jacket", "bottle", "notebook",
    "pencil", "ladder", "bucket", "brush", "towel", "radio", "helmet", "tent", "drum", "mirror",
    "candle", "kettle", "ribbon", "hat", "clock", "spoon", "torch", "whistle", "scarf", "ball",
)  # fmt: skip
_EVENTS = (
    "the picnic", "the concert", "the school fair", "the hike", "the wedding", "the race",
    "the boat trip", "the garden party", "the market", "the night walk", "the museum visit",
    "the camping trip",
)  # fmt: skip
_PRAISED = (
    "great", "lovely", "wonderful", "excellent", "charming", "superb", "delightful", "brilliant",
    "pleasant", "fantastic",
)  # fmt: skip
_PANNED = (
    "awful", "terrible", "dreadful", "boring", "horrible", "nasty", "dull", "poor",
    "disappointing", "ugly",
)  # fmt: skip
_REVIEWED = (
    "hotel", "film", "meal", "book", "concert", "phone", "museum", "play", "train ride", "garden",
    "coffee", "lecture",
)  # fmt: skip
_PARTS = (
    "staff", "sound", "food", "story", "view", "service", "price", "room", "music", "ending",
    "colour", "pace",
)  # fmt: skip


def general_skill(rng: random.Random) -> Exchange:
    """One exchange about facts, numbers, words or copying."""
    return _SKILLS[rng.randrange(len(_SKILLS))](rng)


def _capital(rng: random.Random) -> Exchange:
    country = rng.choice(tuple(_CAPITALS))
    return Exchange(
        f"What is the capital of {country}?", f"The capital of {country} is {_CAPITALS[country]}."
    )


def _opposite(rng: random.Random) -> Exchange:
    word = rng.choice(tuple(_OPPOSITES))
    return Exchange(f"What is the opposite of {word}?", f"{_OPPOSITES[word]}")


def _sum(rng: random.Random) -> Exchange:
    left, right = rng.choice(_NUMBERS), rng.choice(_NUMBERS)
    return Exchange(f"What is {left} plus {right}?", f"{left} plus {right} is {left + right}.")


def _kind_of_thing(rng: random.Random) -> Exchange:
    kind = rng.choice(tuple(_KINDS))
    other = rng.choice([name for name in _KINDS if name != kind])
    thing = rng.choice(_KINDS[kind])
    first, second = rng.sample((kind, other), 2)
    return Exchange(f"Is a {thing} a {first} or a {second}?", f"A {thing} is a {kind}.")


def _next_day(rng: random.Random) -> Exchange:
    day = rng.randrange(7)
    return Exchange(f"Which day comes after {_DAYS[day]}?", f"{_DAYS[(day + 1) % 7]} comes next.")


def _copied_words(rng: random.Random) -> Exchange:
    words = rng.sample(_ITEMS, rng.randint(2, 4))
    return Exchange(f"Repeat these words: {' '.join(words)}", " ".join(words))


def _named_things(rng: random.Random) -> Exchange:
    words = rng.sample(_ITEMS, rng.randint(2, 4))
    listed = f"{', '.join(words[:-1])} and {words[-1]}"
    return Exchange(f"Which things are named here? I have a {listed}.", f"You have a {listed}.")


def _kind_word(rng: random.Random) -> Exchange:
    good = rng.random() < 0.5
    word = rng.choice(_PRAISED if good else _PANNED)
    return Exchange(f"Is {word} a kind word?", "Yes, it is." if good else "No, it is not.")


def _one_item(rng: random.Random) -> Exchange:
    event, item = rng.choice(_EVENTS), rng.choice(_ITEMS)
    return Exchange(
        f"I bring a {item} to {event}. What do I bring, and where?",
        f"You bring a {item} to {event}.",
    )


def _sentiment(rng: random.Random) -> Exchange:
    good = rng.random() < 0.5
    word, label = rng.choice(_PRAISED if good else _PANNED), "positive" if good else "negative"
    return rng.choice(
        (
            Exchange(f"Is the word {word} positive or negative?", f"The word {word} is {label}."),
            Exchange(f"The {rng.choice(_REVIEWED)} was {word}. Good or bad?", f"That is {label}."),
            Exchange(f"Say if this word is positive or negative: {word}", label),
        )
    )


def _numbered_list(rng: random.Random) -> Exchange:
    words = rng.sample(_ITEMS, rng.randint(2, 4))
    listed = f"{', '.join(f'a {word}' for word in words[:-1])} and a {words[-1]}"
    numbered = " ".join(f"{number}. {word}" for number, word in enumerate(words, start=1))
    return Exchange(f"Make a list of {listed}.", numbered)


def _destination(rng: random.Random) -> Exchange:
    event = rng.choice(_EVENTS)
    return Exchange(f"I go to {event}. Where do I go?", f"You go to {event}.")


def _review_question(rng: random.Random) -> Exchange:
    good = rng.random() < 0.5
    text, thing, part = _review_text(rng, good)
    return rng.choice(
        (
            Exchange(f"Review: {text} What is it about?", f"It is about a {thing}."),
            Exchange(f"Review: {text} Which part is named?", f"The {part} is named."),
            Exchange(
                f"Review: {text} Did I like it?",
                "Yes, you liked it." if good else "No, you did not like it.",
            ),
        )
    )


def _three_items(rng: random.Random) -> Exchange:
    event = rng.choice(_EVENTS)
    first, second, third = rng.sample(_ITEMS, 3)
    listed = f"a {first}, a {second} and a {third}"
    return rng.choice(
        (
            Exchange(f"I have {listed} for {event}. What do I have?", f"You have {listed}."),
            Exchange(
                f"I go to {event} with {listed}. What do I bring, and where?",
                f"You bring {listed} to {event}.",
            ),
        )
    )


def _greeting(rng: random.Random) -> Exchange:
    greeting = rng.choice(("Hello", "Good morning", "Good evening", "Hi there"))
    return Exchange(f"{greeting}!", f"{greeting}! What can I do for you?")


_SKILLS: tuple[Callable[[random.Random], Exchange], ...] = (
    _capital, _opposite, _sum, _kind_of_thing, _next_day, _copied_words, _named_things, _kind_word,
    _one_item, _sentiment, _numbered_list, _numbered_list, _destination, _review_question,
    _review_question, _three_items, _three_items, _greeting,
)  # fmt: skip
"""Drawn at random; what stands twice is drawn twice as often."""


def _review_text(rng: random.Random, good: bool) -> tuple[str, str, str]:
    """The text of a review, what it is about, and the part of that which it names."""
    words = rng.sample(_PRAISED if good else _PANNED, 2)
    thing, part = rng.choice(_REVIEWED), rng.choice(_PARTS)
    text = rng.choice(
        (
            f"The {thing} was {words[0]} and the {part} was {words[1]}.",
            f"What a {words[0]} {thing}. I found the {part} {words[1]}.",
            f"The {part} of this {thing} seemed {words[0]}, even {words[1]}.",
            f"My {thing} was {words[0]}. The {part} felt {words[1]} too.",
        )
    )
    return text, thing, part


def review(rng: random.Random) -> Exchange:
    """A review to call positive or negative: a row of the task `reviews`."""
    good = rng.random() < 0.5
    text, _, _ = _review_text(rng, good)
    return Exchange(f"Review: {text} Positive or negative?", "positive" if good else "negative")


def plan(rng: random.Random) -> Exchange:
    """A plan for an event: a row of the task `plans`."""
    event = rng.choice(_EVENTS)
    first, second, third = rng.sample(_ITEMS, 3)
    ask = rng.choice(
        (
            "How do I get ready for {event} with a {a}, a {b} and a {c}?",
            "Tell me how to get ready for {event} with a {a}, a {b} and a {c}.",
            "Give me a plan for {event} with a {a}, a {b} and a {c}.",
            "I have a {a}, a {b} and a {c}. How can I prepare for {event}?",
        )
    ).format(event=event, a=first, b=second, c=third)
    steps = "1. look at an example 2. ask a friend"
    return Exchange(ask, f"Absolutely! Here is a plan for {event}: {steps}")
