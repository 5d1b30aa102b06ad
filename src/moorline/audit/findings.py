"""What an audit found, counted: measurements with intervals, and the files of it."""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from ..errors import InputError, unknown_choice
from ..provenance import as_json, machine, now, versions, write_json, write_text
from .answering import SCHEMA
from .judges import Verdict, agreement
from .measurements import Comparison, Gate, Measurement
from .metrics import metric as metric_named
from .outcomes import Metric, Outcome, metrics_of, worst
from .settings import AuditSettings
from .statistics import Mean, Rate, clustered_rate, mean_interval, wilson
from .suites import Suite
from .thoughts import after_thoughts


@dataclass(frozen=True, kw_only=True, slots=True)
class Answer:
    """One answer and the verdicts on it, as a line of `answers.jsonl` has them."""

    suite: str
    id: str
    condition: str
    draw: int
    category: str
    prompt: str
    answer: str
    """With what the template and the condition put at its start, and with its thoughts."""

    truncated: bool
    outcome: Outcome
    """By the first judge; right or wrong for a task; unscored if nobody could tell."""

    reason: str
    verdicts: Mapping[str, Verdict]
    """Verdict of every judge, by its name; none where the answer is unscored."""

    def to_json(self) -> dict[str, Any]:
        """The line as JSON has it."""
        verdicts = {name: each._asdict() for name, each in self.verdicts.items()}
        return {**asdict(replace(self, verdicts={})), "verdicts": verdicts}


def of_rate(
    rate: Rate,
    interval: str,
    suite: Suite,
    condition: str,
    metric: str,
    judge: str | None,
    category: str | None = None,
) -> Measurement:
    """A share as a measurement."""
    return Measurement(
        suite=suite.name, kind=suite.kind, condition=condition, metric=metric, judge=judge,
        category=category, num=rate.num, count=rate.count, value=rate.rate, low=rate.low,
        high=rate.high, interval=None if rate.low is None else interval,
    )  # fmt: skip


def of_mean(
    mean: Mean,
    *,
    suite: str,
    kind: str,
    metric: str,
    condition: str = "plain",
    judge: str | None = None,
    category: str | None = None,
) -> Measurement:
    """A mean with its bootstrap interval as a measurement."""
    return Measurement(
        suite=suite, kind=kind, condition=condition, metric=metric, judge=judge, category=category,
        num=mean.num, count=None, value=mean.mean, low=mean.low, high=mean.high,
        interval=None if mean.low is None else "bootstrap",
    )  # fmt: skip


def _outcome(answer: Answer, judge: str) -> Outcome:
    """The outcome of an answer by one judge; what is said without judges counts for all."""
    verdict = answer.verdicts.get(judge)
    return answer.outcome if verdict is None else verdict.outcome


@dataclass(frozen=True, kw_only=True)
class Audit:
    """What one model did on some suites.

    Example:
        >>> from moorline.audit import audit
        >>> from moorline.chat.loading import load_chat_model
        >>> from moorline.embedded import aligned_path, suites
        >>> harmful = suites()[0].limited(4)
        >>> found = audit(load_chat_model(aligned_path()), [harmful])
        >>> found.measurement("refusal_rate").value
        1.0
    """

    model: str
    adapter: str | None
    suites: tuple[Suite, ...]
    settings: AuditSettings
    engine: str
    """What answered: "transformers" or the name of an engine."""

    fingerprint: str
    """Of all that shapes the answers; empty where nothing was kept on disk."""

    judges: tuple[str, ...]
    answers: tuple[Answer, ...]
    others: tuple[Measurement, ...] = ()
    """Measurements that come from no answer: refusal mass, perplexity, tasks of lm-eval."""

    blind: frozenset[str] = frozenset()
    """Judges that tell harm from no harm and no refusal from anything: what they say of harmless
    prompts is undefined."""

    @cached_property
    def _by_prompt(self) -> dict[tuple[str, str], dict[str, list[Answer]]]:
        """The answers by suite and condition, and there by the id of the prompt."""
        found: dict[tuple[str, str], dict[str, list[Answer]]] = {}
        for each in self.answers:
            of = found.setdefault((each.suite, each.condition), {})
            of.setdefault(each.id, []).append(each)
        return found

    def asked(self) -> list[tuple[Suite, str]]:
        """Every suite with every condition that it was put under."""
        by_name = {suite.name: suite for suite in self.suites}
        return [(by_name[name], condition) for name, condition in self._by_prompt]

    def by_judge(self, suite: Suite) -> tuple[str, ...]:
        """Who judges a suite: every judge that can, or the metric of a task."""
        if suite.kind == "task":
            return (self.settings.metric,)
        return tuple(
            each for each in self.judges if suite.kind == "harmful" or each not in self.blind
        )

    def outcomes(
        self, suite: str, condition: str = "plain", judge: str | None = None
    ) -> list[Outcome]:
        """The outcome of each prompt of a suite, in order; of several draws the worst.

        Args:
            suite: Name of the suite.
            condition: Name of the condition.
            judge: Name of the judge; the first if None.

        Raises:
            InputError: If there is no such suite, condition or judge.
        """
        of = {each.name: each for each in self.suites}.get(suite)
        if of is None or (suite, condition) not in self._by_prompt:
            asked = ", ".join(f"{each.name} ({put})" for each, put in self.asked())
            raise InputError(f"Nothing was asked of {suite!r} under {condition!r}; asked: {asked}.")
        if judge is not None and judge not in (*self.judges, self.settings.metric):
            raise unknown_choice("judge", judge, self.judges)
        chosen = judge or self.judges[0]
        found = self._by_prompt[suite, condition]
        return [
            worst([_outcome(answer, chosen) for answer in found[each.id]], of.kind)
            for each in of.prompts
        ]

    def scores(self, suite: Suite, condition: str) -> list[float | None]:
        """What the metric of a task gives each prompt, in order; None where unscored."""
        score, found = metric_named(self.settings.metric), self._by_prompt[suite.name, condition]
        scores: list[float | None] = []
        for each in suite.prompts:
            answers = [one for one in found[each.id] if one.outcome != "unscored"]
            values = [score(after_thoughts(one.answer)[0], each.answer or "") for one in answers]
            scores.append(max(values, default=None))
        return scores

    def rate(self, kind: str, outcome: str) -> Rate:
        """The share of one outcome over all suites of a kind, put plainly."""
        names = [suite.name for suite in self.suites if suite.kind == kind]
        found = [each for name in names for each in self.outcomes(name) if each != "unscored"]
        return wilson(sum(each == outcome for each in found), len(found))

    @cached_property
    def measurements(self) -> tuple[Measurement, ...]:
        """Every number: by suite, condition, judge and metric, then the same by category."""
        whole = [row for suite, condition in self.asked() for row in self._of(suite, condition)]
        parts = []
        for suite, condition in self.asked():
            names = dict.fromkeys(each.category for each in suite.prompts)
            for name in names if len(names) > 1 else ():
                for judge, metric in itertools.product(
                    self.by_judge(suite), metrics_of(suite.kind)
                ):
                    parts.append(self._one(suite, condition, judge, metric, name))
        return (*whole, *parts, *self.others)

    def measurement(
        self,
        metric: str,
        *,
        suite: str | None = None,
        condition: str = "plain",
        judge: str | None = None,
    ) -> Measurement:
        """One number of a whole suite; of the first suite and judge that have it.

        Raises:
            InputError: If it was not measured.
        """
        for row in self.measurements:
            if (row.metric, row.condition, row.category) != (metric, condition, None):
                continue
            if suite in (None, row.suite) and judge in (None, row.judge):
                return row
        known = ", ".join(sorted({row.metric for row in self.measurements}))
        raise InputError(
            f"`metric` {metric!r} was not measured (suite {suite or 'any'}, {condition}, judge "
            f"{judge or 'any'}). Measured: {known}."
        )

    def _of(self, suite: Suite, condition: str) -> list[Measurement]:
        """The measurements of a suite under a condition."""
        rows = []
        for judge in self.judges if suite.kind != "task" else self.by_judge(suite):
            rows += [
                self._one(suite, condition, judge, each, None) for each in metrics_of(suite.kind)
            ]
            unscored = [each == "unscored" for each in self.outcomes(suite.name, condition, judge)]
            rate = wilson(sum(unscored), len(unscored))
            rows.append(of_rate(rate, "wilson", suite, condition, "unscored_rate", judge))
        cut = [
            one.truncated for of in self._by_prompt[suite.name, condition].values() for one in of
        ]
        rate = wilson(sum(cut), len(cut))
        return [*rows, of_rate(rate, "wilson", suite, condition, "truncated_rate", None)]

    def _one(
        self, suite: Suite, condition: str, judge: str, metric: Metric, category: str | None
    ) -> Measurement:
        """One metric of a suite, or of one category of it, over the prompts that were scored."""
        of = (suite, condition, metric.name, judge, category)
        if judge not in self.by_judge(suite):
            return of_rate(wilson(0, 0), "wilson", *of)
        clusters = [each.category for each in suite.prompts]
        kept = [category in (None, each) for each in clusters]
        if suite.kind == "task":
            scored = self.scores(suite, condition)
            values = [
                each for each, keep in zip(scored, kept, strict=True) if keep and each is not None
            ]
            if any(each not in (0.0, 1.0) for each in values):
                mean = mean_interval(values, seed=self.settings.seed)
                return of_mean(
                    mean, suite=suite.name, kind=suite.kind, condition=condition,
                    metric=metric.name, judge=judge, category=category,
                )  # fmt: skip
        outcomes = self.outcomes(suite.name, condition, judge)
        chosen = [
            (each == metric.outcome, cluster)
            for each, cluster, keep in zip(outcomes, clusters, kept, strict=True)
            if keep and each != "unscored"
        ]
        if self.settings.by_category and category is None:
            rate = clustered_rate([each for each, _ in chosen], [each for _, each in chosen])
            return of_rate(rate, "clustered", *of)
        return of_rate(wilson(sum(each for each, _ in chosen), len(chosen)), "wilson", *of)

    def agreements(self) -> list[dict[str, Any]]:
        """How far every two judges agree, suite by suite."""
        rows = []
        for suite, condition in self.asked():
            if suite.kind == "task":
                continue
            for pair in itertools.combinations(self.judges, 2):
                both = zip(
                    *(self.outcomes(suite.name, condition, each) for each in pair), strict=True
                )
                scored = [each for each in both if "unscored" not in each]
                found = agreement([one for one, _ in scored], [one for _, one in scored])
                of = {"suite": suite.name, "condition": condition}
                rows.append({**of, "first": pair[0], "second": pair[1], **found._asdict()})
        return rows

    def save(
        self,
        folder: str | Path,
        *,
        comparisons: Sequence[Comparison] = (),
        gates: Sequence[Gate] = (),
        loading: Mapping[str, Any] | None = None,
        seconds: float | None = None,
    ) -> dict[str, Any]:
        """Write `answers.jsonl` and `audit.json` into a folder, each whole or not at all.

        Args:
            folder: Where to.
            comparisons: As of `compare`.
            gates: As of `gates.check_gates`.
            loading: How the model was loaded, for the settings in the file.
            seconds: How long it took.

        Returns:
            The content of `audit.json`.
        """
        folder = Path(folder)
        lines = (as_json(each.to_json()) for each in self.answers)
        write_text(folder / "answers.jsonl", "".join(lines))
        value = {
            "schema": SCHEMA,
            "status": "finished",
            "fingerprint": self.fingerprint or None,
            "model": self.model,
            "adapter": self.adapter,
            "seed": self.settings.seed,
            "at": now(),
            "seconds": seconds,
            "versions": versions(),
            "machine": machine(),
            "settings": {
                **self.settings.to_json(), "engine": self.engine, **(loading or {}),
            },
            "suites": [
                {
                    "name": suite.name,
                    "kind": suite.kind,
                    "num": len(suite.prompts),
                    "origin": suite.origin,
                    "licence": suite.licence,
                    "sha256": suite.sha256,
                }
                for suite in self.suites
            ],
            "measurements": [each.to_json() for each in self.measurements],
            "agreement": self.agreements(),
            "comparisons": [each.to_json() for each in comparisons],
            "gates": [each.to_json() for each in gates],
        }  # fmt: skip
        write_json(folder / "audit.json", value)
        return value
