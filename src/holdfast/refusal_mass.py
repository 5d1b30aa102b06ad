"""How likely a model is to begin with a refusal: a number per prompt, without an answer."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from .errors import InputError
from .next_token import next_token_nats, padding_of
from .rejection_templates import opener_ids

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def refusal_mass(
    model: Any,
    tokenizer: "PreTrainedTokenizerBase",
    prompts: Sequence[str],
    openers: Sequence[int] | None = None,
    *,
    batch_size: int = 32,
    system_prompt: str | None = None,
    progress: Callable[[int], None] | None = None,
) -> list[float]:
    """The probability that a model's answer begins with a token by which refusals begin.

        mass(x) = sum over openers v of p(v | x)

    p is the model's distribution over the first token of its answer to x, in its own chat template.
    Nothing is generated, and the number moves before any greedy answer does.

    What it cannot see: refusals that begin in another way; what comes after the first token. "I"
    opens "I cannot" and "I can": compare the mass before and after fine-tuning on the same prompts,
    and on harmless ones, rather than read it alone.

    Args:
        model: A causal language model of transformers, with or without an adapter.
        tokenizer: Its tokenizer, with a chat template.
        prompts: One user turn each.
        openers: Token ids; by default those that open the rejection templates.
        batch_size: Prompts per batch, 1 or more.
        system_prompt: Put before each prompt if given.
        progress: Called with the number of prompts done since the last call.

    Returns:
        One probability per prompt, 0 to 1, in order.

    Raises:
        InputError: If the tokenizer has no chat template, `batch_size` is out of range, or there
            are no openers.

    Source:
        Ours; the templates are those of mining.
    """
    if batch_size < 1:
        raise InputError(f"`batch_size` must be 1 or more, got {batch_size}.")
    if not tokenizer.chat_template:
        raise InputError(
            "The tokenizer has no chat template, so a prompt cannot be put to the model. Load the "
            "tokenizer of a chat model."
        )
    kept = sorted(set(opener_ids(tokenizer) if openers is None else openers))
    if not kept:
        raise InputError("`openers` is empty, so there is no mass to measure. Give token ids.")
    system = [] if system_prompt is None else [{"role": "system", "content": system_prompt}]
    rows: list[Any] = [
        tokenizer.apply_chat_template(
            [*system, {"role": "user", "content": prompt}],
            add_generation_prompt=True,
            tokenize=True,
            return_dict=False,
        )
        for prompt in prompts
    ]
    # Prompts of like length together, so that little is padded.
    order = sorted(range(len(rows)), key=lambda index: len(rows[index]))
    masses = [0.0] * len(rows)
    for start in range(0, len(order), batch_size):
        batch = order[start : start + batch_size]
        nats = next_token_nats(
            model, [rows[index] for index in batch], padding=padding_of(tokenizer)
        )
        found = nats[:, kept].logsumexp(dim=-1).exp().clamp(max=1.0)
        for index, mass in zip(batch, found.tolist(), strict=True):
            masses[index] = mass
        if progress is not None:
            progress(len(batch))
    return masses
