"""Answers of several seeds to the same prompts as one number with its interval.

Of each number there is a grid, seeds by prompts, NaN where an answer was not scored or a cell is
missing. Prompts of one seed are alike, and so are the answers of all seeds to one prompt.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from scipy import stats

from ..audit.outcomes import Metric
from ..audit.statistics import (
    CONFIDENCE,
    Difference,
    Rate,
    clustered_rate,
    mean_interval,
    paired_difference,
    wilson,
)
from .cells import Found, Verdict
from .plan import ALIGNED
from .splits import Split

_DRAWS = 2000

At = tuple[str, str]
"""A method and a strength's label."""


class Spread(NamedTuple):
    """A number, what it comes from, and its 95 % interval."""

    seeds: int
    num: int
    """Answers of all seeds."""

    prompts: int
    value: float | None
    low: float | None
    high: float | None
    interval: str | None
    """How it was made: wilson, score, clustered, bootstrap, or seeds."""


@dataclass(frozen=True)
class Side:
    """What all methods answered on one split of one data set, for one model."""

    split: Split
    seeds: tuple[int, ...]
    found: Mapping[At, Mapping[int | None, Found]]
    """Finished cells by method and strength, and there by seed."""

    def grid(self, at: At, metric: Metric, condition: str = "plain") -> Any:
        """Seeds by prompts; that of the aligned model has the same row for each seed.

        Args:
            at: Method and strength.
            metric: A share of outcomes, or utility, which is what the task's metric gives.
            condition: How harmful prompts are put.
        """
        cells = self.found.get(at, {})
        rows = [cells.get(None if at[0] == ALIGNED else seed) for seed in self.seeds]
        prompts = self._prompts.get((str(metric.kind), condition), [])
        keys = {key: number for number, key in enumerate(prompts)}
        grid = np.full((len(rows), len(keys)), np.nan)
        for row, cell in zip(grid, rows, strict=True):
            for each in _asked(cell, self.split, metric, condition):
                if each.outcome != "unscored":
                    is_it = float(each.outcome == metric.outcome)
                    row[keys[each.suite, each.id]] = is_it if each.score is None else each.score
        return grid

    def conditions(self) -> list[str]:
        """How harmful prompts were put."""
        return [condition for kind, condition in self._prompts if kind == "harmful"]

    def perplexities(self, at: At) -> dict[str, Spread]:
        """Perplexity by file of rows: over seeds the geometric mean."""
        by_file: dict[str, list[Any]] = {}
        for cell in self.found.get(at, {}).values():
            for row in cell.measured(self.split):
                if row.metric == "perplexity" and row.value is not None:
                    by_file.setdefault(row.suite, []).append(row)
        return {name: _geometric(rows) for name, rows in by_file.items()}

    @cached_property
    def _prompts(self) -> dict[tuple[str, str], list[tuple[str, str]]]:
        """Suite and id of every prompt, by kind and condition."""
        found: dict[tuple[str, str], set[tuple[str, str]]] = {}
        for cells in self.found.values():
            for cell in cells.values():
                for each in cell.answers.get(self.split, ()):
                    found.setdefault((each.kind, each.condition), set()).add((each.suite, each.id))
        return {of: sorted(prompts) for of, prompts in found.items()}


def spread(grid: Any) -> Spread:
    """The mean of a grid with its interval.

    Of one seed: Wilson's interval. Of several: `statistics.clustered_rate` with seeds as clusters,
    and again with prompts as clusters; the wider at each end. Scores between 0 and 1: `bootstrap`.

    What it cannot see: with few seeds, how far other seeds would lie; intervals are then wide, as
    Student's distribution has it.

    Example:
        >>> spread(np.array([[1.0, 0.0, 1.0, 1.0]])).value
        0.75
    """
    rows, columns = np.nonzero(~np.isnan(grid))
    values = grid[rows, columns]
    size = (len(set(rows)), len(values), len(set(columns)))
    if not len(values):
        return Spread(*size, None, None, None, None)
    if not set(values) <= {0.0, 1.0}:
        return _of_scores(grid, values, size)
    if size[0] == 1:
        rate = wilson(int(values.sum()), len(values))
        return Spread(*size, rate.rate, rate.low, rate.high, "wilson")
    yes = [bool(each) for each in values]
    return _wider(size, clustered_rate(yes, list(rows)), clustered_rate(yes, list(columns)))


def contrast(first: Any, second: Any) -> Spread:
    """How two grids differ on the answers that both have: second minus first, with its interval.

    Of one seed: Tango's score interval. Of several: `statistics.paired_difference` with seeds as
    clusters, and again with prompts; the wider at each end.
    """
    both = ~(np.isnan(first) | np.isnan(second))
    rows, columns = np.nonzero(both)
    pair = [each[rows, columns] for each in (first, second)]
    size = (len(set(rows)), len(rows), len(set(columns)))
    if not len(rows):
        return Spread(*size, None, None, None, None)
    if not {*pair[0], *pair[1]} <= {0.0, 1.0}:
        change = np.where(both, second - first, np.nan)
        return _of_scores(change, pair[1] - pair[0], size)
    yes = [[bool(each) for each in side] for side in pair]
    if size[0] == 1:
        found = paired_difference(*yes)
        return Spread(*size, found.difference, found.low, found.high, "score")
    return _wider(
        size,
        paired_difference(*yes, clusters=list(rows)),
        paired_difference(*yes, clusters=list(columns)),
    )


def bootstrap(grid: Any, seed: int = 0) -> tuple[float, float]:
    """Percentile interval of a grid's mean over resampled seeds and, within each, prompts.

    Where all answers are alike it would have no width, so it is never narrower than Wilson's for as
    many answers as there are prompts.

    Source:
        Resampling rows and columns: Owen 2007, "The pigeonhole bootstrap".
    """
    known = ~np.isnan(grid)
    seeds, prompts = grid.shape
    generator = np.random.default_rng(seed)
    by_seed = generator.multinomial(seeds, [1 / seeds] * seeds, _DRAWS)
    by_prompt = generator.multinomial(prompts, [1 / prompts] * prompts, _DRAWS)
    total = ((by_seed @ np.where(known, grid, 0.0)) * by_prompt).sum(axis=1)
    num = ((by_seed @ known.astype(float)) * by_prompt).sum(axis=1)
    tail = 100 * (1 - CONFIDENCE) / 2
    low, high = np.percentile(total[num > 0] / num[num > 0], [tail, 100 - tail])
    mean, asked = float(grid[known].mean()), int(known.any(axis=0).sum())
    if grid[known].min() >= 0 and grid[known].max() <= 1:
        least = wilson(round(mean * asked), asked)
        low, high = min(low, least.low or 0.0), max(high, least.high or 1.0)
    return min(float(low), mean), max(float(high), mean)


def _asked(cell: Found | None, split: Split, metric: Metric, condition: str) -> list[Verdict]:
    """The verdicts of one cell that a metric is of."""
    rows = cell.answers.get(split, ()) if cell else ()
    return [each for each in rows if (each.kind, each.condition) == (metric.kind, condition)]


def _of_scores(grid: Any, values: Any, size: tuple[int, int, int]) -> Spread:
    if size[0] == 1:
        mean = mean_interval([float(each) for each in values])
        how = None if mean.low is None else "bootstrap"
        return Spread(*size, mean.mean, mean.low, mean.high, how)
    return Spread(*size, float(values.mean()), *bootstrap(grid), "bootstrap")


def _wider(size: tuple[int, int, int], *found: Rate | Difference) -> Spread:
    value = found[0].rate if isinstance(found[0], Rate) else found[0].difference
    lows = [each.low for each in found if each.low is not None]
    highs = [each.high for each in found if each.high is not None]
    if not lows:
        return Spread(*size, value, None, None, None)
    return Spread(*size, value, min(lows), max(highs), "clustered")


def _geometric(rows: Sequence[Any]) -> Spread:
    """Of one seed as it was measured; of several with Student's interval of the mean logarithm."""
    num, logs = sum(row.num for row in rows), [math.log(row.value) for row in rows]
    mean, size = sum(logs) / len(logs), (len(rows), num, rows[0].num)
    if len(rows) == 1:
        return Spread(*size, rows[0].value, rows[0].low, rows[0].high, rows[0].interval)
    t = stats.t.ppf((1 + CONFIDENCE) / 2, len(rows) - 1)
    half = float(t * np.std(logs, ddof=1) / math.sqrt(len(logs)))
    ends = (math.exp(mean - half), math.exp(mean + half))
    return Spread(*size, math.exp(mean), *ends, "seeds")
