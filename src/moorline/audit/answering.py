"""Every prompt under every condition answered, and each answer on disk as it comes."""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch

from ..chat.chat_model import ChatModel, Completion, Generator, in_batches
from ..errors import InputError
from ..method.safety_tokens import tokenizer_fingerprint
from ..provenance import as_json, fingerprint, now, read_json, write_json
from .conditions import Condition, opening_ids
from .settings import AuditSettings
from .suites import Prompt, Suite
from .thoughts import opened_by, thinks

SCHEMA = 2
"""Of `audit.json`."""

_Key = tuple[str, str, str, int]


@dataclass(frozen=True, slots=True)
class Question:
    """One prompt under one condition, once."""

    suite: Suite
    index: int
    condition: Condition
    draw: int

    @property
    def key(self) -> _Key:
        """What its answer is found by: suite, id, condition, draw."""
        return (self.suite.name, self.prompt.id, self.condition.name, self.draw)

    @property
    def prompt(self) -> Prompt:
        """The prompt itself."""
        return self.suite.prompts[self.index]

    @property
    def opening(self) -> str:
        """The text that the condition takes the start of the answer from."""
        own = self.prompt.opener if self.condition.forced_tokens else None
        return own or self.condition.prefill


class Reply(NamedTuple):
    """What came back to a question."""

    text: str
    """With what the template and the condition put at its start."""

    truncated: bool
    unasked: str | None = None
    """Why the question was not put; None if it was."""


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

    A line that is damaged is passed over, and its answer asked for again.

    Args:
        folder: Where `answers.jsonl` and `audit.json` are or come to be; memory alone if None.
        known_by: Fingerprint of all that shapes the answers: model, prompts, settings.

    Raises:
        InputError: If the folder holds another audit, or one of an older version.
    """

    def __init__(self, folder: Path | None, known_by: str) -> None:
        self.found: dict[_Key, Reply] = {}
        self._path = None if folder is None else folder / "answers.jsonl"
        self._torn = ""  # what ends a line that a killed run left half written
        if folder is None or self._path is None:
            return
        check_folder(folder)
        if not (folder / "audit.json").is_file():
            if self._path.exists():
                raise InputError(
                    f"{self._path} is there without an audit.json, so nobody knows whose answers "
                    "these are. Give another folder."
                )
            running = {"schema": SCHEMA, "status": "running", "fingerprint": known_by}
            write_json(folder / "audit.json", {**running, "at": now()})
            return
        other = read_json(folder / "audit.json", "audit file")
        if other.get("schema") != SCHEMA:
            raise InputError(
                f"`output` {folder} holds an audit of schema {other.get('schema')}, and this "
                f"version writes schema {SCHEMA}. Give another folder."
            )
        if other.get("fingerprint") != known_by:
            raise InputError(
                f"`output` {folder} holds another audit (of {other.get('at')}, with other model, "
                "prompts or settings). Give another folder."
            )
        if self._path.is_file():
            # Not `splitlines`: an answer may hold other ends of lines, such as U+2028.
            lines = self._path.read_text(encoding="utf-8", errors="replace").split("\n")
            self.found = dict(row for row in map(_reply, lines) if row is not None)
            self._torn = "\n" if lines[-1] else ""

    def add(self, questions: Sequence[Question], replies: Sequence[Reply]) -> None:
        """Keep the answers of a batch that are not there yet."""
        lines = []
        for question, each in zip(questions, replies, strict=True):
            if question.key in self.found:
                continue
            self.found[question.key] = each
            names = ("suite", "id", "condition", "draw")
            row = {**dict(zip(names, question.key, strict=True)), "answer": each.text}
            lines.append(as_json({**row, "truncated": each.truncated}))
        if self._path is not None:
            with self._path.open("a", encoding="utf-8") as stream:
                stream.write(self._torn + "".join(lines))
            self._torn = ""


def _reply(line: str) -> tuple[_Key, Reply] | None:
    """Key and reply of one line of `answers.jsonl`; None if it is damaged."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    names = ("suite", "id", "condition", "draw", "answer", "truncated")
    if not isinstance(row, dict) or not set(names) <= row.keys():
        return None
    values = [row[name] for name in names]
    if [type(each) for each in values] != [str, str, str, int, str, bool]:
        return None
    suite, number, condition, draw, answer, truncated = values
    return (suite, number, condition, draw), Reply(answer, truncated)


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
) -> list[Reply]:
    """The reply to every question, in order.

    Args:
        questions: What to ask.
        store: The answers there are; those that are missing are added batch by batch.
        chat: The model; it renders the prompts.
        engine: What answers.
        settings: How to ask.
        progress: Called with the number of answers there are, and of all.
    """
    asking = _Asking(questions, chat, engine, settings)
    done = 0
    for temperature, number, batch in asking.batches():
        chosen = [questions[index] for index in batch]
        # A batch is answered as a whole, as in a run that was not stopped: what is padded how far
        # can change the last digit of a logit. Answers that are there already stay.
        if any(each.key not in store.found for each in chosen):
            store.add(chosen, asking.replies(batch, temperature, number))
        done += len(batch)
        if progress is not None:
            progress(done, len(questions))
    return [
        asking.unasked.get(index) or store.found[each.key] for index, each in enumerate(questions)
    ]


class _Asking:
    """Questions as token ids, in batches, and their answers as text."""

    def __init__(
        self,
        questions: Sequence[Question],
        chat: ChatModel,
        engine: Generator,
        settings: AuditSettings,
    ) -> None:
        self._questions, self._chat, self._engine = questions, chat, engine
        self._settings = settings
        self._room = chat.context_length
        self._rows: list[list[int]] = []
        self._openings: list[list[int]] = []
        self._begun: list[str] = []
        self.unasked: dict[int, Reply] = {}
        off = {} if settings.thinking == "model" else {"enable_thinking": False, "thinking": False}
        for index, each in enumerate(questions):
            system = each.condition.system_prompt or settings.system_prompt
            prompt = chat.render(each.prompt.prompt, system, **off)
            opening = opening_ids(each.condition, chat.tokenizer, each.prompt.opener)
            self._begun.append(opened_by(chat.tokenizer.decode(prompt[-16:])))
            self._openings.append(opening)
            self._rows.append([*prompt, *opening])
            if self._room is not None and len(self._rows[-1]) >= self._room:
                why = (
                    f"its {len(self._rows[-1])} tokens leave no room for an answer in the model's "
                    f"{self._room}"
                )
                self.unasked[index] = Reply("", truncated=False, unasked=why)

    def batches(self) -> list[tuple[float, int, list[int]]]:
        """Temperature, number and questions of each batch; of like length, one temperature each.

        A question that would meet the end of the model's context is asked alone.
        """
        found = []
        for temperature in sorted({each.condition.temperature for each in self._questions}):
            chosen = [
                index
                for index, each in enumerate(self._questions)
                if each.condition.temperature == temperature and index not in self.unasked
            ]
            tight = [
                index for index in chosen if self._longest(index) < self._settings.max_new_tokens
            ]
            rest = sorted(set(chosen) - set(tight))
            batches = in_batches([self._rows[index] for index in rest], self._settings.batch_size)
            whole = [[rest[index] for index in batch] for batch in batches]
            alone = [[index] for index in tight]
            found += [(temperature, n, batch) for n, batch in enumerate([*whole, *alone])]
        return found

    def _longest(self, index: int) -> int:
        """Most tokens that an answer may have."""
        most = self._settings.max_new_tokens
        return most if self._room is None else min(most, self._room - len(self._rows[index]))

    def replies(self, batch: Sequence[int], temperature: float, number: int) -> list[Reply]:
        """What the model answers to one batch."""
        parts = [str(self._settings.seed), str(temperature), str(number)]
        found = self._engine.generate(
            [self._rows[index] for index in batch],
            max_new_tokens=min(map(self._longest, batch)),
            temperature=temperature,
            seed=int(fingerprint(parts)[:15], 16),
        )
        return [self._reply(index, each) for index, each in zip(batch, found, strict=True)]

    def _reply(self, index: int, found: Completion) -> Reply:
        tokenizer, text = self._chat.tokenizer, found.text
        # Opening and completion are spelled together: some tokenizers leave out the space before
        # the first of the tokens that they are given.
        ids = [*self._openings[index], *found.ids]
        if self._openings[index]:
            text = tokenizer.decode(ids, skip_special_tokens=True)
        # Where thoughts end may be said by special tokens, which are left out otherwise.
        whole = tokenizer.decode(ids)
        if thinks(whole) and not thinks(text):
            text = whole
        return Reply(self._begun[index] + text, found.truncated)
