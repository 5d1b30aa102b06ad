"""Safety token regularization on TRL's `SFTTrainer`: the only file that imports trl.

from moorline import STRConfig, STRTrainer, mine_safety_tokens
tokens = mine_safety_tokens(model, tokenizer)
STRTrainer(model, args=STRConfig(...), safety_tokens=tokens, train_dataset=...).train()
"""

import copy
import functools
import logging
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
import trl
from accelerate import PartialState
from datasets import Dataset
from torch import nn
from transformers import AutoTokenizer, PreTrainedTokenizerBase
from transformers.utils import is_torch_bf16_gpu_available
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

from .chat.cut_rows import tell_of_cut_rows
from .chat.training_rows import mapped, prepared_row, settle_responses
from .errors import InputError
from .method import adapters, cache, capture, penalty, reference
from .method.mixin import STRMixin
from .method.safety_tokens import SafetyTokens
from .method.settings import (
    AUTO_ANCHORS,
    CONFLICTS,
    DEFAULT_FORM,
    DEFAULT_WEIGHT,
    NO_ANCHORS,
    STRSettings,
    named_as_written,
)

# What `commands` needs of trl, it takes from here.
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

# trl/scripts/sft.py of TRL 1.16: its examples with and without LoRA
ADAPTER_LEARNING_RATE = 2e-4
FULL_LEARNING_RATE = 2e-5


@dataclass
class STRConfig(SFTConfig):
    """Settings of `STRTrainer`. Every field without `str_` is TRL's `SFTConfig`.

    Three defaults differ from TRL. `assistant_only_loss` unset means that the loss, and so the
    drift, counts the assistant's tokens only, wherever the data says which they are.
    `learning_rate` unset means 2e-4 with an adapter, else 2e-5. `bf16` and `fp16` unset mean the
    precision that this machine has: bf16, else fp16 on a GPU, else float32.

    Raises:
        InputError: If a `str_` setting is out of range or unknown.
    """

    learning_rate: float | None = field(  # pyright: ignore[reportIncompatibleVariableOverride]
        default=None,
        metadata={"help": "Initial learning rate. Unset: 2e-4 with an adapter, else 2e-5."},
    )
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
    str_weight: float | None = field(
        default=None,
        metadata={
            "help": "Weight of the drift beside the task loss (nats); 0 measures the drift without "
            f"holding. Unset, and no budget: {DEFAULT_WEIGHT:g}, and "
            f"{penalty.FORMS['logit'].weight:g} with the other forms than kl."
        },
    )
    str_budget: float | None = field(
        default=None,
        metadata={
            "help": "In place of a weight: by how much a safety token may move (root mean square, "
            "in logits or nats; not with form kl); the weight is found while training."
        },
    )
    str_anchors: str = field(
        default=AUTO_ANCHORS,
        metadata={
            "help": "Prompts beside the data at which refusals and help are held too: 'built-in', "
            "a file with a column 'prompt' (and 'kind': harmful or harmless), 'off', or 'auto': "
            "built-in, and none with a weight of 0 or, with another form than kl, where they "
            "cannot be had."
        },
    )
    str_anchor_weight: float | None = field(
        default=None,
        metadata={
            "help": "Weight of the anchor drift (squared nats), without a budget. Unset: "
            f"{penalty.FORMS[DEFAULT_FORM].anchor_weight:g}, and "
            f"{penalty.FORMS['logit'].anchor_weight:g} with the other forms than kl."
        },
    )
    str_anchor_share: float = field(
        default=0.25,
        metadata={"help": "Anchors read beside each step, as a share of its rows."},
    )
    str_conflicts: str = field(
        default="auto",
        metadata={
            "help": "Rows that answer where the aligned model would refuse: 'skip' leaves them out "
            "of the task loss, 'learn' does not. Auto: skip with form kl.",
            "choices": list(CONFLICTS),
        },
    )
    str_form: str = field(
        default=DEFAULT_FORM,
        metadata={
            "help": f"Form of the drift: {', '.join(penalty.FORMS)}; 'logit' is the paper's."
        },
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
    str_plain_text: bool = field(
        default=False,
        metadata={
            "help": "Train on 'prompt' and 'completion' texts as they are. By default they are put "
            "into the chat template, in which the model is asked later."
        },
    )

    def __post_init__(self) -> None:
        if self.bf16 is None and not self.fp16:
            self.bf16, self.fp16 = _precision(use_cpu=self.use_cpu)
        if self.str_weight is None and self.str_budget is None:
            # an unknown form is refused below, by `settings`
            self.str_weight = penalty.FORMS.get(self.str_form, penalty.FORMS[DEFAULT_FORM]).weight
        if self.str_anchors is False:  # what YAML makes of a bare `off`
            self.str_anchors = NO_ANCHORS
        super().__post_init__()
        self.settings()

    def settings(self) -> STRSettings:
        """The `str_` settings, checked."""
        names = [each.name for each in fields(STRSettings)]
        with named_as_written():
            return STRSettings(**{name: getattr(self, f"str_{name}") for name in names})


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
        _check_order_of_imports()
        args = STRConfig() if args is None else args
        if not isinstance(args, STRConfig):
            raise InputError(
                f"`args` must be an STRConfig, got {type(args).__name__}. Use "
                "`from moorline import STRConfig`; it takes the same settings."
            )
        if safety_tokens is None:
            if args.str_tokens is None:
                raise InputError(
                    "`safety_tokens` is missing: give what `mine_safety_tokens(model, tokenizer)` "
                    "returns, or set `str_tokens` to a safety-token file."
                )
            safety_tokens = SafetyTokens.load(args.str_tokens)
        reference_model = args.str_reference_model if reference_model is None else reference_model
        if peft_config is not None:
            with named_as_written():
                adapters.check_adapter(peft_config, reference_given=reference_model is not None)
        if args.learning_rate is None:
            adapted = peft_config is not None or hasattr(model, "peft_config")
            args.learning_rate = ADAPTER_LEARNING_RATE if adapted else FULL_LEARNING_RATE
        if processing_class is None and train_dataset is not None:
            processing_class = _tokenizer_for(model, args)
        self._marks_responses = train_dataset is not None and settle_responses(
            args, train_dataset, processing_class, kwargs.get("formatting_func")
        )
        if self._marks_responses:
            args.assistant_only_loss = False  # or TRL would want its own markers
        aligned = None
        if peft_config is not None and isinstance(model, nn.Module):
            aligned = capture.probe(model, safety_tokens.tensor())
        with named_as_written():
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
        if self._marks_responses:
            self.args.assistant_only_loss = True

    def _prepare_dataset(
        self,
        dataset: Any,
        processing_class: Any,
        args: Any,
        packing: bool,
        formatting_func: Any,
        dataset_name: str,
    ) -> Any:
        """TRL's preparation, with the responses found by our rule; tells of rows that are cut."""
        if formatting_func is None:
            rows = functools.partial(
                prepared_row, settings=args, tokenizer=processing_class, marks=self._marks_responses
            )
            with PartialState().main_process_first():
                dataset = mapped(dataset, rows, args.dataset_num_proc)
        whole = copy.copy(args)
        if isinstance(dataset, Dataset):
            whole.max_length, whole.shuffle_dataset = None, False
            dataset = super()._prepare_dataset(
                dataset, processing_class, whole, False, formatting_func, dataset_name
            )
            formatting_func = None
        prepared = super()._prepare_dataset(
            dataset, processing_class, args, packing, formatting_func, dataset_name
        )
        if (
            isinstance(dataset, Dataset)
            and isinstance(prepared, Dataset)
            and args.max_length is not None
        ):
            tell_of_cut_rows(dataset, prepared, args.max_length, packing=packing, name=dataset_name)
        return prepared

    def create_model_card(self, model_name: Any = None, *args: Any, **kwargs: Any) -> None:
        """TRL's card, with the name of the model that was tuned where TRL has none."""
        super().create_model_card(model_name, *args, **kwargs)
        card = Path(self.args.output_dir or ".", "README.md")
        base = getattr(self.model.config, "_name_or_path", None)  # pyright: ignore[reportOptionalMemberAccess]
        if base and self.is_world_process_zero() and card.is_file():
            text = card.read_text(encoding="utf-8")
            named = text.replace("[None](https://huggingface.co/None)", f"`{base}`")
            named = named.replace('model="None"', f'model="{self.args.output_dir}"')
            card.write_text(named, encoding="utf-8")


def _check_order_of_imports() -> None:
    """Refuse a trainer that another library put into trl after ours was made from trl's."""
    if trl.SFTTrainer is not SFTTrainer:
        raise InputError(
            f"`trl.SFTTrainer` was replaced by {trl.SFTTrainer.__module__} after moorline was "
            "imported, so its kernels would not be used. Import that library first (`import "
            "unsloth`), then moorline."
        )


def _precision(*, use_cpu: bool) -> tuple[bool, bool]:
    """Whether to train in bf16 and in fp16 on this machine."""
    if use_cpu:
        return False, False
    if torch.cuda.is_available():
        native = torch.cuda.is_bf16_supported(including_emulation=False)
        return native, not native
    return is_torch_bf16_gpu_available(), False


def _tokenizer_for(model: Any, args: STRConfig) -> PreTrainedTokenizerBase:
    """The tokenizer that belongs to a model, as `SFTTrainer` would load it."""
    name = model if isinstance(model, str) else model.config._name_or_path
    return AutoTokenizer.from_pretrained(name, trust_remote_code=args.trust_remote_code)


def make_parser(*more: Any) -> TrlParser:
    """A parser of the flags and YAML files of `trl sft`, of ours, and of more dataclasses."""
    settings: Any = (ScriptArguments, STRConfig, ModelConfig, DatasetMixtureConfig, *more)
    return TrlParser(settings, prog="moorline tune")
