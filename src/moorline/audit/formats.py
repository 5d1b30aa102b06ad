"""Published prompt sets as data: which column of which set holds what, and under what licence."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from ..records import packaged
from .outcomes import Kind


@dataclass(frozen=True, kw_only=True, slots=True)
class Format:
    """Where a prompt set keeps its requests, and what they are."""

    name: str
    origin: str = ""
    licence: str = ""
    prompt: tuple[str, ...]
    """Columns that may hold the request: of the set's own files, of its copy on the hub."""

    kind: Kind | None = None
    """What every request is; None where `kind_column` says it row by row."""

    kind_column: str = ""
    kinds: Mapping[str, Kind] = field(default_factory=dict)
    """What each value of `kind_column` means."""

    skips_others: bool = False
    """Whether rows with another value are left out; otherwise such a row is an error."""

    id: str = ""
    category: tuple[str, ...] = ()
    opener: str = ""
    """Column with the first words of an answer that complies."""

    context: tuple[str, ...] = ()
    """Columns that may hold a text to put before the request."""

    repeats: bool = False
    """Whether a request may stand in many rows; the first of them is taken."""

    columns: frozenset[str] = frozenset()
    """Columns that tell a local file to be of this format; none where nothing tells it."""

    header: bool = True
    """Whether a CSV file of it begins with the names of its columns."""

    hub: str = ""
    config: str = ""
    split: str = "train"
    """Split on the hub; empty for all of them, each a category, as is each local file then."""


_FILE = packaged(dict[str, tuple[Format, ...]], "moorline.audit", "formats.toml")

OWN, *_PUBLISHED = _FILE["formats"]

FORMATS = {each.name: each for each in _PUBLISHED}
"""Published prompt sets by name; beside them `OWN` is ours, for any file of the user's."""
