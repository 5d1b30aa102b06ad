"""Rates with their intervals, and whether two of them differ: scipy's tests under our words.

Pure functions of counts and of lists of outcomes; an undefined number is None, never 0.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import stats

from .errors import InputError

CONFIDENCE = 0.95
"""Confidence of every interval that Holdfast reports."""


class Rate(NamedTuple):
    """A share of something, with the count that it comes from and its interval."""

    count: int  # pyright: ignore[reportIncompatibleMethodOverride]
    num: int
    rate: float | None
    """count / num; None if num is 0."""

    low: float | None
    high: float | None


class Difference(NamedTuple):
    """How two rates on the same items differ."""

    difference: float | None
    """Second minus first, -1 to 1; None without items."""

    low: float | None
    high: float | None
    p_value: float | None
    """Two-sided, of the hypothesis that both are equally likely on every item."""


def wilson(count: int, num: int) -> Rate:
    """A rate with its Wilson score interval.

    Unlike the textbook interval it keeps inside 0 and 1 and has a width at 0 and at 1.

    Args:
        count: How many of them, 0 to `num`.
        num: How many there are, 0 or more.

    Raises:
        InputError: If the counts contradict each other.

    Source:
        Wilson 1927; Brown, Cai and DasGupta 2001, "Interval estimation for a binomial proportion".
        Computed by `scipy.stats.binomtest`.

    Example:
        >>> rate = wilson(0, 200)
        >>> rate.rate, rate.low, round(rate.high, 4)
        (0.0, 0.0, 0.0188)
        >>> wilson(0, 0)
        Rate(count=0, num=0, rate=None, low=None, high=None)
    """
    if not 0 <= count <= num:
        raise InputError(f"`count` must lie between 0 and `num`, got {count} of {num}.")
    if num == 0:
        return Rate(0, 0, None, None, None)
    interval = stats.binomtest(count, num).proportion_ci(CONFIDENCE, method="wilson")
    return Rate(count, num, count / num, float(interval.low), float(interval.high))


def paired_difference(
    first: Sequence[bool], second: Sequence[bool], *, seed: int = 0, num_resamples: int = 2000
) -> Difference:
    """How two rates differ that were measured on the same items.

    The p-value is McNemar's exact test: among the items on which the two disagree, is either side
    favoured? The interval is a percentile bootstrap over items.

    Args:
        first: One outcome per item.
        second: The other outcome per item, in the same order.
        seed: Seed of the bootstrap.
        num_resamples: Draws of the bootstrap.

    Raises:
        InputError: If the lengths differ.

    Source:
        McNemar 1947; Efron and Tibshirani 1993, chapter 13.

    Example:
        >>> paired_difference([True] * 8 + [False] * 2, [False] * 10).difference
        -0.8
    """
    if len(first) != len(second):
        raise InputError(
            f"Paired outcomes must be of one length, got {len(first)} and {len(second)}."
        )
    if not first:
        return Difference(None, None, None, None)
    change = np.asarray(second, dtype=float) - np.asarray(first, dtype=float)
    gained, lost = int((change > 0).sum()), int((change < 0).sum())
    p_value = float(stats.binomtest(gained, gained + lost).pvalue) if gained + lost else 1.0
    draws = np.random.default_rng(seed).integers(len(change), size=(num_resamples, len(change)))
    tail = 100 * (1 - CONFIDENCE) / 2
    low, high = np.percentile(change[draws].mean(axis=1), [tail, 100 - tail])
    return Difference(float(change.mean()), float(low), float(high), p_value)
