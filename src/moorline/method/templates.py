"""Rejection templates, the tokens that open them, and the prompts to mine with."""

import json
from collections.abc import Sequence
from importlib.resources import files
from typing import TYPE_CHECKING

from ..chat.chat_model import ChatModel

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_TEXTS = json.loads(files("moorline.method").joinpath("mining.json").read_text(encoding="utf-8"))

REJECTION_TEMPLATES: tuple[str, ...] = tuple(_TEXTS["templates"])
"""Ways in which aligned models refuse; our own wording, after the habit of many models."""

MINING_PROMPTS: tuple[str, ...] = tuple(_TEXTS["prompts"])
"""Harmful-sounding requests to mine with; none of them is in a suite that is measured on."""

MINING_HARMLESS_PROMPTS: tuple[str, ...] = tuple(_TEXTS["harmless_prompts"])
"""Everyday requests to mine with: what a model says to these is no sign of a refusal."""


def opener_ids(
    tokenizer: "PreTrainedTokenizerBase", templates: Sequence[str] = REJECTION_TEMPLATES
) -> tuple[int, ...]:
    """The tokens by which answers begin that follow the templates, each once, in ascending order.

    They are spelled as they follow the chat template's generation prompt, where there is one.
    Special tokens and those without a letter or digit carry nothing and are left out.
    """
    if tokenizer.chat_template:
        answers = ChatModel(None, tokenizer).answer_ids("Hello!", templates)[1]
    else:
        answers = tokenizer(list(templates), add_special_tokens=False).input_ids
    first = {answer[0] for answer in answers}
    special = set(tokenizer.all_special_ids)
    return tuple(
        sorted(each for each in first if each not in special and carries_meaning(tokenizer, each))
    )


def opening_length(
    tokenizer: "PreTrainedTokenizerBase", template: str, answer: Sequence[int]
) -> int:
    """How many tokens of a template nobody begins with who does not refuse.

    The first two words and three tokens at least: "I" opens a helpful answer as well. A template
    that is not written in words has three.

    Args:
        tokenizer: A tokenizer.
        template: A rejection template.
        answer: Its tokens.
    """
    words = template.split()
    opening = " ".join(words[:2]).rstrip(",.;:!") if len(words) > 2 else ""
    for length in range(3, len(answer)):
        if opening in tokenizer.decode(list(answer[:length])):
            return length
    return len(answer)


def carries_meaning(tokenizer: "PreTrainedTokenizerBase", token: int) -> bool:
    """Whether there is a letter or a digit in a token."""
    return any(character.isalnum() for character in tokenizer.decode([token]))
