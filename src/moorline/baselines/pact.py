r"""PACT: keep the odds among safety tokens, renormalised over them alone.

    q(v)  ~ w(v) softmax_S(z_mix / T)(v)
    loss  = CE + lambda * mean over response positions of T^2 KL(q || softmax_S(z / T))
    z_mix = (1 - c) z0(prompt and response so far) + c z0(response so far, without its prompt)
    c     = sigmoid(2 (I - I')) exp(-max(t - 8, 0) / 8) at the t-th token, t from 0
    T     = 2

I is the share of S that a top-p set of 0.9 holds under softmax_S of the model in training, I' under
that of the aligned model without the prompt. What stands before a response without its prompt is
the template's generation prompt alone.

The set S with w: the safety tokens of the run, each with w = 1; or, where an unaligned base is
given, PACT's own choice (`own_tokens`).

Source:
    arXiv:2603.07445 (Glresearch1/PACT, no licence: read for its formulas, nothing copied).

Kept as published: the loss is not zero at the untouched model, for q alone is weighted by w and
mixed by c; half of its own tokens have w = 0 and stay in the softmax; the mass of S is free. Where
we differ: divided by accumulation steps once, not twice; each answer of a conversation is a
response; the end of turn is never masked as padding.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from ..chat.chat_model import ChatModel
from ..chat.loading import load
from ..errors import InputError
from .peer import Materials, Need, Peer, Responses, Strength, Training
from .refusals import Refusal, refusals

NUM_TOKENS, MAX_ANSWER = 50, 64
_TEMPERATURE, _TOP_P, _GATE = 2.0, 0.9, 2.0
_PREFIX, _DECAY = 8, 8.0
_LEAST = 1e-12


class Weighted(NamedTuple):
    """A token set with a weight of 0 or more for each."""

    ids: Int64[Tensor, " safety"]
    weights: Float[Tensor, " safety"]


class PACT(Peer):
    """KL over safety tokens; not zero at the untouched model."""

    name = "pact"
    source = "PACT, arXiv:2603.07445"
    strength = Strength(
        symbol="lambda", meaning="weight of the KL over safety tokens beside the task loss",
        default=1.0, grid=(0.1, 0.3, 1.0, 3.0, 10.0),
    )  # fmt: skip
    needs = (Need.ALIGNED_REFERENCE, Need.SAFETY_TOKENS)
    cost = "two forward passes of the aligned model per batch"
    file = "refusals for its own choice of tokens: 'messages', or 'prompt' and 'completion'"
    takes_base = True
    at_responses = True

    def __init__(self, materials: Materials, strength: float | None = None) -> None:
        super().__init__(materials, strength)
        if materials.base is not None:
            self.tokens = own_tokens(materials)
        elif materials.file is not None:
            raise InputError(
                "`method` 'pact' reads `method_file` for its own choice of tokens only, which "
                "needs the unaligned base. Give `method_base` too, or leave `method_file` out."
            )
        elif materials.tokens is not None:
            ids = materials.tokens.tensor()
            self.tokens = Weighted(ids, torch.ones(len(ids)))

    def begin(self, training: Training) -> None:
        """Spell the generation prompt."""
        self._header = torch.tensor(_generation_prompt(self.materials.chat))
        self._padding = self.materials.chat.padding

    def of_responses(self, responses: Responses) -> Float[Tensor, " position"]:
        """T^2 KL(q || p) at each position."""
        device = responses.trained.hidden.device
        ids, weights = (each.to(device) for each in self.tokens)
        logits = responses.trained.logits_of(ids)
        aligned = responses.aligned.logits_of(ids)
        alone = responses.read(*self._without_prompt(responses)).logits_of(ids)
        return pact_kl(logits, aligned, alone, weights, responses.indices)

    def _without_prompt(self, responses: Responses) -> tuple[dict[str, Tensor], Tensor]:
        """The responses alone after the generation prompt; and where their tokens are predicted."""
        labels, device = responses.labels, responses.labels.device
        starts = (responses.indices == 1).nonzero()[:, 0].tolist()
        header = self._header.to(device)
        bounds = zip(starts, [*starts, len(labels)][1:], strict=True)
        rows = [torch.cat([header, labels[first : last - 1]]) for first, last in bounds] or [header]
        lengths = torch.tensor([len(each) for each in rows], device=device)[:, None]
        ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=self._padding)
        at = torch.arange(ids.shape[1], device=device)[None]
        is_text = at < lengths
        wanted = is_text & (at >= len(header) - 1) & bool(starts)
        return {"input_ids": ids, "attention_mask": is_text.long()}, wanted


def pact_kl(
    logits: Float[Tensor, "position safety"],
    aligned: Float[Tensor, "position safety"],
    alone: Float[Tensor, "position safety"],
    weights: Float[Tensor, " safety"],
    index: Int64[Tensor, " position"],
) -> Float[Tensor, " position"]:
    """T^2 KL(q || softmax_S(z / T)) at each position.

    Args:
        logits: z of the model in training.
        aligned: z0 in the same contexts.
        alone: z0 of the responses without their prompts.
        weights: w, 0 or more.
        index: The index of the token in its response, from 1.
    """
    size = logits.shape[1]
    moved = (_num_top(logits.detach()) - _num_top(alone)) / size
    fades = torch.exp(-(index - 1 - _PREFIX).clamp_min(0).to(aligned.dtype) / _DECAY)
    gate = (torch.sigmoid(_GATE * moved) * fades)[:, None]
    mixed = (1 - gate) * aligned + gate * alone
    target = (mixed / _TEMPERATURE).softmax(dim=-1) * weights.to(mixed.dtype)
    target = target / target.sum(dim=-1, keepdim=True).clamp_min(_LEAST)
    nats = (logits / _TEMPERATURE).log_softmax(dim=-1)
    kl = (target * (target.clamp_min(_LEAST).log() - nats)).sum(dim=-1)
    return _TEMPERATURE**2 * kl


def _num_top(logits: Float[Tensor, "position safety"]) -> Float[Tensor, " position"]:
    """How many tokens it takes to reach the probability of the top-p set."""
    reached = logits.softmax(dim=-1).sort(dim=-1, descending=True).values.cumsum(dim=-1)
    return ((reached < _TOP_P).sum(dim=-1) + 1).to(logits.dtype)


def own_tokens(materials: Materials) -> Weighted:
    """PACT's own tokens: the likeliest in refusals, weighted by how much alignment raised them.

        d(v) = mean over refusals, mean over their first 64 tokens of p_aligned(v) - p_base(v)

    The 50 tokens of highest mean p_aligned are kept, their d centred, divided by its standard
    deviation and its norm, and cut at 0.

    Raises:
        InputError: If the base has another vocabulary.
    """
    chat, base = materials.chat, materials.base
    if not isinstance(base, torch.nn.Module):
        from transformers import AutoModelForCausalLM

        base = load(AutoModelForCausalLM, str(base), dtype=chat.model.dtype).to(chat.device)
    other = ChatModel(base, chat.tokenizer)
    pairs = refusals(materials)
    found = [_mean_probabilities(chat, other, each) for each in pairs]
    likely = torch.stack([aligned for aligned, _ in found]).mean(dim=0)
    moved = torch.stack([aligned - unaligned for aligned, unaligned in found]).mean(dim=0)
    ids = likely.topk(min(NUM_TOKENS, len(likely))).indices.sort().values
    kept = moved[ids]
    kept = (kept - kept.mean()) / (kept.std() + 1e-6)
    return Weighted(ids, (kept / (kept.norm() + 1e-6)).clamp_min(0))


def _mean_probabilities(chat: ChatModel, base: ChatModel, pair: Refusal) -> tuple[Tensor, Tensor]:
    """Mean probability of each token over a refusal, of the aligned model and of its base."""
    context, (answer,) = chat.answer_ids(pair.prompt, [pair.answer])
    answer = answer[:MAX_ANSWER]
    plain = f"User: {pair.prompt}\n\nAssistant: "
    asked = list(chat.tokenizer(plain, add_special_tokens=False).input_ids)
    means = []
    for each, before in ((chat, context), (base, asked)):
        ids = torch.tensor([[*before, *answer]], device=each.device)
        with each.evaluating() as model:
            logits = model(input_ids=ids, use_cache=False).logits[0, len(before) - 1 : -1]
        means.append(logits.float().softmax(dim=-1).mean(dim=0).cpu())
    if means[0].shape != means[1].shape:
        raise InputError(
            f"`method_base` has {len(means[1])} vocabulary entries and the model {len(means[0])}: "
            "it is not the model's unaligned base."
        )
    return means[0], means[1]


def _generation_prompt(chat: ChatModel) -> list[int]:
    """What the template puts before an answer; 'Assistant:' where it puts nothing."""
    asked = [{"role": "user", "content": "hello"}]
    before, whole = (
        str(chat.tokenizer.apply_chat_template(asked, tokenize=False, add_generation_prompt=added))
        for added in (False, True)
    )
    header = whole[len(before) :] if whole.startswith(before) else ""
    spelled = chat.tokenizer(header if header.strip() else "Assistant:", add_special_tokens=False)
    return list(spelled.input_ids)
