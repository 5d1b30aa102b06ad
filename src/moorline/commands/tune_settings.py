"""The settings of `moorline tune`: read from flags and YAML, or refused by name; and its help.

Heavy imports stand inside the functions, so that `moorline tune --help` answers at once.
"""

import dataclasses
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from ..errors import InputError, unknown_choice
from ..records import read_yaml

HELP = """\
Usage: moorline tune --config FILE.yaml [--NAME VALUE ...]

Fine-tune a chat model with its refusals held. Flags and YAML keys are those of `trl sft`, and ours.

A refusal is made of a few tokens ("I", " sorry", " cannot"), the safety tokens. The aligned model,
frozen, is the reference; the drift is how far their logits have moved from the reference's.

Moorline
  --str_weight FLOAT             Weight of the drift beside the task loss; 0 measures without
                                 holding. [3, with other forms 10, where there is no budget]
  --str_budget FLOAT             In place of a weight: by how much a safety token may move (root
                                 mean square, in logits); the weight is found while training.
                                 Not with form kl.
  --str_anchors NAME|FILE        Prompts beside the data at which refusals and help are held too:
                                 built-in, a file with columns 'prompt' and 'kind', off, or auto:
                                 built-in where the model refuses them. [auto]
  --str_anchor_weight FLOAT      Weight of the anchor drift (squared nats), without a budget.
                                 [0.1, with other forms 3]
  --str_anchor_share FLOAT       Anchors beside each step, as a share of its rows. [0.25]
  --str_conflicts NAME           Rows that answer where the aligned model would refuse: skip leaves
                                 them out of the task loss, learn does not. [skip with form kl]
  --str_form NAME                Form of the drift: kl, logit (the paper's), logprob or
                                 standardised. [kl]
  --str_tokens FILE              Safety tokens that `moorline mine` wrote. [mined]
  --str_reference NAME           Where the reference comes from: auto, adapter_off, frozen_copy,
                                 cached or write_through. [auto]
  --str_reference_model MODEL    The aligned model, where it is not the model before this training.
  --str_reference_fraction FLOAT Share of each batch's rows on which the drift is measured. [1.0]
  --str_positions all|first:K    Which positions of a response are held. [all]
  --str_plain_text BOOL          Train on 'prompt' and 'completion' texts without the chat template.
                                 [false]
  --str_cache_dtype NAME         Precision of a cached reference: float32, bfloat16 ... [float32]
  --str_cache_dir DIR            Folder for a cached reference. [beside the prepared data]
  --method NAME                  A method to compare with in place of str: plain, kl, sbr, wise_ft
                                 and others (docs/baselines.md); the drift is measured. [str]
  --method_strength FLOAT        Its one number. [the method's own]
  --method_file FILE             Its prompts, refusals or phrase.  --method_base MODEL: the base.
  --check_prompts INT            Prompts of each kind asked before and after, so that the run ends
                                 with what it kept. [0]
  --log_files wandb|mlflow       Log run.json, safety tokens and anchors there as artifacts when the
                                 run ends. [off]
  --dry-run                      Say what the run would be (rows, lengths, memory), train nothing.

Most used
  --model_name_or_path MODEL     Folder or hub id of a chat model, an adapter, or an earlier run.
  --dataset_name DATA            JSONL, JSON, CSV or Parquet file or hub id: 'messages', or 'prompt'
                                 and 'completion', or 'text'; also ShareGPT and Alpaca rows.
  --output_dir DIR               Where adapter or model, safety_tokens.json and run.json go.
  --use_peft                     Train a LoRA adapter in place of all weights.
  --lora_r INT  --lora_alpha INT  --lora_target_modules NAMES   [16, 32, PEFT's choice]
  --load_in_4bit                 Load the base in 4 bits (QLoRA; needs bitsandbytes).
  --learning_rate FLOAT          [2e-4 with an adapter, else 2e-5]
  --num_train_epochs FLOAT  --max_steps INT                     [3, no limit]
  --per_device_train_batch_size INT  --gradient_accumulation_steps INT   [8, 1]
  --max_length INT               Longer rows are cut. [1024]
  --bf16 BOOL  --fp16 BOOL       [what the machine has]
  --eval_strategy no|steps|epoch  --save_strategy no|steps|epoch  --seed INT   [no, steps, 42]
  --resume_from_checkpoint true  Resume the run in the output folder.
  --json                         Print run.json on stdout, nothing else.

`moorline tune --help-all` lists every setting.

Examples:
  moorline tune --config run.yaml
  moorline tune --model_name_or_path MODEL --dataset_name rows.jsonl --use_peft --output_dir out
"""


class Settings(NamedTuple):
    """What the user set, by the class that it belongs to."""

    script: Any
    training: Any
    model: Any
    mixture: Any
    method: Any
    given: frozenset[str]
    """Names that were given, not left at their default."""

    def plain(self) -> Mapping[str, Any]:
        """All settings as plain values; secrets stay out."""
        found = {}
        for each in (self.script, self.training, self.model, self.mixture, self.method):
            values = each.to_dict() if hasattr(each, "to_dict") else dataclasses.asdict(each)
            found |= _without_secrets(values)
        return {
            key: found[key] if is_plain(found[key]) else str(found[key]) for key in sorted(found)
        }


# What a name of a setting holds where its value is a secret: `hub_token`, also within a mapping.
_SECRET = re.compile(r"token|password|secret|credential|key$", re.IGNORECASE)


def _without_secrets(values: Any) -> Any:
    if isinstance(values, Mapping):
        return {
            key: _without_secrets(value)
            for key, value in values.items()
            if str(key).startswith("str_") or not _SECRET.search(str(key))
        }
    return [_without_secrets(each) for each in values] if isinstance(values, list) else values


def parse(arguments: Sequence[str]) -> Settings:
    """The settings in flags and a YAML file.

    Raises:
        InputError: If one is unknown or missing, or two contradict each other.
    """
    from ..trainer import make_parser
    from .tune_method import MethodConfig

    parser = make_parser(MethodConfig)

    def fail(message: str) -> NoReturn:
        raise InputError(f"moorline tune: {message}. See `moorline tune --help`.")

    parser.error = fail
    arguments = list(arguments)
    known = {action.dest for action in parser._actions}
    given = {
        word[2:].split("=")[0].replace("-", "_") for word in arguments if word.startswith("--")
    }
    if "--config" in arguments:
        at = arguments.index("--config")
        if at + 1 >= len(arguments):
            fail("--config needs a file")
        given |= read_keys(arguments[at + 1], known)
    try:
        *parsed, rest = parser.parse_args_and_config(arguments, return_remaining_strings=True)
    except InputError:
        raise
    except Exception as error:  # how the hosts say that settings do not fit: in many ways
        raise InputError(f"The settings do not fit each other or this machine: {error}") from error
    for word in rest:
        if word.startswith("--"):
            raise _unknown("flag", word.split("=")[0], [f"--{name}" for name in known])
    if rest:
        fail(f"unexpected {rest[0]!r}")
    script, training, model, mixture, method = parsed
    settings = Settings(script, training, model, mixture, method, frozenset(given))
    _check(settings)
    _check_ranges(training)
    method.settle(training, settings.given)
    return settings


def _check(settings: Settings) -> None:
    if settings.training.output_dir in (None, "", "trainer_output"):
        raise InputError("`output_dir` is missing. Say where the run goes: --output_dir DIR.")
    if settings.model.model_name_or_path is None:
        raise InputError(
            "`model_name_or_path` is missing. Give a folder or hub id of a chat model."
        )
    lora = sorted(
        name for name in settings.given if name.startswith(("lora_", "use_dora", "use_rslora"))
    )
    # Said to be off, it is off: a file of settings may name LoRA's for another run.
    if lora and not settings.model.use_peft and "use_peft" not in settings.given:
        raise InputError(
            f"`{lora[0]}` is set but `use_peft` is not, so every weight would be trained. Add "
            f"--use_peft, or leave `{lora[0]}` out."
        )


_COUNTS = (
    "per_device_train_batch_size", "per_device_eval_batch_size", "gradient_accumulation_steps",
)  # fmt: skip
_AMOUNTS = (
    "learning_rate", "weight_decay", "adam_epsilon", "warmup_steps", "max_grad_norm",
    "dataloader_num_workers", "num_train_epochs",
)  # fmt: skip
_SHARES = ("adam_beta1", "adam_beta2")


def _check_ranges(training: Any) -> None:
    """Refuse numbers with which the host would fail later, or train nothing."""
    for name in (*_COUNTS, *_AMOUNTS, *_SHARES):
        value, wanted = getattr(training, name), "a number of 0 or more"
        if value is None:
            continue
        fits = isinstance(value, int | float) and 0 <= value < math.inf
        if name in _COUNTS:
            fits, wanted = fits and value >= 1, "1 or more"
        elif name in _SHARES:
            fits, wanted = fits and value < 1, "at least 0 and below 1"
        if not fits:
            raise InputError(f"`{name}` must be {wanted}, got {value}. Correct it.")
    if training.max_steps == 0 or (training.max_steps < 0 and training.num_train_epochs == 0):
        raise InputError(
            f"`max_steps` {training.max_steps} and `num_train_epochs` {training.num_train_epochs} "
            "train nothing. Give one of them, 1 or more."
        )


def read_keys(config: str, known: set[str]) -> set[str]:
    """The keys of a YAML file.

    Raises:
        InputError: If it is missing, is not YAML, holds no keys, or one that is not known.
    """
    path = Path(config)
    if not path.is_file():
        raise InputError(f"{path}: no such settings file (`--config`). Check the path.")
    values = read_yaml(path)
    if not isinstance(values, dict):
        raise InputError(f"{path}: a settings file holds keys and values, one on each line.")
    for key in values:
        if key not in known | {"env"}:
            raise _unknown(f"key in {path}:", str(key), known)
    return {str(key) for key in values}


def _unknown(what: str, given: str, known: Any) -> InputError:
    """Like `unknown_choice`, without listing hundreds of names."""
    message = str(unknown_choice(what, given, known))
    nearest = message[message.rindex(" Did you") :] if " Did you" in message else ""
    return InputError(f"Unknown {what} {given!r}.{nearest or ' See `moorline tune --help`.'}")


def is_plain(value: Any) -> bool:
    """Whether JSON can hold a value."""
    if isinstance(value, Mapping):
        return all(isinstance(key, str) and is_plain(each) for key, each in value.items())
    if isinstance(value, list | tuple):
        return all(is_plain(each) for each in value)
    return (
        value is None
        or isinstance(value, str | int | bool)
        or (isinstance(value, float) and value == value and abs(value) != float("inf"))
    )
