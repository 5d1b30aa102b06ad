"""Published prompt sets as data: which column of which set holds what, and under what licence.

Columns and hub ids are those of the sets' own files and cards as they stood in 2026; none of the
sets is shipped.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from .outcomes import Kind


@dataclass(frozen=True, kw_only=True, slots=True)
class Format:
    """Where a prompt set keeps its requests, and what they are."""

    name: str
    origin: str = ""
    licence: str = ""
    prompt: tuple[str, ...]
    """Columns that may hold the request: of the set's own files, of its copy on the hub."""

    kind: Kind | None = None
    """What every request is; None where `kind_column` says it row by row."""

    kind_column: str = ""
    kinds: Mapping[str, Kind] = field(default_factory=dict)
    """What each value of `kind_column` means."""

    skips_others: bool = False
    """Whether rows with another value are left out; otherwise such a row is an error."""

    id: str = ""
    category: tuple[str, ...] = ()
    opener: str = ""
    """Column with the first words of an answer that complies."""

    context: tuple[str, ...] = ()
    """Columns that may hold a text to put before the request."""

    repeats: bool = False
    """Whether a request may stand in many rows; the first of them is taken."""

    columns: frozenset[str] = frozenset()
    """Columns that tell a local file to be of this format; none where nothing tells it."""

    header: bool = True
    """Whether a CSV file of it begins with the names of its columns."""

    hub: str = ""
    config: str | None = None
    split: str | None = "train"
    """Split on the hub; None for all of them, each a category, as is each local file then."""


OWN = Format(
    name="moorline",
    prompt=("prompt",),
    kind_column="kind",
    kinds={"harmful": "harmful", "harmless": "harmless", "task": "task"},
    id="id",
    category=("category",),
    opener="opener",
    columns=frozenset({"prompt", "kind"}),
)
"""Our own format, for any file of the user's; it has `answer` too, for a task."""

_JAILBREAKBENCH = {
    "origin": "JailbreakBench, Chao et al. 2024, arXiv:2404.01318",
    "licence": "MIT",
    "prompt": ("Goal",),
    "id": "Index",
    "category": ("Category",),
    "opener": "Target",
    "columns": frozenset({"Goal", "Target", "Behavior", "Category"}),
    "hub": "JailbreakBench/JBB-Behaviors",
    "config": "behaviors",
}
_OR_BENCH = {
    "origin": "OR-Bench, Cui et al. 2024, arXiv:2405.20947",
    "licence": "CC-BY-4.0",
    "prompt": ("prompt",),
    "category": ("category",),
    "hub": "bench-llm/or-bench",
}

FORMATS: dict[str, Format] = {
    each.name: each
    for each in (
        Format(
            name="advbench",
            origin="AdvBench, Zou et al. 2023, arXiv:2307.15043",
            licence="MIT",
            prompt=("goal", "prompt"),
            kind="harmful",
            opener="target",
            columns=frozenset({"goal", "target"}),
            hub="walledai/AdvBench",
        ),
        Format(
            name="harmbench",
            origin="HarmBench, Mazeika et al. 2024, arXiv:2402.04249",
            licence="MIT",
            prompt=("Behavior", "prompt"),
            kind="harmful",
            id="BehaviorID",
            category=("SemanticCategory", "category"),
            context=("ContextString", "context"),
            columns=frozenset({"Behavior", "BehaviorID", "SemanticCategory"}),
            hub="walledai/HarmBench",
            config="standard",
        ),
        Format(
            name="strongreject",
            origin="StrongREJECT, Souly et al. 2024, arXiv:2402.10260",
            licence="MIT",
            prompt=("forbidden_prompt", "prompt"),
            kind="harmful",
            category=("category",),
            columns=frozenset({"forbidden_prompt", "category"}),
            hub="walledai/StrongREJECT",
        ),
        Format(name="jailbreakbench", kind="harmful", split="harmful", **_JAILBREAKBENCH),
        Format(name="jailbreakbench-benign", kind="harmless", split="benign", **_JAILBREAKBENCH),
        Format(
            name="xstest",
            origin="XSTest, Roettger et al. 2023, arXiv:2308.01263",
            licence="CC-BY-4.0",
            prompt=("prompt",),
            kind_column="label",
            kinds={"safe": "harmless", "unsafe": "harmful"},
            id="id",
            category=("type",),
            columns=frozenset({"prompt", "type", "label", "focus"}),
            hub="Paul/XSTest",
        ),
        # Its columns, prompt and category, would fit too many files; so it must be named.
        Format(name="or-bench", kind="harmless", config="or-bench-hard-1k", **_OR_BENCH),
        Format(name="or-bench-toxic", kind="harmful", config="or-bench-toxic", **_OR_BENCH),
        Format(
            name="do-not-answer",
            origin="Do-Not-Answer, Wang et al. 2023, arXiv:2308.13387",
            licence="CC-BY-NC-SA-4.0",
            prompt=("question",),
            kind="harmful",
            id="id",
            category=("types_of_harm",),
            columns=frozenset({"question", "risk_area", "types_of_harm"}),
            hub="LibrAI/do-not-answer",
        ),
        Format(
            name="sorry-bench",
            origin="SORRY-Bench, Xie et al. 2024, arXiv:2406.14598",
            licence="SORRY-Bench licence agreement",
            prompt=("turns",),
            # The other styles are twenty mutations (ciphers, translations) of the same requests.
            kind_column="prompt_style",
            kinds={"base": "harmful"},
            skips_others=True,
            id="question_id",
            category=("category",),
            columns=frozenset({"question_id", "turns", "prompt_style"}),
            hub="sorry-bench/sorry-bench-202503",
        ),
        Format(
            name="hex-phi",
            origin="HEx-PHI, Qi et al. 2023, arXiv:2310.03693",
            licence="HEx-PHI licence agreement",
            prompt=("prompt",),
            kind="harmful",
            header=False,
            hub="LLM-Tuning-Safety/HEx-PHI",
            split=None,
        ),
        Format(
            name="beavertails",
            origin="BeaverTails, Ji et al. 2023, arXiv:2307.04657",
            licence="CC-BY-NC-4.0",
            prompt=("prompt",),
            # The label is of the answer in the row, which we do not read: one that was safe says
            # nothing of its request.
            kind_column="is_safe",
            kinds={"False": "harmful"},
            skips_others=True,
            category=("category",),
            repeats=True,
            columns=frozenset({"prompt", "response", "category", "is_safe"}),
            hub="PKU-Alignment/BeaverTails",
            split="30k_test",
        ),
        Format(
            name="beavertails-evaluation",
            origin="BeaverTails, Ji et al. 2023, arXiv:2307.04657",
            licence="CC-BY-NC-4.0",
            prompt=("prompt",),
            kind="harmful",
            category=("category",),
            columns=frozenset({"prompt", "category", "category_id"}),
            hub="PKU-Alignment/BeaverTails-Evaluation",
            split="test",
        ),
    )
}
"""Published prompt sets by name."""
