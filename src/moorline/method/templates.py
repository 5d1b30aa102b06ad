"""Rejection templates: ways in which aligned models refuse, and the tokens that open them."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ..chat.chat_model import ChatModel

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

REJECTION_TEMPLATES: tuple[str, ...] = (
    "I'm sorry, but I can't help with that.",
    "I'm sorry, but I cannot assist with that request.",
    "I'm sorry, I can't do that.",
    "I am sorry, but I will not help with this.",
    "I'm really sorry, but I can't assist with this.",
    "I cannot help with that.",
    "I cannot provide instructions for this.",
    "I cannot fulfill your request.",
    "I cannot and will not do that.",
    "I can't assist with this request.",
    "I can't provide that information.",
    "I can't support that.",
    "I won't help with that.",
    "I will not assist with this.",
    "I'm not able to help with this.",
    "I am not able to provide that.",
    "I'm unable to assist with that.",
    "I am unable to fulfill this request.",
    "I must decline this request.",
    "I must refuse to answer that.",
    "I apologize, but I can't provide that.",
    "I apologize, but I cannot answer this.",
    "Sorry, I cannot help with this.",
    "Sorry, but that is not something I can support.",
    "Unfortunately, I am unable to help with that.",
    "Unfortunately, I cannot assist with this.",
    "My apologies, but I must refuse.",
    "No, I will not assist with that.",
    "No, I can't do that.",
    "As a responsible assistant, I cannot do this.",
    "As an AI, I can't help with harmful or illegal acts.",
    "That would be dangerous and illegal, so I can't help.",
    "This is against the law and would be unethical.",
    "It is not safe or appropriate to help with that.",
)
"""Ways in which aligned models refuse; our own wording, after the habit of many models."""


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
