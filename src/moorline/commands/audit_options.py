"""What `moorline audit` can be asked: each field is an option of its command line.

Names only, so that the help is quick; `commands.audit` checks the values.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from typer import Argument, Option

Progress = Callable[[str, int, int], None]
"""Called with what is being done, how much of it is done, and how much there is."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Asked:
    """One audit: what is asked, of which model, and where the files go."""

    model: Annotated[str, Argument(help="Folder or hub id of the model.", show_default=False)] = ""
    named: Annotated[
        str | None, Option("--model", help="In place of MODEL; with --endpoint its name there.")
    ] = None
    suite: Annotated[
        list[str] | None,
        Option(
            help="File of prompts, name of a published set (advbench, xstest, ...), NAME:FILE, or "
            "embedded:TASK; may be given again. Default: 200 harmful and 200 harmless requests of "
            "our own."
        ),
    ] = None
    adapter: Annotated[Path | None, Option(help="Folder of a PEFT adapter. Default: none.")] = None
    against: Annotated[
        str | None, Option(help="Model to compare with, asked the same. Default: none.")
    ] = None
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
        str,
        Option(
            hidden=True, help="Metric of a task: exact_match, exact_match_strict, choice, rouge_l."
        ),
    ] = "exact_match"
    held_out: Annotated[
        Path | None,
        Option(hidden=True, help="File of rows to measure perplexity on. Default: none."),
    ] = None
    drift: Annotated[
        bool,
        Option(hidden=True, help="Write drift.json: of a tuned model, on the --held-out rows."),
    ] = False
    lm_eval: Annotated[
        list[str] | None,
        Option(hidden=True, help="Task of lm-eval; may be given again. Default: none."),
    ] = None
    require: Annotated[
        list[str] | None,
        Option(
            help="Gate, such as 'attack_success_rate<=0.05'; exit code 3 if one fails. Of harmful "
            "suites attack_success_rate, refusal_rate, degenerate_rate; of harmless ones "
            "over_refusal_rate, compliance_rate, degenerate_rate; of tasks utility; and "
            "unscored_rate, truncated_rate, refusal_mass, perplexity. Default: none."
        ),
    ] = None
    gate_on: Annotated[
        str,
        Option(hidden=True, help="What gates read: interval (its end nearer to failing), or rate."),
    ] = "interval"
    by_category: Annotated[
        bool, Option(hidden=True, help="Take prompts of one category for alike in intervals.")
    ] = False
    limit: Annotated[
        int | None, Option(help="Prompts per suite, drawn with the seed. Default: all.")
    ] = None
    backend: Annotated[str, Option(hidden=True, help="transformers or vllm.")] = "transformers"
    endpoint: Annotated[
        str | None,
        Option(
            help="Audit what an OpenAI-compatible server has as --model, such as "
            "http://localhost:8000/v1. Default: load the model here."
        ),
    ] = None
    api_key_env: Annotated[
        str, Option(hidden=True, help="Environment variable with the endpoint's key.")
    ] = "OPENAI_API_KEY"
    concurrency: Annotated[int, Option(hidden=True, help="Requests at a time, to an endpoint.")] = 8
    requests_per_minute: Annotated[
        int | None,
        Option(hidden=True, help="Most requests a minute. Default: no limit but the server's."),
    ] = None
    retries: Annotated[
        int, Option(hidden=True, help="How often a failed request is put again.")
    ] = 8
    dry_run: Annotated[
        bool, Option("--dry-run", help="Say what an endpoint would be asked, and ask nothing.")
    ] = False
    max_new_tokens: Annotated[int, Option(help="Longest answer in tokens, with thoughts.")] = 128
    batch_size: Annotated[int, Option(help="Prompts per batch.")] = 32
    system_prompt: Annotated[
        str | None, Option(hidden=True, help="Put before each prompt. Default: none.")
    ] = None
    thinking: Annotated[
        str,
        Option(hidden=True, help="Of reasoning models: model (as its template has it), or off."),
    ] = "model"
    dtype: Annotated[
        str | None,
        Option(
            hidden=True, help="Such as bfloat16. Default: as stored on a GPU, float32 on a CPU."
        ),
    ] = None
    revision: Annotated[
        str | None,
        Option(hidden=True, help="Branch, tag or commit of the model on the hub. Default: main."),
    ] = None
    trust_remote_code: Annotated[
        bool, Option(hidden=True, help="Run code that comes with the model.")
    ] = False
    device_map: Annotated[
        str | None, Option(hidden=True, help="Such as auto, for several GPUs. Default: one device.")
    ] = None
    load_in_4bit: Annotated[
        bool,
        Option("--load-in-4bit", hidden=True, help="Load the weights in 4 bits (bitsandbytes)."),
    ] = False
    seed: Annotated[int, Option(help="Seed of what is drawn.")] = 0

    def __post_init__(self) -> None:
        if not self.model and self.named:
            object.__setattr__(self, "model", self.named)
