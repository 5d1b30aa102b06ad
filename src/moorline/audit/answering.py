"""Every prompt under every condition answered, and each answer on disk as it comes."""

import hashlib
import json
import os
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch

from ..chat.chat_model import ChatModel, Completion, Generator
from ..errors import InputError, PrerequisiteError
from ..method.safety_tokens import tokenizer_fingerprint
from ..processes import WHOLE, Share, from_all
from ..provenance import as_json, fingerprint, now
from ..records import parse, read, write
from ..spool import Spool
from .conditions import opening_ids
from .questions import Key, Numbers, Question, Replies, Reply
from .settings import AuditSettings
from .suites import Suite
from .thoughts import opened_by, thinks

SCHEMA = 2
"""Of `audit.json`."""

FAILED = "the server failed: "
"""Begins the reason of an answer that a server did not give: it is asked for again."""

_AT_ONCE = 4096  # replies that processes give one another at a time


@dataclass(frozen=True, kw_only=True, slots=True)
class Begun:
    """What `audit.json` says of any audit, whether it has finished or not."""

    SCHEMA: ClassVar[int] = SCHEMA

    status: str
    fingerprint: str | None
    at: str


@dataclass(frozen=True, slots=True)
class UnjudgedAnswer:
    """A line of `answers.jsonl` of an audit that has not finished."""

    suite: str
    id: str
    condition: str
    draw: int
    answer: str
    truncated: bool


@dataclass(frozen=True, slots=True)
class _Kept(UnjudgedAnswer):
    """What a line of `answers.jsonl` says of its answer, whether the audit has finished or not."""

    reason: str = ""
    """Of the outcome, in a finished file."""


def check_folder(folder: Path) -> None:
    """Refuse a folder that cannot be written to, and make it.

    Raises:
        InputError: If it is a file, or cannot be made.
    """
    if folder.exists() and not folder.is_dir():
        raise InputError(f"`output` {folder} is a file. Give a folder.")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(
            f"`output` {folder} cannot be made ({error}). Give another folder."
        ) from error


class Store:
    """Answers on disk as they come, one line each; those that are there already are not asked for.

    A line that is damaged is passed over, and its answer asked for again. Of several processes each
    but the first has a file of its own meanwhile (`parts_of`).

    Args:
        folder: Where `answers.jsonl` and `audit.json` are or come to be; memory alone if None.
        known_by: Fingerprint of all that shapes the answers: model, prompts, settings.
        process: Which of several processes this is; the first comes before the others.

    Raises:
        InputError: If the folder holds another audit, or one of an older version.
        PrerequisiteError: If the first process made its file where this one cannot see it.
    """

    def __init__(self, folder: Path | None, known_by: str, process: int = 0) -> None:
        self._path = None if folder is None else folder / "answers.jsonl"
        self._there: list[Path] = []
        self._torn = ""  # what ends a line that a killed run left half written
        if folder is None or self._path is None:
            return
        check_folder(folder)
        audit = folder / "audit.json"
        if not audit.is_file():
            if process:
                raise PrerequisiteError(
                    f"{folder}: the first process began an audit there, and this one does not see "
                    "it. Set `output` to a folder that all processes share."
                )
            if self._path.exists():
                raise InputError(
                    f"{self._path} is there without an audit.json, so nobody knows whose answers "
                    "these are. Give another folder."
                )
            write(audit, Begun(status="running", fingerprint=known_by, at=now()))
            return
        other = read(Begun, audit, "audit file", remedy="Give another folder.", others=True)
        if other.fingerprint != known_by:
            raise InputError(
                f"`output` {folder} holds another audit (of {other.at}, with other model, "
                "prompts or settings). Give another folder."
            )
        whole, self._path = self._path, _part(folder, process)
        self._there = [*filter(Path.is_file, (whole, *parts_of(folder)))]
        if self._path in self._there:
            with self._path.open("rb") as stream:
                size = stream.seek(0, os.SEEK_END)
                stream.seek(max(0, size - 1))
                self._torn = "\n" if stream.read() not in (b"", b"\n") else ""

    def there(self) -> Iterator[tuple[Key, Reply]]:
        """The answers that are there already, read as they are asked for."""
        for path in self._there:
            # As bytes: an answer may hold other ends of lines, such as U+2028.
            with path.open("rb") as stream:
                for each in filter(None, map(_kept, stream)):
                    if not each.reason.startswith(FAILED):
                        key = (each.suite, each.id, each.condition, each.draw)
                        yield key, Reply(each.answer, each.truncated)

    def replies_to(self, questions: Sequence[Question]) -> Replies:
        """What is there already to some questions."""
        found, numbers = Replies(len(questions)), None
        for key, reply in self.there():
            numbers = numbers or Numbers(questions)
            number = numbers.of(key)
            if number is not None:
                found.add([number], [reply])
        return found

    def add(self, questions: Iterable[Question], replies: Iterable[Reply]) -> None:
        """Keep new answers: on disk, if there is a folder."""
        if self._path is None:
            return
        lines = []
        for question, each in zip(questions, replies, strict=True):
            answer = UnjudgedAnswer(*question.key, each.text, each.truncated)
            lines.append(as_json(asdict(answer)))
        with self._path.open("a", encoding="utf-8") as stream:
            stream.write(self._torn + "".join(lines))
        self._torn = ""


def _part(folder: Path, process: int) -> Path:
    return folder / (f"answers-{process:05d}.part.jsonl" if process else "answers.jsonl")


def parts_of(folder: Path) -> list[Path]:
    """The files of processes beside the first, of an audit that is not finished."""
    return sorted(folder.glob("answers-*.part.jsonl"))


def _kept(line: bytes) -> _Kept | None:
    """One line of `answers.jsonl`; None if it is damaged."""
    try:
        value = json.loads(line.decode(errors="replace"))
        return parse(_Kept, value, "", remedy="", others=True)
    except (ValueError, RecursionError):
        return None


def known_by(chat: ChatModel, suites: Sequence[Suite], settings: AuditSettings, *names: str) -> str:
    """A fingerprint of all that shapes the answers: weights, configurations, prompts, settings."""
    digest = hashlib.sha256()
    for name, tensor in sorted(chat.model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)};".encode())
        if tensor.device.type != "meta":  # what is on disk is known by its file's name alone
            flat = tensor.detach().cpu().contiguous().reshape(-1)
            digest.update(flat.view(torch.uint8).numpy().data)
    adapters = getattr(chat.model, "peft_config", None) or {}
    configs = [
        getattr(chat.model, "config", None),
        getattr(chat.model, "generation_config", None),
        *(adapters[name] for name in sorted(adapters)),
    ]
    return fingerprint([
        *names, digest.hexdigest(), *map(_shaping, configs),
        tokenizer_fingerprint(chat.tokenizer), str(chat.tokenizer.chat_template),
        json.dumps(settings.shape_answers(), sort_keys=True),
        *(part for suite in suites for part in (suite.name, suite.kind, suite.sha256)),
    ])  # fmt: skip


def _shaping(config: Any) -> str:
    """What a configuration says, but for where it was read and by which version."""
    if config is None:
        return ""
    unsaid = ("_name_or_path", "transformers_version", "peft_version", "base_model_name_or_path")
    found = {key: value for key, value in config.to_dict().items() if key not in unsaid}

    def plain(value: Any) -> Any:
        # Some values of PEFT are sets, in no order.
        return sorted(map(str, value)) if isinstance(value, set | frozenset) else str(value)

    return json.dumps(found, sort_keys=True, default=plain)


def answered(
    questions: Sequence[Question],
    store: Store,
    chat: ChatModel,
    engine: Generator,
    settings: AuditSettings,
    *,
    progress: Callable[[int, int], None] | None,
    share: Share = WHOLE,
) -> Replies:
    """The reply to every question, in order.

    Args:
        questions: What to ask.
        store: The answers there are; those that are missing are added batch by batch.
        chat: The model; it renders the prompts.
        engine: What answers.
        settings: How to ask.
        progress: Called with the number of answers there are, and of all that are asked for here.
        share: Which of the batches this process answers; the others' answers come from them.
    """
    replies, rows = store.replies_to(questions), _Rows(questions, chat, settings)

    def mine() -> Iterator[tuple[int, list[int]]]:
        every = enumerate(rows.batches(settings))
        return (each for index, each in every if share.has(index))

    done, total = 0, len(questions)
    if share != WHOLE:
        total = sum(len(each) for _, each in mine())
    for number, batch in mine():
        # A batch is answered as a whole, as in a run that was not stopped: what is padded how far
        # can change the last digit of a logit. Answers that are there already stay.
        new = [each for each in batch if not replies.has(each)]
        if new:
            put, asked = [rows[each] for each in batch], [questions[each] for each in batch]
            temperature = asked[0].condition.temperature
            found = _replies(number, temperature, put, chat, engine, settings.seed)
            fresh = dict(zip(batch, found, strict=True))
            store.add((questions[each] for each in new), (fresh[each] for each in new))
            replies.add(new, (fresh[each] for each in new))
        done += len(batch)
        if progress is not None:
            progress(done, total)
    if share != WHOLE:
        _share_out(replies, (each for _, batch in mine() for each in batch), total)
    for number in rows.unasked():
        replies.add([number], [rows.why(number)])
    return replies


def _share_out(replies: Replies, numbers: Iterator[int], total: int) -> None:
    """Give every process the replies of all, some at a time."""
    for _ in range(-(-max(from_all(total)) // _AT_ONCE)):
        some = {each: replies[each] for each in islice(numbers, _AT_ONCE)}
        for each in from_all(some):
            replies.add(each, each.values())


class _Put(NamedTuple):
    """A question as the model reads it."""

    row: list[int]
    """The prompt with the opening of the answer."""

    opening: list[int]
    begun: str
    """What the template puts at the start of the answer."""

    longest: int
    """Most tokens that the answer may have."""


class _Rows:
    """Every question as the model reads it, on disk; in memory how long each is."""

    def __init__(
        self, questions: Sequence[Question], chat: ChatModel, settings: AuditSettings
    ) -> None:
        self._kept: Spool[_Put] = Spool(list, lambda of: _Put(*of))
        lengths, longest, heat = array("i"), array("i"), array("H")
        self._heats: dict[float, int] = {}
        for each in questions:
            put = _put(each, chat, settings)
            self._kept.append(put)
            lengths.append(len(put.row))
            longest.append(put.longest)
            temperature = each.condition.temperature
            heat.append(self._heats.setdefault(temperature, len(self._heats)))
        self._lengths, self._longest = np.array(lengths), np.array(longest)
        self._heat = np.array(heat)

    def __getitem__(self, number: int) -> _Put:
        return self._kept[number]

    def unasked(self) -> list[int]:
        """The questions that the context has no room for."""
        return np.flatnonzero(self._longest <= 0).tolist()

    def why(self, number: int) -> Reply:
        """What stands in place of an answer where the context has no room for one."""
        length, longest = int(self._lengths[number]), int(self._longest[number])
        why = f"its {length} tokens leave no room for an answer in the model's {length + longest}"
        return Reply("", truncated=False, unasked=why)

    def batches(self, settings: AuditSettings) -> Iterator[tuple[int, list[int]]]:
        """Number and questions of each batch: of like length, numbered anew for each temperature.

        A question that would meet the end of the model's context is asked alone.
        """
        size = settings.batch_size
        for temperature in sorted(self._heats):
            of = self._heat == self._heats[temperature]
            rest = np.flatnonzero(of & (self._longest == settings.max_new_tokens))
            tight = of & (self._longest > 0) & (self._longest < settings.max_new_tokens)
            order = rest[np.argsort(self._lengths[rest], kind="stable")]
            together = (order[first : first + size] for first in range(0, len(order), size))
            alone = np.flatnonzero(tight)
            every = chain((each.tolist() for each in together), ([int(each)] for each in alone))
            yield from enumerate(every)


def _put(question: Question, chat: ChatModel, settings: AuditSettings) -> _Put:
    off = {} if settings.thinking == "model" else {"enable_thinking": False, "thinking": False}
    condition, own = question.condition, question.prompt
    prompt = chat.render(own.prompt, condition.system_prompt or settings.system_prompt, **off)
    opening = opening_ids(condition, chat.tokenizer, own.opener)
    row, longest = [*prompt, *opening], settings.max_new_tokens
    if chat.context_length is not None:
        longest = min(longest, chat.context_length - len(row))
    return _Put(row, opening, opened_by(chat.tokenizer.decode(prompt[-16:])), longest)


def _replies(
    number: int, temperature: float, batch: Sequence[_Put], chat: ChatModel, engine: Generator,
    seed: int,
) -> list[Reply]:  # fmt: skip
    """What the model answers to one batch."""
    found = engine.generate(
        [each.row for each in batch],
        max_new_tokens=min(each.longest for each in batch),
        temperature=temperature,
        seed=int(fingerprint([str(seed), str(temperature), str(number)])[:15], 16),
    )
    return [_reply(chat.tokenizer, *each) for each in zip(batch, found, strict=True)]


def _reply(tokenizer: Any, put: _Put, found: Completion) -> Reply:
    # Opening and completion are spelled together: some tokenizers leave out the space before the
    # first of the tokens that they are given.
    ids = [*put.opening, *found.ids]
    text = tokenizer.decode(ids, skip_special_tokens=True) if put.opening else found.text
    # Where thoughts end may be said by special tokens, which are left out otherwise.
    whole = tokenizer.decode(ids)
    said = whole if thinks(whole) and not thinks(text) else text
    return Reply(put.begun + said, found.truncated)
