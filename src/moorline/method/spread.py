"""How much a logit varies in the aligned model: the unit in which form `standardised` measures."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from ..chat.chat_model import ChatModel
from ..errors import InputError
from .reading import last_logits
from .safety_tokens import SafetyTokens

# A logit that hardly varies would count for more than all the others together.
_LEAST = 0.1


def spreads(
    chat: ChatModel,
    rows: Sequence[tuple[Sequence[int], Sequence[int]]],
    ids: Sequence[int],
) -> list[float]:
    """Standard deviation of each token's logit, over the response positions of some answers.

    What it cannot see: contexts unlike these. It says how large a move is large for this model, and
    not how large a move a refusal bears.

    Args:
        chat: The aligned model.
        rows: Rendered prompts with answers, as token ids.
        ids: The tokens.

    Returns:
        One number for each token, in logits; no less than a tenth of their median.
    """
    found: list[Tensor] = []
    with torch.no_grad():
        for context, answer in rows:
            read = torch.tensor([[*context, *answer[:-1]]])
            logits = last_logits(chat, read, len(answer))[0]
            found.append(logits[:, list(ids)].float().cpu())
    values = torch.cat(found).std(dim=0, correction=0)
    return values.clamp(min=_LEAST * values.median().item()).tolist()


def spreads_of(tokens: SafetyTokens) -> Float[Tensor, " safety"]:
    """What mining measured, for form `standardised`.

    Raises:
        InputError: If the file of the tokens holds none, as that of an older version.
    """
    if not tokens.spreads:
        raise InputError(
            "`form` 'standardised' measures in the spread of each logit, and these safety tokens "
            "have none: they were given by hand, or mined by an older version. Mine again "
            "(`moorline mine MODEL`), or take another form."
        )
    return torch.tensor(tokens.spreads)
