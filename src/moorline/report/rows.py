"""What is known of each model, as typed rows: behind `runs.py` nobody reads a file."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..audit.measurements import Comparison, Gate, Measurement
from ..audit.outcomes import Metric, Outcome


@dataclass(frozen=True, kw_only=True, slots=True)
class SuiteFacts:
    """What a suite is, and the hash of its prompts."""

    name: str
    kind: str
    num: int
    origin: str | None
    licence: str | None
    sha256: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Agreement:
    """How often two judges gave one answer the same verdict."""

    suite: str
    condition: str
    first: str
    second: str
    num: int
    agreement: float | None
    kappa: float | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Answer:
    """One answer, as a line of `answers.jsonl` has it."""

    suite: str
    id: str
    condition: str
    draw: int
    prompt: str
    answer: str
    outcome: Outcome
    reason: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Token:
    """A safety token; a larger score is stronger evidence."""

    id: int
    string: str
    score: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Step:
    """One line of a training log."""

    step: int
    task_loss: float | None
    drift: float | None
    weighted: float | None


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenDrift:
    """How far one safety token has moved."""

    id: int
    string: str
    drift: float | None


@dataclass(frozen=True, kw_only=True, slots=True)
class PositionDrift:
    """How far the safety tokens have moved at one position of the response."""

    position: int
    drift: float | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Checkpoint:
    """The probability of a refusal's openers at one step of the training."""

    step: int
    refusal_mass: float | None
    low: float | None
    high: float | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Drift:
    """The tables of `drift.json`; empty without that file."""

    tokens: tuple[TokenDrift, ...] = ()
    positions: tuple[PositionDrift, ...] = ()
    checkpoints: tuple[Checkpoint, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class Origin:
    """What `audit.json` or `run.json` says beside its tables, as far as this folder reads it."""

    model: str | None = None
    adapter: str | None = None
    base: Mapping[str, str] | None = None
    """Name and fingerprint of the aligned model that a tuning was held to."""

    chain: tuple[Mapping[str, Any], ...] = ()
    """The tunings before, and this one last."""

    reference: str | None = None
    fingerprint: str | None = None
    seed: int | None = None
    at: str | None = None
    seconds: float | None = None
    training_seconds: float | None = None
    log: tuple[Mapping[str, Any], ...] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, slots=True)
class Run:
    """What is known of one model."""

    name: str = ""
    """What the page calls it."""

    measurements: tuple[Measurement, ...] = ()
    agreement: tuple[Agreement, ...] = ()
    comparisons: tuple[Comparison, ...] = ()
    gates: tuple[Gate, ...] = ()
    suites: tuple[SuiteFacts, ...] = ()

    safety_tokens: tuple[Token, ...] = ()
    """Best first."""

    curve: tuple[Step, ...] = ()
    """The training, as it was logged."""

    drift: Drift = field(default_factory=Drift)
    training_seconds: float | None = None

    provenance: Mapping[str, Any] = field(default_factory=dict)
    """Settings, versions, machine, times, of `audit`, `tuning` and `mining`: as the files say."""

    audit: Origin = field(default_factory=Origin)
    tuning: Origin = field(default_factory=Origin)
    answers: tuple[Answer, ...] = ()
    folder: Path | None = None
    """Where the tuning is; None without one."""

    @property
    def rates(self) -> tuple[Measurement, ...]:
        """The measurements of whole suites."""
        return tuple(each for each in self.measurements if each.category is None)

    def of(self, metric: Metric) -> list[Measurement]:
        """The measurements of one metric, of whole suites."""
        return [row for row in self.rates if (row.metric, row.kind) == (metric.name, metric.kind)]
