"""Numbers over seeds and prompts, by hand; and choices that see the validation split alone."""

import numpy as np
import pytest

from moorline.audit.statistics import clustered_rate, paired_difference, wilson
from moorline.compare.choosing import Point, choose
from moorline.compare.numbers import bootstrap, contrast, spread

NAN = float("nan")


def test_one_seed_is_wilson_and_what_is_not_scored_does_not_count():
    found = spread(np.array([[1.0, 0.0, NAN, 1.0, 1.0]]))
    assert (found.seeds, found.num, found.prompts) == (1, 4, 4)
    assert found.value == 3 / 4
    assert (found.low, found.high) == wilson(3, 4)[3:]


def test_several_seeds_are_clustered_both_ways_and_the_wider_counts():
    grid = np.array([[1.0, 1.0, 1.0, 1.0], [1.0, 0.0, 0.0, 0.0], [1.0, 1.0, 1.0, 0.0]])
    found = spread(grid)
    assert found.value == 8 / 12
    yes = [bool(each) for row in grid for each in row]
    by_seed = clustered_rate(yes, [0] * 4 + [1] * 4 + [2] * 4)
    by_prompt = clustered_rate(yes, [0, 1, 2, 3] * 3)
    assert found.low == min(by_seed.low, by_prompt.low)
    assert found.high == max(by_seed.high, by_prompt.high)
    # Seeds that differ tell less than as many independent answers.
    assert found.high - found.low > wilson(8, 12).high - wilson(8, 12).low


def test_a_missing_seed_is_not_a_seed():
    found = spread(np.array([[1.0, 0.0], [NAN, NAN]]))
    assert (found.seeds, found.num, found.interval) == (1, 2, "wilson")
    assert spread(np.full((2, 3), NAN)).value is None


def test_a_difference_is_paired_and_is_nothing_between_equals():
    first, second = np.array([[1.0, 1.0, 0.0, NAN]]), np.array([[0.0, 1.0, 0.0, 1.0]])
    found = contrast(first, second)
    assert (found.num, found.value) == (3, -1 / 3)
    by_hand = paired_difference([True, True, False], [False, True, False])
    assert (found.low, found.high) == (by_hand.low, by_hand.high)
    same = contrast(np.ones((3, 50)), np.ones((3, 50)))
    assert same.value == 0
    assert same.low < 0 < same.high


def test_scores_are_means_with_a_bootstrap_interval():
    grid = np.array([[0.2, 0.4, 0.9, 0.5], [0.3, 0.5, 0.7, 0.5]])
    found = spread(grid)
    assert found.value == pytest.approx(4.0 / 8)
    assert found.low < 0.5 < found.high
    assert found.interval == "bootstrap"


def test_the_bootstrap_has_a_width_where_nothing_varies():
    low, high = bootstrap(np.zeros((3, 40)))
    assert low == 0
    assert high == pytest.approx(wilson(0, 40).high)


def test_the_bootstrap_widens_with_the_seeds_apart():
    rng = np.random.default_rng(0)
    alike = (rng.random((4, 200)) < 0.5).astype(float)
    apart = np.array([[0.0] * 200, [0.2] * 200, [0.8] * 200, [1.0] * 200])
    width = [high - low for low, high in (bootstrap(alike), bootstrap(apart))]
    assert width[1] > 3 * width[0]


PLAIN = Point("", 0.60, 0.90)


def test_the_safest_strength_that_keeps_the_utility_is_chosen():
    points = [Point("1", 0.4, 0.90), Point("5", 0.2, 0.89), Point("10", 0.1, 0.70)]
    found = choose(points, PLAIN, 0.02)
    assert (found.strength, found.keeps_utility) == ("5", True)
    # from 0.89 to the target of 0.88 it is 1 point of the 19 to strength 10
    assert (found.start, found.end) == ("5", "10")
    assert found.share == pytest.approx(0.01 / 0.19)


def test_without_one_that_keeps_it_the_way_from_plain_counts():
    found = choose([Point("1", 0.2, 0.80), Point("5", 0.1, 0.50)], PLAIN, 0.02)
    assert (found.strength, found.keeps_utility) == ("1", False)
    assert (found.start, found.end, found.share) == (None, "1", pytest.approx(0.2))


def test_the_strongest_that_keeps_it_needs_no_way_further():
    found = choose([Point("1", 0.4, 0.9), Point("5", 0.0, 0.9)], PLAIN, 0.02)
    assert (found.strength, found.start, found.end, found.share) == ("5", "5", None, 0.0)


def test_what_is_broken_is_not_safe():
    points = [Point("1", 0.4, 0.9), Point("5", 0.0, 0.9, 0.5)]
    assert choose(points, PLAIN, 0.02).strength == "1"
    assert choose([points[0], points[1]._replace(broken=0.1)], PLAIN, 0.02).strength == "5"


def test_of_equal_ones_the_higher_utility_then_the_weaker():
    assert choose([Point("1", 0.1, 0.9), Point("5", 0.1, 0.95)], PLAIN, 0.02).strength == "5"
    assert choose([Point("1", 0.1, 0.9), Point("5", 0.1, 0.9)], PLAIN, 0.02).strength == "1"
