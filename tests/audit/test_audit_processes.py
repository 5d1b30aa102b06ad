"""`torchrun` around `moorline audit`: the files of two processes are those of one."""

import json
import shutil

import pytest
from helpers import embedded_prompts, launch, refused, runner

from moorline import InputError, PrerequisiteError, embedded
from moorline.audit import AuditSettings, audit
from moorline.audit.answering import Store, parts_of
from moorline.chat.loading import load_chat_model
from moorline.commands.cli import app
from moorline.processes import Share

TIMES = {"at", "seconds"}


@pytest.fixture
def prompts_file(tmp_path):
    return embedded_prompts(tmp_path / "prompts.jsonl", 7)


def words_of(folder, prompts, *more):
    return [
        "audit", embedded.aligned_path(), "--suite", prompts, "--output", folder, "--batch-size",
        "2", "--max-new-tokens", "16", "--condition", "plain", "--condition", "sampled",
        *more,
    ]  # fmt: skip


def files_of(folder):
    """What an audit's files say, without times."""
    found = json.loads((folder / "audit.json").read_text())
    kept = {name: each for name, each in found.items() if name not in TIMES}
    return (folder / "answers.jsonl").read_bytes(), kept


@pytest.mark.slow
def test_two_processes_write_the_files_of_one_and_resume_each_others(prompts_file, tmp_path):
    against = ["--against", embedded.aligned_path()]
    words = words_of(tmp_path / "one", prompts_file, *against)
    alone = runner.invoke(app, [*map(str, words)])
    assert alone.exit_code == 0, alone.output
    expected = files_of(tmp_path / "one")
    assert expected[0].count(b"\n") > 20
    assert len({json.loads(each)["answer"] for each in expected[0].splitlines()}) > 5

    two = tmp_path / "two"
    words = words_of(two, prompts_file, *against)
    said = launch(["-m", "moorline", *words], tmp_path, processes=2)
    assert files_of(two) == expected
    assert files_of(two / "against") == files_of(tmp_path / "one" / "against")
    assert not parts_of(two)
    assert said.count("answers.jsonl") <= 1, "one process speaks"

    # Broken off: half of the answers, in the files of two processes, the last one torn.
    torn, lines = tmp_path / "torn", expected[0].splitlines(keepends=True)
    shutil.copytree(two, torn)
    running = json.loads((torn / "audit.json").read_text())
    kept = {name: running[name] for name in ("schema", "fingerprint", "at")}
    (torn / "audit.json").write_text(json.dumps({**kept, "status": "running"}))
    (torn / "answers.jsonl").write_bytes(b"".join(lines[:4]))
    (torn / "answers-00001.part.jsonl").write_bytes(b"".join(lines[8:12]) + lines[13][:20])
    again = words_of(torn, prompts_file, *against)
    launch(["-m", "moorline", *again], tmp_path, processes=2)
    assert files_of(torn) == expected
    assert not parts_of(torn)


def test_each_process_answers_its_batches_alone(prompts_file, tmp_path):
    """Without the others' answers the first cannot judge; what there is stays for one process."""
    chat = load_chat_model(str(embedded.aligned_path()))
    suites = embedded.suites()[:1]
    settings = AuditSettings(limit=6, batch_size=2, max_new_tokens=8)
    whole = audit(chat, suites, settings, name="m", folder=tmp_path / "whole")
    with pytest.raises(KeyError):
        audit(chat, suites, settings, name="m", folder=tmp_path / "parts", share=Share(0, 2))
    first = (tmp_path / "parts" / "answers.jsonl").read_bytes()
    assert 0 < first.count(b"\n") < 6
    done = []
    found = audit(
        chat, suites, settings, name="m", folder=tmp_path / "parts",
        progress=lambda *at: done.append(at),
    )  # fmt: skip
    assert found.answers == whole.answers
    assert (tmp_path / "parts" / "answers.jsonl").read_bytes().startswith(first)


def test_a_folder_that_processes_do_not_share_is_refused(tmp_path):
    with pytest.raises(PrerequisiteError, match="a folder that all processes share"):
        Store(tmp_path / "here", "known", process=1)
    Store(tmp_path / "here", "known")
    Store(tmp_path / "here", "known", process=1)
    with pytest.raises(InputError, match="holds another audit"):
        Store(tmp_path / "here", "other", process=1)


@pytest.mark.parametrize(
    ("more", "named"),
    [
        (["--device-map", "auto"], "`device_map` shares one model out"),
        (["--backend", "vllm"], "backend 'vllm' shares a model out"),
    ],
)
def test_what_cannot_be_shared_out_is_refused_by_name(
    more, named, prompts_file, tmp_path, monkeypatch
):
    monkeypatch.setenv("WORLD_SIZE", "2")
    words = words_of(tmp_path / "out", prompts_file, *more)
    refused(runner.invoke(app, [*map(str, words)]), "started in 2 processes", named)
