"""Find safety tokens: the vocabulary entries by which an aligned model refuses."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from ..chat.chat_model import ChatModel
from ..errors import InputError
from ..provenance import now, versions
from .capture import base_of, head_of
from .mining_prompts import MINING_HARMLESS_PROMPTS, MINING_PROMPTS
from .safety_tokens import SafetyTokens, tokenizer_fingerprint
from .templates import REJECTION_TEMPLATES, carries_meaning

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

# measured: docs/method.md, "Choosing the set"
DEFAULT_MAX_TOKENS = 64


def mine_safety_tokens(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    *,
    max_tokens: int = DEFAULT_MAX_TOKENS,
    templates: Sequence[str] = REJECTION_TEMPLATES,
    prompts: Sequence[str] = MINING_PROMPTS,
    harmless_prompts: Sequence[str] = MINING_HARMLESS_PROMPTS,
    min_score: float = 1e-3,
    min_mass: float = 0.1,
    batch_size: int = 32,
) -> SafetyTokens:
    """Find the tokens by which an aligned model refuses, from rejection templates.

    Every template is put into the mouth of the model as its answer to every prompt, in the model's
    own chat template, and the model is asked how likely it finds each token of it there:

        score(v) = max over templates r and places i with r_i = v of
                   mean over prompts x of  p(r_i | x, r_1 .. r_{i-1})

    Dropped are special tokens, and tokens that carry nothing: those without a letter or digit, and
    those that the model uses when it does help, in its answers to `harmless_prompts`, unless they
    open a template (" for", " the", " with" go; "I" and "Sorry" stay). To hold such a word would
    cost the task and keep nothing. The rest are ranked by score.

    Inside a refusal even a model that never refuses finds the next word likely. So the model must
    put at least `min_mass` of its probability, in the mean over prompts, on the tokens that open
    the templates; otherwise it is refused.

    What it cannot see: refusals in words that no template has; languages other than that of the
    templates; a word of the user's task that also refuses.

    Args:
        model: The aligned model, before any fine-tuning.
        tokenizer: Its tokenizer, with a chat template.
        max_tokens: How many tokens to keep at most, 1 or more.
        templates: Rejection templates.
        prompts: Requests that the model refuses.
        harmless_prompts: Requests that the model answers; none switches that filter off.
        min_score: Probability below which a token is dropped, 0 to 1.
        min_mass: Probability of the openers below which the model does not refuse, 0 to 1.
        batch_size: Conversations per forward pass.

    Returns:
        The tokens, most likely first, with their birth.

    Raises:
        InputError: If the tokenizer has no chat template, an argument is out of range, or the model
            does not refuse in these words, or not at all.

    Source:
        Salient tokens of rejection templates: Bach and Tran 2026, arXiv:2604.17210, abstract. How
        the paper ranks them is not known to us; the score is ours.
    """
    if max_tokens < 1:
        raise InputError(f"`max_tokens` must be 1 or more, got {max_tokens}.")
    if not templates or not prompts:
        raise InputError("`templates` and `prompts` must each hold at least one text.")
    chat = ChatModel(model, tokenizer)
    rows: list[tuple[int, list[int], int]] = []
    for index, template in enumerate(templates):
        answer = tokenizer(template, add_special_tokens=False).input_ids
        for prompt in prompts:
            context = chat.render(prompt)
            rows.append((index, context + answer, len(context)))

    # One cell per template and place: the mean over prompts of the probability found there.
    total: dict[tuple[int, int, int], float] = {}
    for start in range(0, len(rows), batch_size):
        batch = rows[start : start + batch_size]
        for (index, ids, begin), found in zip(batch, _probabilities(chat, batch), strict=True):
            for place, probability in enumerate(found):
                key = (index, place, ids[begin + place])
                total[key] = total.get(key, 0.0) + probability / len(prompts)

    special = set(tokenizer.all_special_ids)
    scores: dict[int, float] = {}
    openers: dict[int, float] = {}
    for (_, place, token), score in total.items():
        if token not in special and carries_meaning(tokenizer, token):
            scores[token] = max(scores.get(token, 0.0), score)
            if place == 0:
                openers[token] = score
    if harmless_prompts:
        answers = chat.answers(harmless_prompts, max_new_tokens=64, batch_size=batch_size)
        # With a space before: inside an answer and at its start a word is another token.
        texts = [text for answer in answers for text in (answer, f" {answer}")]
        used = {
            token for ids in tokenizer(texts, add_special_tokens=False).input_ids for token in ids
        }
        scores = {
            token: score for token, score in scores.items() if token in openers or token not in used
        }
    ranked = sorted(scores.items(), key=lambda item: (-item[1], item[0]))
    kept = [item for item in ranked if item[1] >= min_score][:max_tokens]
    mass = sum(openers.values())
    if not kept or mass < min_mass:
        raise InputError(
            f"After {len(prompts)} harmful prompts this model puts probability {mass:.2g} on the "
            f"tokens that open {len(templates)} rejection templates (needed: {min_mass}), so it "
            "does not refuse in these words. Mine from the aligned chat model, or give templates "
            "in its words."
        )
    return SafetyTokens(
        ids=tuple(token for token, _ in kept),
        strings=tuple(str(tokenizer.decode([token])) for token, _ in kept),
        scores=tuple(round(score, 6) for _, score in kept),
        vocab_size=head_of(model).weight.shape[0],
        templates=tuple(templates),
        tokenizer_fingerprint=tokenizer_fingerprint(tokenizer),
        mined={
            "method": "template_probability",
            "model": str(base_of(model).config._name_or_path),
            "max_tokens": max_tokens,
            "min_score": min_score,
            "refusal_mass": round(mass, 6),
            "num_prompts": len(prompts),
            "num_harmless_prompts": len(harmless_prompts),
            "num_candidates": len(ranked),
            "versions": versions(),
            "at": now(),
        },
    )


def _probabilities(
    chat: ChatModel, batch: Sequence[tuple[int, list[int], int]]
) -> list[list[float]]:
    """For each row, the probability of each token of its answer in its place."""
    longest = max(len(ids) for _, ids, _ in batch)
    ids = torch.zeros(len(batch), longest, dtype=torch.int64)
    seen = torch.zeros_like(ids)
    for row, (_, tokens, _) in enumerate(batch):
        ids[row, : len(tokens)] = torch.tensor(tokens)
        seen[row, : len(tokens)] = 1
    with chat.evaluating() as model:
        logits = model(
            input_ids=ids.to(chat.device), attention_mask=seen.to(chat.device), use_cache=False
        ).logits
    found = []
    for row, (_, tokens, begin) in enumerate(batch):
        places = torch.arange(begin - 1, len(tokens) - 1, device=logits.device)
        nats = logits[row, places].float().log_softmax(dim=-1)
        answer = torch.tensor(tokens[begin:], device=logits.device)
        found.append(nats.gather(1, answer[:, None])[:, 0].exp().tolist())
    return found
