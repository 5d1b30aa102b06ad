"""The main job on the embedded model, by the commands: mine, tune twice, audit three, report."""

import shlex
import shutil
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from .. import embedded
from ..chat.loading import load_chat_model
from ..errors import InputError
from ..method.mining import mine_safety_tokens
from ..method.settings import AUTO_ANCHORS, DEFAULT_FORM
from ..provenance import as_json, write_json, write_text
from ..report import Report, report
from ..trainer import STRConfig
from .audit import run_audit
from .audit_options import Asked
from .library_messages import quiet
from .tune import tune

Progress = Callable[[str, int, int], None]
"""Called with what is being done, how much of it is done, and how much there is."""

# The same for both tunings. Rank 32 and six epochs: with rank 16 or four epochs the task is not
# yet learned under the constraint (docs/method.md, "Figures").
TRAINING = (
    "--use_peft --lora_r 32 --lora_alpha 64 --lora_dropout 0.0 --lora_target_modules all-linear "
    "--dtype float32 --bf16 False --per_device_train_batch_size 16 --learning_rate 4e-3 "
    "--num_train_epochs 6 --lr_scheduler_type linear --warmup_steps 10 --max_length 192 "
    "--assistant_only_loss True --gradient_checkpointing False --logging_steps 10 "
    "--save_strategy no --report_to none --str_reference adapter_off"
)
NUM_ROWS = 1000
MODELS = ("aligned", "plain", "str")
_RECORD = "demo.json"
_NOTE = (
    "Models of another size: this one has about a million parameters and a closed world of "
    'sentences, in which every "harmful" answer is a placeholder.'
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Demo:
    """What a demo is asked to do; checked before anything is done.

    Raises:
        InputError: If a value is out of range.
    """

    seed: int = 0
    """Of the data order, the adapters and the poisoned rows."""

    poison: float = 0.0
    """Share of training rows that are harmful requests answered with placeholders, 0 to 1."""

    task: str = "plans"
    """Which downstream task, one of `embedded.TASKS`."""

    weight: float | None = None
    """Of the drift; what its form begins with if None."""

    form: str = DEFAULT_FORM
    anchors: str = AUTO_ANCHORS

    def __post_init__(self) -> None:
        if not 0 <= self.seed < 1 << 32:
            raise InputError(f"`seed` must be a whole number from 0 to 2^32 - 1, got {self.seed}.")
        self.rows()
        STRConfig(
            output_dir="unused", bf16=False, str_weight=self.weight, str_form=self.form,
            str_anchors=self.anchors,
        )  # fmt: skip

    def rows(self) -> list[Any]:
        """The training rows."""
        return embedded.training_rows(self.task, num=NUM_ROWS, poison=self.poison, seed=self.seed)

    def held(self) -> list[str]:
        """The flags by which the refusals are held."""
        weight = [] if self.weight is None else ["--str_weight", f"{self.weight:g}"]
        return [*weight, "--str_form", self.form, "--str_anchors", self.anchors]

    def commands(self, output: Path) -> list[list[str]]:
        """The command lines that do it, but for the report."""
        model, tokens = embedded.aligned_path(), str(output / "safety_tokens.json")
        tuned = [
            [
                "tune", "--model_name_or_path", model, "--dataset_name", str(output / "rows.jsonl"),
                "--str_tokens", tokens, *TRAINING.split(), "--seed", str(self.seed),
                *held, "--output_dir", str(output / name),
            ]
            for name, held in (("plain", ["--str_weight", "0"]), ("str", self.held()))
        ]  # fmt: skip
        asking = ["--suite", f"embedded:{self.task}", "--max-new-tokens", "48",
                  "--batch-size", "64", "--seed", str(self.seed)]  # fmt: skip
        audits = [["audit", model, *asking, "--output", str(output / "aligned")]]
        audits += [
            ["audit", str(output / name), *asking, "--against", model,
             "--output", str(output / name)]
            for name in ("plain", "str")
        ]  # fmt: skip
        return [["mine", model, "--output", tokens], *tuned, *audits]


def demo(
    output: str | Path, asked: Demo | None = None, *, progress: Progress | None = None
) -> Report:
    """Run the main job, and leave the files of every step in a folder.

    Args:
        output: Folder for the files; what an earlier demo left there goes.
        asked: What to do.
        progress: Called as mining and audits get done; `tune` shows its own.

    Raises:
        InputError: If the folder holds files of another kind.
    """
    output, asked = Path(output), asked or Demo()
    say = progress or (lambda *_: None)
    began = time.monotonic()
    _make_empty(output)
    mine, plain, held, *audits = commands = asked.commands(output)
    write_json(output / _RECORD, {"schema": 2, **asdict(asked)})
    write_text(output / "rows.jsonl", "".join(map(as_json, asked.rows())))
    with quiet():
        say("mine", 0, 1)
        chat = load_chat_model(mine[1])
        mine_safety_tokens(chat.model, chat.tokenizer).save(mine[-1])
        say("mine", 1, 1)
        for words in (plain, held):
            tune(words[1:])
        for name, words in zip(MODELS, audits, strict=True):
            audited = Asked(
                model=words[1], output=output / name, suite=[f"embedded:{asked.task}"],
                against=None if name == "aligned" else mine[1],
                max_new_tokens=48, batch_size=64, seed=asked.seed,
            )  # fmt: skip
            run_audit(audited, progress=say)
    seconds = round(time.monotonic() - began, 1)
    write_json(output / _RECORD, {"schema": 2, **asdict(asked), "seconds": seconds})
    return report(
        [output / name for name in MODELS],
        output,
        title=f"Task {asked.task}, {asked.poison:.0%} poisoned, seed {asked.seed}",
        notes=[_NOTE],
        commands=[shlex.join(["moorline", *words]) for words in commands],
    )


def next_steps() -> str:
    """What to do after the demo: the same with one's own model."""
    return "\n".join(
        (
            "Now your own model:",
            "  moorline tune --model_name_or_path MODEL --dataset_name rows.jsonl \\",
            "    --use_peft --output_dir out",
            "  moorline audit out --against MODEL --output audited",
            "  moorline report audited/against audited out",
        )
    )


def _make_empty(output: Path) -> None:
    """Make the folder; what an earlier demo left in it goes, files of others are never touched."""
    if output.exists() and not output.is_dir():
        raise InputError(f"`output` {output} is a file. Give a folder.")
    there = [name for name in (*MODELS, "rows.jsonl") if (output / name).exists()]
    if there and not (output / _RECORD).is_file():
        raise InputError(
            f"`output` {output} holds {there[0]!r}, which no demo left there. Give another folder."
        )
    for name in MODELS:
        if (output / name).is_dir():
            shutil.rmtree(output / name)
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"`output` {output} cannot be made: {error.strerror}.") from error
