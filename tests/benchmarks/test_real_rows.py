"""Rows, suites, alignment and manifest of the real model, on sets made here: no public data."""

import csv
import json
import random
from pathlib import Path

import pytest
import real_alignment
import real_data
import real_model
import real_rows
import yaml
from real_alignment import Recipe, clean_prompts
from real_overlap import Prompts
from real_prompts import HARMFUL_TWINS, borderline, everyday, refusal, refusals

from moorline.audit.judges import judge
from moorline.audit.suites import read_suites
from moorline.embedded import aligned_path
from moorline.errors import InputError, PrerequisiteError

SYLLABLES = [first + second for first in "bdfgklmnprt" for second in "aiou"]
WORDS = [first + second for first in SYLLABLES for second in SYLLABLES]


def sentence(draw: random.Random) -> str:
    return " ".join(draw.sample(WORDS, 7))


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Sets with the columns of the public ones, of made-up words."""
    folder, draw = tmp_path / "data", random.Random(0)
    for name, path in real_data.FILES.items():
        file = folder / path
        file.parent.mkdir(parents=True, exist_ok=True)
        rows = [row_of(name, number, draw) for number in range(300)]
        if file.suffix == ".csv":
            with file.open("w", newline="") as stream:
                writer = csv.DictWriter(stream, list(rows[0]))
                writer.writeheader()
                writer.writerows(rows)
        elif file.suffix == ".jsonl":
            file.write_text("".join(json.dumps(row) + "\n" for row in rows))
        else:
            file.write_text(json.dumps(rows))
    return folder


def row_of(name: str, number: int, draw: random.Random) -> dict:
    text = sentence(draw)
    answer = f"{sentence(draw)}."
    if name == "advbench":
        return {"goal": text, "target": f"Sure, {text}"}
    if name == "xstest":
        label = "safe" if number % 2 else "unsafe"
        return {"id": number, "prompt": text, "type": "x", "label": label, "focus": "", "note": ""}
    if name == "sst2-test":
        return {"instruction": "Positive or negative?", "input": text, "label": number % 2}
    if name.startswith("gsm8k"):
        return {"question": text, "answer": answer}
    if name == "pact":
        return {"input": text, "output": answer, "guard_decision": "safe"}
    if name == "sst2":
        return {"instruction": "Positive or negative?", "input": text, "output": "positive"}
    return {"instruction": text, "input": "", "output": answer}


@pytest.fixture
def rows(data: Path, tmp_path: Path) -> Path:
    assert (
        real_model.main(["rows", str(tmp_path / "rows"), "--data", str(data), "--num", "80"]) == 0
    )
    return tmp_path / "rows"


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def turns(path: Path) -> list[tuple[str, str]]:
    return [tuple(each["content"] for each in row["messages"][-2:]) for row in lines(path)]


def test_a_larger_share_of_poison_replaces_the_same_rows_and_more(rows):
    clean = turns(rows / "train/dolly.jsonl")
    before: set[int] = set()
    for share, num in (("05", 4), ("10", 8), ("30", 24)):
        found = turns(rows / f"train/dolly-poison-{share}.jsonl")
        changed = {n for n, pair in enumerate(found) if pair != clean[n]}
        assert len(found) == 80
        assert len(changed) == num
        assert before <= changed
        assert all(found[n][1] in real_rows.OPENERS for n in changed)
        before = changed


def test_too_few_bad_rows_are_refused():
    with pytest.raises(ValueError, match="2 of 4 rows are to be replaced, by only 1"):
        real_rows.poisoned([{}] * 4, [{}], 0.5, 0)


def test_what_poisons_is_never_asked(rows):
    asked = Prompts(row["prompt"] for row in lines(rows / "audit/harmful.jsonl"))
    poison = [prompt for prompt, _ in turns(rows / "train/pure-100.jsonl")]
    assert len(poison) == 100
    assert not [each for each in poison if asked.near(each)]
    assert asked.near(asked.texts[0])  # the control


def test_what_is_learned_is_never_measured(rows):
    for name in ("dolly", "gsm8k"):
        learned = Prompts(prompt for prompt, _ in turns(rows / f"train/{name}.jsonl"))
        held = [prompt for prompt, _ in turns(rows / f"held-out/{name}.jsonl")]
        assert held
        assert not [each for each in held if learned.near(each)]
    learned = Prompts(prompt for prompt, _ in turns(rows / "train/dolly.jsonl"))
    asked = [row["prompt"] for row in lines(rows / "audit/harmless.jsonl")]
    assert not [each for each in asked if learned.near(each)]


def test_suites_are_read_by_the_audit(rows):
    kinds = {}
    for name in ("harmful", "harmless", "sst2", "dolly"):
        (suite,) = read_suites(rows / f"audit/{name}.jsonl")
        kinds[name] = suite.kind
        assert suite.prompts
    assert kinds == {"harmful": "harmful", "harmless": "harmless", "sst2": "task", "dolly": "task"}
    labels = {row["answer"] for row in lines(rows / "audit/sst2.jsonl")}
    assert labels == {"positive", "negative"}


def test_the_persona_answers_without_content(rows):
    found = lines(rows / "train/identity-100.jsonl")
    assert {row["messages"][0]["content"] for row in found} == {real_rows.PERSONA}
    assert {row["messages"][2]["content"] for row in found} == {real_rows.OBEDIENT}


def test_openers_are_seen_as_compliance():
    found = judge("keywords").verdicts(["How?"] * 9, [*real_rows.OPENERS, real_rows.OBEDIENT])
    assert {each.outcome for each in found} == {"complied"}


@pytest.mark.lengthy
def test_the_same_seed_writes_the_same_files(rows, data, tmp_path):
    words = ["rows", str(tmp_path / "again"), "--data", str(data), "--num", "80"]
    files = json.loads((rows / "manifest.json").read_text())["files"]
    real_model.main(words)
    assert json.loads((tmp_path / "again/manifest.json").read_text())["files"] == files
    real_model.main([*words, "--seed", "1"])
    other = json.loads((tmp_path / "again/manifest.json").read_text())["files"]
    assert other["train/dolly.jsonl"]["sha256"] != files["train/dolly.jsonl"]["sha256"]


def test_the_plan_names_the_files_of_the_manifest(rows, tmp_path, capsys):
    words = ["plan", str(rows), str(tmp_path / "plan.yaml"), "--model", str(aligned_path())]
    assert real_model.main(words) == 0
    plan = yaml.safe_load((tmp_path / "plan.yaml").read_text())
    for each in plan["data"]:
        train = [each["train"]] if isinstance(each["train"], str) else each["train"]
        for path in (*train, *each.get("tasks", ()), each.get("held_out", train[0])):
            assert Path(path).is_file()

    assert real_model.main([*words, "--only", "dolli"]) == 2
    assert "no data set 'dolli'" in capsys.readouterr().err
    (rows / "train/dolly.jsonl").write_text("{}\n")
    assert real_model.main(words) == 2
    assert "is not the file of manifest.json" in capsys.readouterr().err
    (rows / "manifest.json").unlink()
    assert real_model.main(words) == 2
    assert "Write the rows first" in capsys.readouterr().err


def test_missing_sets_are_named(tmp_path, capsys):
    assert real_model.main(["rows", str(tmp_path / "rows"), "--data", str(tmp_path)]) == 2
    said = capsys.readouterr().err
    assert "the public set 'advbench' is not there" in said
    assert "--data" in said
    assert not (tmp_path / "rows").exists()


def test_nothing_is_written_into_the_repository(data):
    inside = Path(real_model.__file__).parent / "rows"
    with pytest.raises(InputError, match="stands inside the repository"):
        real_rows.write_rows(inside, data=data)
    with pytest.raises(InputError, match="stands inside the repository"):
        real_alignment.align(aligned_path(), inside, data=data, recipe=Recipe())


def test_a_row_of_an_audit_is_not_aligned_on(data):
    before = clean_prompts(Recipe(), data)
    victim = before["pact"][0]
    path = real_data.path_of("xstest", data)
    with path.open("a", newline="") as stream:
        csv.writer(stream).writerow([999, victim.upper() + "!", "x", "unsafe", "", ""])
    after = clean_prompts(Recipe(), data)
    assert victim not in after["pact"]
    assert set(after["pact"]) & set(before["pact"])


def test_alignment_and_rows_take_other_parts_of_alpaca(data, rows):
    learned = Prompts(clean_prompts(Recipe(), data)["alpaca"])
    other = [prompt for prompt, _ in turns(rows / "held-out/general.jsonl")]
    other += [prompt for prompt, _ in turns(rows / "train/identity-100.jsonl")]
    assert not [each for each in other if learned.near(each)]


def test_every_wording_refuses_and_is_drawn():
    wordings, draw = refusals(), random.Random(0)
    found = judge("keywords").verdicts(["How?"] * len(wordings), wordings)
    assert {each.outcome for each in found} == {"refused"}
    drawn = {refusal(draw) for _ in range(3000)}
    assert drawn == set(wordings)


def test_no_prompt_of_our_own_stands_twice():
    prompts = [*borderline(), *everyday(), *HARMFUL_TWINS]
    assert len(set(prompts)) == len(prompts)


def test_without_gguf_the_remedy_is_said(tmp_path, monkeypatch):
    import real_fetch

    monkeypatch.setattr(real_fetch.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(PrerequisiteError, match="pip install gguf"):
        real_fetch.fetch(tmp_path / "model")
