"""Files of a tuning or an audit as artifacts of Weights & Biases or MLflow.

Numbers of a training go there by TRL's `report_to`; this is for the files beside them.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from ..errors import InputError, PrerequisiteError, unknown_choice

FILES = (
    "run.json", "safety_tokens.json", "anchors.jsonl", "audit.json", "answers.jsonl", "drift.json",
    "junit.xml",
)  # fmt: skip
"""What is logged of a folder, where it is there."""


def log_files(folder: str | Path, to: str) -> list[Path]:
    """Log the files of a folder as artifacts of the run that is open, or of a new one.

    Where to and under which key is for the tracker's own environment variables to say.

    Args:
        folder: What `moorline audit` or `moorline tune` wrote.
        to: "wandb" or "mlflow".

    Returns:
        The files.

    Raises:
        InputError: If there is no such tracker, or nothing to log.
        PrerequisiteError: If its package is not installed.
    """
    if to not in TRACKERS:
        raise unknown_choice("tracker", to, TRACKERS)
    paths = [path for name in FILES if (path := Path(folder) / name).is_file()]
    if not paths:
        raise InputError(f"{folder}: none of {', '.join(FILES)} is there. Check the path.")
    TRACKERS[to](_package(to), paths, Path(folder).resolve().name)
    return paths


def check_tracker(name: str) -> None:
    """Refuse a tracker that cannot be logged to, before there is anything to log.

    Raises:
        InputError: If there is no such tracker.
        PrerequisiteError: If its package is not installed.
    """
    if name not in TRACKERS:
        raise unknown_choice("tracker", name, TRACKERS)
    _package(name)


def _package(name: str) -> ModuleType:
    import importlib

    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise PrerequisiteError(
            f"Logging to {name} needs the package {name}, which is not installed. Run "
            f"`pip install {name}`."
        ) from error


def _wandb(wandb: Any, paths: Sequence[Path], name: str) -> None:
    open_before = wandb.run is not None
    run = wandb.run or wandb.init(job_type="moorline")
    allowed = "".join(each if each.isalnum() or each in "-_." else "-" for each in name)
    artifact = wandb.Artifact(f"moorline-{allowed}", type="moorline")
    for path in paths:
        artifact.add_file(str(path))
    run.log_artifact(artifact)
    if not open_before:
        run.finish()


def _mlflow(mlflow: Any, paths: Sequence[Path], name: str) -> None:
    # Its callback of transformers ends the run with the training: the last one is meant then.
    last = mlflow.active_run() or mlflow.last_active_run()
    client = mlflow.MlflowClient()
    if last is None:
        last = mlflow.start_run(run_name=name)
        mlflow.end_run()
    for path in paths:
        client.log_artifact(last.info.run_id, str(path), "moorline")


TRACKERS: dict[str, Callable[[Any, Sequence[Path], str], None]] = {
    "wandb": _wandb, "mlflow": _mlflow,
}  # fmt: skip
"""Trackers by name."""
