"""Which tokens of a conversation are responses, from labels and from chat templates.

Axis names, used in every signature of this module:
    batch   sequences in the batch
    time    positions; position t holds the logits that predict token t + 1
"""

import json
import re
from collections.abc import Mapping, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from ..errors import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

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


Message: TypeAlias = Mapping[str, Any]
"""A turn: `role`, `content`, and whatever more its template reads."""


class Conversation(NamedTuple):
    """A row of data as a conversation."""

    messages: list[Message]
    num_prompt: int
    """How many of the messages are prompt, so that none of them is learned."""

    variables: Mapping[str, Any]
    """More for the chat template, such as `tools`."""


def conversation_of(row: Mapping[str, Any], *, texts: bool = True) -> Conversation | None:
    """The conversation in a row: `messages`, `conversations`, or `prompt` and `completion`.

    Args:
        row: With TRL's names of columns; `tools`, also as JSON text, and `chat_template_kwargs` go
            to the template. ShareGPT's `from` and `value` are read too.
        texts: Whether a prompt and completion that are texts are one turn each.

    Returns:
        None if the row is none: plain text, or tokenized already.
    """
    prompt, completion = row.get("prompt"), row.get("completion")
    if texts and isinstance(prompt, str) and isinstance(completion, str):
        prompt = [{"role": "user", "content": prompt}]
        completion = [{"role": "assistant", "content": completion}]
    if isinstance(prompt, list) and isinstance(completion, list):
        messages = [*prompt, *completion]
    else:
        prompt, messages = [], row.get("messages") or row.get("conversations")
    if "input_ids" in row or not isinstance(messages, list):
        return None
    if not messages or not all(isinstance(each, Mapping) for each in messages):
        return None
    variables = {"tools": tools_of(row)}
    variables |= row.get("chat_template_kwargs") or {}
    given = {name: value for name, value in variables.items() if value is not None}
    return Conversation([_message(each) for each in messages], len(prompt), given)


def tools_of(row: Mapping[str, Any]) -> list[Any] | None:
    """The tools of a row, also of JSON text; None without.

    Raises:
        InputError: If they are no list.
    """
    given = found = row.get("tools") or None
    if isinstance(given, str):
        try:
            found = json.loads(given)
        except ValueError:
            found = given
    if found is None or isinstance(found, list):
        return found
    raise InputError(
        f"`tools` of a row must be a list, or JSON of one, got {str(given)[:60]!r}. Correct the "
        "rows, or leave the column out."
    )


# ShareGPT's names of who speaks
_ROLES = {"human": "user", "gpt": "assistant", "chatgpt": "assistant", "bing": "assistant"}


def _message(given: Message) -> Message:
    message = dict(given)
    if "from" in message and "role" not in message:
        speaker = message.pop("from")
        message |= {"role": _ROLES.get(speaker, speaker), "content": message.pop("value", None)}
    return message


def mark_responses(
    tokenizer: "PreTrainedTokenizerBase",
    messages: Sequence[Message],
    *,
    after: int = 0,
    **template: Any,
) -> dict[str, list[int]]:
    """Token ids of a conversation, and which of them the assistant says, for any chat template.

    A response is what the model itself says after the generation prompt, and this is the rule:

    - It begins where the generation prompt ends, whatever the template's `{% generation %}` marks
      say. A template may have several generation prompts (`enable_thinking` on, off or unset); the
      longest that the conversation follows counts. So an empty block of thoughts that the template
      writes when thinking is off belongs to the template, and thoughts belong to the response.
    - It ends with its end-of-turn token. Whitespace that the template writes behind that token is
      never generated.
    - A token that holds characters of both prompt and response counts as response.
    - Where the template renders an answer differently once other messages follow (most drop earlier
      thoughts), the rule is applied to the text as it stands in the whole conversation; an end
      that stands there in other words is not counted.
    - A first message by the assistant answers no prompt, so it is no response.

    Args:
        tokenizer: A tokenizer with a chat template.
        messages: Messages with `role` and `content`.
        after: Number of messages at the beginning that are prompt, even those by the assistant.
        **template: More variables for the template, such as `tools`.

    Returns:
        `input_ids`, and `assistant_masks` of the same length with 1 at response tokens.

    Raises:
        InputError: If no message is a response, the template refuses the conversation, or it leaves
            out calls of tools, or messages, so that nothing says where a response begins.
    """
    answers = [
        at for at in range(max(after, 1), len(messages)) if messages[at].get("role") == "assistant"
    ]
    if not answers:
        raise InputError(
            "A conversation has no message of role 'assistant' that answers another one, so "
            "nothing to learn."
        )

    text = (render := _Renderer(tokenizer, template))(messages)
    ids = _ids(tokenizer, text)
    mask = [0] * len(ids)
    for at in answers:
        render.check_calls(messages, at)
        begin, end = render.begin(messages, at, text), render.end(messages, at, text)
        if (surplus := render.behind_end.search(text, begin, end)) is not None:
            end = surplus.start(1)
        first, last = (
            num_shared(_ids(tokenizer, text[:border]), ids) for border in (begin, max(begin, end))
        )
        mask[first:last] = [1] * (last - first)
    return {"input_ids": ids, "assistant_masks": mask}


_STAND_IN = "\ue000"  # of Unicode's private use: in no text, and no template strips it


class _Renderer:
    """Conversations as text, and the borders in it."""

    def __init__(self, tokenizer: "PreTrainedTokenizerBase", variables: Mapping[str, Any]) -> None:
        self._tokenizer, self._variables = tokenizer, {"add_generation_prompt": False, **variables}
        added = tokenizer.added_tokens_decoder.values()
        special = [*tokenizer.all_special_tokens, *(each.content for each in added if each.special)]
        self.behind_end = _behind_end(frozenset(special))
        self._pieces = _one_of(frozenset(each.content for each in added))
        source = tokenizer.get_chat_template(variables.get("chat_template"), variables.get("tools"))
        self._can_think = "thinking" in source

    def __call__(self, messages: Sequence[Message], **more: Any) -> str:
        try:
            return str(
                self._tokenizer.apply_chat_template(
                    list(messages),  # pyright: ignore[reportArgumentType]
                    tokenize=False,
                    **self._variables | more,
                )
            )
        except Exception as error:  # a template is a program, and from outside
            raise InputError(
                f"The chat template refuses a conversation of {len(messages)} messages: {error}. "
                "Change the conversation, or give another template."
            ) from error

    def check_calls(self, messages: Sequence[Message], at: int) -> None:
        """Refuse an answer that calls tools where the template leaves the calls out."""
        if not messages[at].get("tool_calls"):
            return
        # some templates refuse an answer without content and without calls
        calls = {**messages[at], "content": _STAND_IN}
        none = {name: value for name, value in calls.items() if name != "tool_calls"}
        if self([*messages[:at], calls]) == self([*messages[:at], none]):
            raise InputError(
                f"The chat template leaves out the calls of tools ('tool_calls') in message "
                f"{at + 1} of {len(messages)}, so the model would learn to say nothing in their "
                "place. Use a model whose template renders them, or leave such rows out."
            )

    def begin(self, messages: Sequence[Message], at: int, text: str) -> int:
        """Where the response in message `at` begins: the end of a generation prompt."""
        before = messages[:at]
        prompt = self(before, add_generation_prompt=True)
        asked = num_shared(prompt, self(before))
        if text.startswith(prompt[:asked]):
            header = asked
        else:  # the past is rendered in other words: compare what follows its last content
            last = self._behind(messages, at - 1, text)
            there = self._behind(before, at - 1, prompt, add_generation_prompt=True)
            header = last + self._shared(prompt[there:asked], text[last:])
        headers = {prompt[asked:]}
        for thinks in (True, False) if self._can_think else ():
            switch = {"enable_thinking": thinks, "thinking": thinks}
            other = self(before, add_generation_prompt=True, **switch)
            headers.add(other[num_shared(other, self(before, **switch)) :])
        followed = [len(each) for each in headers if text.startswith(each, header)]
        return header + max(followed or (self._shared(each, text[header:]) for each in headers))

    def end(self, messages: Sequence[Message], at: int, text: str) -> int:
        """Where the response in message `at` ends, its end of turn included."""
        alone = self(messages[: at + 1])
        if text.startswith(alone):
            return len(alone)
        last = self._behind(messages, at, text)
        tail = alone[self._behind(messages[: at + 1], at, alone) :]
        return last + self._shared(tail, text[last:])

    def _behind(self, messages: Sequence[Message], at: int, text: str, **more: Any) -> int:
        """The index in the rendered text behind the content of message `at`.

        With another content in its place, the text is the same from there on.
        """
        content: Any = _STAND_IN
        if isinstance(messages[at].get("content"), list):  # as templates of vision models want it
            content = [{"type": "text", "text": _STAND_IN}]
        changed = [*messages[:at], {**messages[at], "content": content}, *messages[at + 1 :]]
        other = self(changed, **more)
        if _STAND_IN not in other:
            raise InputError(
                f"The chat template leaves out message {at + 1} of {len(messages)} (role "
                f"{messages[at].get('role')!r}), so nothing says where the response to it begins. "
                "Use a template that shows it, or leave that message out."
            )
        return len(text) - num_shared(text[::-1], other[::-1])

    def _shared(self, first: str, second: str) -> int:
        """How many characters two texts share from their beginning, without a part of a token."""
        pieces = self._pieces.findall(first)
        return len("".join(pieces[: num_shared(pieces, self._pieces.findall(second))]))


def _ids(tokenizer: "PreTrainedTokenizerBase", text: str) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False, verbose=False).input_ids)


def num_shared(first: Sequence[Any], second: Sequence[Any]) -> int:
    """How many items two sequences share from their beginning."""
    shared = min(len(first), len(second))
    if first[:shared] == second[:shared]:
        return shared
    return next(at for at in range(shared) if first[at] != second[at])


def _any_of(tokens: frozenset[str]) -> str:
    return "|".join(map(re.escape, sorted(tokens, key=len, reverse=True))) or "(?!)"


@cache
def _one_of(tokens: frozenset[str]) -> re.Pattern[str]:
    """One of these tokens, or else one character."""
    return re.compile(f"{_any_of(tokens)}|.", re.DOTALL)


@cache
def _behind_end(special: frozenset[str]) -> re.Pattern[str]:
    """What stands behind an end of turn: whitespace, and special tokens behind that."""
    return re.compile(rf"(?:{_any_of(special)})(\s(?:\s|{_any_of(special)})*)\Z")
