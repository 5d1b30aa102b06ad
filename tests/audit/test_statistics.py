"""Rates with their intervals and paired differences, against formulae written out by hand."""

import itertools
import math
from math import comb, sqrt

import numpy as np
import pytest
from helpers import examples
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from moorline.audit.statistics import (
    CONFIDENCE,
    Difference,
    Mean,
    Rate,
    _tango,
    adjusted,
    clustered_rate,
    mean_interval,
    paired_difference,
    wilson,
)
from moorline.errors import InputError

Z = 1.959963984540054  # the 97.5th percentile of the normal distribution
ROUNDED = 1e-9  # of the ends, as floats

LAW = settings(deadline=None, derandomize=True, database=None, max_examples=examples(60))


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


def _score(first, second, difference):
    """Tango's statistic: how far the outcomes are from a difference, in standard errors squared.

    The likelihood of the two shares is climbed step by step rather than by the closed formula.
    """
    num = len(first)
    gained = sum(after and not before for before, after in zip(first, second, strict=True))
    lost = sum(before and not after for before, after in zip(first, second, strict=True))
    low, high = max(0.0, -difference), (1 - difference) / 2
    for _ in range(200):
        step = (high - low) / 3
        shares = (low + step, high - step)
        values = [
            sum(
                count * math.log(max(share, 1e-300))
                for count, share in (
                    (lost, q), (gained, q + difference),
                    (num - lost - gained, 1 - 2 * q - difference),
                )
            )
            for q in shares
        ]  # fmt: skip
        low, high = (low, shares[1]) if values[0] > values[1] else (shares[0], high)
    variance = 2 * low + difference - difference**2
    return (gained - lost - num * difference) ** 2 / (num * variance)


def check_interval_is_tangos(difference_of):
    for first, second in (
        _outcomes(both=11, lost=6, gained=3, neither=17),
        _outcomes(both=30, lost=0, gained=4, neither=16),
    ):
        found = difference_of(first, second)
        for end in (found.low, found.high):
            # 3.8415: the square of the 97.5 % point of the normal distribution
            assert math.isclose(_score(first, second, end), 3.841459, rel_tol=1e-4)


def check_identical_outcomes_do_not_differ_but_might(difference_of):
    """Of 200 prompts without a single change, up to 3.84 / (200 + 3.84) may change."""
    outcomes = [True, False] * 100
    found = difference_of(outcomes, list(outcomes))
    assert (found.difference, found.p_value) == (0.0, 1.0)
    assert math.isclose(found.high, 3.841459 / 203.841459, rel_tol=1e-6)
    assert math.isclose(found.low, -found.high, rel_tol=1e-6)


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
    check_interval_is_tangos,
    check_identical_outcomes_do_not_differ_but_might,
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


def _bootstrap_of_changes(first, second):
    change = np.asarray(second, float) - np.asarray(first, float)
    draws = np.random.default_rng(0).integers(len(first), size=(2000, len(first)))
    low, high = np.percentile(change[draws].mean(axis=1), [2.5, 97.5])
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
    "a bootstrap, without a width where nothing changed": (
        _with_ends(_bootstrap_of_changes),
        [ENDS, SAME],
    ),
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


def test_a_change_of_every_item_is_not_certain():
    found = paired_difference([True] * 8, [False] * 8)
    assert (found.difference, found.low, found.p_value) == (-1.0, -1.0, 2 / 256)
    assert -0.7 < found.high < -0.3


# Clusters

COUNTS = [(9, 10), (5, 10), (1, 5), (0, 5)]
"""Outcomes and items of four clusters, by hand below."""


def _clustered(counts):
    outcomes = [place < count for count, num in counts for place in range(num)]
    return outcomes, [name for name, (_, num) in enumerate(counts) for _ in range(num)]


def _effective(counts):
    """The rate and n' of `clustered_rate` as its docstring has them, over floats."""
    num, clusters = sum(each for _, each in counts), len(counts)
    p = sum(count for count, _ in counts) / num
    squares = sum((count - p * size) ** 2 for count, size in counts)
    variance = clusters / (clusters - 1) * squares / num**2
    effect = max(1.0, variance / (p * (1 - p) / num)) if 0 < p < 1 else 1.0
    return p, num / effect * (Z / stats.t.ppf(0.975, clusters - 1)) ** 2


def _wilson_of(p, num):
    centre, half = p + Z**2 / (2 * num), Z * sqrt(p * (1 - p) / num + Z**2 / (4 * num**2))
    return (centre - half) / (1 + Z**2 / num), (centre + half) / (1 + Z**2 / num)


@pytest.mark.parametrize("counts", [COUNTS, [(3, 6), (3, 6)], [(0, 9)] * 10, [(7, 7)] * 5])
def test_a_clustered_interval_is_wilsons_among_fewer_items(counts):
    found = clustered_rate(*_clustered(counts))
    p, effective = _effective(counts)
    low, high = _wilson_of(p, effective)
    assert found[:3] == (sum(count for count, _ in counts), sum(num for _, num in counts), p)
    assert math.isclose(found.low, max(0, low), abs_tol=1e-12)
    assert math.isclose(found.high, min(1, high), abs_tol=1e-12)


def test_a_clustered_interval_by_hand():
    # rate 15/30; residuals 4, 0, -1.5, -2.5; variance 4/3 * 24.5 / 900; effect 4.3556
    p, effective = _effective(COUNTS)
    assert p == 0.5
    assert math.isclose(effective, 30 / (4 / 3 * 24.5 / 900 * 120) * (Z / 3.18244630528371) ** 2)


def test_a_clustered_interval_is_never_shorter_than_one_of_independent_items():
    for counts in ([(5, 10)] * 10, COUNTS, [(0, 20)] * 10):
        found = clustered_rate(*_clustered(counts))
        plain = wilson(found.count, found.num)
        assert found.low <= plain.low < plain.high <= found.high
        assert found.high - found.low > plain.high - plain.low


def test_clusters_may_be_named_in_any_order_and_by_anything():
    outcomes, clusters = _clustered(COUNTS)
    mixed = np.random.default_rng(0).permutation(len(outcomes))
    names = ["violence", "theft", ("a", 1), None]
    found = clustered_rate(
        [outcomes[place] for place in mixed], [names[clusters[place]] for place in mixed]
    )
    expected = clustered_rate(outcomes, clusters)
    assert found[:3] == expected[:3]
    assert found[3:] == pytest.approx(expected[3:], abs=1e-12)  # sums in another order


def test_one_cluster_has_a_rate_without_interval():
    assert clustered_rate([True, False], ["a", "a"]) == Rate(1, 2, 0.5, None, None)
    assert clustered_rate([], []) == Rate(0, 0, None, None, None)
    found = paired_difference([True, False], [True, True], clusters=["a", "a"])
    assert found == Difference(0.5, None, None, 1.0)


def test_clusters_that_do_not_fit_the_items_are_refused():
    words = r"`clusters` must name one for each item, got 1 for 2 items\."
    for call in (
        lambda: clustered_rate([True, False], ["a"]),
        lambda: paired_difference([True, False], [True, True], clusters=["a"]),
    ):
        with pytest.raises(InputError, match=words):
            call()


def test_a_clustered_difference_is_tangos_among_fewer_items():
    # changes per cluster +3 of 4, 0 of 4, -1 of 2; difference 0.2
    first = [False] * 3 + [True] + [True] * 4 + [True, False]
    second = [True] * 4 + [True] * 4 + [False, False]
    clusters = [0] * 4 + [1] * 4 + [2] * 2
    found = paired_difference(first, second, clusters=clusters)
    residuals = [3 - 0.2 * 4, 0 - 0.2 * 4, -1 - 0.2 * 2]
    squared_error = 3 / 2 * sum(each**2 for each in residuals) / 10**2
    t = 4.302652729749464  # the 97.5th percentile of Student's distribution with 2 degrees
    effective = (0.3 + 0.1 - 0.2**2) / squared_error * (1.959964 / t) ** 2
    assert math.isclose(found.difference, 0.2)
    low, high = _tango(0.3, 0.1, effective)
    assert math.isclose(found.low, low, rel_tol=1e-5)
    assert math.isclose(found.high, high, rel_tol=1e-5)
    # sums +-3 +-1: 2 or more away from 0 in all four ways
    assert found.p_value == 1.0


def test_a_clustered_rate_of_0_or_1_lies_inside_its_interval():
    """The last digit of a float put the rate outside."""
    for sizes in itertools.product(range(1, 14), repeat=2):
        clusters = [name for name, size in enumerate(sizes) for _ in range(size)]
        for outcome in (False, True):
            found = clustered_rate([outcome] * len(clusters), clusters)
            assert found.low <= found.rate <= found.high


@pytest.mark.parametrize(
    ("sums", "p_value"),
    [
        ([3, 1], 2 / 4),  # 4, 2, -2, -4
        ([3, 2, 1], 2 / 8),  # only all of one sign reach 6
        ([3, -1, 1], 6 / 8),  # 5, 3, 3, 1 and their negatives: 3 or more away in six
        ([2, -2], 1.0),
        ([0, 0], 1.0),
    ],
)
def test_the_p_value_of_clusters_counts_the_flips(sums, p_value):
    first = [place < -total for total in sums for place in range(3)]
    second = [place < total for total in sums for place in range(3)]
    clusters = [name for name in range(len(sums)) for _ in range(3)]
    found = paired_difference(first, second, clusters=clusters)
    assert math.isclose(found.p_value, p_value)


@LAW
@given(items=_ITEMS)
def test_with_each_item_a_cluster_the_p_value_is_mcnemars(items):
    first, second = (list(each) for each in zip(*items, strict=True))
    plain = paired_difference(first, second)
    found = paired_difference(first, second, clusters=range(len(items)))
    assert found.difference == plain.difference
    # the two add up the same terms in another order
    assert math.isclose(found.p_value, plain.p_value, rel_tol=1e-9)


# Means


def test_a_mean_interval_is_the_bootstrap_over_items():
    values = [0.5, 1.5, 1.0, 7.0, 2.0]
    generator = np.random.default_rng(3)
    draws = generator.integers(5, size=(2000, 5))
    means = [sum(values[item] for item in draw) / 5 for draw in draws.tolist()]
    low, high = np.percentile(means, [2.5, 97.5])
    found = mean_interval(values, seed=3)
    assert found[:2] == (5, 2.4)
    assert found[2:] == pytest.approx((low, high), abs=1e-12)


def test_a_mean_over_parts_weighs_items_by_their_size():
    values, sizes = [1.0, 8.0, 3.0], [1, 4, 1]
    draws = np.random.default_rng(0).integers(3, size=(2000, 3))
    means = [
        sum(values[item] for item in draw) / sum(sizes[item] for item in draw)
        for draw in draws.tolist()
    ]
    found = mean_interval(values, sizes=sizes)
    assert found[:2] == (3, 2.0)
    assert found[2:] == pytest.approx(tuple(np.percentile(means, [2.5, 97.5])), abs=1e-12)


def test_a_mean_of_nothing_is_undefined_and_of_one_has_no_interval():
    assert mean_interval([]) == Mean(0, None, None, None)
    assert mean_interval([3.0]) == Mean(1, 3.0, None, None)
    assert mean_interval([3.0, 3.0]) == Mean(2, 3.0, 3.0, 3.0)


@pytest.mark.parametrize(
    ("values", "sizes", "words"),
    [
        ([1.0, math.nan], None, r"`values` must be finite, got nan"),
        ([math.inf], None, r"`values` must be finite, got inf"),
        ([1.0], [0], r"`sizes` must be 1 or more, got 0"),
        ([1.0, 2.0], [1], r"`values` and `sizes` must be of one length, got 2 and 1"),
    ],
)
def test_values_without_a_mean_are_refused(values, sizes, words):
    with pytest.raises(InputError, match=words):
        mean_interval(values, sizes=sizes)


def test_resampling_in_blocks_changes_nothing(monkeypatch):
    values = np.random.default_rng(0).standard_normal(30).tolist()
    whole = mean_interval(values, num_resamples=101)
    monkeypatch.setattr("moorline.audit.statistics._BLOCK", 200)
    assert mean_interval(values, num_resamples=101) == whole


# Many comparisons


@pytest.mark.parametrize(
    ("given_", "expected"),
    [
        ([], []),
        ([None], [None]),
        ([0.03], [0.03]),
        # 0.005 * 4, 0.01 * 3, 0.03 * 2, and 0.04 * 1 raised to the one before it
        ([0.01, 0.04, 0.03, 0.005], [0.03, 0.06, 0.06, 0.02]),
        ([0.01, None, 0.04], [0.02, None, 0.04]),
        ([0.5, 0.9, 0.5], [1.0, 1.0, 1.0]),
        ([0.02, 0.02], [0.04, 0.04]),
        ([0.0, 1.0], [0.0, 1.0]),
    ],
)
def test_holms_correction_by_hand(given_, expected):
    found = adjusted(given_)
    assert [each is None for each in found] == [each is None for each in expected]
    known = [each for each in found if each is not None]
    assert known == pytest.approx([each for each in expected if each is not None])


@LAW
@given(values=st.lists(st.floats(0, 1), max_size=12))
def test_a_correction_keeps_the_order_and_lies_between_once_and_m_times(values):
    found = adjusted(values)
    assert all(
        value <= after <= min(1.0, value * len(values) * (1 + 1e-12))
        for value, after in zip(values, found, strict=True)
    )
    ordered = sorted(zip(values, found, strict=True))
    assert all(first[1] <= then[1] for first, then in itertools.pairwise(ordered))


@pytest.mark.parametrize("value", [-0.1, 1.1, math.nan])
def test_what_is_no_p_value_is_refused(value):
    with pytest.raises(InputError, match=r"`p_values` must lie between 0 and 1, got "):
        adjusted([0.5, value])


# Simulation: what the intervals and p-values do over many samples

NUM_DRAWS = 2000
BAND = (0.93, 0.97)

COVERAGE = {
    (50, 0.0): 1.0,
    (50, 0.02): 0.92157,
    (50, 0.5): 0.93509,
    (50, 1.0): 1.0,
    (200, 0.0): 1.0,
    (200, 0.02): 0.93308,
    (200, 0.5): 0.94403,
    (200, 1.0): 1.0,
}
"""Exact coverage of Wilson's interval by items and true rate, as `wilson` documents it."""

OUTSIDE_BAND = {(50, 0.0), (50, 0.02), (50, 1.0), (200, 0.0), (200, 1.0)}


def _binomial(num, rate):
    return np.array(
        [comb(num, each) * rate**each * (1 - rate) ** (num - each) for each in range(num + 1)]
    )


def _holds(num, rate):
    """Whether the interval of each count from 0 to num holds the true rate."""
    intervals = [wilson(count, num) for count in range(num + 1)]
    return np.array([found.low <= rate <= found.high for found in intervals])


def _noise(share, draws=NUM_DRAWS):
    """Four standard errors of a share of `draws`: one false alarm in sixteen thousand."""
    return 4 * sqrt(share * (1 - share) / draws)


@pytest.mark.parametrize(("num", "rate"), COVERAGE)
def test_wilsons_coverage_is_what_is_documented_exactly_and_by_simulation(num, rate):
    holds = _holds(num, rate)
    exact = float(_binomial(num, rate) @ holds)
    assert math.isclose(exact, COVERAGE[num, rate], abs_tol=5e-6)
    assert (BAND[0] <= exact <= BAND[1]) == ((num, rate) not in OUTSIDE_BAND)
    # The band is asked of the exact coverage: 2,000 draws of 0.935 leave it in one run of five.
    counts = np.random.default_rng(0).binomial(num, rate, size=NUM_DRAWS)
    assert abs(holds[counts].mean() - exact) <= _noise(exact)


def test_no_interval_can_cover_a_rate_of_one_in_fifty_within_the_band():
    """It would have to hold the rate for some run of counts, and no run's chance is in the band."""
    chances = _binomial(50, 0.02)
    runs = [chances[start : end + 1].sum() for start in range(51) for end in range(start, 51)]
    assert not any(BAND[0] <= each <= BAND[1] for each in runs)
    assert any(0.92 <= each <= 0.99 for each in runs)


def test_wilsons_mean_coverage_over_rates_is_the_confidence():
    for num, mean, least in [(50, 0.952, 0.895), (200, 0.951, 0.933)]:
        counts = np.arange(num + 1)
        ends = np.array([wilson(int(count), num)[3:] for count in counts])
        rates = np.linspace(0.01, 0.99, 981)[:, None]
        holds = (ends[:, 0] <= rates) & (rates <= ends[:, 1])
        coverage = (stats.binom.pmf(counts, num, rates) * holds).sum(axis=1)
        assert math.isclose(coverage.mean(), mean, abs_tol=5e-4)
        assert math.isclose(coverage.min(), least, abs_tol=5e-4)


def _pairs(generator, num, gain, loss):
    """Outcomes of items of which a share is gained and a share lost."""
    chance = generator.random(num)
    lost, gained = chance < loss, (loss <= chance) & (chance < loss + gain)
    both = chance > 0.7
    return (lost | both).tolist(), (gained | both).tolist()


@pytest.mark.lengthy
@pytest.mark.parametrize("num", [50, 200])
def test_mcnemars_p_value_raises_few_false_alarms_and_finds_a_real_difference(num):
    generator = np.random.default_rng(0)

    def p_values(gain, loss):
        pairs = [_pairs(generator, num, gain, loss) for _ in range(NUM_DRAWS)]
        found = [paired_difference(*pair).p_value for pair in pairs]
        return np.array(found)

    null = p_values(0.1, 0.1)
    for level in (0.01, 0.05, 0.1, 0.5):
        # an exact test of counts: at most its level, and less by the steps between counts
        assert (null <= level).mean() <= level + _noise(level)
    assert (null <= 0.5).mean() > 0.2
    assert (p_values(0.3, 0.02) <= 0.05).mean() > 0.8


@pytest.mark.lengthy
@pytest.mark.parametrize(
    ("num", "gain", "loss", "coverage"),
    [
        (50, 0.2, 0.1, 0.95),
        (50, 0.1, 0.1, 0.958),
        (200, 0.05, 0.05, 0.946),
        (200, 0.2, 0.1, 0.95),
        # where a bootstrap has no width if no item changed: it covers 0.65 and 0.91
        (50, 0.0, 0.02, 0.996),
        (200, 0.0, 0.02, 0.933),
    ],
)
def test_the_interval_of_a_difference_covers_as_documented(num, gain, loss, coverage):
    generator = np.random.default_rng(0)
    draws = 2000
    held = 0
    for _ in range(draws):
        found = paired_difference(*_pairs(generator, num, gain, loss))
        held += found.low - 1e-12 <= gain - loss <= found.high + 1e-12
    assert abs(held / draws - coverage) <= _noise(coverage, draws)


@pytest.mark.lengthy
@pytest.mark.parametrize(
    ("kind", "num", "coverage"),
    [("standard_normal", 50, 0.94), ("standard_exponential", 50, 0.92)],
)
def test_the_bootstrap_of_a_mean_covers_as_documented(kind, num, coverage):
    generator = np.random.default_rng(0)
    mean = {"standard_normal": 0.0, "standard_exponential": 1.0}[kind]
    held = 0
    for _ in range(NUM_DRAWS):
        found = mean_interval(getattr(generator, kind)(num).tolist(), num_resamples=500)
        held += found.low <= mean <= found.high
    assert abs(held / NUM_DRAWS - coverage) <= _noise(coverage)


@pytest.mark.lengthy
@pytest.mark.parametrize(
    ("correlation", "rate", "coverage", "plain"),
    [(0.1, 0.1, 0.94, 0.77), (0.1, 0.5, 0.957, 0.756), (0.3, 0.1, 0.90, 0.55)],
)
def test_a_clustered_interval_covers_where_one_of_independent_items_does_not(
    correlation, rate, coverage, plain
):
    """Ten clusters of twenty items, as the shipped suites have them."""
    generator = np.random.default_rng(0)
    shape = (1 - correlation) / correlation
    clusters = [name for name in range(10) for _ in range(20)]
    held = held_plain = 0
    for _ in range(NUM_DRAWS):
        chances = generator.beta(rate * shape, (1 - rate) * shape, size=10)
        outcomes = (generator.random(200) < chances.repeat(20)).tolist()
        found, naive = clustered_rate(outcomes, clusters), wilson(sum(outcomes), 200)
        held += found.low <= rate <= found.high
        held_plain += naive.low <= rate <= naive.high
    assert abs(held / NUM_DRAWS - coverage) <= _noise(coverage)
    assert abs(held_plain / NUM_DRAWS - plain) <= _noise(plain)


@pytest.mark.lengthy
def test_a_clustered_difference_covers_and_raises_few_false_alarms():
    generator = np.random.default_rng(0)
    clusters = [name for name in range(10) for _ in range(20)]
    held = alarms = plain_alarms = 0
    for _ in range(NUM_DRAWS):
        # whole clusters lean one way or the other, by chance: no model is better
        lean = generator.choice([-0.15, 0.15], size=10).repeat(20)
        chance = generator.random(200)
        gained, lost = chance < 0.2 + lean, chance > 0.8 + lean
        found = paired_difference(lost.tolist(), gained.tolist(), clusters=clusters)
        plain = paired_difference(lost.tolist(), gained.tolist())
        held += found.low <= 0 <= found.high
        alarms += found.p_value <= 0.05
        plain_alarms += plain.p_value <= 0.05
    assert BAND[0] <= held / NUM_DRAWS <= BAND[1]
    assert alarms / NUM_DRAWS <= 0.05 + _noise(0.05)
    assert plain_alarms / NUM_DRAWS > 0.15  # what the clusters are for


def test_one_false_alarm_among_many_comparisons_stays_at_its_level():
    p_values = np.random.default_rng(0).random((NUM_DRAWS, 6))
    alarms = np.mean([min(adjusted(row)) <= 0.05 for row in p_values.tolist()])
    assert abs(alarms - (1 - (1 - 0.05 / 6) ** 6)) <= _noise(0.05)
    assert (p_values.min(axis=1) <= 0.05).mean() > 0.2  # without correction
