"""What Moorline raises on purpose: three exceptions, each with one remedy."""

from collections.abc import Iterable
from difflib import get_close_matches


class MoorlineError(Exception):
    """Anything that we raise on purpose; the command line prints one line and exits with 2."""


class InputError(MoorlineError, ValueError):
    """A value that the caller gave does not fit; the caller changes it."""


class PrerequisiteError(MoorlineError, RuntimeError):
    """Something outside the call is missing; the user installs it, logs in, or frees room."""


def unknown_choice(what: str, given: str, known: Iterable[str]) -> InputError:
    """The error for a word that is none of the known ones, with the nearest of them.

    Example:
        >>> print(unknown_choice("judge", "keyword", ["keywords", "command"]))
        Unknown judge 'keyword'. Known: 'command', 'keywords'. Did you mean 'keywords'?
    """
    names = sorted(known)
    listed = ", ".join(repr(name) for name in names)
    nearest = get_close_matches(given, names, n=1)
    hint = f" Did you mean {nearest[0]!r}?" if nearest else ""
    return InputError(f"Unknown {what} {given!r}. Known: {listed}.{hint}")
