"""The public sets beside the project, as plain rows; none of them is ever copied into it."""

from pathlib import Path
from typing import NamedTuple

from moorline.errors import PrerequisiteError
from moorline.provenance import sha256_of
from moorline.tables import rows_of

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
"""Where the sets lie: `shared/data` beside the repository."""

FILES = {
    "advbench": "harmful_prompts/advbench/harmful_behaviors.csv",
    "xstest": "harmful_prompts/xstest/xstest_prompts.csv",
    "sst2": "benign_finetune/sst2/SST2_5k_p_0.json",
    "sst2-test": "benign_finetune/sst2/SST2_test.jsonl",
    "dolly": "benign_finetune/dolly/dolly_2.9k.json",
    "alpaca": "benign_finetune/alpaca/alpaca_5k.json",
    "gsm8k": "benign_finetune/gsm8k/train.jsonl",
    "gsm8k-test": "benign_finetune/gsm8k/test.jsonl",
    # PACT's other file, refusal_100_output.json, is AdvBench's own prompts: never read it here.
    "pact": "safe_refusals/pact/safe_direction.json",
    "bianchi": "safe_refusals/safety_tuned_llamas/safety_only_refusals.json",
}


class Pair(NamedTuple):
    """A prompt and what the set has as its answer or label."""

    prompt: str
    answer: str


def path_of(name: str, data: Path = DATA) -> Path:
    """The file of a set.

    Raises:
        PrerequisiteError: If it is not there.
    """
    path = data / FILES[name]
    if not path.is_file():
        raise PrerequisiteError(
            f"{path}: the public set {name!r} is not there. It is not part of this repository "
            "(several licences forbid it): put the sets into shared/data beside the repository, "
            "or give their folder with --data."
        )
    return path


def pairs(name: str, data: Path = DATA) -> list[Pair]:
    """The rows of a set whose prompts stand in `instruction`/`input`, `goal` or `question`."""
    found = []
    for row in rows_of(path_of(name, data)):
        values = {key: str(value).strip() for key, value in row.values.items()}
        if "instruction" in values:
            given = values.get("input", "")
            more = "" if given in ("", "<no input>", "None") else f"\n\n{given}"
            answer = values.get("output", values.get("label", ""))
            found.append(Pair(values["instruction"] + more, answer))
        elif "goal" in values:
            found.append(Pair(values["goal"], values["target"]))
        elif "question" in values:
            found.append(Pair(values["question"], values["answer"]))
        elif "label" in values:
            found.append(Pair(values["prompt"], values["label"]))
        else:
            found.append(Pair(values["input"], values["output"]))
    return found


def sources(data: Path = DATA, names: tuple[str, ...] = tuple(FILES)) -> dict[str, str]:
    """The SHA-256 of each set's file."""
    return {name: sha256_of(path_of(name, data)) for name in names}
