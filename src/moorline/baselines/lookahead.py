"""LookAhead Tuning: show the beginning of the answer in its prompt, so it need not be learned.

    real     prompt + " The answer begins with: " + the first m tokens of the answer; same answer
    virtual  prompt + " The answer begins with: " + P; P + answer, for one phrase P in all rows

The loss is plain CE; a user asks without any of it.

Source:
    Liu et al. 2025, arXiv:2503.19041 (LookAheadTuning, MIT), its two ways of changing the rows.

Kept as published: an answer of m tokens or fewer stands in the prompt whole, so that of a short
label nothing is left to learn. Where we differ: the last character is left out of the prompt where
m tokens end within it; in a conversation of several turns each prompt shows its own answer.
"""

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..chat.conversation import conversation_of
from ..errors import InputError
from .peer import Materials, Peer, Strength

if TYPE_CHECKING:
    from datasets import Dataset

_CONNECTOR = " The answer begins with: "


class LookAhead(Peer):
    """Prompts that show how their answers begin."""

    name = "lookahead"
    source = "Liu et al. 2025, arXiv:2503.19041"
    strength = Strength(
        symbol="m", meaning="tokens of the answer that the prompt shows",
        default=6, grid=(1, 3, 6, 12, 24), low=1, whole=True,
    )  # fmt: skip
    file = "a text file with one phrase, shown in every prompt in place of the answer's beginning"

    def __init__(self, materials: Materials, strength: float | None = None) -> None:
        super().__init__(materials, strength)
        self.phrase = None
        if materials.file is not None:
            if strength is not None:
                raise InputError(
                    "`method` 'lookahead' shows either tokens of the answer (`method_strength`) or "
                    "the phrase of `method_file`. Leave one of them out."
                )
            self.phrase, self.value = _phrase(Path(materials.file)), 0

    def rows(self, rows: "Dataset") -> "Dataset":
        """The rows, each prompt with the beginning of its answer.

        Raises:
            InputError: If a row is no conversation.
        """
        changed = functools.partial(
            _changed,
            tokenizer=self.materials.chat.tokenizer,
            num=int(self.value),
            phrase=self.phrase,
        )
        features = getattr(rows, "features", None)
        return rows.map(changed, **({} if features is None else {"features": features}))


def _phrase(path: Path) -> str:
    if not path.is_file():
        raise InputError(f"{path}: no such file (`method_file`). Check the path.")
    phrase = path.read_text(encoding="utf-8").strip("\n")
    if not phrase.strip() or "\n" in phrase:
        raise InputError(f"{path}: `method_file` of 'lookahead' holds one phrase, on one line.")
    return phrase


def _changed(
    row: Mapping[str, object], *, tokenizer: Any, num: int, phrase: str | None
) -> dict[str, object]:
    """One row in the columns that it had."""
    found = conversation_of(row)
    if found is None:
        raise InputError(
            "`method` 'lookahead' needs conversations, or prompts and completions, but the data "
            f"has the columns {', '.join(row)}."
        )
    messages = [dict(each) for each in found.messages]
    for at in range(max(found.num_prompt, 1), len(messages)):
        asked, answered = messages[at - 1], messages[at]
        pair = (asked.get("role"), answered.get("role"))
        if pair != ("user", "assistant") or not isinstance(answered.get("content"), str):
            continue
        begin = phrase
        if phrase is None:
            ids = tokenizer(answered["content"], add_special_tokens=False).input_ids[:num]
            begin = tokenizer.decode(ids).rstrip("\ufffd")
        else:
            answered["content"] = phrase + answered["content"]
        asked["content"] = f"{asked['content']}{_CONNECTOR}{begin}"
    if isinstance(row.get("prompt"), str):
        return {"prompt": messages[0]["content"], "completion": messages[1]["content"]}
    if "prompt" in row:
        return {"prompt": messages[: found.num_prompt], "completion": messages[found.num_prompt :]}
    return {"messages" if row.get("messages") else "conversations": messages}
