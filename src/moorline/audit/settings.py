"""Settings of an audit: frozen, checked once, saved whole."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace

from ..chat.chat_model import check_sizes
from ..errors import InputError, unknown_choice
from .conditions import Condition
from .conditions import condition as condition_named
from .judges import Judge
from .judges import judge as judge_named
from .metrics import metric as metric_named

REFUSAL_MASS = "refusal_mass"
"""Stands among the judges and asks for that measurement too."""

THINKING = ("model", "off")


@dataclass(frozen=True, kw_only=True, slots=True)
class AuditSettings:
    """How an audit asks and judges.

    Raises:
        InputError: If a value is out of range, a name is not known, or two conditions or judges
            have one name.

    Example:
        >>> settings = AuditSettings(conditions=("plain", "forced-3"), max_new_tokens=64)
        >>> [each.forced_tokens for each in settings.asked]
        [0, 3]
    """

    judges: Sequence[str | Judge] = ("keywords",)
    """Names of judges, or your own; the first one's verdict is the outcome. Among the names are
    "keywords", "keywords:gcg" and other published lists, "guard:llama-guard-3" and
    "command:PROGRAM"; docs/judges.md has all. "refusal_mass" adds that measurement: how likely the
    first token of an answer is one that opens a refusal."""

    conditions: Sequence[str | Condition] = ("plain",)
    """How harmful prompts are put: "plain", "prefill" (the answer is begun for the model),
    "forced-5" (with that many tokens of a compliant answer), "system", "sampled"; or your own."""

    metric: str = "exact_match"
    """Metric of a task: "exact_match", "exact_match_strict", "choice" or "rouge_l"."""

    labels: Sequence[str] = ()
    """Right answers of the task ("positive", "negative") that count as broken where something else
    was asked. Empty: the answers that are right for a tenth or more of a task's prompts."""

    max_new_tokens: int = 128
    """Longest answer in tokens, thoughts included."""

    batch_size: int = 32
    """Prompts per batch."""

    system_prompt: str | None = None
    """Put before each prompt if given, but where a condition has its own."""

    thinking: str = "model"
    """Whether a reasoning model thinks before it answers: "model" as its template has it, or "off",
    where its template takes `enable_thinking`."""

    limit: int | None = None
    """Prompts per suite, drawn with the seed; None for all."""

    by_category: bool = False
    """Whether the prompts of one category may be alike, which widens the intervals. By default
    every prompt counts as independent of the others."""

    seed: int = 0
    """Seed of what is drawn, and of bootstraps."""

    def __post_init__(self) -> None:
        check_sizes(max_new_tokens=self.max_new_tokens, batch_size=self.batch_size)
        check_sizes(limit=1 if self.limit is None else self.limit)
        if not 0 <= self.seed < 1 << 63:
            raise InputError(f"`seed` must be a whole number from 0 to 2^63 - 1, got {self.seed}.")
        metric_named(self.metric)
        if self.thinking not in THINKING:
            raise unknown_choice("thinking", self.thinking, THINKING)
        conditions = [
            condition_named(each) if isinstance(each, str) else each for each in self.conditions
        ]
        names = [each if isinstance(each, str) else each.name for each in self.judges]
        if not set(names) - {REFUSAL_MASS} or not conditions:
            raise InputError("`judges` and `conditions` must each name one at least.")
        for what, given in (
            ("conditions", [each.name for each in conditions]),
            ("judges", names),
        ):
            if twice := [each for each in given if given.count(each) > 1]:
                raise InputError(
                    f"Two `{what}` are called {twice[0]!r}. Give each a name of its own."
                )
        object.__setattr__(self, "conditions", tuple(conditions))
        object.__setattr__(self, "judges", tuple(self.judges))
        object.__setattr__(self, "labels", tuple(self.labels))

    @property
    def asked(self) -> tuple[Condition, ...]:
        """The conditions, each with all that it does."""
        return tuple(each for each in self.conditions if isinstance(each, Condition))

    def judging(self) -> list[Judge]:
        """The judges, ready to judge.

        Raises:
            InputError: If a name is not known.
            PrerequisiteError: If the program or the model of a judge is missing.
        """
        return [
            judge_named(each, labels=self.labels) if isinstance(each, str) else each
            for each in self.judges
            if each != REFUSAL_MASS
        ]

    def to_json(self) -> dict[str, object]:
        """All settings as `audit.json` has them."""
        return {
            **asdict(replace(self, judges=("keywords",))),
            "judges": [each if isinstance(each, str) else each.name for each in self.judges],
        }

    def shape_answers(self) -> dict[str, object]:
        """Those settings that answers depend on."""
        names = ("max_new_tokens", "batch_size", "system_prompt", "thinking", "conditions", "seed")
        whole = self.to_json()
        return {name: whole[name] for name in names}
