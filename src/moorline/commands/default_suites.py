"""The prompts that a model is asked where none are named."""

from .. import embedded
from ..audit.suites import Suite, builtin_suites
from .lineage import lineage_of


def default_suites(model: str) -> list[Suite]:
    """The suites of the embedded world for its models, and the built-in ones for all others."""
    ours = (embedded.aligned_path(), embedded.base_path())
    return embedded.suites() if lineage_of(model).model in ours else builtin_suites()
