"""Methods of others that keep refusals, to compare with, each written from its mathematics.

docs/baselines.md is the table: losses, needs, strengths, and oddities that were kept.
"""

from ..errors import unknown_choice
from .constrained_sft import ConstrainedSFT
from .kl import KL
from .lisa import Lisa
from .lookahead import LookAhead
from .mixin import BaselineMixin
from .pact import PACT
from .peer import Materials, Need, Peer, Strength
from .safe_instr import SafeInstr
from .safe_lora import SafeLoRA
from .sbr import SBR
from .trainers_own import STR, Plain
from .wise_ft import WiSEFT

__all__ = ["METHODS", "BaselineMixin", "Materials", "Need", "Peer", "Strength", "method_named"]

METHODS: dict[str, type[Peer]] = {
    each.name: each
    for each in (
        Plain, STR, ConstrainedSFT, KL, PACT, SBR, SafeInstr, WiSEFT, LookAhead, Lisa, SafeLoRA,
    )
}  # fmt: skip
"""The methods by name; `plain` and `str` are the trainer's own."""


def method_named(name: str) -> type[Peer]:
    """The method called `name`.

    Raises:
        InputError: If there is none of that name; names the nearest.

    Example:
        >>> method_named("sbr").strength.default
        50.0
    """
    if name not in METHODS:
        raise unknown_choice("`method`", name, METHODS)
    return METHODS[name]
