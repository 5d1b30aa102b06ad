"""What a comparison found: the rows of `compare.json`, schema 1."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from ..records import plain, read
from .cells import Found
from .plan import Plan
from .splits import UTILITY_ROWS

COMPARE = "compare.json"

_TIMES = ("at", "seconds", "tune_seconds", "audit_seconds", "peak_memory_bytes", "machine")


@dataclass(frozen=True, kw_only=True, slots=True)
class Of:
    """What a row is of."""

    model: str
    data: str
    method: str
    strength: str


@dataclass(frozen=True, kw_only=True, slots=True)
class _Number(Of):
    """A number of the test split, with the fields of a `Spread`."""

    kind: str
    condition: str
    metric: str
    seeds: int
    num: int
    prompts: int
    value: float | None
    low: float | None
    high: float | None
    interval: str | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Pooled(_Number):
    """One number over seeds and suites."""

    suite: str
    """Of perplexity the file of rows; empty for numbers over all suites of a kind."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Contrast(_Number):
    """How one number differs from another method's, prompt by prompt: this minus the other."""

    against: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Witness:
    """Whether a model refuses and answers well enough before tuning to tell anything."""

    model: str
    data: str
    refusal_rate: float | None
    num_harmful: int
    degenerate_rate: float | None
    num: int
    why_not: str | None
    """None for a witness."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Chosen(Of):
    """The strength that the validation split chose, and the numbers that it chose by."""

    num_strengths: int
    keeps_utility: bool
    validation_attack: float
    validation_utility: float
    plain_utility: float


@dataclass(frozen=True, kw_only=True, slots=True)
class AtUtility(Of):
    """Attack success where a method equals plain tuning in utility.

    The place is found on the validation split, the number is of the test split.
    """

    start: str | None
    """`strength` is the chosen one; the line to equal utility begins here, None for plain."""

    end: str | None
    share: float
    seeds: int
    num: int
    prompts: int
    value: float | None
    low: float | None
    high: float | None
    utility: float | None
    """Of the same mix on the test split."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Cost(Of):
    """What a method costs beside plain tuning."""

    tune_seconds: float | None
    """Median over seeds."""

    peak_memory_bytes: int | None
    extra_rows: int | None
    extra_data: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Stability(Of):
    """How far seeds lie apart, and how the training went."""

    seeds: int
    lowest_attack: float | None
    highest_attack: float | None
    lowest_utility: float | None
    highest_utility: float | None
    grad_norm: float | None
    largest_grad_norm: float | None
    spikes: int
    logged: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Judged(Of):
    """What the numbers say of a method at its chosen strength, in a word."""

    word: str
    why: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Compared:
    """The content of `compare.json`."""

    SCHEMA: ClassVar[int] = 1

    status: str
    """'finished', or 'unfinished' where cells failed or are missing."""

    at: str
    seconds: float
    plan: Plan
    versions: Mapping[str, str]
    machine: Mapping[str, Any]
    cells: tuple[Found, ...]
    """Without the answers of single prompts, which stay in each `cell.json`."""

    witnesses: tuple[Witness, ...]
    chosen: tuple[Chosen, ...]
    pooled: tuple[Pooled, ...]
    contrasts: tuple[Contrast, ...]
    at_utility: tuple[AtUtility, ...]
    costs: tuple[Cost, ...]
    stability: tuple[Stability, ...]
    judged: tuple[Judged, ...]

    @property
    def pairs(self) -> list[tuple[str, str]]:
        """Model and data set of each table."""
        return [(model.name, data.name) for model in self.plan.models for data in self.plan.data]

    def chosen_at(self, model: str, data: str) -> dict[str, str]:
        """The strength reported of each method, by the method's name."""
        rows = [each for each in self.chosen if (each.model, each.data) == (model, data)]
        return {each.method: each.strength for each in rows}

    def number(
        self, model: str, data: str, method: str, metric: str, *, strength: str | None = None,
        kind: str | None = None, condition: str = "plain", suite: str = "",
    ) -> Pooled | None:  # fmt: skip
        """One pooled number; of the chosen strength where none is named."""
        if strength is None:
            strength = self.chosen_at(model, data).get(method, "")
        of = (model, data, method, strength, metric, condition, suite)
        for each in self.pooled:
            its = (each.model, each.data, each.method, each.strength, each.metric, each.condition,
                   each.suite)  # fmt: skip
            if its == of and kind in (None, each.kind):
                return each
        return None

    def utility(self, model: str, data: str, method: str, strength: str | None = None) -> Any:
        """The pooled number that is the utility of a data set."""
        held_out = next(each for each in self.plan.data if each.name == data).held_out
        if held_out is None:
            return self.number(model, data, method, "utility", strength=strength)
        at = {"strength": strength, "suite": UTILITY_ROWS}
        return self.number(model, data, method, "perplexity", **at)


def read_compared(path: str | Path) -> Compared:
    """Read a `compare.json`.

    Raises:
        InputError: If it is missing, damaged, or of another version; names file and field.
    """
    return read(Compared, path, "comparison", remedy="Run `moorline compare` again.")


def without_times(value: Any) -> Any:
    """A comparison as plain values, without what differs between two runs of the same plan."""
    whole = plain(value) if isinstance(value, Compared) else value
    if isinstance(whole, Mapping):
        return {key: without_times(each) for key, each in whole.items() if key not in _TIMES}
    return [without_times(each) for each in whole] if isinstance(whole, list | tuple) else whole
