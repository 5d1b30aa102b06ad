"""What a host is given by name: the safety tokens and the settings of the method.

Hosts make their trainer themselves and refuse flags that they do not know, so all of it comes from
their own settings or from one file, under the names that `moorline tune` has.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, get_type_hints

from ..errors import InputError, unknown_choice
from ..method.safety_tokens import SafetyTokens
from ..method.settings import NO_ANCHORS, STRSettings, named_as_written

_HINTS = get_type_hints(STRSettings)

NAMES: Mapping[str, Any] = {
    "str_tokens": str,
    "str_reference_model": str,
    **{f"str_{each.name}": _HINTS[each.name] for each in fields(STRSettings)},
}
"""The names that a host takes, with their types: every `str_` setting of `moorline tune`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Given:
    """What the mixin needs beside the host's own arguments."""

    safety_tokens: SafetyTokens
    settings: STRSettings
    reference_model: str | None = None


def is_on(values: Mapping[str, Any]) -> bool:
    """Whether the method is asked for: whether there are safety tokens to hold.

    Raises:
        InputError: If a `str_` setting is unknown, or given without `str_tokens`.

    Example:
        >>> is_on({"learning_rate": 1e-4}), is_on({"str_tokens": "safety_tokens.json"})
        (False, True)
    """
    own = [name for name in values if name.startswith("str_") and values[name] is not None]
    for name in own:
        if name not in NAMES:
            raise unknown_choice("setting", name, NAMES)
    if own and "str_tokens" not in own:
        raise InputError(
            f"`{own[0]}` is given without `str_tokens`, so nothing would be held. Run `moorline "
            "mine MODEL` and name the file it writes: `str_tokens: safety_tokens.json`."
        )
    return bool(own)


def read(values: Mapping[str, Any]) -> Given:
    """Read tokens and settings from values by name; what is None is left at its default.

    Raises:
        InputError: For what `is_on` refuses, if a setting is out of range, or if the file of
            tokens is missing or damaged.
    """
    if not is_on(values):
        raise InputError(
            "`str_tokens` is missing. Run `moorline mine MODEL` and name the file it writes."
        )
    given = {name: values[name] for name in NAMES if values.get(name) is not None}
    tokens, model = given.pop("str_tokens"), given.pop("str_reference_model", None)
    if given.get("str_anchors") is False:  # what YAML makes of a bare `off`
        given["str_anchors"] = NO_ANCHORS
    with named_as_written():
        settings = STRSettings(**{name.removeprefix("str_"): given[name] for name in given})
    return Given(safety_tokens=SafetyTokens.load(tokens), settings=settings, reference_model=model)
