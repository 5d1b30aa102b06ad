"""How likely a model is to begin with a refusal: a number per prompt, without an answer."""

from collections.abc import Callable, Sequence

from ..chat.chat_model import ChatModel, check_sizes, in_batches
from ..errors import InputError
from ..method.templates import opener_ids


def refusal_mass(
    chat: ChatModel,
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
        chat: The model, with or without an adapter; its tokenizer has a chat template.
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
    check_sizes(batch_size=batch_size)
    kept = sorted(set(opener_ids(chat.tokenizer) if openers is None else openers))
    if not kept:
        raise InputError("`openers` is empty, so there is no mass to measure. Give token ids.")
    rows = [chat.render(prompt, system_prompt) for prompt in prompts]
    masses = [0.0] * len(rows)
    for batch in in_batches(rows, batch_size):
        nats = chat.next_token_nats([rows[index] for index in batch])
        found = nats[:, kept].logsumexp(dim=-1).exp().clamp(max=1.0)
        for index, mass in zip(batch, found.tolist(), strict=True):
            masses[index] = mass
        if progress is not None:
            progress(len(batch))
    return masses
