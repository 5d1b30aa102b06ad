"""What to hold and how strongly: the settings of the method, checked in their own words."""

import math
from dataclasses import dataclass

from ..errors import InputError, unknown_choice
from . import penalty
from .cache import DTYPES
from .positions import PositionRule
from .reference import REFERENCES

# measured on the embedded model: docs/method.md, "Figures" (the paper's value is not known to us)
DEFAULT_WEIGHT = 10.0


@dataclass(frozen=True, kw_only=True, slots=True)
class STRSettings:
    """What to hold, and how strongly.

    Raises:
        InputError: If a number is out of range, or a name is unknown.

    Example:
        >>> STRSettings(weight=1.0, positions="first:16").form
        'logit'
    """

    weight: float = DEFAULT_WEIGHT
    """Weight of the drift (squared logits) beside the task loss (nats). 0 measures the drift and
    trains exactly as the host would alone."""

    form: str = "logit"
    """Form of the drift, a name of `penalty.FORMS`."""

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
        if not (isinstance(self.weight, int | float) and 0 <= self.weight < math.inf):
            raise InputError(
                f"`weight` must be a number of 0 or more, got {self.weight}: a negative value "
                "would reward leaving the aligned model. Give 0 to measure without holding."
            )
        if not (
            isinstance(self.reference_fraction, int | float) and 0 < self.reference_fraction <= 1
        ):
            raise InputError(
                "`reference_fraction` must be above 0 and at most 1, got "
                f"{self.reference_fraction}."
            )
        penalty.form(self.form)
        PositionRule.parse(self.positions)
        if self.reference not in REFERENCES:
            raise unknown_choice("`reference`", self.reference, REFERENCES)
        if self.cache_dtype not in DTYPES:
            raise unknown_choice("`cache_dtype`", self.cache_dtype, DTYPES)
