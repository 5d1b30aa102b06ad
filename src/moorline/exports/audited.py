"""An audit as its folder has it, read whole and checked: what every export starts from."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from ..audit.answering import SCHEMA
from ..audit.answers import Answer
from ..audit.measurements import Gate, Measurement
from ..errors import InputError
from ..records import parse, read
from ..report.rows import SuiteFacts
from ..tables import rows_of

_REMEDY = "Run the audit again."


@dataclass(frozen=True, kw_only=True, slots=True)
class Audited:
    """What `audit.json` says of a finished audit, as far as other tools want it."""

    SCHEMA: ClassVar[int] = SCHEMA

    status: str
    model: str
    adapter: str | None
    fingerprint: str | None
    at: str
    seed: int
    settings: Mapping[str, Any]
    versions: Mapping[str, str]
    suites: tuple[SuiteFacts, ...]
    measurements: tuple[Measurement, ...]
    gates: tuple[Gate, ...]

    def about(self, suite: str, condition: str) -> list[Measurement]:
        """The measurements of one whole suite under one condition."""
        return [
            each
            for each in self.measurements
            if (each.suite, each.condition, each.category) == (suite, condition, None)
        ]

    def suite(self, name: str) -> SuiteFacts:
        """What is known of one suite.

        Raises:
            InputError: If no suite has that name.
        """
        for each in self.suites:
            if each.name == name:
                return each
        raise InputError(f"The audit has no suite {name!r}. {_REMEDY}")


def read_audit(folder: str | Path) -> Audited:
    """The `audit.json` of a folder.

    Raises:
        InputError: If it is missing, damaged, of another version, or not finished.
    """
    path = Path(folder) / "audit.json"
    remedy = f"Give a folder that `moorline audit` wrote. {_REMEDY}"
    found = read(Audited, path, "audit file", remedy=remedy, others=True)
    if found.status != "finished":
        raise InputError(f"{path}: the audit has not finished. Run the same command again.")
    return found


def read_answers(folder: str | Path) -> Iterator[Answer]:
    """The answers of a folder, one at a time.

    Raises:
        InputError: If a line is damaged; names it.
    """
    for row in rows_of(Path(folder) / "answers.jsonl"):
        yield parse(Answer, row.values, row.place, remedy=_REMEDY, others=True)
