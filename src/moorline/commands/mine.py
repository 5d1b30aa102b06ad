"""`moorline mine`: safety tokens written; with --explain where each tells, as table and figure."""

import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from ..chat.chat_model import ChatModel, check_sizes
from ..chat.loading import load_chat_model
from ..method.mining import DEFAULT_MAX_TOKENS, mine_safety_tokens
from ..method.safety_tokens import SafetyTokens, check_output
from ..method.salience import Place, explain, most
from ..method.templates import MINING_HARMLESS_PROMPTS, MINING_PROMPTS
from ..provenance import write_text
from .library_messages import quiet

LEAST = 1e-3
"""Probability in its place, after harmful prompts, of what is shown: as mining has it."""

_DEPTHS = 12
"""Depths that are shown: refusals are short, and decided early."""


def mine(
    model: str, output: Path, *, max_tokens: int | None, min_contrast: float | None,
    own_refusals: bool, variants: bool, progress: Callable[[int, int], None],
) -> tuple[ChatModel, SafetyTokens]:  # fmt: skip
    """Mine the safety tokens of a model, and write them; gives the model too.

    Args:
        model: Folder or hub id.
        output: The file to write.
        max_tokens: How many at most; the method's own number if None.
        min_contrast: As for `mine_safety_tokens`, and so the next two.
        own_refusals: Mine from the model's own refusals too.
        variants: Add other spellings.
        progress: Called with the number of prompts done, and of all.

    Raises:
        InputError: If a value does not fit, or the model has nothing to mine.
    """
    check_output(output)
    num = DEFAULT_MAX_TOKENS if max_tokens is None else max_tokens
    check_sizes(max_tokens=num)
    with quiet():
        chat = load_chat_model(model)
        tokens = mine_safety_tokens(
            chat.model, chat.tokenizer, max_tokens=num, min_contrast=min_contrast,
            own_refusals=own_refusals, variants=variants, progress=progress,
        )  # fmt: skip
    tokens.save(output)
    return chat, tokens


def explained(
    chat: ChatModel, tokens: SafetyTokens, figure: Path
) -> tuple[list[str], list[dict[str, float]]]:
    """The table of what was mined, and its places for JSON; the figure is written.

    Args:
        chat: The aligned model.
        tokens: What was mined.
        figure: The figure's file, an SVG.
    """
    found = explain(chat, tokens.templates, MINING_PROMPTS, MINING_HARMLESS_PROMPTS)
    draw(tokens, found, figure)
    places = [each._asdict() for every in found.values() for each in every]
    return list(explanation(tokens, found)), places


def explanation(tokens: SafetyTokens, found: Mapping[int, Sequence[Place]]) -> Iterator[str]:
    """The lines of a table: each token at the place where it tells most.

    Args:
        tokens: What was mined.
        found: Places of all tokens of the templates, as `salience.explain` gives them.
    """
    yield "Where in a refusal each token tells harmful prompts from harmless ones most."
    yield "Probabilities are of the token in its place; contrast is the difference of"
    yield "their logarithms, in nats, in the mean over prompts."
    yield ""
    yield f"{'token':<18}{'score':>9}{'depth':>7}{'harmful':>10}{'harmless':>10}{'contrast':>10}"
    for token, string, score in zip(tokens.ids, tokens.strings, tokens.scores, strict=True):
        place = most(found.get(token, ()), LEAST)
        shown = f"{string!r:<18.18}{score:>9.2g}"
        if place is None:
            yield f"{shown}{'hardly ever said':>37}"
        else:
            rates = f"{place.harmful:>10.2g}{place.harmless:>10.2g}"
            yield f"{shown}{place.depth:>7}{rates}{place.contrast:>10.2f}"


def draw(tokens: SafetyTokens, found: Mapping[int, Sequence[Place]], path: Path) -> None:
    """Write a figure of the contrast by depth, each point a token, as SVG.

    Args:
        tokens: What was mined.
        found: As for `explanation`.
        path: The file.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    axes.axhline(0, color="0.6", linewidth=0.8)
    for token, string in zip(tokens.ids, tokens.strings, strict=True):
        for place in found.get(token, ()):
            if place.depth < _DEPTHS and place.harmful >= LEAST:
                axes.plot(place.depth, place.contrast, "o", color="#0072b2", alpha=0.6)
                # A dollar sign would begin a formula.
                name = string.strip().replace("$", r"\$")
                at = (place.depth, place.contrast)
                axes.annotate(name, at, xytext=(4, 2), textcoords="offset points", fontsize=7)
    axes.set_xlabel("depth in the refusal (tokens before)")
    axes.set_ylabel("contrast, harmful against harmless (nats)")
    text = io.StringIO()
    figure.savefig(text, format="svg", metadata={"Date": None})
    write_text(path, text.getvalue())
