"""What the help of each command ends with: lines to copy."""

from collections.abc import Mapping, Sequence

import typer

EXAMPLES: Mapping[str, Sequence[str]] = {
    "demo": ("moorline demo", "moorline demo --poison 0.1 --seed 1"),
    "init": ("moorline init MODEL rows.jsonl",),
    "try": ("moorline try MODEL rows.jsonl", "moorline try MODEL rows.jsonl --seed 0 --seed 1"),
    "mine": ("moorline mine MODEL", "moorline mine MODEL --explain --output tokens.json"),
    "merge": ("moorline merge out",),
    "audit": (
        "moorline audit out --against MODEL",
        "moorline audit out --suite prompts.jsonl --condition plain --condition prefill",
        "moorline audit --endpoint http://localhost:8000/v1 --model NAME --dry-run",
    ),
    "compare": ("moorline compare plan.yaml --workers 2", "moorline compare out/compare.json"),
    "report": ("moorline report audited/against audited out",),
    "inspect": ("moorline export inspect audited",),
    "lm-eval": ("moorline export lm-eval audited",),
    "hub": ("moorline export hub audited --output out",),
    "junit": ("moorline export junit audited",),
    "tracker": ("moorline export tracker out --to wandb",),
}
"""Command lines by the command's own name. `tune` and `cache` print a help of their own."""


def add_examples(app: typer.Typer) -> None:
    """Put the examples at the end of the help of each command that has some."""
    for each in app.registered_commands:
        name = each.name or getattr(each.callback, "__name__", "")
        if name in EXAMPLES:
            each.epilog = "\n".join(["Examples:", *(f"  {line}" for line in EXAMPLES[name])])
