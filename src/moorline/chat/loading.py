"""Read models and tokenizers from folders and the hub, with errors that say what to do."""

import functools
import importlib.util
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import huggingface_hub
import torch
from huggingface_hub import constants, try_to_load_from_cache
from huggingface_hub.errors import HfHubHTTPError, HFValidationError
from safetensors import SafetensorError, safe_open
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig

from ..errors import InputError, MoorlineError, PrerequisiteError, unknown_choice
from .chat_model import ChatModel

DTYPES = ("auto", "bfloat16", "float16", "float32")
"""Names of dtypes; `auto` is that of the stored weights."""

_HUB_SECONDS = 5.0
"""How long the hub may take to answer, before it counts as out of reach."""

_FULL = re.compile("out of memory|allocate memory")
"""How torch says that a GPU, or this machine, has no memory left."""

QUANTIZATIONS = ("4bit", "8bit")
"""Names of quantizations, all by bitsandbytes."""


def check_model_folder(name: str) -> None:
    """Refuse a local model folder that lacks what a model needs, and a name that is neither.

    What is no folder is a hub id, if that: where it is not in the hub's cache, and the hub cannot
    be reached within seconds or does not know it, that is said at once. The hub's own client tries
    again and again for half a minute.

    Raises:
        InputError: If the folder is missing, or has no configuration or no weights; or a name
            without "/" is no folder, and no model of the hub as far as can be told.
        PrerequisiteError: If the hub cannot be reached.
    """
    if not name.strip():
        raise InputError("The name of the model is empty. Give its folder or hub id.")
    folder = Path(name).expanduser()
    if not folder.exists():
        if name.startswith((".", "/", "~")) or name.count("/") > 1:
            raise InputError(f"{name}: no such model folder. Check the path.")
        _check_on_hub(name)
        return
    if not folder.is_dir():
        raise InputError(f"{name}: a file, but a model is a folder. Give the folder of a model.")
    if not (folder / "config.json").is_file():
        raise InputError(f"{name}: no config.json in the model folder. Give the folder of a model.")
    if not any(folder.glob("*.safetensors")) and not any(folder.glob("*.bin")):
        raise InputError(
            f"{name}: no weights (*.safetensors or *.bin) in the model folder. Download it whole."
        )


def check_adapter_folder(folder: str | Path) -> None:
    """Refuse a folder that holds no PEFT adapter.

    Raises:
        InputError: If it has no configuration or no weights of an adapter.
    """
    folder = Path(folder)
    if not (folder / "adapter_config.json").is_file():
        raise InputError(f"{folder}: no adapter_config.json (`adapter`). Give a PEFT folder.")
    if not any((folder / f"adapter_model.{each}").is_file() for each in ("safetensors", "bin")):
        raise InputError(
            f"{folder}: no weights of the adapter (adapter_model.safetensors). Download it whole."
        )


@functools.cache
def _check_on_hub(name: str) -> None:
    """Ask the hub once whether it has a model; nothing where it is cached or we are offline."""
    cached = isinstance(try_to_load_from_cache(name, "config.json"), str)
    if cached or constants.HF_HUB_OFFLINE:
        return
    try:
        huggingface_hub.HfApi().model_info(name, timeout=_HUB_SECONDS)
    except HfHubHTTPError as error:
        if getattr(error.response, "status_code", 0) >= 500:
            raise _unreachable(name, error) from error
        return  # unknown, private or gated: the loader says which
    except HFValidationError:
        return
    except Exception as error:  # whatever its client raises: it has had several HTTP libraries
        raise _unreachable(name, error) from error


def _unreachable(name: str, error: Exception) -> MoorlineError:
    reason = _first_line(error)
    if "/" in name and not Path(name).parent.is_dir():
        return PrerequisiteError(
            f"{name}: no such folder, and the hub cannot be reached to look for it there "
            f"({reason}). Check the path or the network."
        )
    return InputError(
        f"{name}: no such folder. If it is a hub id, it needs the network, and the hub cannot be "
        f"reached ({reason}). Check the path or the network."
    )


def load(kind: Any, name: str, **kwargs: Any) -> Any:
    """`kind.from_pretrained(name, ...)` for a class of transformers.

    Raises:
        InputError: If a local name is mistyped, a file in the folder is damaged, or a model's
            files lack weights: transformers would draw them at random.
        PrerequisiteError: If a hub id is unknown or may not be read, or a package is missing.
    """
    with _told(name):
        if kind is not AutoModelForCausalLM:
            return kind.from_pretrained(name, **kwargs)
        model, found = kind.from_pretrained(name, **kwargs, output_loading_info=True)  # pyright: ignore[reportGeneralTypeIssues]
    if lacking := sorted(found["missing_keys"]):
        raise InputError(
            f"{name}: its files have no weights for {_named(lacking)} of the model that its "
            "config.json describes. Download or save this folder again."
        )
    return model


def _named(weights: Sequence[str]) -> str:
    """The first three, and how many more there are."""
    first = ", ".join(weights[:3])
    return first if len(weights) <= 3 else f"{first} and {len(weights) - 3} more"


@contextmanager
def _told(name: str) -> Iterator[None]:
    """What goes wrong in reading from `name`, as an error of ours."""
    try:
        yield
    except ImportError as error:
        raise PrerequisiteError(
            f"{name}: needs a package that is not installed ({_first_line(error)}). Install it."
        ) from error
    except Exception as error:  # what configurations from outside make the libraries raise
        if isinstance(error, MoorlineError | MemoryError) or _FULL.search(str(error)):
            raise
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
        dtype: "auto" (as stored), "float32", "bfloat16" or "float16".
        revision: Branch, tag or commit on the hub.
        trust_remote_code: Whether code that comes with the model may run.
        device_map: Where its layers go, as accelerate has it ("auto"); by default one device.
        quantization: "4bit" or "8bit", by bitsandbytes; None for neither.

    Raises:
        InputError: If a local folder lacks what a model needs, or an argument is none of the known.
        PrerequisiteError: If the name is unknown on the hub or may not be read, or a package is
            missing.
    """
    if dtype is not None and dtype not in DTYPES:
        raise unknown_choice("dtype", dtype, DTYPES)
    check_model_folder(name)
    if adapter is not None:
        check_adapter_folder(adapter)
    remote = {"revision": revision, "trust_remote_code": trust_remote_code}
    cuda = torch.cuda.is_available()
    settings = {"dtype": dtype or ("auto" if cuda else "float32"), "device_map": device_map}
    model = load(AutoModelForCausalLM, name, **remote, **settings, **_quantized(quantization))
    if device_map is None and quantization is None:
        model = model.to("cuda" if cuda else "cpu")
    if adapter is not None:
        model = with_adapter(model, adapter)
    own = adapter is not None and (Path(adapter) / "tokenizer_config.json").is_file()
    if tokenizer is not None or own:
        return ChatModel(model, load(AutoTokenizer, str(tokenizer or adapter)))
    return ChatModel(model, load(AutoTokenizer, name, **remote))


def with_adapter(model: Any, folder: str | Path, **kwargs: Any) -> Any:
    """A model with a PEFT adapter on it.

    Raises:
        InputError: If the adapter is damaged or lacks weights, or was trained on a model of other
            sizes.
    """
    from peft import PeftModel, get_peft_model_state_dict, load_peft_weights

    with _told(str(folder)), warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*missing adapter keys")  # refused below
        try:
            adapted = PeftModel.from_pretrained(model, str(folder), **kwargs)
        except RuntimeError as error:  # torch: a list of the weights whose sizes differ
            wrong = [line.strip() for line in str(error).splitlines() if "size mismatch" in line]
            if not wrong:
                raise
            raise InputError(
                f"{folder}: does not fit the model it is put on ({wrong[0][:200]}). "
                "Give the model that it was trained on; if that had tokens added, save it with "
                "them, and name it in adapter_config.json."
            ) from error
        there = load_peft_weights(str(folder), device="cpu").keys()
        # What peft does not find in the files stays as it was drawn, and is warned of alone.
        wanted = get_peft_model_state_dict(adapted, save_embedding_layers=False).keys()
        if lacking := sorted(wanted - there):
            raise InputError(
                f"{folder}: has no weights for {_named(lacking)} of the adapter that its "
                "adapter_config.json describes. Download or save this folder again, or give the "
                "model that it was trained on."
            )
        return adapted


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
