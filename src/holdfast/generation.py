"""Answers of a chat model: batched, left-padded, greedy unless told otherwise, in order."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch

from .errors import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def generate_answers(
    model: Any,
    tokenizer: "PreTrainedTokenizerBase",
    prompts: Sequence[str],
    *,
    max_new_tokens: int = 128,
    batch_size: int = 32,
    system_prompt: str | None = None,
    progress: Callable[[int], None] | None = None,
) -> list[str]:
    """Greedy answers to prompts, in the model's own chat template.

    Prompts of like length are answered together, so that little is padded; the answers come back
    in the order of the prompts.

    Args:
        model: A causal language model of transformers, with or without an adapter.
        tokenizer: Its tokenizer, with a chat template.
        prompts: One user turn each.
        max_new_tokens: Longest answer in tokens, 1 or more.
        batch_size: Prompts per batch, 1 or more.
        system_prompt: Put before each prompt if given.
        progress: Called with the number of answers done since the last call.

    Returns:
        One answer per prompt, without special tokens.

    Raises:
        InputError: If the tokenizer has no chat template or an argument is out of range.
    """
    if max_new_tokens < 1 or batch_size < 1:
        raise InputError(
            "`max_new_tokens` and `batch_size` must be 1 or more, got "
            f"{max_new_tokens} and {batch_size}."
        )
    if not tokenizer.chat_template:
        raise InputError(
            "The tokenizer has no chat template, so a prompt cannot be put to the model. Load the "
            "tokenizer of a chat model."
        )
    system = [] if system_prompt is None else [{"role": "system", "content": system_prompt}]
    rendered: list[Any] = [
        tokenizer.apply_chat_template(
            [*system, {"role": "user", "content": prompt}],
            add_generation_prompt=True,
            tokenize=True,
            return_dict=False,
        )
        for prompt in prompts
    ]
    order = sorted(range(len(prompts)), key=lambda index: (len(rendered[index]), index))
    pad: Any = (
        tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    )
    device = model.get_input_embeddings().weight.device
    answers = [""] * len(prompts)
    training = model.training
    model.eval()
    try:
        for start in range(0, len(order), batch_size):
            batch = order[start : start + batch_size]
            longest = max(len(rendered[index]) for index in batch)
            ids = torch.full((len(batch), longest), pad, dtype=torch.int64)
            seen = torch.zeros_like(ids)
            for row, index in enumerate(batch):
                ids[row, longest - len(rendered[index]) :] = torch.tensor(rendered[index])
                seen[row, longest - len(rendered[index]) :] = 1
            with torch.inference_mode():
                written = model.generate(
                    input_ids=ids.to(device),
                    attention_mask=seen.to(device),
                    max_new_tokens=max_new_tokens,
                    do_sample=False,
                    # A model's own generation settings may sample; greedy means greedy.
                    temperature=None,
                    top_p=None,
                    top_k=None,
                    pad_token_id=pad,
                )
            texts = tokenizer.batch_decode(written[:, longest:], skip_special_tokens=True)
            for index, text in zip(batch, texts, strict=True):
                answers[index] = text
            if progress is not None:
                progress(len(batch))
    finally:
        model.train(training)
    return answers
