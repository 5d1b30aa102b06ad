"""Every prompt under every condition answered, and each answer on disk as it comes."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ..chat.chat_model import ChatModel, Completion, Generator, in_batches
from ..errors import InputError
from ..provenance import as_json, fingerprint, now, read_json, write_json, write_text
from .conditions import Condition, opening_ids
from .suites import Prompt, Suite


class Question(NamedTuple):
    """One prompt under one condition, once."""

    suite: Suite
    place: int
    condition: Condition
    draw: int

    @property
    def key(self) -> tuple[str, str, str, int]:
        """What its answer is found by: suite, id, condition, draw."""
        return (self.suite.name, self.prompt.id, self.condition.name, self.draw)

    @property
    def prompt(self) -> Prompt:
        """The prompt itself."""
        return self.suite.prompts[self.place]


class Store:
    """Answers on disk as they come, one line each; those that are there already are not asked for.

    Args:
        folder: Where `answers.jsonl` and `audit.json` are or come to be; memory alone if None.
        birth: What the audit is known by: model, prompts, settings.

    Raises:
        InputError: If the folder holds another audit.
    """

    def __init__(self, folder: Path | None, birth: str) -> None:
        self.found: dict[tuple[str, str, str, int], Completion] = {}
        self._path = None if folder is None else folder / "answers.jsonl"
        if folder is None or self._path is None:
            return
        if (folder / "audit.json").is_file():
            other = read_json(folder / "audit.json", "audit file")
            if other.get("birth") != birth:
                raise InputError(
                    f"`output` {folder} holds another audit (of {other.get('at')}, with other "
                    "model, prompts or settings). Give another folder."
                )
            self._read(self._path)
            return
        if self._path.exists():
            raise InputError(
                f"{self._path} is there without an audit.json, so nobody knows whose answers these "
                "are. Give another folder."
            )
        write_json(
            folder / "audit.json", {"schema": 1, "status": "begun", "birth": birth, "at": now()}
        )

    def _read(self, path: Path) -> None:
        if not path.is_file():
            return
        kept = []
        # Not `splitlines`: an answer may hold other ends of lines, such as U+2028.
        for line in path.read_text(encoding="utf-8", errors="replace").split("\n")[:-1]:
            try:
                row = json.loads(line)
                key = (row["suite"], row["id"], row["condition"], row["draw"])
                self.found[key] = Completion(row["answer"], row["truncated"])
            except (json.JSONDecodeError, KeyError, TypeError):
                break  # what a killed run left half written, and nothing after it counts
            kept.append(line + "\n")
        write_text(path, "".join(kept))

    def add(self, questions: Sequence[Question], completions: Sequence[Completion]) -> None:
        """Keep the answers of a batch."""
        lines = []
        for question, each in zip(questions, completions, strict=True):
            self.found[question.key] = each
            names = ("suite", "id", "condition", "draw")
            row = {**dict(zip(names, question.key, strict=True)), "answer": each.text}
            lines.append(as_json({**row, "truncated": each.truncated}))
        if self._path is not None:
            with self._path.open("a", encoding="utf-8") as stream:
                stream.write("".join(lines))


def answered(
    questions: Sequence[Question],
    store: Store,
    chat: ChatModel,
    engine: Generator,
    settings: dict[str, Any],
    *,
    seed: int,
    progress: Callable[[int], None] | None,
) -> list[Completion]:
    """The answer to every question, in order.

    Args:
        questions: What to ask.
        store: The answers there are; those that are missing are added batch by batch.
        chat: The model; it renders the prompts.
        engine: What answers.
        settings: `max_new_tokens`, `batch_size` and `system_prompt`.
        seed: Seed of what is drawn.
        progress: Called with the number of answers done since the last call.
    """
    rows = []
    openings = []
    for each in questions:
        system = each.condition.system_prompt or settings["system_prompt"]
        opening = opening_ids(each.condition, chat.tokenizer, each.prompt.opener)
        openings.append(opening)
        rows.append([*chat.render(each.prompt.prompt, system), *opening])
    for temperature in sorted({each.condition.temperature for each in questions}):
        places = [
            place
            for place, each in enumerate(questions)
            if each.condition.temperature == temperature
        ]
        batches = in_batches([rows[place] for place in places], settings["batch_size"])
        for number, batch in enumerate(batches):
            chosen = [places[index] for index in batch]
            # A batch is answered as a whole, as in a run that was not stopped: what is padded how
            # far can change the last digit of a logit.
            if any(questions[place].key not in store.found for place in chosen):
                found = engine.generate(
                    [rows[place] for place in chosen],
                    max_new_tokens=settings["max_new_tokens"],
                    temperature=temperature,
                    seed=int(fingerprint([str(seed), str(temperature), str(number)])[:15], 16),
                )
                # Opening and completion are spelled together: some tokenizers leave out the space
                # before the first of the tokens that they are given.
                found = [
                    each._replace(
                        text=chat.tokenizer.decode(
                            [*openings[place], *each.ids], skip_special_tokens=True
                        )
                    )
                    if openings[place]
                    else each
                    for place, each in zip(chosen, found, strict=True)
                ]
                store.add([questions[place] for place in chosen], found)
            if progress is not None:
                progress(len(chosen))
    return [store.found[each.key] for each in questions]
