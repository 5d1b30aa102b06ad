"""How two audits of the same prompts differ."""

import itertools
from dataclasses import replace

from ..errors import InputError
from .findings import Audit
from .measurements import Comparison, Interval
from .outcomes import Metric, metrics_of
from .statistics import Difference, adjusted, mean_interval, paired_difference
from .suites import Suite


def compare(first: Audit, second: Audit) -> tuple[Comparison, ...]:
    """How the second audit differs from the first: every metric, suite by suite, prompt by prompt.

    `p_adjusted` is corrected for the number of comparisons (Holm). A prompt counts where both
    answers were judged.

    Raises:
        InputError: If a suite, condition or judge of the second is not in the first, or the prompts
            differ.
    """
    rows = []
    for suite, condition in second.asked():
        _check_same(first, second, suite, condition)
        for judge, metric in itertools.product(second.by_judge(suite), metrics_of(suite.kind)):
            num, found, interval = _difference(first, second, suite, condition, judge, metric)
            rows.append(
                Comparison(
                    suite=suite.name, kind=suite.kind, condition=condition, metric=metric.name,
                    judge=judge, against=first.adapter or first.model, num=num,
                    difference=found.difference, low=found.low, high=found.high,
                    interval=None if found.low is None else interval,
                    p_value=found.p_value, p_adjusted=None,
                )
            )  # fmt: skip
    corrected = adjusted([each.p_value for each in rows])
    return tuple(replace(row, p_adjusted=each) for row, each in zip(rows, corrected, strict=True))


def _check_same(first: Audit, second: Audit, suite: Suite, condition: str) -> None:
    other = next(
        (each for each, put in first.asked() if (each.name, put) == (suite.name, condition)), None
    )
    if other is None or other.sha256 != suite.sha256:
        raise InputError(
            f"Suite {suite.name!r} ({condition}) differs between the audits to compare: other "
            "prompts, ids or openers, or not asked in one of them. Audit both on one file."
        )
    by_name = [{each.name: each for each in one.settings.asked} for one in (first, second)]
    if by_name[0][condition] != by_name[1][condition]:
        raise InputError(f"The condition {condition!r} differs between the audits to compare.")
    if missing := set(second.by_judge(suite)) - set(first.by_judge(suite)):
        raise InputError(
            f"{sorted(missing)[0]!r} judged {suite.name!r} in one of the audits to compare only. "
            "Audit both with the same judges."
        )


def _difference(
    first: Audit, second: Audit, suite: Suite, condition: str, judge: str, metric: Metric
) -> tuple[int, Difference, Interval]:
    """Prompts that both were judged on, the difference, and how its interval was made."""
    both = (each.scores(suite, condition, judge, metric) for each in (first, second))
    kept = [
        (one, other, each.category)
        for one, other, each in zip(*both, suite.prompts, strict=True)
        if one is not None and other is not None
    ]
    if {each for *pair, _ in kept for each in pair} - {0.0, 1.0}:
        mean = mean_interval([other - one for one, other, _ in kept], seed=second.settings.seed)
        return mean.num, Difference(mean.mean, mean.low, mean.high, None), "bootstrap"
    by_category = second.settings.by_category
    found = paired_difference(
        [one == 1 for one, _, _ in kept],
        [other == 1 for _, other, _ in kept],
        clusters=[each for _, _, each in kept] if by_category else None,
    )
    return len(kept), found, "clustered" if by_category else "score"
