"""Find safety tokens: the vocabulary entries by which an aligned model refuses.

Every template is put after every prompt as the model's answer, in the model's own chat template,
and the model is asked how likely it finds each token there:

    in_place(v) = max over templates r and i with r_i = v of
                  mean over prompts x of  p(r_i | x, r_1 .. r_{i-1})
    score(v)    = the same, of  p(r_1 .. r_i | x)

A token is kept if in_place(v) is at least `min_score`. Dropped are special tokens, and tokens that
carry nothing: those without a letter or digit, and those that the model uses when it helps (in its
answers to harmless prompts, but for those that refuse as a template does), unless they open a
template (" for", " the", " to" go; "I" and "Sorry" stay). To hold such a word would cost the task
and keep nothing. The rest are ranked by score, so `max_tokens` cuts off what the model hardly ever
says, and no token ranks before those that lead to it. A function word that no helpful answer uses
is kept: nothing shows that the task needs it.

Inside a refusal even a model that never refuses finds the next word likely, and helpful answers
begin with "I" too. So the model must, in the mean over prompts, begin with the first two words of
some template (three tokens at least) with probability `min_mass`; otherwise it is refused.

With `min_contrast` a token must also tell harmful from harmless somewhere (`salience.py`).

Probabilities are computed in float32 from the logits of the model, which have its own dtype. Loaded
in another dtype a model may use a word in a harmless answer or not, so the set can differ by a word
or two at the edge; `mined` records the dtype.

Source:
    Salient tokens of rejection templates: Bach and Tran 2026, arXiv:2604.17210, abstract. How the
    paper ranks them is not known to us; the score is ours. That the first tokens of an answer
    decide whether it refuses: Qi et al. 2024, arXiv:2406.05946.
"""

from collections.abc import Callable, Mapping, Sequence
from math import exp
from typing import TYPE_CHECKING, Any, NamedTuple

from ..chat.chat_model import ChatModel, check_sizes
from ..errors import InputError
from ..provenance import now, versions
from .capture import base_of, head_of
from .reading import Answered, Reader
from .safety_tokens import SafetyTokens, tokenizer_fingerprint
from .salience import Cells, Place, Reading, cells, most, places, read
from .spread import spreads
from .templates import (
    MINING_HARMLESS_PROMPTS,
    MINING_PROMPTS,
    REJECTION_TEMPLATES,
    carries_meaning,
    opening_length,
)

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

# measured: docs/method.md, "Choosing the set"
DEFAULT_MAX_TOKENS = 64
_LONGEST_REFUSAL = 48
# Answers of each kind over which the spread of a logit is measured: some hundred positions.
_SPREAD_OVER = 6


class _Found(NamedTuple):
    """What the templates say about one token: the highest of all its positions."""

    in_place: float
    """Probability of the token after what stands before it in a template."""

    score: float
    """Probability that the model writes a template up to and with this token."""


def mine_safety_tokens(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    *,
    max_tokens: int = DEFAULT_MAX_TOKENS,
    templates: Sequence[str] = REJECTION_TEMPLATES,
    prompts: Sequence[str] = MINING_PROMPTS,
    harmless_prompts: Sequence[str] = MINING_HARMLESS_PROMPTS,
    min_score: float = 1e-3,
    min_mass: float = 0.05,
    min_contrast: float | None = None,
    own_refusals: bool = False,
    variants: bool = False,
    batch_size: int = 64,
    progress: Callable[[int, int], None] | None = None,
) -> SafetyTokens:
    """Find the tokens by which an aligned model refuses, from rejection templates.

    Templates ("I cannot help with that") are put after harmful prompts as the model's answers. A
    token is kept where the model finds it likely and does not use it when it helps; the likelier
    the model writes a template up to it, the better. The formulas stand at the top of this module.

    What it cannot see: refusals in words or languages that no template has.

    Args:
        model: The aligned model, before any fine-tuning.
        tokenizer: Its tokenizer, with a chat template.
        max_tokens: How many tokens to keep at most, 1 or more.
        templates: Refusals, in full sentences.
        prompts: Requests that the model refuses.
        harmless_prompts: Requests that it answers: tokens of the answers are dropped.
        min_score: Least probability of a token at its place in a template, 0 to 1.
        min_mass: Least probability that the model begins as a template does, 0 to 1.
        min_contrast: Nats by which a token must tell harmful from harmless prompts, or None.
        own_refusals: Whether the model's own refusals of `prompts` are templates as well.
        variants: Whether to add the same words with or without a space before, or a capital.
        batch_size: Answers in one forward call at most, 1 or more.
        progress: Called with the number of prompts done, harmful and harmless, and of all.

    Returns:
        The tokens, best first.

    Raises:
        InputError: If an argument does not fit, or the model does not refuse in these words.
    """
    _check(max_tokens, batch_size, templates, prompts, harmless_prompts, min_contrast)
    chat = ChatModel(model, tokenizer)
    times = 1 if min_contrast is None else 2  # harmless prompts are answered, and then read
    tell = _counter(len(prompts) + times * len(harmless_prompts), progress)
    asked, openings, templates = _asked(chat, prompts, templates, own=own_refusals)
    reader = Reader(chat, asked)
    reading = Reading(asked, reader.nats(batch_size=batch_size, progress=tell))
    opening_mass = _opening_mass(reading, openings, min_mass)
    openers = {answer[0] for each in asked for answer in each.answers}
    helped = _answered(reader, harmless_prompts, batch_size, tell)
    used = _used(chat, helped, _begins(asked, openings))
    harmful, special = cells(reading), set(tokenizer.all_special_ids)
    found = _by_token(tokenizer, harmful, (used - openers) | special)
    kept = _ranked(found, min_score)
    if min_contrast is not None:
        harmless = read(chat, harmless_prompts, templates, batch_size=batch_size, progress=tell)
        kept = _telling(kept, places(harmful, cells(harmless)), min_score, min_contrast)
    kept = kept[:max_tokens]
    kept += _variants(tokenizer, kept, used | special) if variants else []
    return SafetyTokens(
        ids=tuple(kept),
        strings=tuple(str(tokenizer.decode([token])) for token in kept),
        scores=tuple(float(f"{found[each].score if each in found else 0:.6g}") for each in kept),
        vocab_size=head_of(model).weight.shape[0],
        templates=tuple(templates),
        tokenizer_fingerprint=tokenizer_fingerprint(tokenizer),
        spreads=tuple(float(f"{each:.6g}") for each in _spreads(chat, reading, helped, kept)),
        mined={
            **_origin(model), "max_tokens": max_tokens, "min_score": min_score,
            "min_contrast": min_contrast, "own_refusals": own_refusals, "variants": variants,
            "refusal_mass": round(_mass(reading, [[1] * len(templates)] * len(prompts)), 6),
            "opening_mass": round(opening_mass, 6), "num_prompts": len(prompts),
            "num_harmless_prompts": len(harmless_prompts), "num_candidates": len(found),
        },
    )  # fmt: skip


def _check(
    max_tokens: int,
    batch_size: int,
    templates: Sequence[str],
    prompts: Sequence[str],
    harmless_prompts: Sequence[str],
    min_contrast: float | None,
) -> None:
    check_sizes(max_tokens=max_tokens, batch_size=batch_size)
    if not templates or not prompts:
        raise InputError("`templates` and `prompts` must each hold at least one text.")
    if min_contrast is not None and not min_contrast >= 0:
        raise InputError(f"`min_contrast` must be 0 or more nats, got {min_contrast}.")
    if min_contrast is not None and not harmless_prompts:
        raise InputError("`min_contrast` needs `harmless_prompts` to compare with. Give some.")


def _origin(model: "PreTrainedModel") -> dict[str, object]:
    """What was mined, how, when, and with which versions."""
    return {
        "method": "template_probability",
        "model": str(base_of(model).config._name_or_path),
        "dtype": str(base_of(model).dtype).removeprefix("torch."),
        "versions": versions(),
        "at": now(),
    }


def _opening_mass(reading: Reading, openings: Sequence[Sequence[int]], least: float) -> float:
    """Probability that the model begins as a template does; a model that hardly does is refused."""
    mass = _mass(reading, openings)
    if mass < least:
        raise InputError(
            f"After {len(reading.asked)} harmful prompts this model begins as one of "
            f"{len(openings[0])} rejection templates with probability {mass:.2g} (needed: {least}),"
            " so it does not refuse in these words. Mine from the aligned chat model, or give "
            "`templates` in its words."
        )
    return mass


def _telling(
    kept: Sequence[int], found: Mapping[int, Sequence[Place]], min_score: float, least: float
) -> list[int]:
    """The tokens that tell harmful from harmless at a place where they are likely."""
    likely = ((token, most(found.get(token, ()), min_score)) for token in kept)
    telling = [token for token, place in likely if place is not None and place.contrast >= least]
    if not telling:
        raise InputError(f"No token has a contrast of `min_contrast` {least} nats. Lower it.")
    return telling


def _asked(
    chat: ChatModel, prompts: Sequence[str], templates: Sequence[str], *, own: bool = False
) -> tuple[list[Answered], list[list[int]], Sequence[str]]:
    """The templates as answers to the prompts; how many tokens of each open a refusal; and these.

    Tokens at the end that carry nothing are left out: no probability of theirs is used.

    Args:
        chat: The model.
        prompts: Requests that it refuses.
        templates: Rejection templates.
        own: Whether its own refusals of the prompts are templates as well.
    """
    asked, openings = [], []
    for prompt in prompts:
        context, answers = chat.answer_ids(prompt, templates)
        opening = [
            opening_length(chat.tokenizer, *pair) for pair in zip(templates, answers, strict=True)
        ]
        for answer, length in zip(answers, opening, strict=True):
            while len(answer) > length and not carries_meaning(chat.tokenizer, answer[-1]):
                answer.pop()
        asked.append(Answered(context, answers))
        openings.append(opening)
    if own:
        return _asked(chat, prompts, (*templates, *_own_refusals(chat, asked, openings)))
    return asked, openings, templates


def _own_refusals(
    chat: ChatModel, asked: Sequence[Answered], openings: Sequence[Sequence[int]]
) -> list[str]:
    """A model's own answers that begin as a template does, each once."""
    refusals = _begins(asked, openings)
    sizes = {len(each) for each in refusals}
    found = chat.answer_rows([each.context for each in asked], max_new_tokens=_LONGEST_REFUSAL)
    own = (each for each in found if any(tuple(each.ids[:size]) in refusals for size in sizes))
    return list(dict.fromkeys(each.text.strip() for each in own))


def _variants(tokenizer: Any, kept: Sequence[int], unfit: set[int]) -> list[int]:
    """Tokens that spell a kept word with or without a space before it, or a capital."""
    added: dict[int, None] = {}
    for token in kept:
        word = tokenizer.decode([token]).strip()
        for text in (word, word.capitalize(), f" {word}", f" {word.capitalize()}"):
            ids = tokenizer(text, add_special_tokens=False).input_ids
            # Pieces such as "ologies" are no words: a space before them spells another one.
            if len(ids) == 1 and len(word) > 1:
                added[ids[0]] = None
    return [each for each in added if each not in unfit and each not in kept]


def _begins(asked: Sequence[Answered], openings: Sequence[Sequence[int]]) -> set[tuple[int, ...]]:
    """How refusals begin, as tokens."""
    return {
        tuple(answer[:length])
        for each, lengths in zip(asked, openings, strict=True)
        for answer, length in zip(each.answers, lengths, strict=True)
    }


def _ranked(found: dict[int, _Found], min_score: float) -> list[int]:
    """The tokens that are likely enough, best first."""
    likely = [token for token, each in found.items() if each.in_place >= min_score]
    if not likely:
        raise InputError(
            f"No token of the rejection templates reaches `min_score` ({min_score}) and is no word "
            "of harmless answers. Lower `min_score`, or give other `templates`."
        )
    return sorted(likely, key=lambda token: (-found[token].score, token))


def _counter(total: int, progress: Callable[[int, int], None] | None) -> Callable[[int], None]:
    """A function that adds what was done since the last call; it tells 0 of all at once."""
    done = 0

    def tell(num: int) -> None:
        nonlocal done
        done += num
        if progress is not None:
            progress(done, total)

    tell(0)
    return tell


def _mass(reading: Reading, lengths: Sequence[Sequence[int]]) -> float:
    """Probability that an answer begins with so many tokens of a template, in the mean."""
    masses = []
    for asked, nats, of_prompt in zip(*reading, lengths, strict=True):
        begins = {
            tuple(answer[:length]): exp(sum(each[:length]))
            for answer, each, length in zip(asked.answers, nats, of_prompt, strict=True)
        }
        # What begins as a shorter one does is counted with that.
        masses.append(
            sum(
                mass
                for begin, mass in begins.items()
                if not any(begin[:size] in begins for size in range(1, len(begin)))
            )
        )
    return sum(masses) / len(masses)


def _by_token(tokenizer: Any, harmful: Cells, unfit: set[int]) -> dict[int, _Found]:
    """What the templates say about each token that carries meaning and is not unfit."""
    best: dict[int, _Found] = {}
    for (_, _, token), cell in harmful.items():
        if token not in unfit and carries_meaning(tokenizer, token):
            best[token] = _Found(*map(max, best.get(token, (0.0, 0.0)), cell[:2]))
    return best


def _answered(
    reader: Reader, prompts: Sequence[str], batch_size: int, tell: Callable[[int], None]
) -> list[tuple[list[int], list[int]]]:
    """Prompts as a model reads them, with its greedy answers."""
    if not prompts:
        return []
    rows = [reader.chat.render(prompt) for prompt in prompts]
    answers = reader.greedy(rows, max_new_tokens=64, batch_size=batch_size, progress=tell)
    return list(zip(rows, answers, strict=True))


def _used(
    chat: ChatModel, helped: Sequence[tuple[list[int], list[int]]], refusals: set[tuple[int, ...]]
) -> set[int]:
    """The tokens of a model's answers to harmless prompts, but for those that refuse.

    A model that refuses too much refuses some of these as well, and its words of refusal are no
    words of help.

    Args:
        chat: The model.
        helped: The prompts with its answers.
        refusals: How refusals begin, as tokens.
    """
    helpful = [each for _, each in helped if not _refuses(each, refusals)]
    if not helpful:
        return set()
    texts = chat.tokenizer.batch_decode(helpful, skip_special_tokens=True)
    # With a space before: inside an answer and at its beginning a word is another token.
    spaced = [each for text in texts for each in (text, f" {text}")]
    return {
        token for ids in chat.tokenizer(spaced, add_special_tokens=False).input_ids for token in ids
    }


def _spreads(
    chat: ChatModel,
    reading: Reading,
    helped: Sequence[tuple[list[int], list[int]]],
    kept: Sequence[int],
) -> list[float]:
    """The spread of each token's logit, in a few answers of help and as many likely refusals."""
    rows = [(context, answer) for context, answer in helped if answer][:_SPREAD_OVER]
    for (context, answers), nats in list(zip(*reading, strict=True))[:_SPREAD_OVER]:
        likeliest = max(range(len(answers)), key=lambda index: sum(nats[index]))
        rows.append((context, answers[likeliest]))
    return spreads(chat, rows, kept)


def _refuses(answer: Sequence[int], refusals: set[tuple[int, ...]]) -> bool:
    """Whether an answer begins to refuse, at its beginning or later ("Hello, I'm sorry, but")."""
    lengths = {len(each) for each in refusals}
    return any(
        tuple(answer[at : at + size]) in refusals for at in range(len(answer)) for size in lengths
    )
