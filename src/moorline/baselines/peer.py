"""What every method here is: what it says of itself, and up to three stages around a training.

    rows      before training: the training rows, changed
    loss      in training: a term for each response position, a term once per step, or other batches
    weights   after training: the trained weights, changed

Axis names, used in every signature of this module:
    position   response positions of a batch, of all rows in order
"""

import enum
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

from jaxtyping import Float, Int64
from torch import Tensor, nn

from ..chat.chat_model import ChatModel
from ..errors import InputError
from ..method.safety_tokens import SafetyTokens
from .states import Reader, States

if TYPE_CHECKING:
    from datasets import Dataset


class Need(enum.StrEnum):
    """What a method needs beside the model and the rows of the task."""

    ALIGNED_REFERENCE = "aligned reference"
    """The aligned model in memory: its adapter off, or a second model."""
    UNALIGNED_BASE = "unaligned base"
    """The model before it was aligned."""
    HARMFUL_PROMPTS = "harmful prompts"
    REFUSALS = "refusals"
    """Harmful prompts with refusals of them."""
    SAFETY_TOKENS = "safety tokens"


@dataclass(frozen=True, kw_only=True, slots=True)
class Strength:
    """The one number by which a method is made stronger or weaker.

    Raises:
        InputError: By `check`.
    """

    symbol: str
    """What its paper calls it."""
    meaning: str
    """What it is, with its unit."""
    default: float
    grid: tuple[float, ...]
    """Values worth trying, from the weakest protection to the strongest."""
    more_protects: bool = True
    """Whether a larger value protects more."""
    low: float = 0.0
    high: float = math.inf
    whole: bool = False
    """Whether it counts something."""

    def check(self, value: float, name: str) -> float:
        """The value, refused where it is out of range.

        Args:
            value: What the user gave.
            name: Name of the method, for the message.

        Raises:
            InputError: If it is no number of this range.
        """
        number = isinstance(value, int | float) and math.isfinite(value)
        if not (
            number
            and self.low <= value <= self.high
            and value == (value // 1, value)[not self.whole]
        ):
            kind = "a whole number" if self.whole else "a number"
            upper = "" if self.high == math.inf else f" and at most {self.high:g}"
            raise InputError(
                f"`method_strength` of {name!r} is {self.symbol} ({self.meaning}): {kind} of at "
                f"least {self.low:g}{upper}, got {value}. Values worth trying: "
                f"{', '.join(f'{each:g}' for each in self.grid)}."
            )
        return value


@dataclass(frozen=True, kw_only=True, slots=True)
class Materials:
    """What a run gives to a method before training."""

    chat: ChatModel
    """The aligned model, before adapters are put on it, with its tokenizer."""
    tokens: SafetyTokens | None = None
    file: str | Path | None = None
    """Prompts, refusals or a phrase; `Peer.file` says which."""
    base: nn.Module | str | None = None
    """The unaligned base: a model, a folder or a hub id."""
    seed: int = 42


class Responses(NamedTuple):
    """The response positions of one batch, as a loss reads them."""

    trained: States
    """Of the model in training, with gradient."""
    aligned: States
    """Of the aligned model in the same contexts."""
    labels: Int64[Tensor, " position"]
    """The token that follows at each position."""
    indices: Int64[Tensor, " position"]
    """The index of that token in its response, from 1."""
    read: Callable[[Mapping[str, Any], Tensor], States]
    """The aligned model in other contexts: inputs and a mask of positions to states."""


class Training(NamedTuple):
    """What a method is told of the training before its first step."""

    reader: Reader
    batch_size: int = 1
    """Rows in one batch of one process."""
    max_length: int | None = None
    """Longer rows are cut."""
    seed: int = 42
    process: int = 0


class Peer:
    """A published method to compare with.

    A subclass says what it is by its class attributes and overrides the stages that it has.

    Args:
        strength: As `Peer.strength` describes it; its default if None.
        materials: What the run has.

    Raises:
        InputError: If the strength is out of range, or what the method needs is missing.
    """

    name: ClassVar[str]
    source: ClassVar[str]
    strength: ClassVar[Strength | None] = None
    needs: ClassVar[tuple[Need, ...]] = ()
    cost: ClassVar[str] = "none"
    """What it costs beside plain fine-tuning, in words."""
    file: ClassVar[str | None] = None
    """What `Materials.file` holds for this method; None if it reads none."""
    takes_base: ClassVar[bool] = False
    by_trainer: ClassVar[bool] = False
    """Whether the trainer itself does it, so that there is nothing to build here."""
    at_responses: ClassVar[bool] = False
    """Whether it has a term at each response position."""
    replaces_task: ClassVar[bool] = False
    """Whether that term stands in place of the task loss rather than beside it."""
    own_batches: ClassVar[bool] = False
    """Whether it trains on batches of its own in some steps."""
    can_resume: ClassVar[bool] = True

    def __init__(self, materials: Materials, strength: float | None = None) -> None:
        self.check(strength, file=materials.file, base=materials.base)
        default = 0.0 if self.strength is None else self.strength.default
        self.value: float = default if strength is None else strength
        """The strength in use."""
        self.materials = materials
        if Need.SAFETY_TOKENS in self.needs and materials.tokens is None and materials.base is None:
            raise InputError(
                f"`method` {self.name!r} needs safety tokens. Mine them (`moorline mine`), or "
                "give the unaligned base as `method_base` for its own choice."
            )

    @classmethod
    def check(cls, strength: float | None, *, file: Any = None, base: Any = None) -> None:
        """Refuse, before any model is loaded, what cannot work.

        Args:
            strength: As given; None for the default.
            file: `method_file`.
            base: `method_base`.

        Raises:
            InputError: Names the setting and what must hold.
        """
        if strength is not None and cls.strength is None:
            raise InputError(f"`method` {cls.name!r} has no `method_strength`. Leave it out.")
        if strength is not None and cls.strength is not None:
            cls.strength.check(strength, cls.name)
        if file is not None and cls.file is None:
            raise InputError(f"`method` {cls.name!r} reads no `method_file`. Leave it out.")
        if base is not None and not cls.takes_base:
            raise InputError(f"`method` {cls.name!r} has no use for `method_base`. Leave it out.")
        if base is None and Need.UNALIGNED_BASE in cls.needs:
            raise InputError(
                f"`method` {cls.name!r} needs the unaligned base of the model. Give its folder or "
                "hub id as `method_base`."
            )

    @property
    def factor(self) -> float:
        """What the terms of the loss are multiplied by."""
        return self.value

    def rows(self, rows: "Dataset") -> "Dataset":
        """The training rows, as conversations or prompts and completions, before tokenization."""
        return rows

    def begin(self, training: Training) -> None:
        """Before the first step, with adapters on the model."""

    def of_responses(self, responses: Responses) -> Float[Tensor, " position"]:
        """The term at each response position, in nats, with gradient; not multiplied yet."""
        raise NotImplementedError

    def of_step(self, step: int, num_steps: int) -> Float[Tensor, ""] | None:
        """A term that is added once in each optimizer step, with gradient; not multiplied yet."""
        return None

    def batches(self, step: int, num_steps: int, num: int) -> list[dict[str, Tensor]] | None:
        """Batches to train on in this step instead of the task's; None for the task's."""
        return None

    def end(self, model: nn.Module) -> None:
        """After training: change the weights in place."""
