"""What a model refuses and answers, measured: suites, conditions, judges, rates with intervals.

from moorline.audit import audit, read_suites
found = audit(model, tokenizer, read_suites("prompts.jsonl"))
found.save("out")
"""

from .conditions import Condition
from .findings import Answer, Audit, compare
from .judges import Judge, Verdict
from .run import audit
from .suites import Prompt, Suite, builtin_suites, read_suites

__all__ = [
    "Answer",
    "Audit",
    "Condition",
    "Judge",
    "Prompt",
    "Suite",
    "Verdict",
    "audit",
    "builtin_suites",
    "compare",
    "read_suites",
]
