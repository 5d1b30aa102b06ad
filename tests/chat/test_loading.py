"""Loading says what is wrong with a name, a file or a machine, in one line."""

import json
import shutil

import pytest
import torch
from helpers import lora
from peft import get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from moorline.chat.loading import load, load_chat_model
from moorline.errors import InputError, PrerequisiteError


def test_a_model_is_read_with_its_tokenizer_in_float32_on_a_cpu(model_folder):
    chat = load_chat_model(str(model_folder))
    assert chat.name == str(model_folder)
    assert chat.tokenizer.chat_template
    if not torch.cuda.is_available():
        assert chat.model.dtype == torch.float32


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_the_dtype_that_is_asked_for_is_had(model_folder, dtype):
    assert load_chat_model(str(model_folder), dtype=dtype).model.dtype == getattr(torch, dtype)


def test_auto_is_the_dtype_of_the_file(make_model, tokenizer, tmp_path):
    make_model(dtype=torch.bfloat16).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    assert load_chat_model(str(tmp_path), dtype="auto").model.dtype == torch.bfloat16


def test_an_adapter_is_put_on_with_its_own_tokenizer(model_folder, tokenizer, tmp_path):
    model = AutoModelForCausalLM.from_pretrained(model_folder)
    adapted = get_peft_model(model, lora(init_lora_weights=False)).eval()
    folder = tmp_path / "adapter"
    adapted.save_pretrained(folder)
    plain = load_chat_model(str(model_folder))
    rows = [plain.render("w1 w2")]
    found = load_chat_model(str(model_folder), adapter=folder)
    assert not torch.allclose(plain.next_token_nats(rows), found.next_token_nats(rows), atol=1e-2)
    with torch.no_grad():
        expected = adapted(torch.tensor(rows)).logits[:, -1].log_softmax(-1)
    assert torch.allclose(found.next_token_nats(rows), expected, atol=1e-5)
    assert found.tokenizer.chat_template == plain.tokenizer.chat_template
    tokenizer.save_pretrained(folder)
    (folder / "chat_template.jinja").write_text("another {{ messages[0]['content'] }}")
    own = load_chat_model(str(model_folder), adapter=folder)
    assert own.tokenizer.chat_template.startswith("another")
    given = load_chat_model(str(model_folder), adapter=folder, tokenizer=model_folder)
    assert given.tokenizer.chat_template == plain.tokenizer.chat_template
    with pytest.raises(InputError, match=r"no adapter_config\.json"):
        load_chat_model(str(model_folder), adapter=tmp_path)


@pytest.mark.parametrize("name", ["my-modle", "{here}/typo"])
def test_a_mistyped_local_name_is_said_to_be_no_folder(tmp_path, monkeypatch, name):
    """It was taken for a hub id, and the user was told to log in."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models").mkdir()
    name = name.format(here="models")
    with pytest.raises(InputError, match="no such folder here") as told:
        load_chat_model(name)
    assert "hf auth login" not in str(told.value)
    assert "\n" not in str(told.value)


def test_a_hub_id_that_cannot_be_read_names_the_login():
    with pytest.raises(PrerequisiteError, match=r"nobody/nothing: cannot be loaded.*hf auth login"):
        load_chat_model("nobody/nothing")


@pytest.mark.parametrize("damage", ["cut", "no header"])
def test_damaged_weights_are_named(model_folder, tmp_path, damage):
    """A cut file of weights ended in a traceback that did not name it."""
    folder = tmp_path / "damaged"
    shutil.copytree(model_folder, folder)
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1000] if damage == "cut" else b"not weights at all")
    with pytest.raises(InputError, match=r"damaged/model\.safetensors: damaged weights .*again"):
        load_chat_model(str(folder))


def test_a_missing_package_is_named(model_folder):
    class Needs:
        @staticmethod
        def from_pretrained(name):
            raise ImportError(f"{name} needs flash_attn.\nMore lines")

    with pytest.raises(PrerequisiteError, match=r"not installed \(.*flash_attn\)\. Install it\.$"):
        load(Needs, str(model_folder))


@pytest.mark.parametrize("quantization", ["4bit", "8bit"])
def test_quantization_without_bitsandbytes_is_one_line(model_folder, monkeypatch, quantization):
    import importlib.util

    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "bitsandbytes" else find(name)
    )
    with pytest.raises(PrerequisiteError, match="needs the package bitsandbytes"):
        load_chat_model(str(model_folder), quantization=quantization)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"dtype": "bf16"}, r"Unknown dtype 'bf16'\. Known: 'auto', 'bfloat16'"),
        ({"quantization": "4 bit"}, r"Unknown quantization '4 bit'.*Did you mean '4bit'"),
    ],
)
def test_unknown_words_are_refused_before_anything_is_read(model_folder, values, words):
    with pytest.raises(InputError, match=words):
        load_chat_model(str(model_folder), **values)


def without(path, part, renamed=None):
    """Take tensors out of a file, or give them another name."""
    kept = {}
    for name, value in load_file(path).items():
        if part not in name:
            kept[name] = value
        elif renamed is not None:
            kept[name.replace(part, renamed)] = value
    save_file(kept, path, metadata={"format": "pt"})


@pytest.mark.parametrize("part", ["layers.1.", "layers.0.self_attn.q_proj"])
def test_a_model_whose_files_lack_weights_is_refused(model_folder, part):
    """Transformers drew them at random, and an audit or a tuning went on without a word."""
    load_chat_model(str(model_folder))
    without(model_folder / "model.safetensors", part)
    with pytest.raises(InputError, match=r"no weights for model\.layers\.\d\."):
        load_chat_model(str(model_folder))


@pytest.mark.parametrize(("part", "renamed"), [("lora_B", None), ("base_model", "bose_model")])
def test_an_adapter_whose_file_lacks_weights_is_refused(model_folder, tmp_path, part, renamed):
    """It was put on as it was drawn: the model was audited as if nothing had been tuned."""
    model = AutoModelForCausalLM.from_pretrained(model_folder)
    folder = tmp_path / "adapter"
    get_peft_model(model, lora(init_lora_weights=False)).save_pretrained(folder)
    load_chat_model(str(model_folder), adapter=folder)
    without(folder / "adapter_model.safetensors", part, renamed)
    with pytest.raises(InputError, match=r"no weights for base_model\..* of the adapter"):
        load_chat_model(str(model_folder), adapter=folder)


@pytest.mark.parametrize(("name", "changes"), [
    ("config.json", {"vocab_size": -1}),
    ("config.json", {"vocab_size": 10}),
    ("config.json", {"num_attention_heads": 0}),
    ("config.json", {"hidden_act": "nosuch"}),
    ("config.json", {"quantization_config": 5}),
    ("tokenizer.json", []),
    ("generation_config.json", []),
])  # fmt: skip
def test_a_file_that_no_library_can_read_is_one_line(model_folder, name, changes):
    """Each library fails in words and types of its own, and these came out as tracebacks."""
    path = model_folder / name
    there = json.loads(path.read_text())
    path.write_text(json.dumps({**there, **changes} if isinstance(changes, dict) else changes))
    with pytest.raises(InputError, match="cannot be loaded|damaged"):
        load_chat_model(str(model_folder))


@pytest.mark.parametrize("changes", [
    {"peft_type": "NOSUCH"}, {"target_modules": "["}, {"r": "x"}, {"rank_pattern": 5},
    {"layer_replication": [[0, 99]]},
])  # fmt: skip
def test_an_adapter_that_peft_cannot_read_is_one_line(model_folder, tmp_path, changes):
    model = AutoModelForCausalLM.from_pretrained(model_folder)
    folder = tmp_path / "adapter"
    get_peft_model(model, lora()).save_pretrained(folder)
    path = folder / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    with pytest.raises(InputError, match=f"{folder}: "):
        load_chat_model(str(model_folder), adapter=folder)


def test_an_end_that_is_no_token_is_refused(model_folder):
    path = model_folder / "generation_config.json"
    path.write_text('{"eos_token_id": "x"}')
    with pytest.raises(InputError, match="`eos_token_id` .* is 'x'"):
        _ = load_chat_model(str(model_folder)).ends
