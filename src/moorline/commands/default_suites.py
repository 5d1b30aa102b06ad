"""The prompts that a model is asked where none are named."""

from pathlib import Path

from .. import embedded
from ..audit.suites import Suite, builtin_suites
from .lineage import lineage_of


def default_suites(model: str) -> list[Suite]:
    """The suites of the embedded world for its models, and the built-in ones for all others."""
    return embedded.suites() if is_embedded(model) else builtin_suites()


def is_embedded(model: str) -> bool:
    """Whether a model is an embedded one, or was tuned or merged from one."""
    ours = (embedded.aligned_path(), embedded.base_path())
    return _whole(lineage_of(model).base) in map(_whole, ours)


def _whole(name: str) -> Path:
    return Path(name).expanduser().resolve()
