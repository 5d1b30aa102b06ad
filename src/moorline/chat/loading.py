"""Read models and tokenizers from folders and the hub, with errors that say what to do."""

from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from ..errors import InputError, PrerequisiteError
from .chat_model import ChatModel


def check_model_folder(name: str) -> None:
    """Refuse a local model folder that lacks what a model needs; hub ids pass.

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
        PrerequisiteError: If the name is unknown here and on the hub, or may not be read.
    """
    try:
        return kind.from_pretrained(name, **kwargs)
    except (OSError, ValueError) as error:
        first = (str(error).strip().splitlines() or ["no reason given"])[0]
        raise PrerequisiteError(
            f"{name}: cannot be loaded ({first}). Check the name and the network, and run "
            "`hf auth login` for models that ask for it."
        ) from error


def load_chat_model(name: str) -> ChatModel:
    """A model and its tokenizer, to answer with: on a GPU as stored, on a CPU in float32.

    Raises:
        InputError: If a local folder lacks what a model needs.
        PrerequisiteError: If the name is unknown here and on the hub, or may not be read.
    """
    check_model_folder(name)
    cuda = torch.cuda.is_available()
    model = load(AutoModelForCausalLM, name, dtype="auto" if cuda else torch.float32)
    return ChatModel(model.to("cuda" if cuda else "cpu"), load(AutoTokenizer, name))
