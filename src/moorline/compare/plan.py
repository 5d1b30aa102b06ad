"""The plan of a comparison: what is tuned how and asked what; refused by file and field."""

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from ..audit.metrics import metric as metric_named
from ..audit.settings import AuditSettings
from ..baselines import method_named
from ..errors import InputError
from ..method.settings import AUTO_ANCHORS, DEFAULT_FORM, NO_ANCHORS
from ..records import parse, read_yaml
from ..tables import is_table

ALIGNED = "aligned"
"""What the model before tuning is called in tables; no method may be called so."""

Value = str | int | float | bool | tuple[str | int | float, ...]

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,39}")
# What a cell sets itself.
_OURS = (
    "model_name_or_path", "dataset_name", "output_dir", "seed", "str_weight", "str_budget",
    "method", "method_strength", "config", "resume_from_checkpoint", "push_to_hub",
)  # fmt: skip
_REMEDY = "Correct the plan; docs/compare.md shows one."


@dataclass(frozen=True, kw_only=True, slots=True)
class Model:
    """An aligned chat model."""

    name: str
    path: str
    """Folder or hub id."""

    def __post_init__(self) -> None:
        _check_name(self.name, "models")


@dataclass(frozen=True, kw_only=True, slots=True)
class Data:
    """What is learned, and how it is told whether it was."""

    name: str
    train: str | tuple[str, ...]
    """File of rows or hub id; several are tasks in a row, each tuned from the one before."""

    tasks: tuple[str, ...] = ()
    """Task suites, whose metric is the utility."""

    metric: str = "exact_match"
    """Metric of the task suites, a name of `audit.metrics.METRICS`."""

    held_out: str | None = None
    """File of rows; their perplexity is the utility where there are no task suites."""

    settings: Mapping[str, Value] = field(default_factory=dict)
    """Training settings on this data set, for all methods alike."""

    question: Literal["main", "epochs", "learning_rate", "rank", "sequence"] = "main"
    """Which question of the evidence it is there for."""

    def __post_init__(self) -> None:
        _check_name(self.name, "data")
        metric_named(self.metric)
        _check_settings(self.settings, f"data {self.name!r}: `settings`")
        if not self.in_row:
            raise InputError(f"data {self.name!r}: `train` names no rows. Give a file or hub id.")
        if bool(self.tasks) == (self.held_out is not None):
            raise InputError(
                f"data {self.name!r}: give either `tasks` or `held_out`, which the utility is of."
            )

    @property
    def in_row(self) -> tuple[str, ...]:
        """The training rows of each task, in order."""
        return (self.train,) if isinstance(self.train, str) else self.train


@dataclass(frozen=True, slots=True)
class Strength:
    """One strength of a method, as tables and command lines have it."""

    label: str
    """Such as "weight 10"; empty where a method has no strength."""

    words: tuple[str, ...]
    """Flags of `moorline tune`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Method:
    """One way to tune, at one strength or more."""

    name: str
    method: str | None = None
    """plain, str, or a method of `tune --method`; the name if left out."""

    weights: tuple[float, ...] | None = None
    """Of `str`: weights of the drift."""

    budgets: tuple[float, ...] | None = None
    """Of `str`: how far a safety token may move, in nats."""

    strengths: tuple[float, ...] | None = None
    """Of any other method: `--method_strength`."""

    settings: Mapping[str, Value] = field(default_factory=dict)
    """Settings of this method alone; none that all methods share."""

    extra_data: str = ""
    """What it needs beside the training rows, for the cost column, where `needs` is not all."""

    question: Literal["main", "tokens"] = "main"
    """Which question of the evidence it is there for: "tokens" for a choice of safety tokens."""

    def __post_init__(self) -> None:
        _check_name(self.name, "methods")
        where, kind = f"method {self.name!r}", self.kind
        _check_settings(self.settings, f"{where}: `settings`")
        if self.name == ALIGNED:
            raise InputError(f"{where}: that `name` is the untuned model's. Give another.")
        may = {"plain": (), "str": ("weights", "budgets")}.get(kind, ("strengths",))
        given = [each for each in ("weights", "budgets", "strengths") if getattr(self, each)]
        if wrong := [each for each in given if each not in may]:
            raise InputError(f"{where}: `{wrong[0]}` is not for the method {kind!r}.")
        if kind == "str" and len(given) != 1:
            raise InputError(f"{where}: give either `weights` or `budgets`.")
        for each in given:
            _check_strengths(getattr(self, each), f"{where}: `{each}`")
        for each in self.strengths or (None,):
            own = {name: self.settings.get(f"method_{name}") for name in ("file", "base")}
            method_named(kind).check(each, **own)

    @property
    def kind(self) -> str:
        """plain, str, or a method of `tune --method`."""
        return self.method or self.name

    def needs(self, shared: Mapping[str, Value]) -> str:
        """What it needs beside the model and the rows, in words.

        Args:
            shared: Settings of all cells.
        """
        known = [str(each) for each in method_named(self.kind).needs]
        anchors = {**shared, **self.settings}.get("str_anchors", AUTO_ANCHORS)
        holds = self.kind == "str" and (self.weights is None or any(self.weights))
        if holds and anchors != NO_ANCHORS:
            known.append("anchor prompts")
        return ", ".join([*known, self.extra_data] if self.extra_data else known)

    def at(self) -> list[Strength]:
        """The strengths, the weakest first: small weights, large budgets."""
        if self.kind == "plain":
            return [Strength("", ("--str_weight", "0"))]
        if self.weights:
            rows = [("weight", "--str_weight", each) for each in sorted(self.weights)]
        elif self.budgets:
            rows = [("budget", "--str_budget", each) for each in sorted(self.budgets, reverse=True)]
        else:
            of = method_named(self.kind).strength
            falling = of is not None and not of.more_protects
            rows = [
                ("strength", "--method_strength", each)
                for each in sorted(self.strengths or (), reverse=falling)
            ]
        named = () if self.kind == "str" else ("--method", self.kind)
        found = [
            Strength(f"{what} {each:g}", (*named, flag, f"{each:g}")) for what, flag, each in rows
        ]
        return found or [Strength("", named)]


@dataclass(frozen=True, kw_only=True, slots=True)
class Asking:
    """What every model is asked, and how its answers are judged."""

    harmful: tuple[str, ...]
    """Suites as `moorline audit --suite` takes them; their harmful prompts count."""

    harmless: tuple[str, ...]
    conditions: tuple[str, ...] = ("plain",)
    judges: tuple[str, ...] = ("keywords",)
    limit: int | None = None
    """Prompts per suite, before they are split."""

    max_new_tokens: int = 128
    batch_size: int = 32
    perplexity: str | None = None
    """File of general text rows."""

    def __post_init__(self) -> None:
        if not self.harmful or not self.harmless:
            raise InputError("audit: `harmful` and `harmless` must each name one suite at least.")
        if "plain" not in self.conditions:
            raise InputError("audit: `conditions` must hold 'plain', which all else rests on.")
        AuditSettings(
            judges=self.judges, conditions=self.conditions, max_new_tokens=self.max_new_tokens,
            batch_size=self.batch_size, limit=self.limit,
        )  # fmt: skip


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """Models x data sets x methods x strengths x seeds, at equal conditions.

    Raises:
        InputError: If a value is out of range, or two contradict each other.
    """

    models: tuple[Model, ...]
    data: tuple[Data, ...]
    methods: tuple[Method, ...]
    audit: Asking
    seeds: tuple[int, ...] = (0,)
    training: Mapping[str, Value] = field(default_factory=dict)
    """Settings of `moorline tune` that all cells share."""

    validation: float = 0.3
    """Share of the prompts that strengths are chosen on; all numbers are of the others."""

    margin: float = 0.02
    """How far below plain tuning's utility counts as equal: a share, or nats of perplexity."""

    keep_models: bool = True
    """Whether tuned weights stay on disk after their audit."""

    threads: int = 1
    """Threads of a cell; with another number the last digits of a float may be others."""

    gpus_per_cell: float = 0.0
    """What a Ray task asks for."""

    def __post_init__(self) -> None:
        for name in ("models", "data", "methods"):
            names = [each.name for each in getattr(self, name)]
            if not names:
                raise InputError(f"`{name}` must name one at least.")
            _check_once(names, f"`{name}`")
        _check_once(self.seeds, "`seeds`")
        if not self.seeds or min(self.seeds) < 0:
            raise InputError(f"`seeds` must be whole numbers of 0 or more, got {self.seeds}.")
        if not any(each.kind == "plain" for each in self.methods):
            raise InputError("`methods` must hold 'plain', which utility is compared with.")
        if not 0 < self.validation < 1:
            raise InputError(f"`validation` must lie between 0 and 1, got {self.validation}.")
        if not 0 <= self.margin < 1:
            raise InputError(f"`margin` must be 0 or more and below 1, got {self.margin}.")
        if self.threads < 1 or self.gpus_per_cell < 0:
            raise InputError("`threads` must be 1 or more, and `gpus_per_cell` 0 or more.")
        _check_settings(self.training, "`training`")
        shared = {*self.training, *(name for each in self.data for name in each.settings)}
        for each in self.methods:
            if both := sorted(shared & set(each.settings)):
                raise InputError(
                    f"method {each.name!r}: `settings` sets {both[0]!r}, which all methods share: "
                    "the conditions would not be equal. Leave it out."
                )
            forms = [
                {**self.training, **data.settings, **each.settings}.get("str_form", DEFAULT_FORM)
                for data in self.data
            ]
            if each.budgets and "kl" in forms:
                raise InputError(
                    f"method {each.name!r}: `budgets` are root mean squares, which form kl has "
                    "none of. Set `str_form` to 'logprob', or give `weights`."
                )

    def plain(self) -> Method:
        """The method that utility is compared with."""
        return next(each for each in self.methods if each.kind == "plain")


def read_plan(path: str | Path) -> Plan:
    """Read a plan.

    Raises:
        InputError: If it is missing, is not YAML, or holds what does not fit; names file and field.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path}: no such plan. Check the path.")
    values = read_yaml(path)
    if not isinstance(values, dict):
        raise InputError(f"{path}: a plan holds keys and values. {_REMEDY}")
    _read_off(values)
    plan = parse(Plan, values, str(path), remedy=_REMEDY)
    for name, source in _sources(plan):
        if is_table(source) and not Path(source).is_file():
            raise InputError(f"{path}: {name!r} names {source}, which is not there. {_REMEDY}")
    return plan


def _read_off(values: Any) -> None:
    """Call anchors off where YAML made False of a bare `off`, at any depth."""
    inner = values.values() if isinstance(values, dict) else values
    for each in inner:
        if isinstance(each, dict | list):
            _read_off(each)
    if isinstance(values, dict) and values.get("str_anchors") is False:
        values["str_anchors"] = NO_ANCHORS


def _sources(plan: Plan) -> Iterable[tuple[str, str]]:
    """Every file that the plan names, with its field."""
    for number, each in enumerate(plan.data):
        for name, found in (("train", each.in_row), ("tasks", each.tasks)):
            yield from ((f"data[{number}].{name}", source) for source in found)
        if each.held_out is not None:
            yield f"data[{number}].held_out", each.held_out
    for name in ("harmful", "harmless"):
        yield from ((f"audit.{name}", source) for source in getattr(plan.audit, name))
    if plan.audit.perplexity is not None:
        yield "audit.perplexity", plan.audit.perplexity


def _check_name(name: str, where: str) -> None:
    if not _NAME.fullmatch(name):
        raise InputError(
            f"{where}: `name` {name!r} must be letters, digits, '.', '_' or '-', up to 40 of them: "
            "it names a folder."
        )


def _check_once(values: Sequence[Any], where: str) -> None:
    if twice := [each for each in values if values.count(each) > 1]:
        raise InputError(f"{where} holds {twice[0]!r} twice. Leave one out.")


def _check_strengths(values: Sequence[float], where: str) -> None:
    if bad := [each for each in values if not (math.isfinite(each) and each >= 0)]:
        raise InputError(f"{where} must be numbers of 0 or more, got {bad[0]:g}.")
    _check_once([f"{each:g}" for each in values], where)


def _check_settings(settings: Mapping[str, Any], where: str) -> None:
    for name in settings:
        if not re.fullmatch(r"[a-z_][a-z0-9_]*", name):
            raise InputError(
                f"{where}: {name!r} is no setting. Write it as a YAML key: max_steps: 30."
            )
        if name in _OURS:
            raise InputError(f"{where}: {name!r} is set by the comparison itself. Leave it out.")
