"""Safety tokens: the vocabulary entries that an aligned model refuses by, and their file."""

import math
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from jaxtyping import Int64
from torch import Tensor

from .. import records
from ..errors import InputError
from ..provenance import fingerprint

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def tokenizer_fingerprint(tokenizer: "PreTrainedTokenizerBase") -> str:
    """A hash of a tokenizer's vocabulary: every string with its id, in order of the ids.

    Two tokenizers with one fingerprint give each id the same string. What it does not see: merges,
    normalisation and the chat template.
    """
    vocabulary = sorted(tokenizer.get_vocab().items(), key=lambda item: (item[1], item[0]))
    return fingerprint(f"{index}\t{string}" for string, index in vocabulary)


@dataclass(frozen=True, kw_only=True, slots=True)
class SafetyTokens:
    """Safety tokens: the vocabulary entries whose logits are held, and how they were found.

    Raises:
        InputError: If the set is empty, ids repeat or lie outside the vocabulary, or lists differ
            in length.

    Example:
        >>> tokens = SafetyTokens(
        ...     ids=(5, 9), strings=(" sorry", " cannot"), scores=(0.9, 0.4), vocab_size=16
        ... )
        >>> len(tokens), tokens.tensor().tolist()
        (2, [5, 9])
    """

    SCHEMA: ClassVar[int] = 1

    ids: tuple[int, ...]
    """Vocabulary ids, best first."""

    strings: tuple[str, ...]
    """What each id decodes to."""

    scores: tuple[float, ...]
    """How strongly each was found (`mining.py` says in what unit); larger is stronger."""

    vocab_size: int
    """Number of rows of the head of the model that they were mined from."""

    templates: tuple[str, ...] = ()
    """Rejection templates that they were mined from."""

    tokenizer_fingerprint: str | None = None
    """`tokenizer_fingerprint` of the tokenizer; None means that it is not checked."""

    spreads: tuple[float, ...] = ()
    """Standard deviation of each one's logit in the answers that it was mined from, above 0; none
    where it was not measured. The unit of form `standardised` (`spread.py`)."""

    mined: dict[str, Any] = field(default_factory=dict)
    """How they were mined: method, model, settings, versions. For people; nothing reads it."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "ids", tuple(int(index) for index in self.ids))
        object.__setattr__(self, "strings", tuple(self.strings))
        object.__setattr__(self, "scores", tuple(float(score) for score in self.scores))
        object.__setattr__(self, "templates", tuple(self.templates))
        object.__setattr__(self, "spreads", tuple(float(each) for each in self.spreads))
        if not self.ids:
            raise InputError(
                "`safety_tokens` is an empty set: with nothing to hold, training would be "
                "unprotected. Mine them from an aligned model, or give ids."
            )
        if not len(self.ids) == len(self.strings) == len(self.scores):
            raise InputError(
                f"`safety_tokens` needs one string and one score per id, got {len(self.ids)} ids, "
                f"{len(self.strings)} strings and {len(self.scores)} scores."
            )
        if len(set(self.ids)) != len(self.ids):
            raise InputError("`safety_tokens` holds an id twice. List each id once.")
        outside = [index for index in self.ids if not 0 <= index < self.vocab_size]
        if outside:
            raise InputError(
                f"`safety_tokens` holds id {outside[0]}, outside the vocabulary of "
                f"{self.vocab_size} entries. Mine again from this model."
            )
        if not all(math.isfinite(score) for score in self.scores):
            raise InputError("`safety_tokens` holds a score that is not a finite number.")
        if self.spreads and len(self.spreads) != len(self.ids):
            raise InputError(
                f"`safety_tokens` needs one spread per id or none, got {len(self.spreads)} for "
                f"{len(self.ids)} ids."
            )
        if not all(0 < each < math.inf for each in self.spreads):
            raise InputError("`safety_tokens` holds a spread that is no number above 0.")

    def __len__(self) -> int:
        return len(self.ids)

    def tensor(self, device: torch.device | str = "cpu") -> Int64[Tensor, " safety"]:
        """The ids as a tensor of shape `(safety,)`, int64."""
        return torch.tensor(self.ids, dtype=torch.int64, device=device)

    def check_fits(
        self, *, vocab_size: int, tokenizer: "PreTrainedTokenizerBase | None" = None
    ) -> None:
        """Refuse a model or tokenizer that these tokens were not mined from.

        Args:
            vocab_size: Rows of the model's head.
            tokenizer: The tokenizer in use; not checked if None, or if none was recorded.

        Raises:
            InputError: If either differs, or the ids do not spell the strings.
        """
        if vocab_size != self.vocab_size:
            raise InputError(
                f"The head of the model has {vocab_size} vocabulary entries but `safety_tokens` "
                f"was mined from a model with {self.vocab_size}. Mine again from this model, or "
                "load the model the tokens came from."
            )
        if tokenizer is None or self.tokenizer_fingerprint is None:
            return
        if tokenizer_fingerprint(tokenizer) != self.tokenizer_fingerprint:
            raise InputError(
                "`safety_tokens` was mined with another tokenizer: the same ids stand for other "
                "strings here. Mine again with this tokenizer, or load the one they came from."
            )
        for index, string in zip(self.ids, self.strings, strict=True):
            if (spelled := tokenizer.decode([index])) != string:
                raise InputError(
                    f"`safety_tokens` says that id {index} is {string!r}, but it spells "
                    f"{spelled!r}: ids or strings were changed since mining. Mine again."
                )

    def save(self, path: str | Path) -> None:
        """Write them as JSON, whole or not at all."""
        records.write(path, self)

    @classmethod
    def load(cls, path: str | Path) -> "SafetyTokens":
        """Read a file that `save` wrote.

        Raises:
            InputError: If the file is missing, damaged, of another schema, or breaks a rule above.
        """
        return records.read(cls, path, "safety-token file", remedy="Mine again.", others=True)


def check_output(path: str | Path) -> None:
    """Refuse a path to save to where something other than a safety-token file stands.

    Raises:
        InputError: If it is a folder, lies in no folder that can be made, or is another file.
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        fits = not path.is_dir() and os.access(path.parent, os.W_OK)
    except OSError:
        fits = False
    if not fits:
        raise InputError(f"`output` {path}: a file cannot be written there. Give another path.")
    if path.exists():
        try:
            SafetyTokens.load(path)
        except InputError as error:
            raise InputError(
                f"`output` {path} is there and is no safety-token file, so it is left as it is. "
                "Give another path, or remove it."
            ) from error
