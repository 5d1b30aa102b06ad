"""An audit as logs of Inspect, so that `inspect view` shows it without asking the model again."""

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..audit.answers import Answer
from ..audit.measurements import Measurement
from ..errors import PrerequisiteError
from ..provenance import file_in, fingerprint
from .audited import Audited, read_answers, read_audit

if TYPE_CHECKING:
    from inspect_ai.log import EvalLog, EvalSample, EvalScore  # pyright: ignore
    from inspect_ai.scorer import Score  # pyright: ignore

_WANTED = {"harmful": "refused", "harmless": "complied", "task": "right"}
"""The outcome that a prompt ought to get; it is the sample's target."""


def write_inspect(folder: str | Path, output: str | Path) -> list[Path]:
    """Write one log for each suite and condition of an audit.

    A sample is a prompt, an epoch a draw. The score of each judge is a word: refused, complied or
    degenerate, and for tasks right or wrong. An answer that is unscored has Inspect's own unscored
    score (`nan` with its reason), which no metric of Inspect counts. The results are the rates of
    `audit.json` with their intervals in the metadata; nothing is judged or counted anew.

    Args:
        folder: What `moorline audit` wrote.
        output: Folder for the logs, for `inspect view --log-dir`.

    Returns:
        The paths of the logs.

    Raises:
        InputError: If the folder holds no finished audit, a damaged line, or a name that is a path.
        PrerequisiteError: If inspect_ai is not installed.
    """
    audited, output = read_audit(folder), Path(output)
    asked: dict[tuple[str, str], list[Answer]] = {}
    for each in read_answers(folder):
        asked.setdefault((each.suite, each.condition), []).append(each)
    paths = {
        each: file_in(output, f"{_file_name(audited.at)}_{'-'.join(each)}.eval") for each in asked
    }
    try:
        from inspect_ai.log import write_eval_log  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise PrerequisiteError(
            "A log of Inspect needs inspect_ai, which is not installed. Run "
            "`pip install 'moorline[inspect]'`."
        ) from error
    output.mkdir(parents=True, exist_ok=True)
    written = []
    for (suite, condition), answers in asked.items():
        path = paths[suite, condition]
        write_eval_log(_log(audited, suite, condition, answers), path)
        written.append(path)
    return written


def _file_name(at: str) -> str:
    """A time as Inspect begins the names of its logs, and sorts by it."""
    return at.replace(":", "-")


def _log(audited: Audited, suite: str, condition: str, answers: Sequence[Answer]) -> "EvalLog":
    from inspect_ai.log import (  # pyright: ignore[reportMissingImports]
        EvalConfig,
        EvalDataset,
        EvalLog,
        EvalPlan,
        EvalResults,
        EvalSpec,
        EvalStats,
    )

    facts, rows = audited.suite(suite), audited.about(suite, condition)
    unjudged = {each.metric: each.value for each in rows if each.judge is None}
    name = audited.model if audited.adapter is None else f"{audited.model} + {audited.adapter}"
    # The same audit gives the same log.
    known = fingerprint([str(audited.fingerprint), audited.at, suite, condition])[:22]
    spec = EvalSpec(
        eval_id=known, run_id=str(audited.fingerprint or known)[:22], task_id=known,
        created=audited.at, task=f"moorline/{suite}", model=name,
        task_args={"suite": suite, "condition": condition},
        dataset=EvalDataset(
            name=suite, location=facts.origin, samples=facts.num,
            sample_ids=list(dict.fromkeys(each.id for each in answers)), shuffled=False,
        ),
        config=EvalConfig(epochs=1 + max(each.draw for each in answers)),
        packages=dict(audited.versions),
        metadata={"suite_sha256": facts.sha256, "kind": facts.kind, "settings": audited.settings},
    )  # fmt: skip
    samples = [_sample(each, facts.kind, audited, name) for each in answers]
    results = EvalResults(
        total_samples=len(answers), completed_samples=len(answers),
        scores=list(_scores(rows, samples)), metadata=unjudged,
    )  # fmt: skip
    stats = EvalStats(started_at=audited.at, completed_at=audited.at)
    return EvalLog(
        status="success", eval=spec, plan=EvalPlan(), results=results, stats=stats, samples=samples
    )


def _sample(answer: Answer, kind: str, audited: Audited, model: str) -> "EvalSample":
    from inspect_ai.log import EvalSample  # pyright: ignore[reportMissingImports]
    from inspect_ai.model import (  # pyright: ignore[reportMissingImports]
        ChatMessageUser,
        ModelOutput,
    )

    stop: Any = "max_tokens" if answer.truncated else "stop"
    output = ModelOutput.from_content(model, answer.answer, stop_reason=stop)
    judged = {name: each for name, each in answer.verdicts.items()}
    words = {name: (each.outcome, each.reason) for name, each in judged.items()}
    if not words:  # of a task, or unscored by whoever would have judged
        first = audited.settings["metric"] if kind == "task" else audited.settings["judges"][0]
        words = {str(first): (answer.outcome, answer.reason)}
    return EvalSample(
        id=answer.id, epoch=answer.draw + 1, input=answer.prompt, target=_WANTED[kind],
        messages=[ChatMessageUser(content=answer.prompt), output.message], output=output,
        scores={name: _score(*each, answer.answer) for name, each in words.items()},
        metadata={"category": answer.category, "condition": answer.condition},
    )  # fmt: skip


def _score(outcome: str, reason: str, answer: str) -> "Score":
    from inspect_ai.scorer import Score  # pyright: ignore[reportMissingImports]

    if outcome == "unscored":
        return Score.unscored(reason=reason, answer=answer, explanation=reason)
    return Score(value=outcome, answer=answer, explanation=reason)


def _scores(rows: Sequence[Measurement], samples: Sequence["EvalSample"]) -> Iterator["EvalScore"]:
    """The rates of each judge; an undefined rate is left out."""
    from inspect_ai.log import EvalMetric, EvalScore  # pyright: ignore[reportMissingImports]

    for judge in dict.fromkeys(each.judge for each in rows if each.judge is not None):
        defined = [each for each in rows if each.judge == judge and each.value is not None]
        metrics = {
            each.metric: EvalMetric(
                name=each.metric, value=each.value,
                metadata={
                    "num": each.num, "count": each.count, "low": each.low, "high": each.high,
                    "interval": each.interval,
                },
            )
            for each in defined
        }  # fmt: skip
        given = [(each.scores or {}).get(judge) for each in samples]
        counts = Counter(each is not None and isinstance(each.value, str) for each in given)
        yield EvalScore(
            name=judge, scorer="moorline/outcome", reducer="worst_of_draws", metrics=metrics,
            scored_samples=counts[True], unscored_samples=counts[False],
        )  # fmt: skip
