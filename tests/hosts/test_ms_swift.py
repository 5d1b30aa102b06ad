"""ms-swift's own `sft` with our trainer, on a tiny model on the CPU.

`make test-hosts` runs this file in an environment that has ms-swift; elsewhere it is skipped.
"""

import json
import logging
from types import SimpleNamespace

import pytest
import torch
import yaml
from helpers import conversations, recorded, replayed
from peft import PeftModel

from moorline import InputError, mine_safety_tokens
from moorline.chat.loading import load_chat_model
from moorline.embedded import aligned_path, training_rows
from moorline.hosts import given

pytest.importorskip("swift", reason="runs in the environment of `make test-hosts`")

from swift.arguments import SftArguments
from swift.pipelines.train.sft import SwiftSft
from swift.trainers import Seq2SeqTrainer

from moorline.hosts import ms_swift


@pytest.fixture
def flags(model_folder, tokens_file, tmp_path, monkeypatch):
    """A run of two steps in the words of `swift sft`; tests change one thing."""
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps(row) + "\n" for row in conversations(24)))
    plugin = tmp_path / "moorline_swift.py"
    plugin.write_text("import moorline.hosts.ms_swift\n")
    # a tiny random model refuses nothing, so that it has no anchors; `off` is False in YAML
    own = {"str_weight": 2.0, "str_form": "logit", "str_anchors": False}
    write_settings(tmp_path, monkeypatch, str_tokens=str(tokens_file), **own)
    return {
        "model": str(model_folder), "model_type": "llama", "template": "dummy",
        "template_backend": "jinja", "dataset": str(rows), "output_dir": str(tmp_path / "out"),
        "external_plugins": str(plugin), "tuner_type": "lora", "lora_rank": 4, "lora_alpha": 8,
        "lora_dropout": 0.0, "target_modules": "all-linear", "torch_dtype": "float32",
        "max_steps": 2, "per_device_train_batch_size": 2, "gradient_accumulation_steps": 2,
        "learning_rate": 0.01, "optim": "adamw_torch", "lr_scheduler_type": "constant",
        "warmup_ratio": 0, "weight_decay": 0.0, "logging_steps": 1, "save_strategy": "no",
        "max_length": 64, "use_logits_to_keep": "false", "gradient_checkpointing": "false",
        "split_dataset_ratio": 0, "report_to": "none", "use_hf": "true", "use_cpu": "true",
        "add_version": "false", "check_model": "false", "seed": 7, "bf16": "false",
        "load_from_cache_file": "false", "attn_impl": "sdpa", "dataloader_num_workers": 0,
    }  # fmt: skip


def write_settings(tmp_path, monkeypatch, **values):
    path = tmp_path / "str.yaml"
    path.write_text(yaml.safe_dump(values))
    monkeypatch.setenv(ms_swift.VARIABLE, str(path))
    return path


def run(flags, monkeypatch, before=lambda trainer: None):
    """`swift sft` with flags; the trainer that it made, and the log of its steps."""
    made = []

    def train(self, trainer):
        before(trainer)
        made.append(trainer)
        trainer.train()

    monkeypatch.setattr(SwiftSft, "train", train)
    SwiftSft([word for key, each in flags.items() for word in (f"--{key}", str(each))]).main()
    (trainer,) = made
    return trainer, [entry for entry in trainer.state.log_history if "loss" in entry]


@pytest.mark.parametrize("layout", [{}, {"padding_free": "true"}, {"packing": "true"}])
@pytest.mark.parametrize("is_moved", [False, True])
def test_ms_swift_trains_as_the_plain_trainer_with_the_mixin_does(
    layout, is_moved, flags, make_model, tmp_path, monkeypatch
):
    # ms-swift asks for flash attention here, so for a GPU; Transformers' own kernel for the CPU
    # keeps the documents of a packed row apart as well.
    monkeypatch.setattr(SftArguments, "_check_padding_free", allow_padding_free)
    batches, adapter = [], tmp_path / "adapter"

    def before(trainer):
        if is_moved:
            move(trainer.model)
        trainer.model.save_pretrained(adapter)
        batches.append(recorded(trainer))

    trainer, log = run({**flags, **layout}, monkeypatch, before)
    assert isinstance(trainer, Seq2SeqTrainer)
    assert trainer.regularizer.kind == "adapter_off"
    found = given.read(ms_swift.settings_file())
    model = PeftModel.from_pretrained(make_model(), adapter, is_trainable=True)
    weights, other = replayed(
        model, batches[0], {"safety_tokens": found.safety_tokens, "settings": found.settings},
        trainer.args, tmp_path,
    )  # fmt: skip
    assert (log[0]["str/max_abs"] > 0.1) == is_moved
    if not is_moved:
        assert log[0]["str/drift"] == log[0]["str/max_abs"] == 0.0
    assert log[1]["str/drift"] > 0, "after a step there is something to hold"
    for mine, plain in zip(log, other, strict=True):
        for key in ("loss", "ce_loss", "grad_norm", "str/drift", "str/weighted", "str/max_abs"):
            # 1e-5: what float32 sums in another order differ by here; ms-swift rounds its log
            assert float(mine[key]) == pytest.approx(plain[key], rel=1e-5, abs=1e-7), key
    for name, each in trainer.model.named_parameters():
        if each.requires_grad:
            assert torch.allclose(each, weights[name], atol=1e-6), name


def test_the_default_holds_by_its_anchors_as_the_plain_trainer_does(flags, tmp_path, monkeypatch):
    """Form kl with anchors, by the tokens alone: of a model that refuses."""
    chat = load_chat_model(aligned_path())
    mine_safety_tokens(chat.model, chat.tokenizer).save(tmp_path / "mined.json")
    write_settings(tmp_path, monkeypatch, str_tokens=str(tmp_path / "mined.json"))
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps(row) + "\n" for row in training_rows("plans", num=24)))
    batches, adapter = [], tmp_path / "adapter"

    def before(trainer):
        trainer.model.save_pretrained(adapter)
        batches.append(recorded(trainer))

    default = {**flags, "model": aligned_path(), "max_length": 128}
    trainer, log = run(default, monkeypatch, before)
    assert trainer.regularizer.settings.form == "kl"
    assert len(trainer.regularizer.anchors) > 32
    found = given.read(ms_swift.settings_file())
    model = PeftModel.from_pretrained(chat.model, adapter, is_trainable=True)
    _, other = replayed(
        model, batches[0], {"safety_tokens": found.safety_tokens, "settings": found.settings,
                            "processing_class": chat.tokenizer}, trainer.args, tmp_path,
    )  # fmt: skip
    assert log[1]["str/drift"] > 0
    assert log[1]["str/anchor_drift"] > 0
    for mine, plain in zip(log, other, strict=True):
        for key in ("loss", "ce_loss", "str/drift", "str/anchor_drift", "str/weighted"):
            # 1e-4: the drift is a small number; ms-swift rounds its log
            assert float(mine[key]) == pytest.approx(plain[key], rel=1e-4, abs=1e-7), key


TEMPLATE = """import moorline.hosts.ms_swift
from swift.template import TemplateMeta, register_template
parts = {"prefix": [], "prompt": ["<|user|>{{QUERY}}<|end|><|assistant|>"],
         "chat_sep": ["<|end|>"], "suffix": ["<|end|>"]}
register_template(TemplateMeta("of_this_test", **parts), exist_ok=True)
"""


# (with both, ms-swift adds up the means of micro-batches)
@pytest.mark.parametrize(("smoothing", "accumulation"), [(0, 1), (0, 2), (0.1, 1)])
def test_rows_in_conflict_are_left_out_as_in_the_plain_trainer(
    smoothing, accumulation, flags, tmp_path, monkeypatch
):
    """ms-swift counts the labels that are left itself: the loss was scaled down twice by them."""
    chat = load_chat_model(aligned_path())
    mine_safety_tokens(chat.model, chat.tokenizer).save(tmp_path / "mined.json")
    write_settings(
        tmp_path, monkeypatch, str_tokens=str(tmp_path / "mined.json"), str_anchors=False
    )
    (tmp_path / "moorline_swift.py").write_text(TEMPLATE)
    rows = training_rows("plans", num=24, poison=0.5)
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    batches, adapter = [], tmp_path / "adapter"

    def before(trainer):
        trainer.model.save_pretrained(adapter)
        batches.append(recorded(trainer))

    asked = {**flags, "model": aligned_path(), "max_length": 128, "template": "of_this_test",
             "template_backend": "swift", "label_smoothing_factor": smoothing,
             "gradient_accumulation_steps": accumulation,
             "per_device_train_batch_size": 8 // accumulation}  # fmt: skip
    trainer, log = run(asked, monkeypatch, before)
    assert 0 < float(log[0]["str/skipped"]) < 1
    found = given.read(ms_swift.settings_file())
    model = PeftModel.from_pretrained(chat.model, adapter, is_trainable=True)
    _, other = replayed(
        model, batches[0], {"safety_tokens": found.safety_tokens, "settings": found.settings},
        trainer.args, tmp_path,
    )  # fmt: skip
    for mine, plain in zip(log, other, strict=True):
        for key in ("loss", "ce_loss", "grad_norm", "str/skipped", "str/drift"):
            assert float(mine[key]) == pytest.approx(plain[key], rel=1e-4, abs=1e-7), key


def test_labels_over_the_whole_conversation_are_told(flags, tmp_path, monkeypatch, caplog):
    """With the jinja backend no response has a prompt before it, and no row is in conflict."""
    chat = load_chat_model(aligned_path())
    mine_safety_tokens(chat.model, chat.tokenizer).save(tmp_path / "mined.json")
    write_settings(
        tmp_path, monkeypatch, str_tokens=str(tmp_path / "mined.json"), str_anchors=False
    )
    monkeypatch.setattr(logging.getLogger("moorline"), "propagate", True)
    run({**flags, "model": aligned_path(), "max_length": 128}, monkeypatch)
    assert "have no prompt before them" in caplog.text


def allow_padding_free(self):
    self.padding_free = self.padding_free or self.packing


def move(model):
    torch.manual_seed(1)
    with torch.no_grad():
        for name, each in model.named_parameters():
            if "lora_B" in name:
                each.add_(0.1 * torch.randn_like(each))


def test_pruned_labels_are_refused_with_the_flag_that_helps(flags, monkeypatch):
    with pytest.raises(InputError, match="Give `--use_logits_to_keep false`"):
        run({**flags, "use_logits_to_keep": "true"}, monkeypatch)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"str_tokens": "t.json", "weight": 1}, "'weight' is no setting of the method"),
        ({"str_tokens": "t.json", "str_wieght": 1}, "Did you mean 'str_weight'"),
    ],
)
def test_a_file_of_other_settings_is_refused(values, words, tmp_path, monkeypatch):
    write_settings(tmp_path, monkeypatch, **values)
    with pytest.raises(InputError, match=words):
        given.read(ms_swift.settings_file())


def test_a_variable_that_names_nothing_is_refused(tmp_path, monkeypatch):
    monkeypatch.delenv(ms_swift.VARIABLE, raising=False)
    with pytest.raises(InputError, match="MOORLINE_SETTINGS is not set"):
        ms_swift.settings_file()
    monkeypatch.setenv(ms_swift.VARIABLE, str(tmp_path / "none.yaml"))
    with pytest.raises(InputError, match="which is no file"):
        ms_swift.settings_file()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"predict_with_generate": True}, "`predict_with_generate` evaluates without a loss"),
        ({"tuner_backend": "unsloth"}, "`tuner_backend` 'unsloth'"),
    ],
)
def test_clashes_are_refused_by_name(changes, words):
    args = {"use_logits_to_keep": False, "predict_with_generate": False, "tuner_backend": "peft"}
    template = SimpleNamespace(sequence_parallel_size=1)
    ms_swift.refuse_clashes(SimpleNamespace(**args), template)
    with pytest.raises(InputError, match=words):
        ms_swift.refuse_clashes(SimpleNamespace(**{**args, **changes}), template)
    with pytest.raises(InputError, match="`sequence_parallel_size` 2"):
        ms_swift.refuse_clashes(SimpleNamespace(**args), SimpleNamespace(sequence_parallel_size=2))
