"""What is known of each model, as typed rows: behind `runs.py` nobody reads a file."""

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ..audit.measurements import Comparison, Gate, Measurement, Row


@dataclass(frozen=True, kw_only=True, slots=True)
class SuiteFacts(Row):
    """What a suite is, and the hash of its prompts."""

    name: str
    kind: str
    num: int
    origin: str | None
    licence: str | None
    sha256: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Agreement(Row):
    """How often two judges gave one answer the same verdict."""

    suite: str
    condition: str
    first: str
    second: str
    num: int
    agreement: float | None
    kappa: float | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Answer(Row):
    """One answer, as a line of `answers.jsonl` has it."""

    suite: str
    id: str
    condition: str
    draw: int
    prompt: str
    answer: str
    outcome: str
    reason: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Token(Row):
    """A safety token; a larger score is stronger evidence."""

    id: int
    string: str
    score: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Step(Row):
    """One line of a training log."""

    step: int
    task_loss: float | None
    drift: float | None
    weighted: float | None


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenDrift(Row):
    """How far one safety token has moved."""

    id: int
    string: str
    drift: float | None


@dataclass(frozen=True, kw_only=True, slots=True)
class PositionDrift(Row):
    """How far the safety tokens have moved at one position of the response."""

    position: int
    drift: float | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Checkpoint(Row):
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
class Run:
    """What is known of one model."""

    name: str
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
    training_seconds: float | int | None = None

    provenance: dict[str, Any] = field(default_factory=dict)
    """Settings, versions, machine, times, of `audit`, `tuning` and `mining`: as the files say."""

    answers: tuple[Answer, ...] = ()
    folder: Path | None = None
    """Where the tuning is; None without one."""

    @property
    def rates(self) -> tuple[Measurement, ...]:
        """The measurements of whole suites."""
        return tuple(each for each in self.measurements if each.category is None)

    def kinds(self) -> dict[str, str]:
        """The kind of each suite."""
        return {each.suite: each.kind for each in self.measurements}

    def to_json(self) -> dict[str, Any]:
        """The run as a plain value, but for the text of answers."""
        whole = asdict(self)
        return {key: each for key, each in whole.items() if key not in ("answers", "folder")}
