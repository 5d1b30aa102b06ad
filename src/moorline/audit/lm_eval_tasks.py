"""Utility on the tasks of lm-eval, through the `eval` extra."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from ..errors import InputError, PrerequisiteError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class TaskScore(NamedTuple):
    """One metric of one task, as lm-eval reports it."""

    task: str
    metric: str
    """lm-eval's name with its filter if it has one: `acc`, `exact_match,strict-match`."""

    value: float
    standard_error: float | None
    """None where lm-eval has none."""

    num: int
    """How many of the task's items were asked."""


def lm_eval_tasks(
    model: Any,
    tokenizer: "PreTrainedTokenizerBase",
    tasks: Sequence[str],
    *,
    batch_size: int = 8,
    limit: int | None = None,
    include_path: str | Path | None = None,
    seed: int = 0,
) -> list[TaskScore]:
    """What a model scores on tasks of lm-eval: a call of its `HFLM` and `simple_evaluate`.

    Prompts go through the chat template if the tokenizer has one. lm-eval's own default is not to,
    and figures of the two differ.

    What it cannot see: what lm-eval cannot, which is for each task's own page.

    Args:
        model: A causal language model of transformers, with or without an adapter.
        tokenizer: Its tokenizer.
        tasks: Names of tasks or groups of lm-eval, at least one.
        batch_size: Requests per forward pass, 1 or more.
        limit: Items per task, the first ones; None for all.
        include_path: A folder with your own tasks as YAML.
        seed: Seed of lm-eval's random choices, such as those of examples in the prompt.

    Returns:
        One entry for each task and metric, in lm-eval's order.

    Raises:
        InputError: If there are no tasks, or lm-eval does not know one.
        PrerequisiteError: If lm-eval is not installed, or the data of a task cannot be fetched.

    Source:
        Gao et al. 2024, "The Language Model Evaluation Harness", https://zenodo.org/records/12608602
    """
    manager = check_tasks(tasks, include_path)
    from lm_eval import simple_evaluate  # pyright: ignore[reportMissingImports]
    from lm_eval.models.huggingface import HFLM  # pyright: ignore[reportMissingImports]

    training = model.training
    try:
        found: Any = simple_evaluate(
            model=HFLM(pretrained=model, tokenizer=tokenizer, batch_size=batch_size),
            tasks=list(tasks),
            task_manager=manager,
            limit=limit,
            apply_chat_template=bool(tokenizer.chat_template),
            log_samples=False,
            random_seed=seed,
            numpy_random_seed=seed,
            torch_random_seed=seed,
            fewshot_random_seed=seed,
        )
    except OSError as error:
        first = (str(error).strip().splitlines() or ["no reason given"])[0]
        raise PrerequisiteError(
            f"The data of {', '.join(tasks)} cannot be fetched ({first}). Check the network, and "
            "run `hf auth login` for data that ask for it."
        ) from error
    finally:
        model.train(training)
    return [
        _score(found, task, key)
        for task, results in found["results"].items()
        for key in results
        # keys are metric,filter; the rest (alias, sample_len) describe the task
        if "," in key and not key.split(",")[0].endswith("_stderr")
    ]


def check_tasks(tasks: Sequence[str], include_path: str | Path | None = None) -> Any:
    """Refuse tasks that lm-eval does not know; gives its `TaskManager`.

    Raises:
        InputError: If there are no tasks, or lm-eval does not know one.
        PrerequisiteError: If lm-eval is not installed.
    """
    try:
        from lm_eval.tasks import TaskManager  # pyright: ignore[reportMissingImports]
    except ModuleNotFoundError as error:
        raise PrerequisiteError(
            "Tasks of lm-eval need lm-eval, which is not installed. Run "
            "`pip install 'moorline[eval]'`."
        ) from error
    if not tasks:
        raise InputError("`tasks` is empty. Name at least one; `lm-eval ls tasks` lists them.")
    manager = TaskManager(include_path=None if include_path is None else str(include_path))
    for name in tasks:
        if name not in manager.all_tasks:
            raise InputError(f"lm-eval knows no task {name!r}. `lm-eval ls tasks` lists them.")
    return manager


def _score(found: Any, task: str, key: str) -> TaskScore:
    results = found["results"][task]
    metric, kept = key.split(",", maxsplit=1)
    error = results.get(f"{metric}_stderr,{kept}")
    return TaskScore(
        task=task,
        metric=metric if kept == "none" else key,
        value=float(results[key]),
        # lm-eval says "N/A" where it has none
        standard_error=float(error) if isinstance(error, float) else None,
        num=_num(found, task),
    )


def _num(found: Any, task: str) -> int:
    """Items asked of a task, or of all tasks of a group."""
    if task in found["n-samples"]:
        return int(found["n-samples"][task]["effective"])
    return sum(_num(found, each) for each in found["group_subtasks"][task])
