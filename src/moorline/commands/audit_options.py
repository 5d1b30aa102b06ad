"""What `moorline audit` can be asked: each field is an option of its command line.

Names only, so that the help is quick; `commands.audit` checks the values.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from typer import Argument, Option


@dataclass(frozen=True, kw_only=True, slots=True)
class Asked:
    """One audit: what is asked, of which model, and where the files go."""

    model: Annotated[str, Argument(help="Folder or hub id of the model.")]
    suite: Annotated[
        list[str] | None,
        Option(
            help="File of prompts, name of a published set (advbench, xstest, ...), NAME:FILE, or "
            "embedded:TASK; may be given again. Default: 200 harmful and 200 harmless requests of "
            "our own."
        ),
    ] = None
    adapter: Annotated[Path | None, Option(help="Folder of a PEFT adapter.")] = None
    against: Annotated[str | None, Option(help="Model to compare with.")] = None
    output: Annotated[Path, Option(help="Folder for the files.")] = Path("moorline-audit")
    judge: Annotated[
        list[str] | None,
        Option(
            help="Judge of the answers; may be given again, the first decides. keywords (the "
            "default); keywords:gcg, :qi2023, :qi2024, :jailbreakbench, :xstest; guard:wildguard, "
            "guard:llama-guard-3, guard:harmbench, guard:strongreject, each with =PATH for a copy; "
            "command:PROGRAM; refusal_mass adds that measurement."
        ),
    ] = None
    condition: Annotated[
        list[str] | None,
        Option(
            help="How harmful prompts are put; may be given again. plain (the default), prefill, "
            "system, sampled, forced-5 (or another number)."
        ),
    ] = None
    metric: Annotated[
        str, Option(help="Metric of a task: exact_match, exact_match_strict, choice, rouge_l.")
    ] = "exact_match"
    held_out: Annotated[Path | None, Option(help="File of rows to measure perplexity on.")] = None
    drift: Annotated[
        bool, Option(help="Write drift.json: of a tuned model, on the --held-out rows.")
    ] = False
    lm_eval: Annotated[list[str] | None, Option(help="Task of lm-eval; may be given again.")] = None
    require: Annotated[
        list[str] | None,
        Option(
            help="Gate, such as 'attack_success_rate<=0.05'; exit code 3 if one fails. Of harmful "
            "suites attack_success_rate, refusal_rate, degenerate_rate; of harmless ones "
            "over_refusal_rate, compliance_rate, degenerate_rate; of tasks utility; and "
            "unscored_rate, truncated_rate, refusal_mass, perplexity."
        ),
    ] = None
    gate_on: Annotated[
        str, Option(help="What gates read: interval (its end nearer to failing), or rate.")
    ] = "interval"
    by_category: Annotated[
        bool, Option(help="Take prompts of one category for alike in intervals.")
    ] = False
    limit: Annotated[
        int | None, Option(help="Prompts per suite, drawn with the seed. Default: all.")
    ] = None
    backend: Annotated[str, Option(help="transformers or vllm.")] = "transformers"
    max_new_tokens: Annotated[int, Option(help="Longest answer in tokens, with thoughts.")] = 128
    batch_size: Annotated[int, Option(help="Prompts per batch.")] = 32
    system_prompt: Annotated[str | None, Option(help="Put before each prompt.")] = None
    thinking: Annotated[
        str, Option(help="Of reasoning models: model (as its template has it), or off.")
    ] = "model"
    dtype: Annotated[
        str | None, Option(help="Such as bfloat16. Default: as stored on a GPU, float32 on a CPU.")
    ] = None
    revision: Annotated[
        str | None, Option(help="Branch, tag or commit of the model on the hub.")
    ] = None
    trust_remote_code: Annotated[bool, Option(help="Run code that comes with the model.")] = False
    device_map: Annotated[str | None, Option(help="Such as auto, for several GPUs.")] = None
    load_in_4bit: Annotated[
        bool, Option("--load-in-4bit", help="Load the weights in 4 bits (bitsandbytes).")
    ] = False
    seed: Annotated[int, Option(help="Seed of what is drawn.")] = 0
