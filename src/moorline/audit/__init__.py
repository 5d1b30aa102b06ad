"""What a model refuses and answers, measured: suites, conditions, judges, rates with intervals.

from moorline.audit import audit, compare, read_suites
found = audit(load_chat_model("out"), read_suites("prompts.jsonl"), folder="audit")
print(found.measurement("attack_success_rate"))
"""

from .answers import Answer
from .comparing import compare
from .conditions import Condition
from .findings import Audit
from .judges import Judge, Verdict
from .measurements import Comparison, Gate, Measurement
from .run import audit
from .settings import AuditSettings
from .suites import Prompt, Suite, builtin_suites, read_suites

__all__ = [
    "Answer",
    "Audit",
    "AuditSettings",
    "Comparison",
    "Condition",
    "Gate",
    "Judge",
    "Measurement",
    "Prompt",
    "Suite",
    "Verdict",
    "audit",
    "builtin_suites",
    "compare",
    "read_suites",
]
