"""Answers on disk: whose they are, what a damaged file costs, and what cannot be asked."""

import copy
import json
from dataclasses import replace

import pytest
import torch
from peft import LoraConfig, get_peft_model

from moorline import InputError
from moorline.audit import AuditSettings, Condition, Prompt, Suite, audit, compare
from moorline.chat.chat_model import ChatModel, Completion


class Counts:
    """Stands in for an engine: answers with the number of what it has answered."""

    def __init__(self, stops_after=None):
        self.asked, self.stops_after = 0, stops_after

    def generate(self, rows, **settings):
        if self.asked == self.stops_after:
            raise KeyboardInterrupt
        found = []
        for _ in rows:
            self.asked += 1
            found.append(Completion(f"I cannot help with {self.asked} of that.", truncated=False))
        return found


def suite(num=4, **changes):
    prompts = [
        Prompt(id=str(n), prompt=f"w{n} w{n + 1}", kind="harmful", opener=f"w{n} w2")
        for n in range(num)
    ]
    return Suite(
        name="s", kind="harmful", prompts=tuple(replace(each, **changes) for each in prompts)
    )


SHORT = AuditSettings(max_new_tokens=4, batch_size=1, conditions=("plain", "forced-2"))


@pytest.fixture
def chat(make_model, tokenizer):
    return ChatModel(make_model(), copy.deepcopy(tokenizer))


def finished(chat, folder, of=None, settings=SHORT, engine=None):
    found = audit(chat, [of or suite()], settings, folder=folder, engine=engine or Counts())
    found.save(folder)
    return found


def test_a_finished_audit_is_answered_from_its_folder(chat, tmp_path):
    first = finished(chat, tmp_path)
    engine = Counts()
    assert finished(chat, tmp_path, engine=engine).answers == first.answers
    assert engine.asked == 0


def _more_alpha(chat):
    chat.model.peft_config["default"].lora_alpha = 64


def _other_rope(chat):
    chat.model.config.rope_parameters = {"rope_type": "default", "rope_theta": 2.0}


def _other_generation(chat):
    chat.model.generation_config.suppress_tokens = [7]


def _other_weights(chat):
    with torch.no_grad():
        next(chat.model.parameters()).add_(1)


def _other_template(chat):
    chat.tokenizer.chat_template = "w1 " + chat.tokenizer.chat_template


@pytest.mark.lengthy
@pytest.mark.parametrize(
    "change", [_more_alpha, _other_rope, _other_generation, _other_weights, _other_template]
)
def test_a_folder_answers_for_no_other_model(change, make_model, tokenizer, tmp_path):
    """An adapter of another `lora_alpha`, a configuration edited: the old answers came back."""
    adapter = LoraConfig(r=2, lora_alpha=1, target_modules=["q_proj"], task_type="CAUSAL_LM")
    chat = ChatModel(get_peft_model(make_model(), adapter), copy.deepcopy(tokenizer))
    finished(chat, tmp_path)
    finished(chat, tmp_path)
    change(chat)
    with pytest.raises(InputError, match="holds another audit"):
        finished(chat, tmp_path)


@pytest.mark.parametrize(
    "other",
    [
        suite(opener="w9 w9 w9"),
        replace(suite(), prompts=tuple(
            replace(each, id=str(3 - n)) for n, each in enumerate(suite().prompts)
        )),
        suite(3),
    ],
)  # fmt: skip
def test_a_folder_answers_for_no_other_prompts(other, chat, tmp_path):
    """Openers edited or ids exchanged: the old answers stood under the wrong prompts."""
    finished(chat, tmp_path)
    with pytest.raises(InputError, match="holds another audit"):
        finished(chat, tmp_path, other)


def test_a_folder_answers_for_no_other_attack(chat, tmp_path):
    mine = [Condition(name="mine", prefill="w1 w2")]
    finished(chat, tmp_path, settings=replace(SHORT, conditions=mine))
    other = replace(SHORT, conditions=[Condition(name="mine", prefill="w3")])
    for settings in (other, replace(SHORT, thinking="off"), replace(SHORT, seed=1)):
        with pytest.raises(InputError, match="holds another audit"):
            finished(chat, tmp_path, settings=settings)


def test_an_audit_of_an_older_version_is_refused_by_name(chat, tmp_path):
    (tmp_path / "audit.json").write_text(json.dumps({"schema": 1, "birth": "ab"}))
    with pytest.raises(InputError, match=r"schema 1, this one reads 2\). Give another folder"):
        finished(chat, tmp_path)


@pytest.mark.lengthy
@pytest.mark.parametrize(
    "damage",
    [
        lambda line: line[:-2],
        lambda line: "",
        lambda line: '{"suite":' + "[" * 50000,
        lambda line: json.dumps({**json.loads(line), "answer": None}),
        lambda line: json.dumps({**json.loads(line), "answer": 3}),
        lambda line: json.dumps({**json.loads(line), "truncated": "no"}),
        lambda line: json.dumps({**json.loads(line), "draw": True}),
        lambda line: json.dumps({**json.loads(line), "id": [1]}),
        lambda line: "[]",
    ],
)
def test_a_damaged_line_costs_its_own_answer_alone(damage, chat, tmp_path):
    """One damaged line erased every answer after it, and odd types were taken for answers."""
    before = finished(chat, tmp_path)
    path = tmp_path / "answers.jsonl"
    lines = path.read_text().split("\n")
    lines[0] = damage(lines[0])
    path.write_text("\n".join(lines))
    damaged = path.read_bytes()

    with pytest.raises(KeyboardInterrupt):
        finished(chat, tmp_path, engine=Counts(stops_after=0))
    assert path.read_bytes() == damaged, "nothing is rewritten by reading"
    engine = Counts()
    after = finished(chat, tmp_path, engine=engine)
    assert engine.asked == 1
    assert after.answers[1:] == before.answers[1:]
    assert path.read_text().count("\n") == len(before.answers)


def test_a_line_that_was_being_written_is_asked_again(chat, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        finished(chat, tmp_path, engine=Counts(stops_after=5))
    path = tmp_path / "answers.jsonl"
    assert json.loads((tmp_path / "audit.json").read_text())["status"] == "running"
    path.write_text(path.read_text() + '{"suite": "s", "id"')
    engine = Counts()
    finished(chat, tmp_path, engine=engine)
    assert engine.asked == 3
    assert [json.loads(line)["draw"] for line in path.open()] == [0] * 8
    assert json.loads((tmp_path / "audit.json").read_text())["status"] == "finished"


def test_an_output_that_is_a_file_is_refused(chat, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="`output` .* is a file. Give a folder."):
        finished(chat, tmp_path / "file")
    with pytest.raises(InputError, match="cannot be made"):
        finished(chat, tmp_path / "file" / "within")


def test_a_prompt_that_the_context_has_no_room_for_is_unscored(chat):
    """A prompt of more tokens than the model reads was answered, and counted as refused."""
    assert chat.model.config.max_position_embeddings == 128
    prompts = [
        Prompt(id=str(num), prompt=" ".join(["w1"] * num), kind="harmful") for num in (3, 119, 200)
    ]
    of = Suite(name="s", kind="harmful", prompts=tuple(prompts))
    lengths = [len(chat.render(each.prompt)) for each in prompts]
    assert lengths[1] < 128 < lengths[2]
    found = audit(chat, [of], AuditSettings(max_new_tokens=16))
    whole, tight, long = found.answers
    assert (long.outcome, long.answer) == ("unscored", "")
    assert long.reason == f"its {lengths[2]} tokens leave no room for an answer in the model's 128"
    assert len(tight.answer.split()) <= 128 - lengths[1] < 16
    assert whole.outcome != "unscored"
    assert found.measurement("unscored_rate").count == 1
    assert found.measurement("refusal_rate").num == 2


def test_two_of_one_name_are_refused():
    """Two conditions of one name shared their answers: the plain one got those of the attack."""
    twice = [Condition(name="a"), Condition(name="a", prefill="Sure, here is")]
    with pytest.raises(InputError, match="Two `conditions` are called 'a'. Give each a name"):
        AuditSettings(conditions=twice)
    with pytest.raises(InputError, match="Two `judges` are called 'keywords'"):
        AuditSettings(judges=["keywords", "keywords"])


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"max_new_tokens": 0}, "`max_new_tokens` must be 1 or more, got 0"),
        ({"limit": 0}, "`limit` must be 1 or more, got 0"),
        ({"thinking": "of"}, "Unknown thinking 'of'.*Did you mean 'off'"),
        ({"metric": "exact"}, "Unknown metric 'exact'"),
        ({"conditions": ("prefil",)}, "Did you mean 'prefill'"),
        ({"judges": ("refusal_mass",)}, "must each name one at least"),
        ({"conditions": ()}, "must each name one at least"),
    ],
)
def test_settings_are_checked_once(changes, words):
    with pytest.raises(InputError, match=words):
        AuditSettings(**changes)


def test_settings_are_saved_whole(chat, tmp_path):
    settings = replace(SHORT, labels=("yes",), by_category=True, limit=2)
    finished(chat, tmp_path, settings=settings)
    saved = json.loads((tmp_path / "audit.json").read_text())
    assert saved["settings"] == {**json.loads(json.dumps(settings.to_json())), "engine": "counts"}
    for name in ("labels", "by_category", "metric", "limit", "thinking", "system_prompt"):
        assert name in saved["settings"]
    assert saved["settings"]["conditions"][1]["forced_tokens"] == 2
    assert (saved["schema"], saved["seed"], saved["suites"][0]["num"]) == (2, 0, 2)


def test_only_what_is_alike_is_compared(chat):
    first = audit(chat, [suite()], SHORT, engine=Counts())
    (row, *_) = compare(first, first)
    assert (row.difference, row.num, row.interval) == (0.0, 4, "score")
    assert row.low < 0 < row.high, "four prompts without a change prove little"
    for other, words in (
        (audit(chat, [suite(opener="w9")], SHORT, engine=Counts()), "differs between the audits"),
        (audit(chat, [suite()], replace(SHORT, conditions=("plain",)), engine=Counts()),
         "not asked in one of them"),
        (audit(chat, [suite()], replace(SHORT, judges=("keywords:gcg",)), engine=Counts()),
         "judged 's' in one of the audits to compare only"),
    ):  # fmt: skip
        with pytest.raises(InputError, match=words):
            compare(first, other) if "not asked" not in words else compare(other, first)


def test_a_mean_of_scores_is_compared_as_a_mean(chat):
    """The share of whole scores was compared under the name of the mean."""
    prompts = [
        Prompt(id=str(n), prompt=f"w{n}", kind="task", answer="one two three four")
        for n in range(4)
    ]
    of = Suite(name="t", kind="task", prompts=tuple(prompts))

    class Says:
        def __init__(self, text):
            self.text = text

        def generate(self, rows, **settings):
            return [Completion(self.text, truncated=False) for _ in rows]

    settings = AuditSettings(metric="rouge_l")
    first = audit(chat, [of], settings, engine=Says("one two"))
    second = audit(chat, [of], settings, engine=Says("one two three four"))
    (row,) = compare(first, second)
    assert row.difference == pytest.approx(1 - 2 / 3)
    assert (row.interval, row.p_value) == ("bootstrap", None)
