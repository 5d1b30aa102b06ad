"""Fixtures: a fixed seed, no network, and tiny random models that prove plumbing, never quality."""

import os
import tempfile

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
# What `datasets` and we keep on disk belongs to this run alone.
os.environ["HF_DATASETS_CACHE"] = tempfile.mkdtemp(prefix="holdfast-tests-")

import datasets
import pytest
import torch
import transformers
from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, set_seed

from holdfast import SafetyTokens

datasets.disable_progress_bars()
transformers.logging.disable_progress_bar()

WORDS = [f"w{number}" for number in range(90)]
TEMPLATE = (
    "{% for message in messages %}<{{ message['role'] }}> "
    "{% if message['role'] == 'assistant' %}{% generation %}{{ message['content'] }} <end>"
    "{% endgeneration %}{% else %}{{ message['content'] }} <end>{% endif %} {% endfor %}"
    "{% if add_generation_prompt %}<assistant> {% endif %}"
)


@pytest.fixture(autouse=True)
def _seed():
    set_seed(0)
    yield
    transformers.logging.set_verbosity_warning()


@pytest.fixture(scope="session")
def tokenizer():
    special = ["<pad>", "<end>", "<system>", "<user>", "<assistant>", "<unk>"]
    vocabulary = {word: index for index, word in enumerate([*special, *WORDS])}
    plain = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    plain.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    made = PreTrainedTokenizerFast(
        tokenizer_object=plain, pad_token="<pad>", eos_token="<end>", unk_token="<unk>",
        additional_special_tokens=["<system>", "<user>", "<assistant>"], model_max_length=128,
    )  # fmt: skip
    made.chat_template = TEMPLATE
    return made


@pytest.fixture
def make_model(tokenizer):
    """A function that makes the same tiny Llama each time."""

    def make(*, tied: bool = False, seed: int = 0, dtype=torch.float32, **config):
        set_seed(seed)
        settings = {
            "vocab_size": len(tokenizer), "hidden_size": 32, "intermediate_size": 48,
            "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
            "max_position_embeddings": 128, "tie_word_embeddings": tied,
            "pad_token_id": tokenizer.pad_token_id, "eos_token_id": tokenizer.eos_token_id,
            "bos_token_id": None, "initializer_range": 0.2, **config,
        }  # fmt: skip
        return LlamaForCausalLM(LlamaConfig(**settings)).to(dtype)

    return make


@pytest.fixture
def tokens(tokenizer):
    ids = (10, 17, 24, 31, 38)
    return SafetyTokens(
        ids=ids, strings=tuple(tokenizer.decode([each]) for each in ids),
        scores=(0.9, 0.8, 0.7, 0.6, 0.5), vocab_size=len(tokenizer),
    )  # fmt: skip


def conversations(num: int = 8, seed: int = 0, turns: int = 1) -> Dataset:
    """Rows of conversations of uneven length."""
    generator = torch.Generator().manual_seed(seed)

    def words(low: int, high: int) -> str:
        count = int(torch.randint(low, high, (1,), generator=generator))
        picked = torch.randint(0, len(WORDS), (count,), generator=generator).tolist()
        return " ".join(WORDS[each] for each in picked)

    rows = []
    for _ in range(num):
        messages = []
        for _ in range(turns):
            messages += [
                {"role": "user", "content": words(2, 9)},
                {"role": "assistant", "content": words(2, 12)},
            ]
        rows.append({"messages": messages})
    return Dataset.from_list(rows)


@pytest.fixture
def rows():
    return conversations()


@pytest.fixture
def model_folder(make_model, tokenizer, tmp_path):
    """A tiny chat model on disk."""
    folder = tmp_path / "model"
    make_model().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
