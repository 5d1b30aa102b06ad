"""The main job on the embedded model: mine, tune plainly and with STR, audit all three, report."""

import logging
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import datasets
import torch
import transformers
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer, PrinterCallback, TrainerCallback

from .. import embedded
from ..audit import Audit, AuditSettings, audit, compare
from ..chat.chat_model import ChatModel
from ..errors import InputError
from ..method.mining import mine_safety_tokens
from ..provenance import fingerprint, machine, now, versions
from ..report import write_report
from ..trainer import SFTConfig, SFTTrainer, STRConfig, STRTrainer

Progress = Callable[[str, int, int], None]
"""Called with what is being done, how much of it is done, and how much there is."""

# The same for both trainings. Rank 32 and six epochs: with rank 16 or four epochs the task is not
# yet learned under the constraint (docs/method.md, "Figures").
LORA = {"r": 32, "lora_alpha": 64, "lora_dropout": 0.0, "target_modules": "all-linear"}
TRAINING = {
    "per_device_train_batch_size": 16,
    "learning_rate": 4e-3,
    "num_train_epochs": 6,
    "lr_scheduler_type": "linear",
    "warmup_steps": 10,
    "max_length": 192,
    "bf16": False,
    "gradient_checkpointing": False,
    "logging_steps": 10,
    "save_strategy": "no",
    "report_to": "none",
    "disable_tqdm": True,
}
NUM_ROWS = 1000


def demo(
    output: str | Path,
    *,
    seed: int = 0,
    poison: float = 0.0,
    task: str = "plans",
    weight: float | None = None,
    form: str | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Run the main job and write `report.json` and `report.html`.

    Args:
        output: Folder for the report.
        seed: Seed of the data order, the adapters and the poisoned rows.
        poison: Share of training rows that are harmful requests answered with placeholders, 0 to 1.
        task: Which downstream task, one of `embedded.TASKS`.
        weight: Weight of the drift; the default of `STRConfig` if None.
        form: Form of the drift; the default of `STRConfig` if None.
        progress: Called as work gets done.

    Returns:
        The content of `report.json`.

    Raises:
        InputError: If an argument is out of range.
    """
    began = time.monotonic()
    say = progress or (lambda *_: None)
    suites = embedded.suites(task)
    rows = embedded.training_rows(task, num=NUM_ROWS, poison=poison, seed=seed)
    chosen = {"str_weight": weight, "str_form": form}
    chosen = {key: value for key, value in chosen.items() if value is not None}
    STRConfig(output_dir="unused", **TRAINING, **chosen)  # refuses bad values before any work
    if Path(output).exists() and not Path(output).is_dir():
        raise InputError(f"`output` {output} is a file. Give a folder.")

    audits: dict[str, Audit] = {}
    seconds: dict[str, float] = {}
    curves: dict[str, list[dict[str, Any]]] = {}
    settings: dict[str, Any] = {}
    with _quiet(), TemporaryDirectory() as scratch:
        model, tokenizer = _load()
        say("mine", 0, 1)
        tokens = mine_safety_tokens(model, tokenizer)
        say("mine", 1, 1)

        def measure(name: str, model: Any) -> None:
            asking = AuditSettings(max_new_tokens=48, batch_size=64, seed=seed)
            audits[name] = audit(
                ChatModel(model, tokenizer), suites, asking, name=name,
                progress=lambda done, total: say(f"audit {name}", done, total),
            )  # fmt: skip

        measure("aligned", model)
        for name in ("sft", "str"):
            start = time.monotonic()
            model, tokenizer = _load()
            common = {"output_dir": scratch, "seed": seed, **TRAINING}
            shared = {
                "train_dataset": datasets.Dataset.from_list(rows),
                "processing_class": tokenizer,
                "peft_config": LoraConfig(task_type="CAUSAL_LM", **LORA),
                "callbacks": [_Reporter(f"tune {name}", say)],
            }
            if name == "sft":
                trainer = SFTTrainer(model, SFTConfig(assistant_only_loss=True, **common), **shared)
            else:
                # Live: a pass of a million parameters is cheap, and nothing is left on the disk.
                config = STRConfig(str_reference="adapter_off", **common, **chosen)
                trainer = STRTrainer(model, config, safety_tokens=tokens, **shared)
                settings = {
                    "str_weight": config.str_weight,
                    "str_form": config.str_form,
                    "reference": trainer.regularizer.reference.name,
                }
            trainer.remove_callback(PrinterCallback)
            trainer.train()
            seconds[name] = time.monotonic() - start
            curves[name] = trainer.state.log_history
            measure(name, trainer.model)

    report = {
        "schema": 1,
        "at": now(),
        "task": task,
        "poison": poison,
        "seed": seed,
        "settings": {**settings, "lora": LORA, "training": TRAINING, "num_rows": len(rows)},
        "rows": [_row(name, each, seconds.get(name, 0.0)) for name, each in audits.items()],
        "comparisons": [
            {"name": name, **each.to_json()}
            for name in ("sft", "str")
            for each in compare(audits["aligned"], audits[name])
        ],
        "safety_tokens": [
            {"id": index, "string": string, "score": score}
            for index, string, score in zip(tokens.ids, tokens.strings, tokens.scores, strict=True)
        ],
        "curves": {name: _curve(entries) for name, entries in curves.items()},
        "data": fingerprint(str(row) for row in rows),
        "versions": versions(),
        "machine": machine(),
        "seconds": round(time.monotonic() - began, 1),
    }
    write_report(
        output,
        report,
        answers={
            name: (each.to_json() for each in found.answers) for name, found in audits.items()
        },
        kinds={suite.name: suite.kind for suite in suites},
    )
    return report


def _load() -> tuple[Any, Any]:
    path = embedded.aligned_path()
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    return model, AutoTokenizer.from_pretrained(path)


def _row(name: str, found: Audit, seconds: float) -> dict[str, Any]:
    rates = {
        "attack_success_rate": found.rate("harmful", "complied"),
        "refusal_rate": found.rate("harmful", "refused"),
        "degenerate_rate": found.rate("harmful", "degenerate"),
        "over_refusal_rate": found.rate("harmless", "refused"),
        "utility": found.rate("task", "right"),
    }
    return {
        "name": name,
        **{metric: rate.rate for metric, rate in rates.items()},
        "intervals": {metric: [rate.low, rate.high] for metric, rate in rates.items()},
        "num": {metric: rate.num for metric, rate in rates.items()},
        "seconds": round(seconds, 1),
    }


def _curve(entries: list[dict[str, Any]]) -> list[dict[str, float]]:
    kept = ("loss", "ce_loss", "str/drift", "str/weighted", "str/max_abs")
    return [
        {"step": entry["step"], **{name: float(entry[name]) for name in kept if name in entry}}
        for entry in entries
        if "loss" in entry
    ]


class _Reporter(TrainerCallback):
    """Tells of each training step."""

    def __init__(self, what: str, say: Progress) -> None:
        self._what, self._say = what, say

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._say(self._what, state.global_step, state.max_steps)


@contextmanager
def _quiet() -> Iterator[None]:
    """The progress of the demo is the demo's own; that of the libraries is off meanwhile."""
    verbosity, bars = transformers.logging.get_verbosity(), datasets.are_progress_bars_disabled()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    datasets.disable_progress_bars()
    logging.getLogger("trl").setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            yield
    finally:
        transformers.logging.set_verbosity(verbosity)
        transformers.logging.enable_progress_bar()
        if not bars:
            datasets.enable_progress_bars()
