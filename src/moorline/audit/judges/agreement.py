"""How far two judges agree beyond chance."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from ...errors import InputError


class Agreement(NamedTuple):
    """How far two judges of the same answers agree."""

    num: int
    """Number of answers."""

    agreement: float | None
    """Share on which the two say the same, 0 to 1; None without answers."""

    kappa: float | None
    """Cohen's kappa, -1 to 1; None if undefined."""


def agreement(first: Sequence[str], second: Sequence[str]) -> Agreement:
    """Agreement of two judges, and Cohen's kappa: the share of it that chance does not explain.

        kappa = (p_o - p_e) / (1 - p_e)

    p_o is the share of answers on which both say the same; p_e what it would be if each kept to its
    own rates and drew at random. It is 1 for perfect agreement and 0 for that of chance.

    What it cannot see: who is right; and where one outcome is rare, kappa is low although the two
    agree on nearly everything.

    Args:
        first: One outcome per answer.
        second: The outcomes of the other judge on the same answers, in order.

    Returns:
        The share of agreement, and kappa; kappa is None if both judges say one and the same of
        every answer, since then chance explains everything.

    Raises:
        InputError: If the lengths differ.

    Source:
        Cohen 1960, "A coefficient of agreement for nominal scales".

    Example:
        >>> agreement(["refused", "refused", "complied", "complied"],
        ...           ["refused", "refused", "complied", "refused"])  # (3/4 - 1/2) / (1 - 1/2)
        Agreement(num=4, agreement=0.75, kappa=0.5)
    """
    if len(first) != len(second):
        raise InputError(
            f"Two judges must have judged the same answers, got {len(first)} and {len(second)}."
        )
    if not first:
        return Agreement(0, None, None)
    ours, theirs = np.asarray(first), np.asarray(second)
    observed = float((ours == theirs).mean())
    # Counts, not shares: 0.1 + 0.9 is not always 1, and then "undefined" would be missed.
    chance = sum(
        int((ours == outcome).sum()) * int((theirs == outcome).sum()) for outcome in set(first)
    )
    if chance == len(first) ** 2:
        return Agreement(len(first), observed, None)
    expected = chance / len(first) ** 2
    return Agreement(len(first), observed, (observed - expected) / (1 - expected))
