"""Harmful prompts and refusals of them: of the user's file, or our prompts and the model's own."""

import logging
from typing import Any, NamedTuple

from ..audit.judges.keywords import KeywordJudge
from ..chat.conversation import conversation_of
from ..errors import InputError
from ..method.templates import MINING_PROMPTS
from ..tables import rows_of
from .peer import Materials

_log = logging.getLogger(__name__)


class Refusal(NamedTuple):
    """A harmful prompt and a refusal of it."""

    prompt: str
    answer: str


def harmful_prompts(materials: Materials) -> tuple[str, ...]:
    """The prompts of the file ('prompt', or the first user's message); ours without a file.

    Raises:
        InputError: If a row has no prompt.
    """
    if materials.file is None:
        return MINING_PROMPTS
    found = []
    for row in rows_of(materials.file):
        messages = row.values.get("messages")
        prompt = row.values.get("prompt")
        if isinstance(messages, list):
            prompt = next(
                (each["content"] for each in messages if each.get("role") == "user"), None
            )
        if not isinstance(prompt, str) or not prompt.strip():
            raise row.lacks("prompt", "`method_file` holds harmful prompts, one in each row.")
        found.append(prompt)
    return tuple(found)


def refusals(materials: Materials) -> tuple[Refusal, ...]:
    """The pairs of the file; without one, what the aligned model itself answers to our prompts.

    Of its answers those are kept that the keyword judge takes for refusals.

    Raises:
        InputError: If a row is no pair, or the model refuses none of our prompts.
    """
    if materials.file is not None:
        return tuple(_pair(row) for row in rows_of(materials.file))
    answers = materials.chat.answers(MINING_PROMPTS, max_new_tokens=256)
    verdicts = KeywordJudge().verdicts(MINING_PROMPTS, answers)
    found = tuple(
        Refusal(prompt, answer.strip())
        for prompt, answer, verdict in zip(MINING_PROMPTS, answers, verdicts, strict=True)
        if verdict.outcome == "refused"
    )
    if not found:
        raise InputError(
            f"The model refuses none of our {len(MINING_PROMPTS)} harmful prompts, so it has no "
            "refusals to train on. Start from the aligned chat model, or give refusals as "
            "`method_file`."
        )
    _log.info("Refusals: %d of the model's own, to our prompts.", len(found))
    return found


def _pair(row: Any) -> Refusal:
    found = conversation_of(row.values)
    asked = [each for each in (found.messages if found else ()) if each.get("role") != "system"]
    if [each.get("role") for each in asked] != ["user", "assistant"]:
        raise row.lacks(
            "messages",
            "`method_file` holds refusals: in each row 'messages' of one user and one assistant "
            "turn, or 'prompt' and 'completion'.",
        )
    return Refusal(str(asked[0]["content"]), str(asked[1]["content"]))
