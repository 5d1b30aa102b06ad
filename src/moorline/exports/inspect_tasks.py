"""Our suites and judges inside Inspect: `inspect eval moorline/refusals --model ...`.

Inspect finds this file by its entry point `inspect_ai`; nothing of ours imports it.
"""

from collections.abc import Callable

from inspect_ai import Epochs, Task, task  # pyright: ignore[reportMissingImports]
from inspect_ai.dataset import MemoryDataset, Sample  # pyright: ignore[reportMissingImports]
from inspect_ai.model import GenerateConfig  # pyright: ignore[reportMissingImports]
from inspect_ai.scorer import (  # pyright: ignore[reportMissingImports]
    Metric,
    SampleScore,
    Score,
    Scorer,
    Target,
    metric,
    scorer,
)
from inspect_ai.solver import TaskState, generate  # pyright: ignore[reportMissingImports]

from ..audit.judges import DegenerateFirst, judge
from ..audit.outcomes import Kind, Outcome
from ..audit.suites import read_suites
from ..audit.thoughts import after_thoughts
from ..errors import InputError


def _share(outcome: Outcome) -> Callable[[list[SampleScore]], float]:
    def share(scores: list[SampleScore]) -> float:
        # Inspect has left the unscored ones out.
        found = [each.score.value == outcome for each in scores]
        return sum(found) / len(found) if found else float("nan")

    return share


@metric
def refused() -> Metric:
    """Share of answers that refuse, among those that were scored."""
    return _share("refused")


@metric
def complied() -> Metric:
    """Share of answers that comply, among those that were scored."""
    return _share("complied")


@metric
def degenerate() -> Metric:
    """Share of answers that are broken, among those that were scored."""
    return _share("degenerate")


@scorer(metrics=[refused(), complied(), degenerate()])
def outcome(judge_name: str = "keywords", kind: Kind = "harmful") -> Scorer:
    """Refused, complied or degenerate, by a judge of Moorline; unscored where nobody can tell.

    Args:
        judge_name: One of `moorline.audit.judges.JUDGES`.
        kind: What the prompts ought to get: "harmful" a refusal, "harmless" help.
    """
    by = judge(judge_name)

    async def score(state: TaskState, target: Target) -> Score:
        answer, why = after_thoughts(state.output.completion)
        if why is not None:
            return Score.unscored(reason=why, answer=state.output.completion)
        asked, said = [state.input_text], [answer]
        if isinstance(by, DegenerateFirst):
            (found,) = by.verdicts(asked, said, [kind])
        else:
            (found,) = by.verdicts(asked, said)
        if found.outcome == "unscored":
            return Score.unscored(reason=found.reason, answer=answer)
        return Score(value=found.outcome, answer=answer, explanation=found.reason)

    return score


@task
def refusals(
    suite: str = "moorline-harmful", judge: str = "keywords", max_new_tokens: int = 128
) -> Task:
    """Requests that ought to be refused.

    Args:
        suite: A suite as `moorline audit --suite` takes it.
        judge: A judge as `moorline audit --judge` takes it.
        max_new_tokens: Longest answer in tokens.
    """
    return _task(suite, "harmful", judge, max_new_tokens)


@task
def overrefusals(
    suite: str = "moorline-harmless", judge: str = "keywords", max_new_tokens: int = 128
) -> Task:
    """Requests that ought to be answered.

    Args:
        suite: A suite as `moorline audit --suite` takes it.
        judge: A judge as `moorline audit --judge` takes it.
        max_new_tokens: Longest answer in tokens.
    """
    return _task(suite, "harmless", judge, max_new_tokens)


def _task(suite: str, kind: Kind, judge_name: str, max_new_tokens: int) -> Task:
    chosen = [each for each in read_suites(suite) if each.kind == kind]
    if not chosen:
        raise InputError(f"{suite}: no prompt of it is {kind}. Give another suite.")
    target: Outcome = "refused" if kind == "harmful" else "complied"
    samples = [
        Sample(id=each.id, input=each.prompt, target=target, metadata={"category": each.category})
        for of in chosen
        for each in of.prompts
    ]
    return Task(
        dataset=MemoryDataset(samples, name=chosen[0].name),
        solver=generate(),
        scorer=outcome(judge_name, kind),
        config=GenerateConfig(max_tokens=max_new_tokens, temperature=0.0),
        epochs=Epochs(1, "mode"),  # a mean of words is none
    )
