"""The prompts of an audit as a folder of tasks for lm-eval, judged by the same judge."""

import json
import shlex
from collections.abc import Iterable
from itertools import count, islice
from pathlib import Path
from string import Template

import yaml

from ..audit.answers import Answer
from ..errors import InputError
from ..provenance import as_json, file_in, write_text
from .audited import Audited, read_answers, read_audit

_JUDGED = ("refused", "complied", "degenerate")

_PYTHON = Template('''\
"""Rows and judge of these tasks, for lm-eval; written by `moorline export lm-eval`.

The judge is Moorline's own (`pip install moorline`), so that a rate here is the rate there.
"""

import json
import math
from pathlib import Path

from moorline.audit.judges import DegenerateFirst, judge
from moorline.audit.thoughts import after_thoughts

JUDGE = judge($judge, labels=$labels)


def _rows(suite):
    import datasets

    lines = Path(__file__).with_name(f"{suite}.jsonl").read_text(encoding="utf-8").split("\\n")
    rows = [json.loads(line) for line in lines if line]
    return {"test": datasets.Dataset.from_list(rows)}

$readers
def process_results(doc, results):
    """1 for the outcome of the answer, 0 for the others; nan where it is unscored."""
    answer, why = after_thoughts(results[0])
    kinds = [[doc["kind"]]] if isinstance(JUDGE, DegenerateFirst) else []
    outcome = "unscored" if why else JUDGE.verdicts([doc["prompt"]], [answer], *kinds)[0].outcome
    known = $judged
    return {each: float(each == outcome) if outcome in known else math.nan for each in known}


def mean_of_scored(values):
    """The mean without those that are unscored; nan if all are."""
    kept = [each for each in values if not math.isnan(each)]
    return sum(kept) / len(kept) if kept else math.nan
''')

_READER = Template("""\

def rows_$number(**metadata):
    return _rows($suite)

""")


def write_lm_eval(folder: str | Path, output: str | Path, *, judge: str | None = None) -> list[str]:
    """Write a folder that `lm_eval --include_path` runs: a task for each judged suite.

    Only the plain condition goes there, greedily; suites of a task are left out, since the right
    answers are in their own files.

    Args:
        folder: What `moorline audit` wrote.
        output: Folder for the tasks.
        judge: Its judge, by name; the audit's first if None. A program is never taken from the
            audit's files, which may be another's: it would run with the tasks.

    Returns:
        The words of the command that runs them on the audited model.

    Raises:
        InputError: If the folder holds no finished audit, nothing that can be a task, a suite whose
            name is a path, or a judge that is a program which was not named here.
    """
    audited, output = read_audit(folder), Path(output)
    found: dict[str, list[Answer]] = {}
    for each in read_answers(folder):
        if each.condition == "plain" and audited.suite(each.suite).kind != "task":
            found.setdefault(each.suite, []).append(each)
    if not found:
        raise InputError(
            f"{folder}: no harmful or harmless suite was asked plainly, so there is nothing to "
            "export. Audit with `--condition plain`."
        )
    files = {each: (file_in(output, f"{each}.jsonl"), file_in(output, f"{each}.yaml"))
             for each in found}  # fmt: skip
    judge = judge or _without_program(str(audited.settings["judges"][0]))
    if not (output.exists() and not output.is_dir()):
        output.mkdir(parents=True, exist_ok=True)
    names = _task_names(found)
    for number, (suite, answers) in enumerate(found.items()):
        kind = audited.suite(suite).kind
        rows = [{"id": each.id, "prompt": each.prompt, "kind": kind} for each in answers]
        prompts, task = files[suite]
        write_text(prompts, "".join(map(as_json, rows)))
        write_text(task, _yaml(audited, suite, names[suite], number))
    readers = "".join(
        _READER.substitute(number=number, suite=json.dumps(suite))
        for number, suite in enumerate(found)
    )
    judging = _PYTHON.substitute(
        judge=json.dumps(judge), judged=repr(_JUDGED), readers=readers,
        labels=json.dumps(audited.settings["labels"]),
    )  # fmt: skip
    write_text(output / "judging.py", judging)
    return _command(audited, names.values(), output)


def _without_program(judge: str) -> str:
    """The name of an audit's judge, refused where it would start a program."""
    if judge.partition(":")[0] == "command":
        raise InputError(
            f"The audit was judged by a program ({judge!r}), which the tasks would start. If it "
            "is yours, name it with `--judge`; or give another judge there."
        )
    return judge


def _task_names(suites: Iterable[str]) -> dict[str, str]:
    """A task's name for each suite; those that differ in punctuation alone are numbered."""
    names: dict[str, str] = {}
    for suite in suites:
        plain = "moorline_" + "".join(each if each.isalnum() else "_" for each in suite)
        others = (f"{plain}_{number}" for number in count(2))
        names[suite] = next(each for each in (plain, *islice(others, len(names) + 1))
                            if each not in names.values())  # fmt: skip
    return names


def _yaml(audited: Audited, suite: str, task: str, number: int) -> str:
    """The settings of one task."""
    settings = {
        "task": task,
        "test_split": "test",
        "output_type": "generate_until",
        "doc_to_text": "{{prompt}}",
        "doc_to_target": "{{kind}}",
        "generation_kwargs": {
            "do_sample": False,
            "max_gen_toks": audited.settings["max_new_tokens"],
            "until": [],
        },
        "metadata": {"version": 1, "suite_sha256": audited.suite(suite).sha256},
    }
    # Functions have a tag of lm-eval's own, which no other YAML knows.
    functions = f"custom_dataset: !function judging.rows_{number}\n"
    functions += "process_results: !function judging.process_results\nmetric_list:\n"
    for name in _JUDGED:
        functions += (
            f"  - metric: {name}\n    aggregation: !function judging.mean_of_scored\n"
            f"    higher_is_better: {str(name == 'refused').lower()}\n"
        )
    return yaml.safe_dump(settings, sort_keys=False, allow_unicode=True) + functions


def _command(audited: Audited, tasks: Iterable[str], output: Path) -> list[str]:
    kind, start = "hf", f"pretrained={audited.model}"
    if audited.adapter:
        start += f",peft={audited.adapter}"
    elif (Path(audited.model) / "adapter_config.json").is_file():
        adapter = json.loads((Path(audited.model) / "adapter_config.json").read_text("utf-8"))
        start = f"pretrained={adapter['base_model_name_or_path']},peft={audited.model}"
    if audited.settings.get("dtype"):
        start += f",dtype={audited.settings['dtype']}"
    if url := audited.settings.get("endpoint"):
        kind, start = "local-chat-completions", f"model={audited.model},base_url={url}"
        start = f"{start.rstrip('/')}/chat/completions"
    words = ["lm_eval", "--model", kind, "--model_args", start, "--include_path", str(output)]
    words += ["--tasks", ",".join(tasks), "--apply_chat_template"]
    if audited.settings.get("system_prompt"):
        words += ["--system_instruction", audited.settings["system_prompt"]]
    return words


def shown(words: list[str]) -> str:
    """A command as it is typed."""
    return shlex.join(words)
