"""The JSON Schemas of our files hold every file that the commands write."""

import json

import jsonschema
import pytest
from helpers import runner, tune, write_run

from moorline.commands.cli import app
from moorline.commands.file_formats import FILES, schemas

SCHEMAS = schemas()


def held(name, value):
    """Refused by its schema, or not."""
    jsonschema.Draft202012Validator(SCHEMAS[name]).validate(value)


def lines(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_every_schema_is_one_and_has_a_title():
    assert SCHEMAS.keys() == FILES.keys()
    for name, schema in SCHEMAS.items():
        jsonschema.Draft202012Validator.check_schema(schema)
        assert schema["title"] == name


@pytest.mark.slow
def test_what_mine_tune_and_audit_write_fits(flags, tmp_path, model_folder, tokens_file):
    held("safety_tokens.json", json.loads(tokens_file.read_text()))
    done = tune({**flags, "str_reference": "cached", "str_cache_dir": tmp_path / "cache"})
    assert done.exit_code == 0, done.stderr
    run = json.loads((tmp_path / "run" / "run.json").read_text())
    held("run.json", run)
    held("safety_tokens.json", json.loads((tmp_path / "run" / "safety_tokens.json").read_text()))
    caches = list((tmp_path / "cache").rglob("cache.json"))
    assert caches
    held("cache.json", json.loads(caches[0].read_text()))
    prompts = tmp_path / "prompts.jsonl"
    rows = [
        {"id": "h", "prompt": "w1 w2", "kind": "harmful"},
        {"id": "b", "prompt": "w3 w4", "kind": "harmless"},
        {"id": "t", "prompt": "w5 w6", "kind": "task", "answer": "w7"},
    ]
    prompts.write_text("".join(json.dumps(row) + "\n" for row in rows))
    done = runner.invoke(
        app,
        ["audit", str(tmp_path / "run"), "--against", str(model_folder), "--suite", str(prompts),
         "--max-new-tokens", "4", "--judge", "keywords", "--judge", "keywords:gcg", "--output",
         str(tmp_path / "audit"), "--require", "attack_success_rate<=0.5"],
    )  # fmt: skip
    assert done.exit_code in (0, 3), done.stderr
    audit = json.loads((tmp_path / "audit" / "audit.json").read_text())
    held("audit.json", audit)
    answers = lines(tmp_path / "audit" / "answers.jsonl")
    assert answers
    for each in answers:
        held("answers.jsonl", each)
    with pytest.raises(jsonschema.ValidationError):  # the control: another file is refused
        held("audit.json", run)
    for row in audit["measurements"][:1]:
        row["value"] = "high"
    with pytest.raises(jsonschema.ValidationError):
        held("audit.json", audit)


def test_the_files_of_the_reports_tests_fit(tmp_path):
    folder = write_run(tmp_path / "held", against="aligned")
    held("audit.json", json.loads((folder / "audit.json").read_text()))
    for each in lines(folder / "answers.jsonl"):
        held("answers.jsonl", each)
