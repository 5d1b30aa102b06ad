"""What to hold and how strongly: the settings of the method, checked in their own words."""

import contextlib
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, fields

from ..errors import InputError, MoorlineError, unknown_choice
from . import penalty
from .budget import FIRST_WEIGHT, WeightController
from .cache import DTYPES
from .positions import PositionRule
from .reference import REFERENCES

DEFAULT_FORM = "kl"
DEFAULT_WEIGHT = penalty.FORMS[DEFAULT_FORM].weight
NO_ANCHORS, AUTO_ANCHORS = "off", "auto"
CONFLICTS = ("auto", "skip", "learn")


@dataclass(frozen=True, kw_only=True, slots=True)
class STRSettings:
    """What to hold, and how strongly.

    Raises:
        InputError: If a number is out of range, or a name is unknown.

    Example:
        >>> STRSettings().first_weight, STRSettings(form="logit").first_weight
        (3.0, 10.0)
    """

    weight: float | None = None
    """Weight of the drift beside the task loss (nats). 0 measures the drift and trains exactly as
    the host would alone. If neither this nor `budget` is given: 3, and 10 with the forms whose
    unit is a square."""

    budget: float | None = None
    """In place of a weight: by how much a safety token may move, as root mean square over the
    response positions, in logits (nats with `form` 'logprob', spreads with 'standardised'), above
    0. Not with form `kl`. The weight is then found while training (`budget.py`)."""

    anchors: str = AUTO_ANCHORS
    """Prompts beside the training data at which the drift is held too (`anchors.py`): 'off',
    'built-in', a file with a column `prompt` (and `kind`), or 'auto': the built-in ones, or none
    where there is no tokenizer or the model does not refuse them, said in one line. Form `kl`
    wants them, and is refused where 'auto' finds none."""

    anchor_weight: float | None = None
    """Weight of the anchor drift (squared nats), where there is no budget. If None: 0.1, and 3
    with the other forms."""

    anchor_share: float = 0.25
    """Anchors read beside each step, as a share of its rows, above 0 up to 1; one at least. Half of
    them are harmless prompts, where there are such."""

    conflicts: str = "auto"
    """What becomes of a row that answers where the aligned model would refuse (`conflicts.py`):
    'skip' leaves it out of the task loss and holds its refusal, 'learn' holds and learns it at
    once. 'auto' skips with form `kl`; the forms in logits do not know where the model would
    refuse."""

    form: str = DEFAULT_FORM
    """Form of the drift, a name of `penalty.FORMS`; 'logit' is the paper's."""

    reference: str = "auto"
    """Where z0 comes from, one of `reference.REFERENCES`."""

    reference_fraction: float = 1.0
    """Share of the rows of each batch on which the drift is measured, above 0 up to 1; drawn anew
    each time and scaled, so that the drift is right on average and a running reference cheaper."""

    positions: str = "all"
    """Which response positions count: 'all', or 'first:K' of each response."""

    cache_dtype: str = "float32"
    """Precision in which a cached reference is kept, a name of `cache.DTYPES`."""

    cache_dir: str | None = None
    """Folder for a cached reference; one beside the prepared data sets if None."""

    def __post_init__(self) -> None:
        if self.anchors is False:  # what YAML makes of a bare `off`
            object.__setattr__(self, "anchors", NO_ANCHORS)
        if not isinstance(self.anchors, str):
            raise InputError(
                "`anchors` must be 'auto', 'built-in', 'off' or a file of prompts, got "
                f"{self.anchors!r}."
            )
        if self.budget is not None:
            WeightController(self.budget)
            if self.weight is not None:
                raise InputError(
                    f"`weight` {self.weight} and `budget` {self.budget} are both given, and a "
                    "budget finds the weight. Leave one of them out."
                )
        if self.weight is not None and not (
            isinstance(self.weight, int | float)
            and not isinstance(self.weight, bool)
            and 0 <= self.weight < math.inf
        ):
            raise InputError(
                f"`weight` must be a number of 0 or more, got {self.weight}: a negative value "
                "would reward leaving the aligned model. Give 0 to measure without holding."
            )
        if self.weight == 0 and self.anchors not in (NO_ANCHORS, AUTO_ANCHORS):
            raise InputError(
                f"`weight` 0 holds nothing, and `anchors` {self.anchors!r} asks to hold. Give a "
                "small weight, or set `anchors` to 'off'."
            )
        if self.anchor_weight is not None and (
            self.budget is not None
            or not isinstance(self.anchor_weight, int | float)
            or not 0 < self.anchor_weight < math.inf
        ):
            raise InputError(
                f"`anchor_weight` must be a number above 0, and stand without a budget, got "
                f"{self.anchor_weight} (`budget` {self.budget}). Leave it out, or give a weight."
            )
        if self.budget is not None and self.form == "kl":
            raise InputError(
                "`budget` is a root mean square, which `form` 'kl' has none of. Give `weight`, or "
                "another form, such as 'logprob'."
            )
        for name in ("reference_fraction", "anchor_share"):
            value = getattr(self, name)
            if not (isinstance(value, int | float) and 0 < value <= 1):
                raise InputError(f"`{name}` must be above 0 and at most 1, got {value}.")
        form = penalty.form(self.form)
        if self.conflicts not in CONFLICTS:
            raise unknown_choice("`conflicts`", self.conflicts, CONFLICTS)
        if self.conflicts == "skip" and self.weight == 0:
            raise InputError(
                "`weight` 0 trains as the host alone, and `conflicts` 'skip' asks for less. Give a "
                "small weight, or leave `conflicts` out."
            )
        if self.conflicts == "skip" and not (form.normalised and self.reference_fraction == 1):
            raise InputError(
                "`conflicts` 'skip' needs the probability of a refusal in every row, so a `form` "
                f"of log-probabilities ('kl', 'logprob') and `reference_fraction` 1, got "
                f"{self.form!r} and {self.reference_fraction}. Set it to 'learn', or change these."
            )
        PositionRule.parse(self.positions)
        if self.reference not in REFERENCES:
            raise unknown_choice("`reference`", self.reference, REFERENCES)
        if self.cache_dtype not in DTYPES:
            raise unknown_choice("`cache_dtype`", self.cache_dtype, DTYPES)

    @property
    def first_weight(self) -> float:
        """The weight of the first step: of all steps, where there is no budget."""
        if self.budget is not None:
            return FIRST_WEIGHT
        own = penalty.FORMS[self.form].weight
        return own if self.weight is None else float(self.weight)

    @property
    def first_anchor_weight(self) -> float:
        """The weight of the anchor drift in the first step."""
        if self.budget is not None:
            return FIRST_WEIGHT
        own = penalty.FORMS[self.form].anchor_weight
        return own if self.anchor_weight is None else float(self.anchor_weight)

    @property
    def strength(self) -> str:
        """How strongly it holds, in words: the weight or the budget, and the anchors."""
        given = (
            f"weight {self.first_weight:g}" if self.budget is None else f"budget {self.budget:g}"
        )
        return f"{given}, anchors {self.anchors}" if self.reads_anchors else given

    @property
    def reads_anchors(self) -> bool:
        """Whether anchors are asked for, and something is held."""
        return self.anchors != NO_ANCHORS and self.holds

    @property
    def skips(self) -> bool:
        """Whether rows in conflict carry no task loss."""
        if self.conflicts == "auto":
            wanted = penalty.FORMS[self.form].skips and self.reference_fraction == 1
        else:
            wanted = self.conflicts == "skip"
        return wanted and self.holds

    @property
    def learns_conflicts_unsaid(self) -> bool:
        """Whether such rows are learned only because a part of the rows is measured."""
        auto = self.conflicts == "auto" and self.reference_fraction < 1
        return auto and penalty.FORMS[self.form].skips and self.holds

    @property
    def holds(self) -> bool:
        """Whether anything is held, rather than measured only."""
        return self.first_weight > 0


@contextlib.contextmanager
def named_as_written() -> Iterator[None]:
    """Call the settings of the method, in errors, what the user wrote: `weight` is `str_weight`."""
    names = "|".join([*(each.name for each in fields(STRSettings)), "reference_model"])
    try:
        yield
    except MoorlineError as error:
        text = re.sub(rf"`({names})`", r"`str_\1`", str(error))
        raise type(error)(text) from error
