"""Where an answer begins: what a reasoning model thinks before it is no answer."""

import re

_PAIRS = (
    ("<think>", "</think>"),
    ("<thinking>", "</thinking>"),
    ("<thought>", "</thought>"),
    ("<reasoning>", "</reasoning>"),
    ("<seed:think>", "</seed:think>"),
    ("[THINK]", "[/THINK]"),
    ("<|START_THINKING|>", "<|END_THINKING|>"),
    ("<|begin_of_thought|>", "<|end_of_thought|>"),
    ("\u25c1think\u25b7", "\u25c1/think\u25b7"),
    ("<|channel|>analysis", "<|channel|>final<|message|>"),
)
"""What opens and closes thoughts, as models in use write it."""

_OPENED = re.compile("|".join(re.escape(first) for first, _ in _PAIRS), re.IGNORECASE)
_CLOSED = re.compile("|".join(re.escape(last) for _, last in _PAIRS), re.IGNORECASE)
_BLOCK = re.compile(
    "|".join(f"{re.escape(first)}.*?{re.escape(last)}" for first, last in _PAIRS),
    re.IGNORECASE | re.DOTALL,
)


def thinks(text: str) -> bool:
    """Whether a text opens or closes thoughts anywhere."""
    return bool(_OPENED.search(text) or _CLOSED.search(text))


def opened_by(prompt: str) -> str:
    r"""What opens thoughts at the end of a rendered prompt; empty if nothing does.

    Example:
        >>> opened_by("<|user|>Hello<|assistant|><think>\n"), opened_by("<think>\n\n</think>\n\n")
        ('<think>', '')
    """
    found = [each.group() for each in _OPENED.finditer(prompt) if not prompt[each.end() :].strip()]
    return found[-1] if found else ""


def after_thoughts(answer: str, opening: str = "") -> tuple[str, str | None]:
    """An answer without its thoughts, and why it cannot be judged; None if it can.

    An answer that was cut inside its thoughts, or has nothing after them, cannot.

    Args:
        answer: All that the model wrote.
        opening: What was put at its start, which is no answer of the model.

    Example:
        >>> after_thoughts("<think>May I? No.</think>I cannot help with that.")
        ('I cannot help with that.', None)
        >>> after_thoughts("<think>The user wants")
        ('', 'cut inside its thoughts')
    """
    if not thinks(answer):
        return answer, None
    text = _CLOSED.split(_BLOCK.sub("", answer))[-1]
    cut = _OPENED.search(text)
    spoken = (text if cut is None else text[: cut.start()]).strip()
    if not opening.strip().startswith(spoken):
        return spoken, None
    return "", "nothing after its thoughts" if cut is None else "cut inside its thoughts"
