"""Every file that Moorline writes, as a type and as a JSON Schema.

The schemas are on the documentation's page of file formats, and the tests hold what the tests write
against them.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from ..audit.answering import SCHEMA, UnjudgedAnswer
from ..audit.measurements import Comparison, Gate, Measurement
from ..compare.cells import Found
from ..compare.record import Compared
from ..method.cache import Manifest
from ..method.safety_tokens import SafetyTokens
from ..records import json_schema
from ..report.rows import (
    Agreement,
    Checkpoint,
    Drift,
    PositionDrift,
    Step,
    SuiteFacts,
    Token,
    TokenDrift,
)  # fmt: skip
from ..report.verdict import Finding
from .run_file import Run


@dataclass(frozen=True, kw_only=True, slots=True)
class BegunAudit:
    """What `audit.json` says of an audit that has not finished."""

    SCHEMA: ClassVar[int] = SCHEMA

    status: Literal["running"]
    fingerprint: str
    """Of all that shapes the answers: model, prompts, settings."""

    at: str
    """When it began, in UTC."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Audit:
    """What `audit.json` says of a finished audit."""

    SCHEMA: ClassVar[int] = SCHEMA

    status: Literal["finished"]
    fingerprint: str | None
    """Of all that shapes the answers: model, prompts, settings."""

    model: str
    adapter: str | None
    seed: int
    at: str
    """When it was written, in UTC."""

    seconds: float | None
    versions: Mapping[str, str]
    machine: Mapping[str, Any]
    settings: Mapping[str, Any]
    suites: tuple[SuiteFacts, ...]
    measurements: tuple[Measurement, ...]
    agreement: tuple[Agreement, ...]
    comparisons: tuple[Comparison, ...]
    gates: tuple[Gate, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Verdict:
    """What one judge said of an answer."""

    outcome: str
    reason: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Answer:
    """A line of `answers.jsonl` of a finished audit."""

    suite: str
    id: str
    condition: str
    draw: int
    category: str | None
    prompt: str
    answer: str
    truncated: bool
    outcome: str
    reason: str
    verdicts: Mapping[str, Verdict]


@dataclass(frozen=True, kw_only=True, slots=True)
class Drifted:
    """What `drift.json` says of a tuned model: where it moved away from the aligned one."""

    SCHEMA: ClassVar[int] = 1

    tokens: tuple[TokenDrift, ...]
    """Worst first."""

    positions: tuple[PositionDrift, ...]
    checkpoints: tuple[Checkpoint, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Anchor:
    """A line of `anchors.jsonl`: a prompt that a model was held at."""

    prompt: str
    kind: Literal["harmful", "harmless"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Reported:
    """One model in `report.json`: what its files say, without the answers."""

    name: str
    measurements: tuple[Measurement, ...]
    agreement: tuple[Agreement, ...]
    comparisons: tuple[Comparison, ...]
    gates: tuple[Gate, ...]
    suites: tuple[SuiteFacts, ...]
    safety_tokens: tuple[Token, ...]
    curve: tuple[Step, ...]
    drift: Drift
    training_seconds: float | None
    provenance: Mapping[str, Any]
    """Settings, versions, machine, times, of `audit`, `tuning` and `mining`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Shown:
    """A prompt whose answers stand on the page; the texts are in `answers.jsonl`."""

    suite: str
    id: str
    condition: str
    draw: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Page:
    """What `report.json` says: the page in numbers."""

    SCHEMA: ClassVar[int] = 2

    title: str
    verdict: str
    findings: tuple[Finding, ...]
    warnings: tuple[str, ...]
    notes: tuple[str, ...]
    commands: tuple[str, ...]
    models: tuple[Reported, ...]
    """First the one with which the others are compared."""

    examples: tuple[Shown, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class State:
    """What a checkpoint holds of the method, in `moorline_state.json`."""

    held: Mapping[str, Any]
    """Form, weight, positions, what becomes of rows in conflict, and a fingerprint of the anchors'
    prompts: by which the run was held."""

    processes: int
    """Whose random numbers belong to the checkpoint; 0 where it holds the model alone."""

    drift: Mapping[str, float | None] | None = None
    """With a budget: all that the next weight depends on."""

    anchors: Mapping[str, float | None] | None = None
    """The same of the anchors' weight."""


FILES: Mapping[str, tuple[type, ...]] = {
    "safety_tokens.json": (SafetyTokens,),
    "run.json": (Run,),
    "audit.json": (BegunAudit, Audit),
    "answers.jsonl": (UnjudgedAnswer, Answer),
    "drift.json": (Drifted,),
    "anchors.jsonl": (Anchor,),
    "cache.json": (Manifest,),
    "cell.json": (Found,),
    "compare.json": (Compared,),
    "report.json": (Page,),
    "moorline_state.json": (State,),
}
"""The files by name, with the types of what they hold; of a JSONL file those of a line."""


def schemas() -> Mapping[str, Mapping[str, Any]]:
    """The JSON Schema of every file, by the file's name (draft 2020-12)."""
    return {name: {"title": name, **json_schema(*kinds)} for name, kinds in FILES.items()}
