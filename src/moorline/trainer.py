"""Safety token regularization on TRL's `SFTTrainer`: the only file that imports trl.

from moorline import STRConfig, STRTrainer, mine_safety_tokens
tokens = mine_safety_tokens(model, tokenizer)
STRTrainer(model, args=STRConfig(...), safety_tokens=tokens, train_dataset=...).train()
"""

import contextlib
import functools
import logging
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from datasets import Dataset, IterableDataset
from torch import nn
from transformers import AutoTokenizer, PreTrainedTokenizerBase
from trl import (
    DatasetMixtureConfig,
    ModelConfig,
    ScriptArguments,
    SFTConfig,
    SFTTrainer,
    TrlParser,
    get_dataset,
    get_peft_config,
    get_quantization_config,
)
from trl.chat_template_utils import get_training_chat_template
from trl.data_utils import is_conversational

from .chat.conversation import has_generation_markers, mark_responses
from .errors import InputError, MoorlineError
from .method import adapters, cache, capture, reference
from .method.mixin import STRMixin
from .method.safety_tokens import SafetyTokens
from .method.settings import DEFAULT_WEIGHT, STRSettings

# What the floors above need of trl, they take from here.
__all__ = [
    "SFTConfig",
    "SFTTrainer",
    "STRConfig",
    "STRTrainer",
    "get_dataset",
    "get_peft_config",
    "get_quantization_config",
    "make_parser",
]

_log = logging.getLogger(__name__)


@dataclass
class STRConfig(SFTConfig):
    """Settings of `STRTrainer`. Every field without `str_` is TRL's `SFTConfig`.

    One default differs from TRL: `assistant_only_loss` unset means that the loss, and so the
    drift, counts the assistant's tokens only, wherever the data says which they are.

    Raises:
        InputError: If a `str_` setting is out of range or unknown.
    """

    assistant_only_loss: bool | None = field(  # pyright: ignore[reportIncompatibleVariableOverride]
        default=None,
        metadata={
            "help": "Whether the loss counts the assistant's tokens only. Unset: yes for "
            "conversations. True needs conversational data."
        },
    )
    str_tokens: str | None = field(
        default=None,
        metadata={"help": "Safety-token file that `moorline mine` wrote; mined if absent."},
    )
    str_weight: float = field(
        default=DEFAULT_WEIGHT,
        metadata={
            "help": "Weight of the drift (squared logits) beside the task loss (nats); 0 measures "
            "the drift without holding."
        },
    )
    str_form: str = field(
        default="logit", metadata={"help": "Form of the drift; 'logit' is the paper's."}
    )
    str_reference: str = field(
        default="auto",
        metadata={"help": "Where the reference comes from.", "choices": list(reference.REFERENCES)},
    )
    str_reference_fraction: float = field(
        default=1.0,
        metadata={
            "help": "Share of the rows of each batch on which the drift is measured, drawn at "
            "random and scaled; the cost of a running reference falls with it."
        },
    )
    str_positions: str = field(
        default="all",
        metadata={"help": "Which response positions count: 'all', or 'first:K' of each."},
    )
    str_cache_dtype: str = field(
        default="float32",
        metadata={"help": "Precision of a cached reference.", "choices": list(cache.DTYPES)},
    )
    str_cache_dir: str | None = field(
        default=None,
        metadata={
            "help": "Folder for a cached reference; one beside the prepared data sets if unset."
        },
    )
    str_reference_model: str | None = field(
        default=None,
        metadata={
            "help": "Path or hub id of the aligned model, where it is not the model before this "
            "training; it is then kept in memory as a second model."
        },
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        self.settings()

    def settings(self) -> STRSettings:
        """The `str_` settings, checked."""
        names = [each.name for each in fields(STRSettings)]
        with _named_as_written():
            return STRSettings(**{name: getattr(self, f"str_{name}") for name in names})


@contextlib.contextmanager
def _named_as_written() -> Iterator[None]:
    """Call the settings of the method, in errors, what the user wrote: `weight` is `str_weight`."""
    names = "|".join([*(each.name for each in fields(STRSettings)), "reference_model"])
    try:
        yield
    except MoorlineError as error:
        text = re.sub(rf"`({names})`", r"`str_\1`", str(error))
        raise type(error)(text) from error


class STRTrainer(STRMixin, SFTTrainer):
    """TRL's `SFTTrainer` with the refusals held; `STRMixin` says how and what it cannot see.

    Args:
        model: Model, local folder or hub id, as for `SFTTrainer`.
        args: Settings.
        safety_tokens: The tokens to hold; read from `args.str_tokens` if None.
        reference_model: The frozen aligned model; `args.str_reference_model` if None, and if that
            is None too, what `args.str_reference` says.
        **kwargs: As for `SFTTrainer`: `train_dataset`, `peft_config`, `processing_class`, ...

    Raises:
        InputError: If there are no safety tokens, or for anything that `STRMixin` refuses.
    """

    _tag_names = ["trl", "sft", "moorline", "safety-token-regularization"]
    _name = "STR"
    _paper = {
        "title": "Guardrails in Logit Space: Safety Token Regularization for LLM Alignment",
        "id": "2604.17210",
        "citation": (
            "@article{bach2026guardrails,\n"
            "    title  = {Guardrails in Logit Space: Safety Token Regularization for LLM "
            "Alignment},\n"
            "    author = {Bach, Thong and Tran, Truyen},\n"
            "    year   = {2026},\n"
            "    eprint = {arXiv:2604.17210},\n"
            "}"
        ),
    }

    def __init__(
        self,
        model: Any,
        args: STRConfig | None = None,
        *,
        safety_tokens: SafetyTokens | None = None,
        reference_model: nn.Module | str | None = None,
        train_dataset: Any = None,
        eval_dataset: Any = None,
        processing_class: PreTrainedTokenizerBase | None = None,
        peft_config: Any = None,
        **kwargs: Any,
    ) -> None:
        args = STRConfig() if args is None else args
        if safety_tokens is None:
            if args.str_tokens is None:
                raise InputError(
                    "`safety_tokens` is missing: give what `mine_safety_tokens(model, tokenizer)` "
                    "returns, or set `str_tokens` to a safety-token file."
                )
            safety_tokens = SafetyTokens.load(args.str_tokens)
        reference_model = args.str_reference_model if reference_model is None else reference_model
        if peft_config is not None:
            with _named_as_written():
                adapters.check_adapter(peft_config, reference_given=reference_model is not None)
        if train_dataset is not None:
            if processing_class is None:
                processing_class = _tokenizer_for(model, args)
            sample = next(iter(train_dataset), None)
            if sample is None:
                raise InputError("`train_dataset` is empty: there is nothing to learn.")
            by_prefix = _decide_on_responses(args, sample, processing_class)
            if by_prefix:
                mark = functools.partial(_marked, tokenizer=processing_class)
                train_dataset = _mapped(train_dataset, mark)
                eval_dataset = _mapped(eval_dataset, mark)
        aligned = None
        if peft_config is not None and isinstance(model, nn.Module):
            aligned = capture.probe(model, safety_tokens.tensor())
        with _named_as_written():
            super().__init__(
                model,
                args,
                train_dataset=train_dataset,
                eval_dataset=eval_dataset,
                processing_class=processing_class,
                peft_config=peft_config,
                safety_tokens=safety_tokens,
                settings=args.settings(),
                reference_model=reference_model,
                aligned=aligned,
                **kwargs,
            )


def _tokenizer_for(model: Any, args: STRConfig) -> PreTrainedTokenizerBase:
    """The tokenizer that belongs to a model, as `SFTTrainer` would load it."""
    name = model if isinstance(model, str) else model.config._name_or_path
    return AutoTokenizer.from_pretrained(name, trust_remote_code=args.trust_remote_code)


def _decide_on_responses(
    args: STRConfig, sample: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase
) -> bool:
    """Settle `args.assistant_only_loss`; True if the responses must be found by prefix."""
    conversational = is_conversational(dict(sample)) and "messages" in sample
    if args.assistant_only_loss is None:
        args.assistant_only_loss = conversational
        if not conversational and not {"prompt", "input_ids"} & sample.keys():
            _log.warning(
                "The data is plain text, so every token counts as a response and is held. Use "
                "'messages' or 'prompt' and 'completion' columns to hold the responses only."
            )
    if not (args.assistant_only_loss and conversational) or has_generation_markers(tokenizer):
        return False
    try:
        # TRL has a marked twin of some well-known templates, and uses it by itself.
        get_training_chat_template(tokenizer)
    except ValueError:
        args.assistant_only_loss = False
        _log.warning("The chat template has no generation markers; responses are found by prefix.")
        return True
    return False


def _marked(row: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    tools = row.get("tools")
    return mark_responses(tokenizer, row["messages"], **({"tools": tools} if tools else {}))


def _mapped(dataset: Any, function: Any) -> Any:
    """A data set, or each of a dictionary of them, with its conversations tokenized and marked."""
    if isinstance(dataset, Dataset | IterableDataset):
        return dataset.map(function, remove_columns=list(next(iter(dataset))))
    if isinstance(dataset, Mapping):
        return {name: _mapped(each, function) for name, each in dataset.items()}
    return dataset


def make_parser() -> TrlParser:
    """A parser of the flags and YAML files of `trl sft`, and of ours."""
    settings: Any = (ScriptArguments, STRConfig, ModelConfig, DatasetMixtureConfig)
    return TrlParser(settings, prog="moorline tune")
