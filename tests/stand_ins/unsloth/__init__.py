"""Unsloth's place, taken by the stock libraries where there is no GPU: the names alone are its own.

Like Unsloth it puts another trainer into trl as it is imported, and loads and adapts models by
`FastLanguageModel`. It has none of its kernels.
"""

import peft
import torch
import transformers
import trl

__version__ = "stand-in"


class UnslothSFTTrainer(trl.SFTTrainer):
    """What `trl.SFTTrainer` is afterwards."""


trl.SFTTrainer = UnslothSFTTrainer


class FastLanguageModel:
    """Models, by the stock libraries."""

    @staticmethod
    def from_pretrained(model_name, *, max_seq_length, dtype, load_in_4bit):
        """A model on the CPU, with its tokenizer."""
        assert max_seq_length
        assert not load_in_4bit
        loaded = transformers.AutoModelForCausalLM.from_pretrained(
            model_name, dtype=dtype or torch.float32
        )
        return loaded, transformers.AutoTokenizer.from_pretrained(model_name)

    @staticmethod
    def get_peft_model(model, *, random_state, **settings):
        """A model with an adapter on every linear layer."""
        torch.manual_seed(random_state)
        return peft.get_peft_model(
            model, peft.LoraConfig(target_modules="all-linear", task_type="CAUSAL_LM", **settings)
        )
