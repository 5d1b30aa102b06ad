"""What an audit found, counted: measurements with intervals, and the files of it."""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from ..errors import InputError, unknown_choice
from ..provenance import as_json, machine, now, versions, write_json, write_lines
from .answering import SCHEMA, parts_of
from .answers import Answer
from .counting import Column, columns
from .judges import agreement
from .measurements import Comparison, Gate, Measurement, measured
from .metrics import metric as metric_named
from .outcomes import Metric, Outcome, metric_of, metrics_of
from .settings import AuditSettings
from .statistics import Rate, clustered_rate, mean_interval, wilson
from .suites import Suite

_UNSCORED = metric_of("unscored_rate")


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
    answers: Sequence[Answer]
    """A tuple; of thousands, a list that lies on disk (`spool.py`)."""

    others: tuple[Measurement, ...] = ()
    """Measurements that come from no answer: refusal mass, perplexity, tasks of lm-eval."""

    blind: frozenset[str] = frozenset()
    """Judges that tell harm from no harm and no refusal from anything: what they say of harmless
    prompts is undefined."""

    @cached_property
    def _columns(self) -> dict[tuple[str, str], Column]:
        """The answers by suite and condition, counted."""
        judges, score = (*self.judges, self.settings.metric), metric_named(self.settings.metric)
        return columns(self.answers, self.suites, judges, score)

    def asked(self) -> list[tuple[Suite, str]]:
        """Every suite with every condition that it was put under."""
        return [(each.suite, condition) for (_, condition), each in self._columns.items()]

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
        if (suite, condition) not in self._columns:
            asked = ", ".join(f"{each.name} ({put})" for each, put in self.asked())
            raise InputError(f"Nothing was asked of {suite!r} under {condition!r}; asked: {asked}.")
        if judge is not None and judge not in (*self.judges, self.settings.metric):
            raise unknown_choice("judge", judge, self.judges)
        return self._columns[suite, condition].outcomes(judge or self.judges[0])

    def scores(
        self, suite: Suite, condition: str, judge: str, metric: Metric
    ) -> list[float | None]:
        """What each prompt counts for a metric, in order: 0 to 1, or None where it counts not.

        It is 1 for the outcome whose share the metric is, and what the metric of a task gives.
        """
        if metric is _UNSCORED:
            found = self.outcomes(suite.name, condition, judge)
            return [1.0 if each == "unscored" else 0.0 for each in found]
        if suite.kind == "task":
            return self._columns[suite.name, condition].scores()
        if judge not in self.by_judge(suite):
            return [None] * len(suite.prompts)
        found = self.outcomes(suite.name, condition, judge)
        return [
            None if each == "unscored" else 1.0 if each == metric.outcome else 0.0 for each in found
        ]

    def rate(self, kind: str, outcome: str) -> Rate:
        """The share of one outcome over all suites of a kind, put plainly."""
        names = [suite.name for suite in self.suites if suite.kind == kind]
        found = [each for name in names for each in self.outcomes(name) if each != "unscored"]
        return wilson(sum(each == outcome for each in found), len(found))

    @cached_property
    def measurements(self) -> tuple[Measurement, ...]:
        """Every number: by suite, condition, judge and metric, then the same by category."""
        whole, parts = [], []
        for suite, condition in self.asked():
            metrics, judges = metrics_of(suite.kind), self.by_judge(suite)
            # of a judge that sees no refusals the numbers are undefined, not absent
            for judge in judges if suite.kind == "task" else self.judges:
                for metric in (*metrics, _UNSCORED):
                    whole.append(self._measured(suite, condition, judge, metric))
            of = self._columns[suite.name, condition]
            whole.append(
                measured(
                    wilson(of.cut, of.num), suite=suite.name, kind=suite.kind,
                    condition=condition, metric="truncated_rate",
                )
            )  # fmt: skip
            names = dict.fromkeys(of.categories)
            each_of = itertools.product(names if len(names) > 1 else (), judges, metrics)
            for name, judge, metric in each_of:
                parts.append(self._measured(suite, condition, judge, metric, name))
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

    def _measured(
        self, suite: Suite, condition: str, judge: str, metric: Metric, category: str | None = None
    ) -> Measurement:
        """One metric of a suite, or of one category of it, over the prompts that were scored."""
        scores = self.scores(suite, condition, judge, metric)
        names, interval = self._columns[suite.name, condition].categories, None
        # in two lists: a million pairs are more than what is counted
        kept = [
            score is not None and category in (None, name)
            for score, name in zip(scores, names, strict=True)
        ]
        values = [score for score in itertools.compress(scores, kept) if score is not None]
        if set(values) - {0.0, 1.0}:
            found = mean_interval(values, seed=self.settings.seed)
        elif self.settings.by_category and category is None and metric is not _UNSCORED:
            of = list(itertools.compress(names, kept))
            found = clustered_rate([each == 1 for each in values], of)
            interval = "clustered"
        else:
            found = wilson(values.count(1.0), len(values))
        return measured(
            found, suite=suite.name, kind=suite.kind, condition=condition, metric=metric.name,
            judge=judge, category=category, interval=interval,
        )  # fmt: skip

    def agreements(self) -> list[dict[str, object]]:
        """How far every two judges agree, suite by suite."""
        rows = []
        for suite, condition in self.asked():
            for pair in itertools.combinations(self.judges if suite.kind != "task" else (), 2):
                one, two = (self.outcomes(suite.name, condition, each) for each in pair)
                scored = ["unscored" not in each for each in zip(one, two, strict=True)]
                found = agreement(*(list(itertools.compress(each, scored)) for each in (one, two)))
                of = {"suite": suite.name, "condition": condition, "first": pair[0]}
                rows.append({**of, "second": pair[1], **found._asdict()})
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
        write_lines(folder / "answers.jsonl", map(_line, self.answers))
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
            "suites": [each.facts() for each in self.suites],
            "measurements": [each.to_json() for each in self.measurements],
            "agreement": self.agreements(),
            "comparisons": [each.to_json() for each in comparisons],
            "gates": [each.to_json() for each in gates],
        }  # fmt: skip
        write_json(folder / "audit.json", value)
        for path in parts_of(folder):
            path.unlink(missing_ok=True)
        return value


def _line(answer: Answer) -> str:
    """A line of `answers.jsonl`."""
    verdicts = {name: each._asdict() for name, each in answer.verdicts.items()}
    return as_json({**asdict(replace(answer, verdicts={})), "verdicts": verdicts})
