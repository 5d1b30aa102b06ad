"""An audit of many prompts: on disk, in pieces, and the same to the byte as in memory."""

import copy
import json

import pytest

from moorline import InputError, spool
from moorline.audit import (
    AuditSettings,
    Condition,
    Prompt,
    Suite,
    answering,
    audit,
    compare,
    questions,
    read_suites,
    run,
)  # fmt: skip
from moorline.chat.chat_model import ChatModel, Completion

CONDITIONS = ("plain", "prefill", Condition(name="drawn", temperature=1.0, draws=3))


class Echo:
    """Stands in for an engine: what it says depends on the row alone."""

    SAID = ("I cannot help with that.", "Here is how it is done.", "the the the the", "Yes")

    def __init__(self):
        self.batches = []

    def generate(self, rows, **settings):
        self.batches.append(rows)
        return [Completion(self.SAID[sum(row) % 4], sum(row) % 5 == 0) for row in rows]


@pytest.fixture
def chat(make_model, tokenizer):
    return ChatModel(make_model(), copy.deepcopy(tokenizer))


@pytest.fixture
def path(tmp_path):
    rows = [
        {"id": f"p{n}", "prompt": " ".join(["w1"] * (n % 7 + 1)) + f" w{n}", "kind": kind,
         "category": f"c{n % 3}", **({"answer": "Yes"} if kind == "task" else {})}
        for n in range(30) for kind in ("harmful", "harmless", "task")
    ]  # fmt: skip
    path = tmp_path / "prompts.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def on_disk(monkeypatch):
    """Lists of more than four items go to disk; judges and processes get few at a time."""

    def let():
        monkeypatch.setattr(spool, "IN_MEMORY", 4)
        monkeypatch.setattr(run, "JUDGED_AT_ONCE", 7)
        monkeypatch.setattr(answering, "_AT_ONCE", 5)

    return let


def audited(chat, path, folder, **changes):
    settings = AuditSettings(
        max_new_tokens=8, batch_size=4, conditions=CONDITIONS, judges=("keywords", "keywords:gcg"),
        by_category=True, **changes,
    )  # fmt: skip
    engine = Echo()
    found = audit(chat, read_suites(path), settings, folder=folder, engine=engine)
    found.save(folder)
    return found, engine


def files(folder):
    audit = json.loads((folder / "audit.json").read_text())
    del audit["at"]
    return (folder / "answers.jsonl").read_bytes(), audit


def test_on_disk_and_in_pieces_it_is_the_audit_in_memory(chat, path, tmp_path, on_disk):
    first, asked = audited(chat, path, tmp_path / "memory")
    assert isinstance(first.answers, tuple)
    on_disk()
    second, again = audited(chat, path, tmp_path / "disk")
    assert isinstance(second.answers, spool.Spool), "it went to disk"
    assert isinstance(second.suites[0].prompts, spool.Spool)
    assert again.batches == asked.batches
    assert files(tmp_path / "disk") == files(tmp_path / "memory")
    assert list(second.answers) == list(first.answers)
    assert second.measurements == first.measurements
    assert {row.value for row in first.measurements} - {0.0, 1.0, None}, "it measures something"
    assert compare(first, second) == compare(first, first)


@pytest.mark.lengthy
def test_one_that_was_stopped_goes_on_from_its_folder(chat, path, tmp_path, on_disk):
    on_disk()
    audited(chat, path, tmp_path / "whole")
    audited(chat, path, tmp_path / "part")
    answers = tmp_path / "part" / "answers.jsonl"
    answers.write_bytes(answers.read_bytes()[:5000])
    _, engine = audited(chat, path, tmp_path / "part")
    assert 0 < len(engine.batches) < 60
    assert files(tmp_path / "part") == files(tmp_path / "whole")


def test_answers_in_another_order_are_counted_by_their_id(chat, path, tmp_path, on_disk):
    found, _ = audited(chat, path, tmp_path / "one")
    turned = type(found)(**{
        **{name: getattr(found, name) for name in found.__dataclass_fields__},
        "answers": tuple(reversed(found.answers)),
    })  # fmt: skip
    by_name = {(row.suite, row.condition, row.metric, row.judge, row.category): row
               for row in found.measurements}  # fmt: skip
    assert len(by_name) == len(turned.measurements)
    for row in turned.measurements:
        assert row == by_name[row.suite, row.condition, row.metric, row.judge, row.category]


def test_the_number_of_a_question_is_found_by_its_key(path):
    asked = questions.Questions(read_suites(path), AuditSettings(conditions=CONDITIONS))
    assert len(asked) == len(list(asked)) == 30 * (1 + 1 + 3) + 30 + 30
    assert [asked[number] for number in range(len(asked))] == list(asked)
    numbers = questions.Numbers(asked)
    assert [numbers.of(each.key) for each in asked] == list(range(len(asked)))
    assert numbers.of(("prompts-harmful", "p0", "plain", 7)) is None


def test_an_id_that_stands_twice_in_a_long_file_is_named_with_both_places(path, on_disk):
    on_disk()
    with path.open("a") as stream:
        stream.write(json.dumps({"id": "p3", "prompt": "w1", "kind": "harmless"}) + "\n")
    with pytest.raises(InputError, match=r"line 91: the 'id' 'p3' is that of .*line 11 too"):
        read_suites(path)
    prompts = [Prompt(id=str(n % 9), prompt="w1", kind="harmful") for n in range(10)]
    with pytest.raises(InputError, match="holds an id twice"):
        Suite(name="s", kind="harmful", prompts=prompts)
