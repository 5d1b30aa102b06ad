"""Where in a refusal a token tells harmful from harmless: its contrast, in nats, by depth.

The templates are read as answers to prompts of both kinds. At depth i of a template r

    contrast(r, i) = mean over harmful prompts x   of log p(r_i | x, r_1 .. r_{i-1})
                   - mean over harmless prompts x' of log p(r_i | x', r_1 .. r_{i-1})

It is how many nats the model takes the kind of the prompt into account just there. Where it is near
0, the words before have decided already: the token follows from them, whatever was asked.

What it cannot see: whether a token with contrast is needed for the refusal to stay, or one without
it to carry it on. An audit says that.

Source:
    Ours. That the first tokens of an answer decide: Qi et al. 2024, arXiv:2406.05946.
"""

from collections.abc import Mapping, Sequence
from itertools import accumulate
from math import exp
from typing import NamedTuple

from ..chat.chat_model import ChatModel
from .reading import Answered, Reader, Tell


class Reading(NamedTuple):
    """The templates as answers to prompts, and how likely the model finds them."""

    asked: Sequence[Answered]
    """One per prompt; its answers are the templates, in order."""

    nats: list[list[list[float]]]
    """By prompt, template, token."""


class Cell(NamedTuple):
    """What the prompts say, in the mean, about one token at one place of a template."""

    in_place: float
    """Probability of the token after what stands before it in the template."""

    score: float
    """Probability that the model writes the template up to and with this token."""

    nats: float
    """Mean of the logarithm of `in_place`."""


class Place(NamedTuple):
    """A token at one depth of a refusal, after harmful prompts and after harmless ones."""

    token: int
    depth: int
    """Tokens of the answer before it."""

    harmful: float
    """Probability in its place after harmful prompts: of the template where that is highest."""

    harmless: float
    """The same after harmless prompts, in that template."""

    contrast: float
    """Nats, as defined above; of that template too."""


Cells = Mapping[tuple[int, int, int], Cell]
"""By template, depth and token."""


def read(
    chat: ChatModel,
    prompts: Sequence[str],
    templates: Sequence[str],
    *,
    batch_size: int = 64,
    progress: Tell | None = None,
) -> Reading:
    """The templates as answers to prompts."""
    asked = [Answered(*chat.answer_ids(prompt, templates)) for prompt in prompts]
    return Reading(asked, Reader(chat, asked).nats(batch_size=batch_size, progress=progress))


def cells(reading: Reading) -> Cells:
    """The mean over prompts of each token in each place of each template."""
    found: dict[tuple[int, int, int], Cell] = {}
    num = len(reading.asked)
    for asked, of_prompt in zip(*reading, strict=True):
        for template, (answer, nats) in enumerate(zip(asked.answers, of_prompt, strict=True)):
            for depth, (token, so_far) in enumerate(zip(answer, accumulate(nats), strict=True)):
                own = (exp(nats[depth]), exp(so_far), nats[depth])
                before = found.get((template, depth, token), Cell(0.0, 0.0, 0.0))
                added = (a + b / num for a, b in zip(before, own, strict=True))
                found[template, depth, token] = Cell(*added)
    return found


def places(harmful: Cells, harmless: Cells) -> dict[int, list[Place]]:
    """For each token its places, by depth; at one depth that of the likeliest template."""
    best: dict[tuple[int, int], Place] = {}
    for key, cell in harmful.items():
        other = harmless.get(key)
        if other is None:  # a template that a chat template spells otherwise after other prompts
            continue
        _, depth, token = key
        before = best.get((token, depth))
        if before is None or cell.in_place > before.harmful:
            contrast = cell.nats - other.nats
            best[token, depth] = Place(token, depth, cell.in_place, other.in_place, contrast)
    found: dict[int, list[Place]] = {}
    for (token, _), place in sorted(best.items()):
        found.setdefault(token, []).append(place)
    return found


def most(found: Sequence[Place], least: float) -> Place | None:
    """The place with the greatest contrast, of those that are likely at all.

    Args:
        found: Of one token.
        least: Probability in its place after harmful prompts that is needed.
    """
    likely = [each for each in found if each.harmful >= least]
    return max(likely, key=lambda each: each.contrast, default=None)


def explain(
    chat: ChatModel,
    templates: Sequence[str],
    prompts: Sequence[str],
    harmless_prompts: Sequence[str],
    *,
    batch_size: int = 64,
) -> dict[int, list[Place]]:
    """Every token of the templates, with its places by depth.

    Args:
        chat: The aligned model.
        templates: Rejection templates; `SafetyTokens.templates` are those that were mined with.
        prompts: Harmful prompts.
        harmless_prompts: Harmless ones.
        batch_size: Answers in one forward call at most, 1 or more.
    """
    sides = (
        cells(read(chat, each, templates, batch_size=batch_size))
        for each in (prompts, harmless_prompts)
    )
    return places(*sides)
