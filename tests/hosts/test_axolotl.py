"""Axolotl's own configuration, builder and training with our plug-in, on a tiny model on the CPU.

`make test-hosts` runs this file in an environment that has Axolotl; elsewhere it is skipped.
"""

import json
import os
from pathlib import Path

os.environ["AXOLOTL_DO_NOT_TRACK"] = "1"

import pytest
import torch
import yaml
from datasets import Dataset
from helpers import conversations, labelled, recorded, replayed
from peft import PeftModel

from moorline import InputError, mine_safety_tokens
from moorline.chat.loading import load_chat_model
from moorline.embedded import aligned_path, training_rows
from moorline.hosts import given

pytest.importorskip("axolotl", reason="runs in the environment of `make test-hosts`")

from axolotl.cli.config import load_cfg
from axolotl.common.datasets import load_datasets
from axolotl.core.trainers import AxolotlTrainer
from axolotl.integrations.base import PluginManager
from axolotl.train import setup_model_and_trainer

from moorline.hosts.axolotl import MoorlinePlugin, refuse_clashes

PLUGIN = "moorline.hosts.axolotl.MoorlinePlugin"


@pytest.fixture
def settings(model_folder, tokens_file, tokenizer, tmp_path):
    """A run of two steps in the words of Axolotl's YAML; tests change one thing."""
    rows = tmp_path / "labelled.jsonl"
    prepared = labelled(conversations(64), tokenizer)
    rows.write_text("".join(json.dumps(row) + "\n" for row in prepared))
    return {
        "base_model": str(model_folder), "plugins": [PLUGIN], "str_tokens": str(tokens_file),
        # a tiny random model refuses nothing, so that it has no anchors; `off` is False in YAML
        "str_weight": 2.0, "str_form": "logit", "str_anchors": False,
        "datasets": [{"path": str(rows), "ds_type": "json", "type": None}],
        "dataset_prepared_path": str(tmp_path / "prepared"), "output_dir": str(tmp_path / "out"),
        "sequence_len": 64, "micro_batch_size": 2, "gradient_accumulation_steps": 2,
        "max_steps": 2, "learning_rate": 0.01, "optimizer": "adamw_torch",
        "lr_scheduler": "constant", "bf16": False, "fp16": False, "tf32": False,
        "adapter": "lora", "lora_r": 4, "lora_alpha": 8, "lora_dropout": 0.0,
        "lora_target_linear": True, "val_set_size": 0, "logging_steps": 1, "save_strategy": "no",
        "attn_implementation": "sdpa", "gradient_checkpointing": False, "seed": 7,
        "dataset_num_proc": 1, "include_tkps": False, "warmup_steps": 0, "weight_decay": 0.0,
        # fused kernels, which need a GPU
        "lora_mlp_kernel": False, "lora_qkv_kernel": False, "lora_o_kernel": False,
        "lora_embedding_kernel": False,
        "special_tokens": {"pad_token": "<pad>"}, "use_tensorboard": False,
    }  # fmt: skip


def built(settings, tmp_path):
    """Axolotl's trainer, as `axolotl train FILE` makes it."""
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(settings))
    cfg = load_cfg(str(path))
    return setup_model_and_trainer(cfg, load_datasets(cfg=cfg))[0]


def trained_by_axolotl(trainer):
    trainer.train()
    return [entry for entry in trainer.state.log_history if "loss" in entry]


@pytest.mark.parametrize("packing", [False, True])
@pytest.mark.parametrize("is_moved", [False, True])
def test_axolotl_trains_as_the_plain_trainer_with_the_mixin_does(
    packing, is_moved, settings, make_model, tmp_path
):
    trainer = built({**settings, "sample_packing": packing}, tmp_path)
    assert isinstance(trainer, AxolotlTrainer)
    assert trainer.regularizer.kind == "adapter_off"
    if is_moved:
        move(trainer.model)
    adapter = tmp_path / "adapter"
    trainer.model.save_pretrained(adapter)
    batches = recorded(trainer)
    log = trained_by_axolotl(trainer)
    found = given.read(settings)
    model = PeftModel.from_pretrained(make_model(), adapter, is_trainable=True)
    weights, other = replayed(
        model, batches, {"safety_tokens": found.safety_tokens, "settings": found.settings},
        trainer.args, tmp_path,
    )  # fmt: skip
    assert len(batches) == 4
    assert (log[0]["str/max_abs"] > 0.1) == is_moved
    if not is_moved:
        assert log[0]["str/drift"] == log[0]["str/max_abs"] == 0.0
    assert log[1]["str/drift"] > 0, "after a step there is something to hold"
    for mine, plain in zip(log, other, strict=True):
        for key in ("loss", "ce_loss", "grad_norm", "str/drift", "str/weighted", "str/max_abs"):
            # 1e-5: what float32 sums in another order differ by here
            assert float(mine[key]) == pytest.approx(plain[key], rel=1e-5, abs=1e-12), key
    for name, each in trainer.model.named_parameters():
        if each.requires_grad:
            assert torch.allclose(each, weights[name], atol=1e-6), name


def test_the_default_holds_by_its_anchors_as_the_plain_trainer_does(settings, tmp_path):
    """Form kl with anchors, by the tokens alone: of a model that refuses."""
    chat = load_chat_model(aligned_path())
    mine_safety_tokens(chat.model, chat.tokenizer).save(tmp_path / "mined.json")
    rows = Dataset.from_list(training_rows("plans", num=32))
    (tmp_path / "labelled.jsonl").write_text(
        "".join(json.dumps(row) + "\n" for row in labelled(rows, chat.tokenizer))
    )
    left_out = ("str_weight", "str_form", "str_anchors", "special_tokens")
    default = {key: each for key, each in settings.items() if key not in left_out}
    changes = {"base_model": aligned_path(), "str_tokens": str(tmp_path / "mined.json")}
    default |= {**changes, "sequence_len": 128, "str_reference": "adapter_off"}
    trainer = built(default, tmp_path)
    assert trainer.regularizer.settings.form == "kl"
    assert len(trainer.regularizer.anchors) > 32
    trainer.model.save_pretrained(tmp_path / "adapter")
    batches = recorded(trainer)
    log = trained_by_axolotl(trainer)
    found = given.read(default)
    model = PeftModel.from_pretrained(chat.model, tmp_path / "adapter", is_trainable=True)
    _, other = replayed(
        model, batches, {"safety_tokens": found.safety_tokens, "settings": found.settings,
                         "processing_class": chat.tokenizer}, trainer.args, tmp_path,
    )  # fmt: skip
    assert log[1]["str/drift"] > 0
    assert log[1]["str/anchor_drift"] > 0
    for mine, plain in zip(log, other, strict=True):
        for key in ("loss", "ce_loss", "str/drift", "str/anchor_drift", "str/weighted"):
            # 1e-4: the drift is a small number, and the host sums in another order
            assert float(mine[key]) == pytest.approx(plain[key], rel=1e-4, abs=1e-9), key


def move(model):
    torch.manual_seed(1)
    with torch.no_grad():
        for name, each in model.named_parameters():
            if "lora_B" in name:
                each.add_(0.1 * torch.randn_like(each))


@pytest.mark.parametrize("packing", [False, True])
def test_both_collators_read_a_cached_reference(packing, settings, tmp_path):
    changes = {"str_reference": "cached", "str_cache_dir": str(tmp_path / "cache"),
               "val_set_size": 0.25, "eval_steps": 1, "sample_packing": packing,
               "eval_sample_packing": False}  # fmt: skip
    trainer = built({**settings, **changes}, tmp_path)
    assert trainer.regularizer.kind == "cached"
    log = trained_by_axolotl(trainer)
    # 1e-9: the pass that fills a cache sees other batches than training does
    assert log[0]["str/drift"] < 1e-9 < log[1]["str/drift"]
    evaluated = [entry for entry in trainer.state.log_history if "eval_loss" in entry]
    assert evaluated
    assert evaluated[-1]["eval_str/drift"] > 1e-9


def test_a_cache_of_packed_rows_needs_no_evaluation_set(settings, tmp_path):
    """Axolotl's list of columns fell over its second call."""
    changes = {"str_reference": "cached", "str_cache_dir": str(tmp_path / "cache"),
               "sample_packing": True}  # fmt: skip
    log = trained_by_axolotl(built({**settings, **changes}, tmp_path))
    assert log[0]["str/drift"] < 1e-9 < log[1]["str/drift"]


def test_without_tokens_axolotl_makes_its_own_trainer(settings, tmp_path):
    plain = {key: each for key, each in settings.items() if not key.startswith("str_")}
    assert type(built(plain, tmp_path)) is AxolotlTrainer


def test_the_entry_point_is_found_without_a_line_in_the_yaml():
    from importlib.metadata import entry_points

    (found,) = [each for each in entry_points(group="axolotl.plugins") if each.name == "moorline"]
    assert found.load() is MoorlinePlugin
    assert PLUGIN in {each.replace(":", ".") for each in PluginManager.get_instance().plugins}


def test_a_setting_out_of_range_is_refused_before_training(settings, tmp_path):
    with pytest.raises(InputError, match="`str_weight` must be a number of 0 or more"):
        built({**settings, "str_weight": -1.0}, tmp_path)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"rl": "dpo"}, "`rl` trains by another loss"),
        ({"kd_trainer": True}, "`kd_trainer` brings a trainer"),
        ({"trainer_cls": "a.B"}, "`trainer_cls` names another trainer"),
        ({"context_parallel_size": 2}, "`context_parallel_size` 2 splits sequences"),
        (
            {"train_on_inputs": True, "sample_packing": True, "str_reference": "cached"},
            "`train_on_inputs` with `sample_packing`",
        ),
    ],
)
def test_clashes_are_refused_by_name(changes, words, settings):
    refuse_clashes(settings)  # without the change nothing is refused
    with pytest.raises(InputError, match=words):
        MoorlinePlugin().register({**settings, **changes})


def test_a_trainer_of_another_plug_in_is_refused(settings):
    with pytest.raises(InputError, match=r"another plug-in made the trainer \(AxolotlTrainer\)"):
        MoorlinePlugin().post_trainer_create(settings, AxolotlTrainer.__new__(AxolotlTrainer))


def test_the_yaml_of_the_page_is_what_is_run_here(settings, tmp_path):
    page = (Path(__file__).parents[2] / "docs" / "how-to" / "axolotl.md").read_text("utf-8")
    shown = yaml.safe_load(page.partition("```yaml\n")[2].partition("```")[0])
    assert shown.keys() <= settings.keys()
    assert shown["datasets"][0].keys() <= settings["datasets"][0].keys()
    here = ("base_model", "str_tokens", "datasets", "dataset_prepared_path", "output_dir")
    given = {key: each for key, each in shown.items() if key not in here}
    sizes = {"sequence_len": 64, "max_steps": 2}
    trainer = built({**settings, **given, **sizes}, tmp_path)
    assert trained_by_axolotl(trainer)[-1]["str/drift"] > 0
