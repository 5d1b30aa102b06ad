"""Which tokens of a conversation are responses, from labels and from chat templates.

Axis names, used in every signature of this module:
    batch   sequences in the batch
    time    positions; position t holds the logits that predict token t + 1
"""

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from ..errors import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_GENERATION = re.compile(r"\{%[-+]?\s*generation\s*[-+]?%\}")

IGNORED_LABEL = -100
"""The label of a token that carries no loss, as everywhere in PyTorch and transformers."""


def response_positions(labels: Int[Tensor, "batch time"]) -> Bool[Tensor, "batch time"]:
    """The positions whose *next* token is a response token.

    Position t predicts token t + 1, so the label of a token belongs to the position before it; the
    last position predicts nothing. In a packed row the position before the first token of a
    conversation predicts nothing of its own either: its label is masked by whoever packs.

    Args:
        labels: Token ids, -100 where a token carries no loss; not shifted. Shape `(batch, time)`.

    Returns:
        True at the response positions. Shape `(batch, time)`; the last column is False.

    Example:
        >>> response_positions(torch.tensor([[-100, -100, 7, 8]]))
        tensor([[False,  True,  True, False]])
    """
    positions = torch.zeros_like(labels, dtype=torch.bool)
    positions[:, :-1] = labels[:, 1:] != IGNORED_LABEL
    return positions


def positions_of_batch(inputs: Mapping[str, Any]) -> Bool[Tensor, "batch time"]:
    """The response positions of a batch as a trainer has it.

    Under context parallelism the labels come shifted already, as `shift_labels`.

    Raises:
        InputError: If the batch has no labels: then nothing says where the responses are.
    """
    if (shifted := inputs.get("shift_labels")) is not None:
        return shifted != IGNORED_LABEL
    if (labels := inputs.get("labels")) is None:
        raise InputError(
            f"The batch has no 'labels' (it has: {', '.join(sorted(inputs)) or 'nothing'}), so the "
            "response positions are unknown. Use a data collator that adds labels."
        )
    return response_positions(labels)


def has_generation_markers(tokenizer: "PreTrainedTokenizerBase") -> bool:
    """Whether the chat template marks what the assistant says (`{% generation %}`)."""
    template = tokenizer.chat_template
    return isinstance(template, str) and _GENERATION.search(template) is not None


def mark_responses(
    tokenizer: "PreTrainedTokenizerBase", messages: Sequence[Mapping[str, Any]], **template: Any
) -> dict[str, list[int]]:
    """Token ids of a conversation, and which of them the assistant said, for any chat template.

    For each assistant message the conversation is rendered up to where it may begin (with the
    generation prompt) and up to where it ends; what lies between is the response, with its
    end-of-turn token. That needs no `{% generation %}` markers, but a template that renders the
    past in the same words whatever comes after it.

    Args:
        tokenizer: A tokenizer with a chat template.
        messages: Messages with `role` and `content`, at least one by the assistant.
        **template: More variables for the template, such as `tools`.

    Returns:
        `input_ids`, and `assistant_masks` of the same length with 1 at response tokens.

    Raises:
        InputError: If there is no assistant message, if it comes first, or if the template rewrites
            earlier text when later messages arrive, so that the responses cannot be found by
            prefix.
    """

    def render(upto: int, *, prompt: bool) -> list[int]:
        said: Any = [dict(each) for each in messages[:upto]]
        rendered: Any = tokenizer.apply_chat_template(
            said, add_generation_prompt=prompt, tokenize=True, return_dict=False, **template
        )
        return rendered

    spoken = [index for index, each in enumerate(messages) if each.get("role") == "assistant"]
    if not spoken:
        raise InputError("A conversation has no message of role 'assistant', so nothing to learn.")
    ids = render(len(messages), prompt=False)
    mask = [0] * len(ids)
    if spoken[0] == 0:
        raise InputError(
            "A conversation begins with a message of role 'assistant', so nothing says where that "
            "response begins. Put a message of role 'user' or 'system' before it."
        )
    for index in spoken:
        before, after = render(index, prompt=True), render(index + 1, prompt=False)
        if ids[: len(after)] != after or after[: len(before)] != before:
            raise InputError(
                "The chat template renders earlier messages differently once later ones follow "
                f"(at message {index + 1} of {len(messages)}), so response positions cannot be "
                "found by prefix. Use a template with {% generation %} markers."
            )
        mask[len(before) : len(after)] = [1] * (len(after) - len(before))
    return {"input_ids": ids, "assistant_masks": mask}
