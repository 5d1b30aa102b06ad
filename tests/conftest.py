"""Fixtures: a fixed seed, no network, and tiny random models that prove plumbing, never quality."""

import json
import os
import shutil
import tempfile
from typing import NamedTuple

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
# What `datasets` and we keep on disk belongs to this run alone.
os.environ["HF_DATASETS_CACHE"] = tempfile.mkdtemp(prefix="moorline-tests-")

import datasets
import pytest
import torch
import transformers
from helpers import BROWSER, conversations, fits_its_schema, tiny_llama, word_tokenizer
from transformers import set_seed

from moorline import SafetyTokens
from moorline.method.safety_tokens import tokenizer_fingerprint

_FLAGS = (
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
)  # fmt: skip

if "MOORLINE_EXAMPLES" in os.environ:  # as `make stress` asks
    import hypothesis

    many = int(os.environ["MOORLINE_EXAMPLES"])
    hypothesis.settings.register_profile("many", max_examples=many, deadline=None)
    hypothesis.settings.load_profile("many")

datasets.disable_progress_bars()
transformers.logging.disable_progress_bar()


@pytest.fixture(autouse=True)
def _seed():
    set_seed(0)
    yield
    transformers.logging.set_verbosity_warning()


@pytest.fixture(scope="session", autouse=True)
def _every_file_fits_its_schema():
    """Holds each file of ours against its JSON Schema as it is put in its place."""
    put = os.replace

    def holding(source, target, **places):
        fits_its_schema(source, os.path.basename(target))
        put(source, target, **places)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "replace", holding)
        yield


@pytest.fixture(scope="session")
def tokenizer():
    return word_tokenizer()


@pytest.fixture
def make_model(tokenizer):
    """A function that makes the same tiny Llama each time."""

    def make(*, tied: bool = False, seed: int = 0, dtype=torch.float32, **config):
        set_seed(seed)
        settings = {
            "vocab_size": len(tokenizer), "max_position_embeddings": 128,
            "tie_word_embeddings": tied, **config,
        }  # fmt: skip
        return tiny_llama(**settings).to(dtype)

    return make


@pytest.fixture
def tokens(tokenizer):
    ids = (10, 17, 24, 31, 38)
    return SafetyTokens(
        ids=ids, strings=tuple(tokenizer.decode([each]) for each in ids),
        scores=(0.9, 0.8, 0.7, 0.6, 0.5), vocab_size=len(tokenizer),
        spreads=(0.5, 1.0, 1.0, 2.0, 4.0),
    )  # fmt: skip


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


@pytest.fixture
def data_file(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in conversations(12)))
    return path


@pytest.fixture
def tokens_file(tmp_path, tokens, tokenizer):
    path = tmp_path / "tokens.json"
    values = {"tokenizer_fingerprint": tokenizer_fingerprint(tokenizer)}
    SafetyTokens(
        ids=tokens.ids, strings=tokens.strings, scores=tokens.scores,
        vocab_size=tokens.vocab_size, **values,
    ).save(path)  # fmt: skip
    return path


@pytest.fixture
def flags(model_folder, data_file, tokens_file, tmp_path):
    """A small run that works; tests change one thing."""
    return {
        "model_name_or_path": model_folder, "dataset_name": data_file, "str_tokens": tokens_file,
        "output_dir": tmp_path / "run", "use_peft": True, "lora_target_modules": "all-linear",
        "lora_r": 4, "max_steps": 2, "per_device_train_batch_size": 4, "learning_rate": 0.01,
        "bf16": False, "gradient_checkpointing": False, "use_cpu": True, "logging_steps": 1,
        "report_to": "none", "disable_tqdm": True, "save_strategy": "no", "lora_dropout": 0.0,
        "str_form": "logit", "str_anchors": "off",
    }  # fmt: skip


@pytest.fixture(scope="module")
def browser():
    sync_api = pytest.importorskip("playwright.sync_api", reason="no playwright; `make setup`")
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("no Chromium here; `make test-browser` gets it")
    with sync_api.sync_playwright() as playwright:
        found = playwright.chromium.launch(executable_path=chromium, args=list(_FLAGS))
        yield found
        found.close()


@pytest.fixture(scope="module")
def axe():
    path = BROWSER / "axe.min.js"
    if not path.is_file():
        pytest.skip("no axe-core here; `make test-browser` gets it")
    return path.read_text(encoding="utf-8")


class Opened(NamedTuple):
    """A page with what it did while it was opened."""

    page: object
    said: list[str]
    """Errors and warnings of its console, and errors of its scripts."""

    asked: list[str]
    """Addresses that it asked for."""


@pytest.fixture
def open_page(browser):
    """A function that opens a file in a fresh profile."""
    contexts = []

    def opening(path, *, width=1280, scheme="light", **settings):
        context = browser.new_context(
            viewport={"width": width, "height": 900}, color_scheme=scheme, **settings
        )
        contexts.append(context)
        opened = Opened(context.new_page(), [], [])
        opened.page.on(
            "console",
            lambda each: each.type in ("error", "warning") and opened.said.append(each.text),
        )
        opened.page.on("pageerror", lambda error: opened.said.append(str(error)))
        opened.page.on("request", lambda request: opened.asked.append(request.url))
        opened.page.goto(path.as_uri())
        return opened

    yield opening
    for context in contexts:
        context.close()
