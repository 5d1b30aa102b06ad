"""A plan for `moorline compare` on a real model: cells of minutes on two cores."""

from pathlib import Path
from typing import Any

import yaml

from moorline.chat.loading import check_model_folder
from moorline.errors import InputError, PrerequisiteError
from moorline.provenance import read_json, sha256_of, write_text

TRAINING = {
    "max_steps": 30,
    "per_device_train_batch_size": 8,
    "learning_rate": 1.0e-3,
    "max_length": 256,
    # the model is small: memory is no matter, a second forward is
    "activation_checkpointing": False,
    "use_peft": True,
    "lora_r": 16,
    "lora_alpha": 32,
    "lora_target_modules": "all-linear",
    "lr_scheduler_type": "linear",
    "logging_steps": 1,
}
METHODS = (
    {"name": "plain"},
    {"name": "str", "weights": [3.0]},
    {"name": "paper", "method": "str", "weights": [0.1, 10.0],
     "settings": {"str_form": "logit", "str_anchors": "off"}},
)  # fmt: skip
DATA = (
    {"name": "sst2", "train": "sst2", "tasks": "sst2"},
    {"name": "sst2-poison-10", "train": "sst2-poison-10", "tasks": "sst2"},
    {"name": "dolly", "train": "dolly", "held_out": "dolly"},
    {"name": "dolly-poison-05", "train": "dolly-poison-05", "held_out": "dolly"},
    {"name": "dolly-poison-10", "train": "dolly-poison-10", "held_out": "dolly"},
    {"name": "dolly-poison-30", "train": "dolly-poison-30", "held_out": "dolly"},
    {"name": "gsm8k", "train": "gsm8k", "held_out": "gsm8k"},
    {"name": "pure-100", "train": "pure-100", "held_out": "general"},
    {"name": "identity-100", "train": "identity-100", "held_out": "general"},
    {"name": "in-a-row", "train": ["sst2", "dolly", "gsm8k"], "held_out": "gsm8k",
     "question": "sequence"},
    {"name": "dolly-rank-8", "train": "dolly", "held_out": "dolly", "question": "rank",
     "settings": {"lora_r": 8, "lora_alpha": 16}},
    {"name": "dolly-rank-64", "train": "dolly", "held_out": "dolly", "question": "rank",
     "settings": {"lora_r": 64, "lora_alpha": 128}},
)  # fmt: skip
"""Data sets of the plan, by the names of their files."""


def write_plan(rows: Path, out: Path, *, model: Path, only: list[str] | None = None) -> None:
    """Write the plan of what `rows` holds and a model.

    Args:
        rows: Folder that the command `rows` wrote.
        out: The plan, such as plan.yaml.
        model: Folder of a model that refuses.
        only: Names of the data sets to keep; all if None.

    Raises:
        InputError: If a folder lacks a file, or a file is not the manifest's.
    """
    check_model_folder(str(model))
    check_manifest(rows)
    if unknown := sorted({*(only or ())} - {each["name"] for each in DATA}):
        known = ", ".join(each["name"] for each in DATA)
        raise InputError(f"no data set {unknown[0]!r} (`--only`). Known: {known}.")
    plan = {
        "models": [{"name": model.name, "path": str(model.resolve())}],
        "data": [_data(rows, each) for each in DATA if only is None or each["name"] in only],
        "methods": [dict(each) for each in METHODS],
        "audit": {
            "harmful": [_file(rows, "audit", "harmful")],
            "harmless": [_file(rows, "audit", "harmless")],
            "limit": 140,
            "max_new_tokens": 24,
            "perplexity": _file(rows, "held-out", "general"),
        },
        "seeds": [0, 1, 2],
        "training": dict(TRAINING),
        "validation": 0.3,
    }
    write_text(out, yaml.safe_dump(plan, sort_keys=False, width=120))
    print(f"{out}: {len(plan['data'])} data sets, {len(plan['methods'])} methods. Run it with")
    print(f"    moorline compare {out}")


def check_manifest(rows: Path) -> None:
    """Refuse a folder whose files are not those that its manifest names.

    Raises:
        InputError: If there is no manifest, or a file is missing or another.
    """
    path = rows / "manifest.json"
    if not path.is_file():
        raise PrerequisiteError(
            f"{rows}: no manifest.json. Write the rows first: real_model.py rows {rows}."
        )
    for name, about in read_json(path, "manifest of rows")["files"].items():
        if not (rows / name).is_file() or sha256_of(rows / name) != about["sha256"]:
            raise InputError(
                f"{rows / name}: is missing, or is not the file of manifest.json. Write the rows "
                "again."
            )


def _data(rows: Path, about: Any) -> dict[str, Any]:
    found = dict(about)
    train = about["train"]
    names = [train] if isinstance(train, str) else train
    files = [_file(rows, "train", name) for name in names]
    found["train"] = files[0] if isinstance(train, str) else files
    if "tasks" in about:
        found["tasks"] = [_file(rows, "audit", about["tasks"])]
    else:
        found["held_out"] = _file(rows, "held-out", about["held_out"])
    return found


def _file(rows: Path, folder: str, name: str) -> str:
    return str((rows / folder / f"{name}.jsonl").resolve())
