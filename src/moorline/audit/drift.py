"""Where the drift is: by safety token, by index in the response, and along the checkpoints."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from ..chat.chat_model import ChatModel
from ..chat.conversation import response_positions
from ..errors import InputError
from ..method import capture
from ..method.positions import indices_in_response
from ..method.reference import Reference
from ..method.safety_tokens import SafetyTokens
from .perplexity import labelled, right_padded

LONGEST = 64
"""Indices in a response that are told apart; later ones are few and noisy."""


def drift_of(
    chat: ChatModel,
    reference: Reference,
    tokens: SafetyTokens,
    rows: Sequence[Mapping[str, Any]],
    *,
    batch_size: int = 8,
    max_length: int | None = None,
    progress: Callable[[int], None] | None = None,
) -> dict[str, list[dict[str, object]]]:
    """The squared drift of the safety logits on held-out rows, by token and by index.

        tokens:    mean over response positions of (z(v) - z0(v))^2, for each v in S
        positions: mean over v in S and over the k-th positions of all responses, for each k

    What it cannot see: contexts that the rows do not have, such as harmful prompts; put those in.

    Args:
        chat: The tuned model; `capture.install` is called on it.
        reference: Where z0 comes from, ready to be asked.
        tokens: The safety tokens.
        rows: Held-out rows, as for `perplexity.perplexity`.
        batch_size: Rows per forward pass.
        max_length: Tokens of a row after which the rest is left out; None for all.
        progress: Called with the number of rows done since the last call.

    Returns:
        The tables `tokens` and `positions` of `drift.json`, worst token first.

    Raises:
        InputError: If no row has a response.
    """
    by_token = torch.zeros(len(tokens), dtype=torch.float64)
    by_index, counts = torch.zeros(LONGEST, dtype=torch.float64), torch.zeros(LONGEST)
    total = 0
    marked = [
        labelled(chat.tokenizer, row, f"row {n}", max_length) for n, row in enumerate(rows, 1)
    ]
    capture.install(chat.model, tokens.tensor())
    for start in range(0, len(marked), batch_size):
        batch = marked[start : start + batch_size]
        ids, mask, labels = (each.to(chat.device) for each in right_padded(batch))
        positions = response_positions(labels)
        inputs = {"input_ids": ids, "attention_mask": mask}
        with chat.evaluating() as model:
            asked = {**inputs, "safety_positions": positions, "safety_only": True}
            now = model(**asked).safety_logits
            before = reference.safety_logits(model, inputs, positions)
        squared = (now - before).square().double().cpu()
        by_token += squared.sum(dim=0)
        index = indices_in_response(positions)[positions].cpu() - 1
        kept = index < LONGEST
        by_index.index_add_(0, index[kept], squared.mean(dim=1)[kept])
        counts.index_add_(0, index[kept], torch.ones(int(kept.sum())))
        total += len(squared)
        if progress is not None:
            progress(len(batch))
    if total == 0:
        raise InputError("No held-out row has a response, so there is no drift to measure.")
    order = by_token.argsort(descending=True).tolist()
    return {
        "tokens": [
            {
                "id": tokens.ids[index],
                "string": tokens.strings[index],
                "drift": by_token[index].item() / total,
            }
            for index in order
        ],
        "positions": [
            {"position": index + 1, "drift": (by_index[index] / counts[index]).item()}
            for index in range(LONGEST)
            if counts[index] > 0
        ],
    }
