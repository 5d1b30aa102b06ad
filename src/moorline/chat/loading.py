"""Read models and tokenizers from folders and the hub, with errors that say what to do."""

import importlib.util
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig

from ..errors import InputError, PrerequisiteError, unknown_choice
from .chat_model import ChatModel

DTYPES = ("auto", "bfloat16", "float16", "float32")
"""Names of dtypes; `auto` is that of the stored weights."""

QUANTIZATIONS = ("4bit", "8bit")
"""Names of quantizations, all by bitsandbytes."""


def check_model_folder(name: str) -> None:
    """Refuse a local model folder that lacks what a model needs; hub ids are left alone.

    Raises:
        InputError: If the folder is missing, or has no configuration or no weights.
    """
    folder = Path(name).expanduser()
    if not folder.exists():
        if name.startswith((".", "/", "~")) or name.count("/") > 1:
            raise InputError(f"{name}: no such model folder. Check the path.")
        return
    if not (folder / "config.json").is_file():
        raise InputError(f"{name}: no config.json in the model folder. Give the folder of a model.")
    if not any(folder.glob("*.safetensors")) and not any(folder.glob("*.bin")):
        raise InputError(
            f"{name}: no weights (*.safetensors or *.bin) in the model folder. Download it whole."
        )


def load(kind: Any, name: str, **kwargs: Any) -> Any:
    """`kind.from_pretrained(name, ...)` for a class of transformers.

    Raises:
        InputError: If a local name is mistyped or a file in the folder is damaged.
        PrerequisiteError: If a hub id is unknown or may not be read, or a package is missing.
    """
    with _told(name):
        return kind.from_pretrained(name, **kwargs)


@contextmanager
def _told(name: str) -> Iterator[None]:
    """What goes wrong in reading from `name`, as an error of ours."""
    try:
        yield
    except ImportError as error:
        raise PrerequisiteError(
            f"{name}: needs a package that is not installed ({_first_line(error)}). Install it."
        ) from error
    except (OSError, ValueError, SafetensorError) as error:
        reason, folder = _first_line(error), Path(name).expanduser()
        broken = [each for each in sorted(folder.glob("*.safetensors")) if _is_damaged(each)]
        if broken:
            words = f"{broken[0]}: damaged weights ({reason}). Download the file again."
        elif folder.exists():
            words = f"{name}: cannot be loaded ({reason}). Download or save this folder again."
        elif "/" not in name or folder.parent.is_dir():
            words = (
                f"{name}: no such folder here, and {name!r} is not on the hub, as far as can be "
                f"told ({reason}). Check the path, or give a hub id such as 'org/name'."
            )
        else:
            raise PrerequisiteError(
                f"{name}: cannot be loaded ({reason}). Check the name and the network, and run "
                "`hf auth login` for models that ask for it."
            ) from error
        raise InputError(words) from error


def _is_damaged(path: Path) -> bool:
    try:
        with safe_open(path, framework="pt"):
            return False
    except (OSError, SafetensorError):
        return True


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or ["no reason given"])[0].rstrip(".")


def load_chat_model(
    name: str,
    *,
    adapter: str | Path | None = None,
    tokenizer: str | Path | None = None,
    dtype: str | None = None,
    revision: str | None = None,
    trust_remote_code: bool = False,
    device_map: str | None = None,
    quantization: str | None = None,
) -> ChatModel:
    """A model and its tokenizer, to answer with: on a GPU as stored, on a CPU in float32.

    Args:
        name: Folder or hub id.
        adapter: Folder of a PEFT adapter to put on it.
        tokenizer: Folder or hub id of the tokenizer; by default the adapter's own if its folder has
            one, or else the model's.
        dtype: One of `DTYPES`.
        revision: Branch, tag or commit on the hub.
        trust_remote_code: Whether code that comes with the model may run.
        device_map: Where its layers go, as accelerate has it ("auto"); by default one device.
        quantization: One of `QUANTIZATIONS`.

    Raises:
        InputError: If a local folder lacks what a model needs, or an argument is none of the known.
        PrerequisiteError: If the name is unknown on the hub or may not be read, or a package is
            missing.
    """
    if dtype is not None and dtype not in DTYPES:
        raise unknown_choice("dtype", dtype, DTYPES)
    check_model_folder(name)
    if adapter is not None and not (Path(adapter) / "adapter_config.json").is_file():
        raise InputError(f"{adapter}: no adapter_config.json (`adapter`). Give a PEFT folder.")
    remote = {"revision": revision, "trust_remote_code": trust_remote_code}
    cuda = torch.cuda.is_available()
    settings = {"dtype": dtype or ("auto" if cuda else "float32"), "device_map": device_map}
    model = load(AutoModelForCausalLM, name, **remote, **settings, **_quantized(quantization))
    if device_map is None and quantization is None:
        model = model.to("cuda" if cuda else "cpu")
    if adapter is not None:
        from peft import PeftModel

        with _told(str(adapter)):
            model = PeftModel.from_pretrained(model, adapter)
    own = adapter is not None and (Path(adapter) / "tokenizer_config.json").is_file()
    if tokenizer is not None or own:
        return ChatModel(model, load(AutoTokenizer, str(tokenizer or adapter)))
    return ChatModel(model, load(AutoTokenizer, name, **remote))


def _quantized(quantization: str | None) -> Mapping[str, BitsAndBytesConfig]:
    if quantization is None:
        return {}
    if quantization not in QUANTIZATIONS:
        raise unknown_choice("quantization", quantization, QUANTIZATIONS)
    if importlib.util.find_spec("bitsandbytes") is None:
        raise PrerequisiteError(
            f"quantization {quantization!r} needs the package bitsandbytes, which is not "
            "installed. Run `pip install bitsandbytes`, or load the model unquantized."
        )
    # QLoRA's settings: Dettmers et al. 2023, arXiv:2305.14314
    four = {"bnb_4bit_quant_type": "nf4", "bnb_4bit_compute_dtype": torch.bfloat16}
    config = BitsAndBytesConfig(**{f"load_in_{quantization}": True}, **four)
    return {"quantization_config": config}
