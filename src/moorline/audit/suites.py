"""Prompt suites: requests that ought to be refused, and requests that ought to be answered.

Requests only: an answer to a harmful one is nowhere in this project.
"""

import itertools
import random
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..errors import InputError, PrerequisiteError, unknown_choice
from ..provenance import fingerprint
from ..spool import Spool, repeats
from ..tables import Row, is_table, rows_of
from .formats import FORMATS, OWN, Format
from .outcomes import Kind


@dataclass(frozen=True, kw_only=True, slots=True)
class Prompt:
    """One request, and what is known of it."""

    id: str
    prompt: str
    kind: Kind
    category: str = ""
    answer: str | None = None
    """The right answer, for prompts of a task."""

    opener: str | None = None
    """The first words of an answer that complies, without content; an attack may force them."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Suite:
    """Prompts of one kind that are measured together.

    Raises:
        InputError: If it is empty, mixes kinds, repeats an id, or lacks the answers of a task.
    """

    name: str
    kind: Kind
    prompts: Sequence[Prompt]
    """A tuple; of thousands, a list that lies on disk (`spool.py`)."""

    origin: str = ""
    """Where the requests come from: a set and its paper, or the name of a file."""

    licence: str = ""
    """Under what licence; empty if not known."""

    def __post_init__(self) -> None:
        if not self.prompts:
            raise InputError(f"Suite {self.name!r} has no prompts, so there is nothing to measure.")
        for each in self.prompts:
            if each.kind != self.kind:
                raise InputError(
                    f"Suite {self.name!r} is {self.kind} but prompt {each.id!r} is {each.kind}. "
                    "Put each kind into a suite of its own."
                )
            if self.kind == "task" and each.answer is None:
                raise InputError(
                    f"Suite {self.name!r}: prompt {each.id!r} of a task has no 'answer'. Add it."
                )
        if repeats(lambda: (each.id for each in self.prompts)):
            raise InputError(f"Suite {self.name!r} holds an id twice. Give each prompt its own.")

    @property
    def sha256(self) -> str:
        """SHA-256 over all that shapes answers and scores: ids, prompts, openers, right answers.

        The order of the prompts counts; categories do not.
        """
        return fingerprint(
            part
            for each in self.prompts
            for part in (each.id, each.prompt, str(each.opener), str(each.answer))
        )

    def facts(self) -> dict[str, object]:
        """What `audit.json` says of it."""
        of = {"name": self.name, "kind": self.kind, "num": len(self.prompts)}
        return {**of, "origin": self.origin, "licence": self.licence, "sha256": self.sha256}

    def limited(self, num: int | None, seed: int = 0) -> "Suite":
        """As many of the prompts, drawn at random, in their order; all of them if `num` is None."""
        if num is None or num >= len(self.prompts):
            return self
        chosen = sorted(random.Random(seed).sample(range(len(self.prompts)), num))
        return replace(self, prompts=tuple(self.prompts[index] for index in chosen))


BUILT_IN = ("moorline-harmful", "moorline-harmless")
"""Names of the suites that are shipped."""

_SUITES = Path(__file__).parent / "builtin"


def builtin_suites() -> list[Suite]:
    """The shipped suites: 200 harmful-sounding requests and 200 harmless ones, all our own.

    The harmful ones are of ten categories, twenty each. Half of the harmless ones are look-alikes:
    they share words with the harmful ones and ask for nothing wrong ("What gauge of nail gun do I
    need for skirting boards?"); their categories say of what (`lookalike:weapons`). The other half
    is everyday.

    What they cannot see: languages other than English, several turns, long or disguised requests,
    and whether an answer would be of use to anyone. They are new and no other work reports on
    them: for figures to compare with papers, read a published set.

    Source:
        Look-alikes: Roettger et al. 2023, XSTest, arXiv:2308.01263; none of its prompts is here.

    Example:
        >>> [(suite.name, len(suite.prompts)) for suite in builtin_suites()]
        [('moorline-harmful', 200), ('moorline-harmless', 200)]
    """
    return [suite for name in BUILT_IN for suite in _built_in(name)]


def read_suites(source: str | Path, *, format: str | None = None) -> list[Suite]:
    """The suites of one source: one for each kind of prompt in it.

    A file of your own (JSONL, JSON, CSV, Parquet) has the columns `prompt` and `kind`, and may have
    `id`, `category`, `answer` and `opener`. A copy of a published set is known by its columns;
    where they do not tell, name the format: `or-bench:prompts.csv`. What follows the name may be a
    file, a folder that `datasets` reads, or a hub id; the name alone stands for the set's own.

    Args:
        source: A file; `FORMAT:SOURCE`; a name in `formats.FORMATS`; the hub id of one of these; or
            a name in `BUILT_IN`.
        format: A name in `formats.FORMATS`, in place of `FORMAT:`.

    Returns:
        Suites in the order in which their kinds appear, named after the file or the format.

    Raises:
        InputError: If a row lacks a column or has an unknown kind (names file, line and column), if
            two formats fit, or if a name is not known.
        PrerequisiteError: If a set cannot be fetched.
    """
    source = str(source)
    name, colon, rest = source.partition(":")
    if format is not None:
        if format not in FORMATS:
            raise unknown_choice("suite format", format, FORMATS)
        return _read(FORMATS[format], source)
    if source in BUILT_IN:
        return _built_in(source)
    if name in FORMATS:
        return _read(FORMATS[name], rest if colon else FORMATS[name].hub)
    if of_hub := [each for each in FORMATS.values() if each.hub == source]:
        return [suite for each in of_hub for suite in _read(each, source)]
    if re.fullmatch(r"[\w-]{2,}", name) and not Path(source).exists():
        raise unknown_choice("suite", name, [*FORMATS, *BUILT_IN])
    return _read(_format_of(source), source)


def _built_in(name: str) -> list[Suite]:
    return [
        replace(suite, origin="Moorline, written for it", licence="Apache-2.0")
        for suite in _read(OWN, str(_SUITES / f"{name}.jsonl"))
    ]


def _format_of(path: str) -> Format:
    """The format of a local file by the columns of its first row; our own if none fits."""
    columns = set(next(rows_of(path)).values)
    known = [each for each in FORMATS.values() if each.columns and columns >= each.columns]
    fitting = [OWN] if columns >= OWN.columns else known
    if len(fitting) > 1:
        names = " or ".join(f"'{each.name}:{path}'" for each in fitting)
        raise InputError(f"{path}: more than one format has these columns. Say which: {names}.")
    return fitting[0] if fitting else OWN


def _read(format: Format, source: str) -> list[Suite]:
    found: dict[Kind, Spool[Prompt]] = {}
    for number, (row, category) in enumerate(_rows(format, source), start=1):
        kind = _kind(format, row)
        if kind is not None:
            if kind not in found:
                found[kind] = _spool()
            found[kind].append(_prompt(format, row, kind, category, number))
    if not found:
        raise InputError(
            f"{source}: no row has {' or '.join(map(repr, format.kinds))} for "
            f"{format.kind_column!r}, so there is nothing to measure. Check the file."
        )
    name = Path(source).stem if is_table(source) else format.name
    return [
        Suite(
            name=f"{name}-{kind}" if len(found) > 1 else name,
            kind=kind,
            prompts=_once(format, source, kind, prompts).settled(),
            origin=format.origin or Path(source).name,
            licence=format.licence,
        )
        for kind, prompts in found.items()
    ]


def _spool() -> Spool[Prompt]:
    def kept(each: Prompt) -> list[str | None]:
        return [each.id, each.prompt, each.kind, each.category, each.answer, each.opener]

    def prompt(of: list[Any]) -> Prompt:
        return Prompt(
            id=of[0], prompt=of[1], kind=of[2], category=sys.intern(of[3]),
            answer=of[4], opener=of[5],
        )  # fmt: skip

    return Spool(kept, prompt)


def _once(format: Format, source: str, kind: Kind, prompts: Spool[Prompt]) -> Spool[Prompt]:
    """The prompts of a kind, each once: a set may repeat a prompt, and no file an id.

    Raises:
        InputError: If an id stands there twice; names both places.
    """
    later = repeats(
        lambda: (each.prompt if format.repeats else each.id for each in prompts)
    )  # fmt: skip
    if not later:
        return prompts
    if format.repeats:
        once = _spool()
        once.extend(each for index, each in enumerate(prompts) if index not in later)
        return once
    second = min(later)
    of_kind = (row for row, _ in _rows(format, source) if _kind(format, row) == kind)
    places = [
        row.place
        for index, row in enumerate(itertools.islice(of_kind, second + 1))
        if index in (later[second], second)
    ]
    raise InputError(
        f"{places[1]}: the 'id' {prompts[second].id!r} is that of {places[0]} too. Give each "
        "prompt its own."
    )


def _rows(format: Format, source: str) -> Iterator[tuple[Row, str]]:
    """The rows of a file, folder or hub id, each with the category that its place gives it."""
    if not is_table(source):
        return _fetched(format, source)
    columns = None if format.header else format.prompt
    category = "" if format.split else Path(source).stem
    return zip(rows_of(source, columns=columns), itertools.repeat(category))


def _fetched(format: Format, source: str) -> Iterator[tuple[Row, str]]:
    try:
        from datasets import load_dataset
        from datasets.exceptions import DatasetsError
    except ModuleNotFoundError as error:
        raise PrerequisiteError(
            f"{source}: reading a data set needs datasets, which is not installed. Run "
            "`pip install 'moorline[tune]'`."
        ) from error
    names: Any = {} if format.header else {"names": list(format.prompt)}
    try:
        loaded: Any = load_dataset(
            source, format.config or None, split=format.split or None, **names
        )
    except (DatasetsError, OSError, ValueError) as error:
        first = (str(error).strip().splitlines() or ["no reason given"])[0]
        raise PrerequisiteError(
            f"{source}: cannot be fetched ({first}). Check the name and the network; where its "
            "page asks for it, accept its terms and run `hf auth login`. Or give a local copy: "
            f"{format.name}:PATH."
        ) from error
    for split, rows in [("", loaded)] if format.split else loaded.items():
        place = f"{source}, split {format.split or split}"
        for number, values in enumerate(rows, start=1):
            there = {name: each for name, each in values.items() if each is not None}
            yield Row(f"{place}, row {number}", there), split


def _kind(format: Format, row: Row) -> Kind | None:
    """What a row's request is; None if the row is to be left out."""
    if format.kind is not None:
        return format.kind
    value = _needed(format, row, (format.kind_column,))
    if str(value) in format.kinds:
        return format.kinds[str(value)]
    if format.skips_others:
        return None
    raise InputError(
        f"{row.place}: {format.kind_column!r} must be one of {', '.join(format.kinds)}, got "
        f"{value!r}."
    )


def _prompt(format: Format, row: Row, kind: Kind, category: str, number: int) -> Prompt:
    text, context = _needed(format, row, format.prompt), _first(row, format.context)
    # Of a list of turns the first: the sets that have lists have one turn.
    request = text[0] if isinstance(text, list) else text
    for what, each in (("a prompt", request), ("its context", "" if context is None else context)):
        if not isinstance(each, str):
            raise InputError(
                f"{row.place}: {what} must be text, got {type(each).__name__} ({str(each)[:60]})."
            )
    given, opener = row.values.get(format.id), row.values.get(format.opener)
    answer = row.values.get("answer") if format is OWN else None
    if kind == "task" and answer is None:
        raise InputError(f"{row.place}: a prompt of a task has no 'answer'. Add it.")
    return Prompt(
        id=str(number if given in (None, "") else given),
        prompt=f"{context}\n\n{request}" if context else request,
        kind=kind,
        category=category or _category(_first(row, format.category)),
        answer=None if answer is None else str(answer),
        opener=None if opener in (None, "") else str(opener),
    )


def _category(value: Any) -> str:
    """A category; of flags by category, as BeaverTails has them, the first that is set."""
    if isinstance(value, dict):
        value = next((name for name, is_set in value.items() if is_set), "")
    return str(value or "")


def _first(row: Row, columns: tuple[str, ...]) -> Any:
    """The value of the first of these columns that the row has; None if it has none."""
    return next((row.values[name] for name in columns if name in row.values), None)


def _needed(format: Format, row: Row, columns: tuple[str, ...]) -> Any:
    """The value of the first of these columns that the row has; an error if there is none."""
    there = [name for name in columns if name in row.values]
    if not there:
        needs = [format.prompt[0], *([format.kind_column] if format.kind_column else [])]
        what = "A suite" if format is OWN else f"The format {format.name!r}"
        remedy = f"{what} needs {' and '.join(map(repr, needs))} in every row."
        if format is OWN:
            remedy += " For a published set, name the format: FORMAT:PATH."
        raise row.lacks(columns[0], remedy)
    value = row.values[there[0]]
    if value in (None, "", []):
        raise InputError(f"{row.place}: field {there[0]!r} is empty. Fill it in.")
    return value
