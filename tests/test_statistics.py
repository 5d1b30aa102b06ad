"""Rates with their intervals and paired differences, against formulae written out by hand."""

import math
from math import comb, sqrt

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from holdfast.errors import InputError
from holdfast.statistics import CONFIDENCE, Difference, Rate, paired_difference, wilson

Z = 1.959963984540054  # the 97.5th percentile of the normal distribution
ROUNDED = 0.5e-4 + 1e-9  # intervals are rounded to four digits

LAW = settings(deadline=None, derandomize=True, database=None, max_examples=60)


def _wilson(count, num):
    """(p + z^2/2n -+ z sqrt(p(1-p)/n + z^2/4n^2)) / (1 + z^2/n), Wilson 1927."""
    p = count / num
    centre = p + Z**2 / (2 * num)
    half = Z * sqrt(p * (1 - p) / num + Z**2 / (4 * num**2))
    return (centre - half) / (1 + Z**2 / num), (centre + half) / (1 + Z**2 / num)


def _mcnemar(gained, lost):
    """Twice the smaller tail of a fair coin thrown once for each disagreement, at most 1."""
    num = gained + lost
    if num == 0:
        return 1.0
    tail = sum(comb(num, each) for each in range(min(gained, lost) + 1))
    return min(1.0, 2 * tail / 2**num)


def _bootstrap(first, second, seed=0, num_resamples=2000):
    """Percentile bootstrap over items, as loops over the same draws."""
    generator = np.random.default_rng(seed)
    draws = generator.integers(len(first), size=(num_resamples, len(first)))
    change = [int(after) - int(before) for before, after in zip(first, second, strict=True)]
    means = [sum(change[item] for item in draw) / len(change) for draw in draws.tolist()]
    low, high = np.percentile(means, [2.5, 97.5])
    return float(low), float(high)


def _outcomes(both, lost, gained, neither):
    """Two lists of outcomes, by how many items each pair of outcomes has."""
    first = [True] * both + [True] * lost + [False] * gained + [False] * neither
    second = [True] * both + [False] * lost + [True] * gained + [False] * neither
    return first, second


# Checks, as functions of the implementation, so that faults can be put through them


def check_wilson_is_the_closed_formula(rate_of):
    for num in (50, 200):
        for share in (0.0, 0.02, 0.5, 1.0):
            count = round(share * num)
            found = rate_of(count, num)
            low, high = _wilson(count, num)
            assert found[:3] == (count, num, share)
            assert math.isclose(found.low, low, rel_tol=0, abs_tol=ROUNDED)
            assert math.isclose(found.high, high, rel_tol=0, abs_tol=ROUNDED)


def check_interval_keeps_inside_and_has_a_width(rate_of):
    for num in (1, 2, 10, 50, 200):
        nothing, all_of_them = rate_of(0, num), rate_of(num, num)
        assert nothing.low == 0.0 < nothing.high < 1.0
        assert 0.0 < all_of_them.low < all_of_them.high == 1.0


def check_nothing_measured_is_undefined(rate_of):
    assert rate_of(0, 0) == Rate(0, 0, None, None, None)


def check_mcnemar_is_the_binomial_sum(difference_of):
    # by hand: 8 to 0 is 2 / 2^8; 6 to 1 is 2 (1 + 7) / 2^7; 3 to 2 is 2 (1 + 5 + 10) / 2^5 = 1
    for lost, gained, p_value in [
        (8, 0, 2 / 256),
        (0, 8, 2 / 256),
        (6, 1, 16 / 128),
        (3, 2, 1.0),
        (1, 0, 1.0),
        (4, 4, 1.0),
        (20, 5, _mcnemar(5, 20)),
    ]:
        for both, neither in [(0, 0), (30, 7)]:
            found = difference_of(*_outcomes(both, lost, gained, neither))
            # 1e-9: scipy sums the same terms as floats
            assert math.isclose(found.p_value, p_value, rel_tol=1e-9)
            assert math.isclose(_mcnemar(gained, lost), p_value, rel_tol=1e-12)


def check_difference_is_second_minus_first(difference_of):
    found = difference_of(*_outcomes(both=5, lost=1, gained=4, neither=10))
    assert found.difference == 0.15  # (4 - 1) / 20
    assert found.low < 0.15 < found.high


def check_interval_is_the_bootstrap_over_items(difference_of):
    first, second = _outcomes(both=11, lost=6, gained=3, neither=17)
    found = difference_of(first, second)
    low, high = _bootstrap(first, second)
    assert math.isclose(found.low, low, rel_tol=0, abs_tol=ROUNDED)
    assert math.isclose(found.high, high, rel_tol=0, abs_tol=ROUNDED)


def check_identical_outcomes_do_not_differ(difference_of):
    outcomes = [True, False, True, True, False]
    assert difference_of(outcomes, list(outcomes)) == Difference(0.0, 0.0, 0.0, 1.0)


def check_no_items_are_undefined(difference_of):
    assert difference_of([], []) == Difference(None, None, None, None)


RATE_CHECKS = [
    check_wilson_is_the_closed_formula,
    check_interval_keeps_inside_and_has_a_width,
    check_nothing_measured_is_undefined,
]
DIFFERENCE_CHECKS = [
    check_mcnemar_is_the_binomial_sum,
    check_difference_is_second_minus_first,
    check_interval_is_the_bootstrap_over_items,
    check_identical_outcomes_do_not_differ,
    check_no_items_are_undefined,
]


@pytest.mark.parametrize("check", RATE_CHECKS, ids=lambda check: check.__name__)
def test_a_rate_keeps(check):
    check(wilson)


@pytest.mark.parametrize("check", DIFFERENCE_CHECKS, ids=lambda check: check.__name__)
def test_a_difference_keeps(check):
    check(paired_difference)


# Deliberate faults


def _rate(count, num, method="wilson", confidence=0.95):
    if num == 0:
        return Rate(0, 0, None, None, None)
    ends = stats.binomtest(count, num).proportion_ci(confidence, method=method)
    return Rate(count, num, count / num, round(float(ends.low), 4), round(float(ends.high), 4))


def _wald(count, num):
    if num == 0:
        return Rate(0, 0, None, None, None)
    p = count / num
    half = Z * sqrt(p * (1 - p) / num)
    return Rate(count, num, p, p - half, p + half)


def _nothing_is_zero(count, num):
    return _rate(count, num) if num else Rate(0, 0, 0.0, 0.0, 1.0)


def _one_sided_tail(count, num):
    return _rate(count, num, confidence=0.90)


FORMULA, WIDTH, NOTHING = RATE_CHECKS
RATE_FAULTS = {
    "textbook interval": (_wald, [FORMULA, WIDTH]),
    "exact interval": (lambda count, num: _rate(count, num, "exact"), [FORMULA]),
    "continuity correction": (lambda count, num: _rate(count, num, "wilsoncc"), [FORMULA]),
    "five percent at each side": (_one_sided_tail, [FORMULA]),
    "99 percent": (lambda count, num: _rate(count, num, confidence=0.99), [FORMULA]),
    "failures counted": (lambda count, num: _rate(num - count, num), [FORMULA, WIDTH]),
    "ends exchanged": (
        lambda count, num: _rate(count, num)._replace(
            low=_rate(count, num).high, high=_rate(count, num).low
        ),
        [FORMULA, WIDTH],
    ),
    "undefined is zero": (_nothing_is_zero, [NOTHING]),
}


@pytest.mark.parametrize("fault", RATE_FAULTS)
def test_a_fault_in_a_rate_is_caught(fault):
    faulty, checks = RATE_FAULTS[fault]
    for check in checks:
        with pytest.raises((AssertionError, TypeError)):
            check(faulty)


def _p_value(first, second, test):
    gained = sum(after and not before for before, after in zip(first, second, strict=True))
    lost = sum(before and not after for before, after in zip(first, second, strict=True))
    return test(gained, lost)


def _with_p(test):
    return lambda first, second: paired_difference(first, second)._replace(
        p_value=_p_value(first, second, test)
    )


def _with_ends(ends):
    def faulty(first, second):
        found = paired_difference(first, second)
        low, high = ends(first, second)
        return found._replace(low=low, high=high)

    return faulty


def _unpaired_bootstrap(first, second):
    generator = np.random.default_rng(0)
    size = (2000, len(first))
    means = [np.asarray(each)[generator.integers(len(first), size=size)].mean(1)
             for each in (first, second)]  # fmt: skip
    low, high = np.percentile(means[1] - means[0], [2.5, 97.5])
    return float(low), float(high)


def _narrow_bootstrap(first, second):
    change = np.asarray(second, float) - np.asarray(first, float)
    draws = np.random.default_rng(0).integers(len(first), size=(2000, len(first)))
    low, high = np.percentile(change[draws].mean(axis=1), [5, 95])
    return float(low), float(high)


def _no_items_are_zero(first, second):
    return paired_difference(first, second) if first else Difference(0.0, 0.0, 0.0, 1.0)


MCNEMAR, SIGN, ENDS, SAME, EMPTY = DIFFERENCE_CHECKS
DIFFERENCE_FAULTS = {
    "first minus second": (lambda first, second: paired_difference(second, first), [SIGN, ENDS]),
    "one side only": (_with_p(lambda gained, lost: _mcnemar(gained, lost) / 2), [MCNEMAR, SAME]),
    "large-sample test": (
        _with_p(
            lambda gained, lost: float(
                stats.chi2.sf((gained - lost) ** 2 / max(1, gained + lost), df=1)
            )
        ),
        [MCNEMAR],
    ),
    "point probability instead of the tail": (
        _with_p(
            lambda gained, lost: min(1.0, 2 * comb(gained + lost, gained) / 2 ** (gained + lost))
        ),
        [MCNEMAR],
    ),
    "agreements counted in": (
        lambda first, second: paired_difference(first, second)._replace(
            p_value=float(stats.binomtest(sum(second), len(first)).pvalue)
        ),
        [MCNEMAR],
    ),
    "no disagreement is no p-value": (
        lambda first, second: paired_difference(first, second)._replace(
            p_value=None if first == second else 0.5
        ),
        [SAME],
    ),
    "items drawn for each side apart": (_with_ends(_unpaired_bootstrap), [ENDS]),
    "five percent at each side": (_with_ends(_narrow_bootstrap), [ENDS]),
    "no items are zero": (_no_items_are_zero, [EMPTY]),
}


@pytest.mark.parametrize("fault", DIFFERENCE_FAULTS)
def test_a_fault_in_a_difference_is_caught(fault):
    faulty, checks = DIFFERENCE_FAULTS[fault]
    for check in checks:
        with pytest.raises((AssertionError, TypeError)):
            check(faulty)


def test_every_check_is_seen_to_fail():
    seen = [*RATE_FAULTS.values(), *DIFFERENCE_FAULTS.values()]
    assert {check for _, checks in seen for check in checks} == {*RATE_CHECKS, *DIFFERENCE_CHECKS}


# Laws and refusals


def test_intervals_are_of_95_percent():
    assert CONFIDENCE == 0.95


@LAW
@given(num=st.integers(1, 2000), data=st.data())
def test_an_interval_holds_its_rate_and_mirrors_that_of_the_rest(num, data):
    count = data.draw(st.integers(0, num))
    found, rest = wilson(count, num), wilson(num - count, num)
    assert 0.0 <= found.low <= found.rate <= found.high <= 1.0
    # both ends are rounded
    assert math.isclose(found.low, 1 - rest.high, rel_tol=0, abs_tol=2 * ROUNDED)
    assert math.isclose(found.high, 1 - rest.low, rel_tol=0, abs_tol=2 * ROUNDED)


@LAW
@given(num=st.integers(2, 500), share=st.sampled_from([0.0, 0.5, 1.0]))
def test_more_of_the_same_narrows_the_interval(num, share):
    few, many = wilson(int(share * num), num), wilson(int(share * num) * 10, num * 10)
    assert many.high - many.low < few.high - few.low


@pytest.mark.parametrize(("count", "num"), [(-1, 10), (11, 10), (1, 0), (0, -1), (-1, -1)])
def test_counts_that_contradict_each_other_are_refused(count, num):
    with pytest.raises(
        InputError, match=rf"`count` must lie between 0 and `num`, got {count} of {num}"
    ):
        wilson(count, num)


@pytest.mark.parametrize(("first", "second"), [(3, 4), (4, 3), (0, 1), (1, 0)])
def test_outcomes_of_unlike_length_are_refused(first, second):
    words = rf"Paired outcomes must be of one length, got {first} and {second}\."
    with pytest.raises(InputError, match=words):
        paired_difference([True] * first, [True] * second)


_ITEMS = st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=30)


@LAW
@given(items=_ITEMS)
def test_exchanging_the_sides_turns_the_difference_and_keeps_the_p_value(items):
    first, second = (list(each) for each in zip(*items, strict=True))
    there, back = paired_difference(first, second), paired_difference(second, first)
    assert there.difference == -back.difference
    assert there.p_value == back.p_value
    assert math.isclose(there.low, -back.high, rel_tol=0, abs_tol=2 * ROUNDED)


@LAW
@given(items=_ITEMS)
def test_any_difference_keeps_within_its_bounds(items):
    first, second = (list(each) for each in zip(*items, strict=True))
    found = paired_difference(first, second)
    gained = sum(after and not before for before, after in items)
    lost = sum(before and not after for before, after in items)
    assert math.isclose(found.p_value, _mcnemar(gained, lost), rel_tol=1e-9)
    assert -1.0 <= found.low <= found.high <= 1.0
    assert 0.0 < found.p_value <= 1.0
    assert math.isclose(found.difference, (gained - lost) / len(items), rel_tol=0, abs_tol=1e-6)


def test_one_seed_gives_one_interval_and_another_seed_another():
    first, second = _outcomes(both=11, lost=6, gained=3, neither=17)
    once = paired_difference(first, second, seed=5)
    assert paired_difference(first, second, seed=5) == once
    others = {paired_difference(first, second, seed=seed)[1:3] for seed in range(8)}
    assert len(others) > 1
    # the seed moves the interval, never the difference or the p-value
    assert paired_difference(first, second, seed=6)[::3] == once[::3]


def test_the_global_seed_is_neither_used_nor_moved():
    first, second = _outcomes(both=11, lost=6, gained=3, neither=17)
    np.random.seed(1)
    before = paired_difference(first, second)
    state = np.random.get_state()[1].tolist()
    assert paired_difference(first, second) == before
    assert np.random.get_state()[1].tolist() == state
    np.random.seed(2)
    assert paired_difference(first, second) == before


def test_fewer_resamples_are_honoured():
    first, second = _outcomes(both=11, lost=6, gained=3, neither=17)
    found = paired_difference(first, second, num_resamples=1)
    assert found.low == found.high  # one draw has one mean


def test_a_change_of_every_item_is_certain():
    assert paired_difference([True] * 8, [False] * 8) == Difference(-1.0, -1.0, -1.0, 2 / 256)
