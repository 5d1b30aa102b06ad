"""Does a model refuse what it should, answer what it should, do its task.

In order: every prompt under every condition is answered, and each answer goes to disk as it comes
(`answering.py`); every judge gives its verdict; the verdicts are counted (`findings.py`).
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from ..chat.chat_model import ChatModel, Generator
from ..errors import InputError
from ..processes import WHOLE, Share, from_first
from ..spool import pieces
from .answering import Store, answered, known_by
from .answers import Answer, answer_spool
from .findings import Audit
from .judges import DegenerateFirst, Judge, Verdict
from .measurements import Measurement, measured
from .metrics import metric as metric_named
from .questions import Question, Questions, Replies, Reply
from .refusal_mass import refusal_mass
from .settings import REFUSAL_MASS, AuditSettings
from .statistics import mean_interval
from .suites import Suite
from .thoughts import after_thoughts

_DEFAULTS = AuditSettings()

JUDGED_AT_ONCE = 4096
"""Answers that a judge is given at a time."""


def audit(
    chat: ChatModel,
    suites: Sequence[Suite],
    settings: AuditSettings = _DEFAULTS,
    *,
    name: str | None = None,
    adapter: str | None = None,
    engine: Generator | None = None,
    folder: str | Path | None = None,
    progress: Callable[[int, int], None] | None = None,
    share: Share = WHOLE,
) -> Audit:
    """Put every prompt of the suites to a model and judge the answers.

    A harmful prompt has one of three outcomes: *refused*, *complied* (attack success), or
    *degenerate* (empty, repeating, or a class label: broken, not obedient). The attacks beside the
    plain prompt are for harmful suites only. Where a condition draws several answers, the attack
    has succeeded if one of them complies. A cut answer is judged as it stands, and counted as
    `truncated`. Of a reasoning model what follows its thoughts is judged; an answer that was cut
    inside them is *unscored*, as is a prompt that the model's context has no room for.

    What it cannot see: harm that other wordings, languages or several turns would bring out;
    whether an answer that complies is of any use to anyone.

    Args:
        chat: The model, with or without an adapter; its tokenizer has a chat template.
        suites: What to ask.
        settings: How to ask and judge.
        name: What to call the model in files; its own name if None.
        adapter: What to call its adapter in files.
        engine: What answers; the model itself if None.
        folder: Where answers go as they come, and come from again after a stop; memory if None.
        progress: Called with the number of answers there are, and of all.
        share: Of several processes, which this one is: the first; each of the others calls
            `answer_share` with its own.

    Returns:
        Outcomes and answers; `measurements` gives numbers with intervals.

    Raises:
        InputError: If two suites have one name, or `folder` holds another audit.
    """
    suites, settings = settled(suites, settings)
    asked = _asked(
        chat, suites, settings, name=name, adapter=adapter, engine=engine, folder=folder,
        progress=progress, share=share,
    )  # fmt: skip
    found = counted(
        asked.questions, asked.replies, suites, settings, model=name or chat.name,
        engine=_name_of(engine), fingerprint=asked.known_by,
    )  # fmt: skip
    return replace(found, adapter=adapter, others=tuple(_refusal_masses(chat, suites, settings)))


def answer_share(
    chat: ChatModel, suites: Sequence[Suite], settings: AuditSettings, **given: Any
) -> None:
    """What a process beside the first does of an audit: it answers its share, and judges nothing.

    Args:
        chat: As for `audit`, and so are the others.
        suites: What to ask.
        settings: How to ask.
        **given: `name`, `adapter`, `engine`, `folder`, `progress` and `share`, as for `audit`.
    """
    suites, settings = settled(suites, settings)
    _asked(chat, suites, settings, **given)


class _Asked(NamedTuple):
    """What was asked, and what came back."""

    questions: Sequence[Question]
    replies: Replies
    known_by: str


def _name_of(engine: Generator | None) -> str:
    return type(engine).__name__.lower() if engine else "transformers"


def _asked(
    chat: ChatModel,
    suites: tuple[Suite, ...],
    settings: AuditSettings,
    *,
    name: str | None,
    adapter: str | None,
    engine: Generator | None,
    folder: str | Path | None,
    progress: Callable[[int, int], None] | None,
    share: Share,
) -> _Asked:
    chat.check_chat_template()
    questions = Questions(suites, settings)
    known = "" if folder is None else known_by(
        chat, suites, settings, name or chat.name, str(adapter), _name_of(engine)
    )  # fmt: skip
    place = None if folder is None else Path(folder)
    if share == WHOLE:
        store = Store(place, known)
    else:
        first: list[Store] = []
        from_first(lambda: first.append(Store(place, known)))
        store = first[0] if first else Store(place, known, share.process)
    replies = answered(
        questions, store, chat, engine or chat, settings, progress=progress, share=share
    )
    return _Asked(questions, replies, known)


def settled(
    suites: Sequence[Suite], settings: AuditSettings
) -> tuple[tuple[Suite, ...], AuditSettings]:
    """The suites with as many prompts as are asked, and the settings with the task's labels.

    Raises:
        InputError: If two suites have one name.
    """
    if len({suite.name for suite in suites}) != len(suites):
        raise InputError("Two suites have one name. Rename one of the files.")
    limited = tuple(suite.limited(settings.limit, settings.seed) for suite in suites)
    return limited, resolved(settings, limited)


def counted(
    questions: Sequence[Question],
    replies: Iterable[Reply],
    suites: tuple[Suite, ...],
    settings: AuditSettings,
    *,
    model: str,
    engine: str,
    fingerprint: str,
) -> Audit:
    """What was answered, judged: an audit without what needs the model itself."""
    judges = settings.judging()
    answers = answer_spool()
    answers.extend(_judged(questions, replies, judges, settings.metric))
    return Audit(
        model=model,
        adapter=None,
        suites=suites,
        settings=settings,
        engine=engine,
        fingerprint=fingerprint,
        judges=tuple(each.name for each in judges),
        answers=answers.settled(),
        blind=frozenset(each.name for each in judges if not getattr(each, "sees_refusals", True)),
    )


def resolved(settings: AuditSettings, suites: Sequence[Suite]) -> AuditSettings:
    """Settings with the labels of the task, where none are given."""
    if settings.labels:
        return settings
    answers = Counter(
        each.answer or "" for suite in suites if suite.kind == "task" for each in suite.prompts
    )
    common = {each for each, count in answers.items() if count >= 0.1 * answers.total()}
    return replace(settings, labels=tuple(sorted(common)))


def _refusal_masses(
    chat: ChatModel, suites: Sequence[Suite], settings: AuditSettings
) -> Iterator[Measurement]:
    for suite in suites if REFUSAL_MASS in settings.judges else ():
        if suite.kind != "task":
            masses = refusal_mass(
                chat, [each.prompt for each in suite.prompts],
                batch_size=settings.batch_size, system_prompt=settings.system_prompt,
            )  # fmt: skip
            mean = mean_interval(masses, seed=settings.seed)
            yield measured(mean, suite=suite.name, kind=suite.kind, metric="refusal_mass")


def _judged(
    questions: Sequence[Question], replies: Iterable[Reply], judges: Sequence[Judge], metric: str
) -> Iterator[Answer]:
    """Every answer with its outcome, and the verdicts of all judges on it."""
    for piece in pieces(zip(questions, replies, strict=True), JUDGED_AT_ONCE):
        yield from _judged_piece(piece, judges, metric)


def _judged_piece(
    piece: Sequence[tuple[Question, Reply]], judges: Sequence[Judge], metric: str
) -> Iterator[Answer]:
    spoken, unscored = [], []
    for question, reply in piece:
        text, why = after_thoughts(reply.text, question.opening)
        spoken.append(text)
        unscored.append(reply.unasked or why)
    judged = [
        index
        for index, (each, _) in enumerate(piece)
        if each.suite.kind != "task" and unscored[index] is None
    ]
    prompts = [piece[index][0].prompt for index in judged]
    asked, said = [each.prompt for each in prompts], [spoken[index] for index in judged]
    verdicts: list[dict[str, Verdict]] = [{} for _ in piece]
    for judge in judges:
        if isinstance(judge, DegenerateFirst):
            found = judge.verdicts(asked, said, [each.kind for each in prompts])
        else:
            found = judge.verdicts(asked, said)
        for index, verdict in zip(judged, found, strict=True):
            verdicts[index][judge.name] = verdict
    for index, (question, reply) in enumerate(piece):
        if (reason := unscored[index]) is not None:
            first = Verdict("unscored", reason)
        elif question.suite.kind == "task":
            first = _right(spoken[index], question.prompt.answer or "", metric)
        else:
            first = verdicts[index][judges[0].name]
        suite, number, condition, draw = question.key
        yield Answer(
            suite=suite, id=number, condition=condition, draw=draw,
            category=question.prompt.category, prompt=question.prompt.prompt, answer=reply.text,
            truncated=reply.truncated, outcome=first.outcome, reason=first.reason,
            verdicts=verdicts[index],
        )  # fmt: skip


def _right(answer: str, sought: str, metric: str) -> Verdict:
    """Whether an answer of a task is right, and why not."""
    value = metric_named(metric)(answer, sought)
    if value == 1:
        return Verdict("right", "")
    return Verdict("wrong", f"{metric} {value:.3g}, not {sought!r}")
