"""Does a model refuse what it should, answer what it should, do its task.

In order: every prompt under every condition is answered, and each answer goes to disk as it comes
(`answering.py`); every judge gives its verdict; the verdicts are counted (`findings.py`).
"""

import json
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import asdict
from pathlib import Path

from ..chat.chat_model import ChatModel, Completion, Generator, check_sizes
from ..errors import InputError
from ..provenance import fingerprint
from .answering import Question, Store, answered
from .conditions import Condition
from .conditions import condition as condition_named
from .findings import Answer, Audit
from .judges import Judge, Verdict
from .judges import judge as judge_named
from .metrics import metric as metric_named
from .refusal_mass import refusal_mass
from .statistics import mean_interval
from .suites import Suite

_REFUSAL_MASS = "refusal_mass"


def audit(
    chat: ChatModel,
    suites: Sequence[Suite],
    *,
    judges: Sequence[str | Judge] = ("keywords",),
    conditions: Sequence[str | Condition] = ("plain",),
    metric: str = "exact_match",
    labels: Collection[str] = (),
    max_new_tokens: int = 128,
    batch_size: int = 32,
    system_prompt: str | None = None,
    seed: int = 0,
    by_category: bool = False,
    name: str | None = None,
    adapter: str | None = None,
    weights: str = "",
    engine: Generator | None = None,
    folder: str | Path | None = None,
    progress: Callable[[int], None] | None = None,
) -> Audit:
    """Put every prompt of the suites to a model and judge the answers.

    A harmful prompt has one of three outcomes: *refused*, *complied* (attack success), or
    *degenerate* (empty, repeating, or a class label: broken, not obedient). The attacks beside the
    plain prompt are for harmful suites only. Where a condition draws several answers, the attack
    has succeeded if one of them complies. A cut answer is judged as it stands, and counted as
    `truncated`.

    What it cannot see: harm that other wordings, languages or several turns would bring out;
    whether an answer that complies is of any use to anyone.

    Args:
        chat: The model, with or without an adapter; its tokenizer has a chat template.
        suites: What to ask.
        judges: Names of judges, or your own; the first one's verdict is the outcome. The name
            "refusal_mass" adds that measure.
        conditions: Names of conditions, or your own.
        metric: Metric of a task, a name of `metrics.METRICS`.
        labels: Answers of the task that are off topic where help was asked for; by default the
            answers that a task suite gives to a tenth or more of its prompts.
        max_new_tokens: Longest answer in tokens.
        batch_size: Prompts per batch.
        system_prompt: Put before each prompt if given, but where a condition has its own.
        seed: Seed of what is drawn, and of bootstraps.
        by_category: Whether intervals take the prompts of one category for alike.
        name: What to call the model in files; its own name if None.
        adapter: What to call its adapter in files.
        weights: What the weights are known by, so that a folder is not gone on with by another
            model; only needed with `folder`.
        engine: What answers; the model itself if None.
        folder: Where answers go as they come, and come from again after a stop; memory if None.
        progress: Called with the number of answers done since the last call.

    Returns:
        Outcomes and answers; `rows()` gives rates with intervals.

    Raises:
        InputError: If two suites have one name, an argument does not fit, or `folder` holds another
            audit.
    """
    if len({suite.name for suite in suites}) != len(suites):
        raise InputError("Two suites have one name. Rename one of the files.")
    check_sizes(max_new_tokens=max_new_tokens, batch_size=batch_size)
    chat.check_chat_template()
    metric_named(metric)
    labels = set(labels) or _common_answers(suites)
    asked = [condition_named(each) if isinstance(each, str) else each for each in conditions]
    wanted = [each for each in judges if each != _REFUSAL_MASS]
    judging = [
        judge_named(each, labels=labels) if isinstance(each, str) else each for each in wanted
    ]
    if not judging or not asked:
        raise InputError("`judges` and `conditions` must each name one at least.")
    called = name or chat.name

    questions = [
        Question(suite, place, condition, draw)
        for suite in suites
        for condition in asked
        if suite.kind == "harmful" or condition.name == "plain"
        for place in range(len(suite.prompts))
        for draw in range(condition.draws)
    ]
    settings = {
        "max_new_tokens": max_new_tokens,
        "batch_size": batch_size,
        "system_prompt": system_prompt,
        "conditions": [asdict(each) for each in asked],
        "backend": type(engine).__name__.lower() if engine else "transformers",
    }
    birth = fingerprint([
        called, str(adapter), weights, str(seed), str(chat.tokenizer.chat_template),
        json.dumps(settings, sort_keys=True), *(suite.name + suite.sha256 for suite in suites),
    ])  # fmt: skip
    store = Store(None if folder is None else Path(folder), birth)
    completions = answered(
        questions, store, chat, engine or chat, settings,
        seed=seed, progress=progress,
    )  # fmt: skip
    measures = [
        {
            "suite": suite.name,
            "condition": "plain",
            "measure": _REFUSAL_MASS,
            **mean_interval(
                refusal_mass(
                    chat, [each.prompt for each in suite.prompts],
                    batch_size=batch_size, system_prompt=system_prompt,
                ),
                seed=seed,
            )._asdict(),
        }
        for suite in suites
        if _REFUSAL_MASS in judges and suite.kind != "task"
    ]  # fmt: skip
    return Audit(
        model=called,
        adapter=adapter,
        seed=seed,
        judges=tuple(each.name for each in judging),
        metric=metric,
        suites=tuple(suites),
        answers=tuple(_judged(questions, completions, judging, metric)),
        measures=tuple(measures),
        settings={**settings, "judges": [each.name for each in judging], "birth": birth},
        blind=frozenset(each.name for each in judging if not getattr(each, "sees_refusals", True)),
        by_category=by_category,
    )


def _judged(
    questions: Sequence[Question],
    completions: Sequence[Completion],
    judges: Sequence[Judge],
    metric: str,
) -> list[Answer]:
    """Every answer with its verdicts."""
    verdicts: list[dict[str, Verdict]] = [{} for _ in questions]
    open_ended = [place for place, each in enumerate(questions) if each.suite.kind != "task"]
    for judge in judges:
        found = judge.verdicts(
            [questions[place].prompt.prompt for place in open_ended],
            [completions[place].text for place in open_ended],
        )
        for place, verdict in zip(open_ended, found, strict=True):
            verdicts[place][judge.name] = verdict
    score = metric_named(metric)
    answers = []
    for question, said, of in zip(questions, completions, verdicts, strict=True):
        if question.suite.kind == "task":
            value = score(said.text, question.prompt.answer or "")
            reason = "" if value == 1 else f"{metric} {value:.3g}, not {question.prompt.answer!r}"
            first = ("right" if value == 1 else "wrong", reason)
        else:
            first = of[judges[0].name]
        suite, number, condition, draw = question.key
        answers.append(
            Answer(
                suite=suite,
                id=number,
                condition=condition,
                draw=draw,
                category=question.prompt.category,
                prompt=question.prompt.prompt,
                answer=said.text,
                truncated=said.truncated,
                outcome=first[0],
                reason=first[1],
                verdicts={key: dict(each._asdict()) for key, each in of.items()},
            )
        )
    return answers


def _common_answers(suites: Sequence[Suite]) -> set[str]:
    answers = [
        each.answer or "" for suite in suites if suite.kind == "task" for each in suite.prompts
    ]
    return {each for each, count in Counter(answers).items() if count >= 0.1 * len(answers)}
