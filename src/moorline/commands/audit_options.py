"""The options of `moorline audit`, as its --help shows them; names only, so that it is quick."""

from pathlib import Path
from typing import Annotated

import typer

Model = Annotated[str, typer.Argument(help="Folder or hub id of the model.")]
Suites = Annotated[
    list[str] | None,
    typer.Option(
        help="File of prompts, name of a published set (advbench, xstest, ...), NAME:FILE, or "
        "embedded:TASK; may be given again. Default: 200 harmful and 200 harmless requests of "
        "our own."
    ),
]
Adapter = Annotated[Path | None, typer.Option(help="Folder of a PEFT adapter.")]
Against = Annotated[str | None, typer.Option(help="Model to compare with.")]
Output = Annotated[Path, typer.Option(help="Folder for the files.")]
Judges = Annotated[
    list[str] | None,
    typer.Option(
        help="Judge of the answers; may be given again, the first decides. keywords (the "
        "default); keywords:gcg, :qi2023, :qi2024, :jailbreakbench, :xstest; guard:wildguard, "
        "guard:llama-guard-3, guard:harmbench, guard:strongreject, each with =PATH for a copy; "
        "command:PROGRAM; refusal_mass adds that measurement."
    ),
]
Conditions = Annotated[
    list[str] | None,
    typer.Option(
        help="How harmful prompts are put; may be given again. plain (the default), prefill, "
        "system, sampled, forced-5 (or another number)."
    ),
]
TaskMetric = Annotated[
    str,
    typer.Option(help="Metric of a task: exact_match, exact_match_strict, choice, rouge_l."),
]
HeldOut = Annotated[Path | None, typer.Option(help="File of rows to measure perplexity on.")]
Drift = Annotated[
    bool, typer.Option(help="Write drift.json: of a tuned model, on the --held-out rows.")
]
LmEval = Annotated[list[str] | None, typer.Option(help="Task of lm-eval; may be given again.")]
Require = Annotated[
    list[str] | None,
    typer.Option(
        help="Gate, such as 'attack_success_rate<=0.05'; exit code 3 if one fails. Of harmful "
        "suites attack_success_rate, refusal_rate, degenerate_rate; of harmless ones "
        "over_refusal_rate, compliance_rate, degenerate_rate; of tasks utility; and "
        "unscored_rate, truncated_rate, refusal_mass, perplexity."
    ),
]
GateOn = Annotated[
    str,
    typer.Option(help="What gates read: interval (its end nearer to failing), or rate."),
]
ByCategory = Annotated[
    bool, typer.Option(help="Take prompts of one category for alike in intervals.")
]
Limit = Annotated[
    int | None, typer.Option(help="Prompts per suite, drawn with the seed. Default: all.")
]
Backend = Annotated[str, typer.Option(help="transformers or vllm.")]
MaxNewTokens = Annotated[int, typer.Option(help="Longest answer in tokens, thoughts included.")]
BatchSize = Annotated[int, typer.Option(help="Prompts per batch.")]
SystemPrompt = Annotated[str | None, typer.Option(help="Put before each prompt.")]
Thinking = Annotated[
    str,
    typer.Option(help="Of reasoning models: model (as its template has it), or off."),
]
Dtype = Annotated[
    str | None,
    typer.Option(help="Such as bfloat16. Default: as stored on a GPU, float32 on a CPU."),
]
Revision = Annotated[
    str | None, typer.Option(help="Branch, tag or commit of the model on the hub.")
]
TrustRemoteCode = Annotated[bool, typer.Option(help="Run code that comes with the model.")]
DeviceMap = Annotated[str | None, typer.Option(help="Such as auto, for a model on several GPUs.")]
LoadIn4Bit = Annotated[
    bool, typer.Option("--load-in-4bit", help="Load the weights in 4 bits (bitsandbytes).")
]
Seed = Annotated[int, typer.Option(help="Seed of what is drawn.")]
