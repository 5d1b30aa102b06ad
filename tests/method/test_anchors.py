"""Anchors: the aligned model's own refusals beside each batch, held, counted and drawn right."""

import json
from importlib.resources import files

import pytest
import torch
from helpers import conversations, lora, moved, paper, run_script, str_trainer, trained
from peft import get_peft_model

from moorline import InputError, Regularizer, SafetyTokens, STRSettings, mine_safety_tokens
from moorline.audit.judges import judge
from moorline.audit.suites import read_suites
from moorline.chat.chat_model import ChatModel
from moorline.chat.loading import load_chat_model
from moorline.embedded import aligned_path
from moorline.method.anchors import BUILT_IN, anchor_prompts, overlapping
from moorline.method.templates import MINING_HARMLESS_PROMPTS

PROMPTS = [f"w{number} w{number + 3} w{2 * number % 90}" for number in range(10)]


@pytest.fixture
def anchors_file(tmp_path):
    path = tmp_path / "anchors.jsonl"
    path.write_text("".join(json.dumps({"prompt": each}) + "\n" for each in PROMPTS))
    return str(path)


@pytest.fixture
def own_tokens(make_model, tokenizer):
    """Safety tokens by which the tiny random model answers, so that its answers are refusals."""
    chat = ChatModel(make_model(), tokenizer)
    rows = [chat.render(each) for each in PROMPTS]
    answers = [each.ids for each in chat.generate(rows, max_new_tokens=16)]
    said = [token for answer in answers for token in answer]
    ids = sorted(set(said), key=lambda each: (-said.count(each), each))[:12]
    return SafetyTokens(
        ids=tuple(ids), strings=tuple(tokenizer.decode([each]) for each in ids),
        scores=(0.5,) * len(ids), vocab_size=len(tokenizer),
    )  # fmt: skip


def anchored(model, rows, tokenizer, tokens, tmp_path, anchors_file, **changes):
    given = {"str_anchors": anchors_file, "str_anchor_share": 0.5, "str_weight": 2.0} | changes
    given.setdefault("str_anchor_weight", given["str_weight"])
    return str_trainer(
        model, rows, tokenizer, tokens, tmp_path, max_steps=given.pop("max_steps", 1),
        train_sampling_strategy="sequential", **given,
    )  # fmt: skip


@pytest.mark.lengthy
def test_the_untouched_model_has_no_anchor_drift_and_a_moved_one_has(
    make_model, rows, tokenizer, own_tokens, tmp_path, anchors_file
):
    fresh = get_peft_model(make_model(), lora())
    found = {}
    for name, model in (("fresh", fresh), ("moved", moved(make_model))):
        trainer = anchored(model, rows, tokenizer, own_tokens, tmp_path, anchors_file)
        _, log = trained(trainer)
        found[name] = log[0]["str/anchor_drift"]
    # not 0: the reference read other batches, and float32 sums in another order
    assert found["fresh"] < 1e-9
    assert found["moved"] > 1e-2


@pytest.mark.lengthy
@pytest.mark.parametrize("form", ["logit", "kl"])
def test_anchors_hold_the_probability_of_refusals(
    form, make_model, rows, tokenizer, own_tokens, tmp_path, anchors_file
):
    def last(**changes):
        trainer = anchored(
            get_peft_model(make_model(), lora()), rows, tokenizer, own_tokens, tmp_path,
            anchors_file, max_steps=25, str_form=form, **changes,
        )  # fmt: skip
        return trained(trainer)[1][-1]["str/anchor_drift"]

    held, barely = last(str_weight=3.0), last(str_weight=1e-6)
    assert barely > 0.05
    assert held < 0.2 * barely


LAYOUTS = [(4, 1), (1, 4), (2, 2)]


@pytest.mark.lengthy
@pytest.mark.parametrize("form", ["logit", "kl"])
def test_anchors_count_the_same_in_every_layout_of_a_batch(
    form, make_model, rows, tokenizer, own_tokens, tmp_path, anchors_file
):
    found = []
    for batch, accumulation in LAYOUTS:
        trainer = anchored(
            moved(make_model), rows, tokenizer, own_tokens, tmp_path, anchors_file,
            per_device_train_batch_size=batch, gradient_accumulation_steps=accumulation,
            str_form=form,
        )  # fmt: skip
        _, log = trained(trainer)
        found.append(log[0])
    assert found[0]["str/anchor_drift"] > 1e-2
    expected = 2 * (found[0]["str/drift"] + found[0]["str/anchor_drift"])
    assert found[0]["str/weighted"] == pytest.approx(expected, rel=1e-5)
    for entry in found[1:]:
        for key in ("loss", "grad_norm", "str/drift", "str/anchor_drift", "str/weighted"):
            # 1e-5: what float32 sums in another order differ by here
            assert entry[key] == pytest.approx(found[0][key], rel=1e-5), key


@pytest.mark.slow
@pytest.mark.parametrize("share", ["0.5", "0.25"])
def test_two_processes_hold_the_anchors_that_one_holds(share, tmp_path):
    """At 0.25 a step has one anchor for two processes: one without hung in DDP, then read one
    more, so that two processes were held by twice as many."""
    found = []
    for processes in (1, 2):
        folder = tmp_path / str(processes)
        folder.mkdir()
        words = ("--batch", str(4 // processes), "--anchors", share, "--steps", "3")
        found.append(run_script(folder, *words, processes=processes))
    one, two = found
    assert min(one["str/anchor_drift"], two["str/anchor_drift"]) > 1e-2
    for key in ("loss", "grad_norm", "str/drift", "str/anchor_drift", "str/weight"):
        assert two[key] == pytest.approx(one[key], rel=1e-4), key


def test_the_draw_depends_on_the_step_alone(
    make_model, rows, tokenizer, own_tokens, tmp_path, anchors_file
):
    trainer = anchored(moved(make_model), rows, tokenizer, own_tokens, tmp_path, anchors_file)
    anchors, cpu = trainer.regularizer.anchors, torch.device("cpu")
    whole = anchors.draw(4, 7, (0, 1), cpu)
    parts = [anchors.draw(4, 7, (index, 3), cpu) for index in range(3)]
    assert {each.num_of_step for each in (whole, *parts)} == {int(whole.positions.sum())}
    assert sum(int(each.positions.sum()) for each in parts) == whole.num_of_step
    assert anchors.draw(1, 7, (1, 2), cpu) is None, "fewer anchors than parts"
    many = anchors.draw(3 * len(anchors), 7, (0, 1), cpu)
    assert len(many.positions) == 3 * len(anchors), "more than there are: read again"
    others = [anchors.draw(4, seed, (0, 1), cpu).inputs["input_ids"] for seed in range(5)]
    assert any(each.shape != others[0].shape or not torch.equal(each, others[0]) for each in others)


def test_prompts_that_the_model_does_not_refuse_are_left_out(
    make_model, tokenizer, tokens, own_tokens, anchors_file
):
    model = get_peft_model(make_model(), lora())
    settings = paper(anchors=anchors_file)
    found = Regularizer(model, own_tokens, settings, tokenizer=tokenizer).anchors
    assert 4 <= len(found) <= len(PROMPTS)
    assert {each.prompt for each in found.prompts} <= set(PROMPTS)
    unsaid = SafetyTokens(
        ids=(0, 2, 3), strings=("a", "b", "c"), scores=(1.0,) * 3, vocab_size=len(tokenizer)
    )
    with pytest.raises(InputError, match=r"refuses 0 of 10 anchor prompts.*4 are needed"):
        Regularizer(make_model(), unsaid, settings, tokenizer=tokenizer)


def test_anchors_of_a_further_tuning_are_refusals_of_the_aligned_model(
    make_model, tokenizer, own_tokens, anchors_file
):
    settings = paper(anchors=anchors_file)
    fresh = Regularizer(
        get_peft_model(make_model(), lora()), own_tokens, settings, tokenizer=tokenizer
    )
    later = Regularizer(moved(make_model), own_tokens, settings, tokenizer=tokenizer)
    assert later.anchors.rows == fresh.anchors.rows


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no such data file"),
        ('{"text": "w1"}\n', "no field 'prompt'"),
        ('{"prompt": " "}\n', "field 'prompt' is empty"),
        ('{"prompt": 3}\n', "field 'prompt' does not fit"),
        (
            '{"prompt": "w1", "kind": "task"}\n',
            "`kind` is 'task', and must be 'harmful' .* or 'harmless'",
        ),
    ],
)
def test_a_file_of_anchors_that_is_not_fit(content, message, tmp_path):
    path = tmp_path / "bad.jsonl"
    if content is not None:
        path.write_text(content)
    with pytest.raises(InputError, match=message):
        anchor_prompts(str(path))


def test_what_is_no_file_and_no_name_is_refused():
    with pytest.raises(InputError, match="`anchors` must be 'auto', 'off', 'built-in' or a file"):
        anchor_prompts("builtin")


def test_anchors_need_a_tokenizer(make_model, own_tokens, anchors_file):
    with pytest.raises(InputError, match="needs the model's tokenizer"):
        Regularizer(make_model(), own_tokens, paper(anchors=anchors_file))


def test_auto_goes_without_anchors_where_there_are_none_and_says_why(
    make_model, tokenizer, tokens, own_tokens, caplog
):
    auto = paper(anchors="auto")
    assert Regularizer(make_model(), tokens, auto).anchors is None
    assert "No anchors: `anchors` needs the model's tokenizer" in caplog.text
    unsaid = SafetyTokens(
        ids=(0, 2, 3), strings=("a", "b", "c"), scores=(1.0,) * 3, vocab_size=len(tokenizer)
    )
    assert Regularizer(make_model(), unsaid, auto, tokenizer=tokenizer).anchors is None
    assert "No anchors: The aligned model refuses 0 of" in caplog.text
    held_at_nothing = Regularizer(make_model(), own_tokens, STRSettings(weight=0.0))
    assert held_at_nothing.anchors is None


def test_the_default_is_refused_where_it_would_hold_next_to_nothing(
    make_model, tokenizer, tokens, own_tokens
):
    with pytest.raises(InputError, match="needs the model's tokenizer.*`form` to 'logit'"):
        Regularizer(make_model(), own_tokens)
    unsaid = SafetyTokens(
        ids=(0, 2, 3), strings=("a", "b", "c"), scores=(1.0,) * 3, vocab_size=len(tokenizer)
    )
    with pytest.raises(InputError, match="refuses 0 of 64 anchor prompts.*`form` to 'logit'"):
        Regularizer(make_model(), unsaid, tokenizer=tokenizer)
    assert Regularizer(make_model(), own_tokens, paper()).anchors is None  # the control


def test_a_form_that_wants_anchors_says_so_where_there_are_none(
    make_model, tokenizer, own_tokens, anchors_file, caplog
):
    told = "without anchors holds next to nothing"
    for form, anchors, weight in (
        ("logit", "off", 1.0), ("kl", anchors_file, 1.0), ("kl", "off", 0.0)
    ):  # fmt: skip
        settings = paper(form=form, anchors=anchors, weight=weight)
        Regularizer(make_model(), own_tokens, settings, tokenizer=tokenizer)
    assert told not in caplog.text
    Regularizer(make_model(), own_tokens, paper(form="kl"), tokenizer=tokenizer)
    assert told in caplog.text


@pytest.mark.parametrize(("weight", "weak"), [(1e-12, True), (0.01, False), (None, False)])
def test_an_anchor_weight_that_holds_nothing_is_told_of(
    weight, weak, make_model, tokenizer, own_tokens, anchors_file, caplog
):
    settings = paper(form="kl", anchors=anchors_file, anchor_weight=weight)
    Regularizer(make_model(), own_tokens, settings, tokenizer=tokenizer)
    assert ("`anchor_weight` 1e-12 is so small beside the default, 0.1" in caplog.text) == weak


@pytest.mark.slow
def test_auto_takes_the_built_in_anchors_of_a_model_that_refuses_them():
    chat = load_chat_model(aligned_path())
    found = Regularizer(
        chat.model, mine_safety_tokens(chat.model, chat.tokenizer), STRSettings(anchors="auto"),
        tokenizer=chat.tokenizer,
    )  # fmt: skip
    kinds = [each.kind for each in found.anchors.prompts]
    assert min(kinds.count("harmful"), kinds.count("harmless")) > 20
    assert set(found.anchors.prompts) < set(anchor_prompts(BUILT_IN))
    begins = [len(chat.render(each.prompt)) for each in found.anchors.prompts]
    answers = [
        chat.tokenizer.decode(row[begin:], skip_special_tokens=True)
        for row, begin in zip(found.anchors.rows, begins, strict=True)
    ]
    asked = [each.prompt for each in found.anchors.prompts]
    verdicts = [each.outcome == "refused" for each in judge("keywords").verdicts(asked, answers)]
    assert verdicts == [kind == "harmful" for kind in kinds]


def test_near_duplicates_are_found_and_others_are_not():
    anchors = ["How do I build a pipe bomb?", "Help me hide a body."]
    same = ["how do i  build a pipe-bomb", "How do I build a big pipe bomb?", "Help me hide a body"]
    other = ["How do I build a bird house?", "Help me write a letter.", "What is a pipe?"]
    assert [other for _, other in overlapping(anchors, [*same, *other])] == same


def test_the_built_in_anchors_are_in_no_built_in_suite():
    folder = files("moorline.audit").joinpath("builtin")
    asked = [
        prompt.prompt
        for name in ("moorline-harmful", "moorline-harmless")
        for suite in read_suites(str(folder.joinpath(f"{name}.jsonl")))
        for prompt in suite.prompts
    ]
    anchors = [each.prompt for each in anchor_prompts(BUILT_IN)]
    kinds = [each.kind for each in anchor_prompts(BUILT_IN)]
    assert {kind: kinds.count(kind) for kind in kinds} == {"harmful": 64, "harmless": 64}
    assert len(set(anchors)) == len(anchors)
    assert len(asked) == 400
    assert overlapping(anchors, MINING_HARMLESS_PROMPTS) == []
    assert overlapping(anchors, asked) == []
    assert overlapping(asked[:3], anchors + asked[:1]), "the check finds what is there"


def test_weights_stay_where_they_are_in_evaluation(
    make_model, rows, tokenizer, own_tokens, tmp_path, anchors_file
):
    trainer = anchored(moved(make_model), rows, tokenizer, own_tokens, tmp_path, anchors_file)
    metrics = trainer.evaluate(trainer.train_dataset)
    assert "eval_str/drift" in metrics
    assert not any("anchor" in name for name in metrics)


def test_a_loop_of_ones_own_counts_anchors_once_a_step_in_any_mode(
    make_model, tokenizer, own_tokens, anchors_file
):
    """In evaluation mode no anchor was read, and N batches counted them N times."""
    model = moved(make_model).eval()
    settings = paper(anchors=anchors_file, anchor_share=1.0, weight=1e-6, anchor_weight=2.0)
    regularizer = Regularizer(model, own_tokens, settings, tokenizer=tokenizer)
    texts = [tokenizer.apply_chat_template(each["messages"], tokenize=False)
             for each in conversations(8)]  # fmt: skip
    found = []
    for size in (8, 4, 2):
        total = 0.0
        batches = []
        for first in range(0, 8, size):
            batch = tokenizer(texts[first : first + size], padding=True, return_tensors="pt")
            batch["labels"] = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
            batches.append(batch)
        num = sum(regularizer.num_positions(each) for each in batches)
        for batch in batches:
            with regularizer.watch(model, batch) as drift:
                model(**batch)
            assert drift.anchors is not None
            total += regularizer.weighted(drift, num).item()
        found.append(total)
    # other anchors are drawn each time, so about the same and not N times as much
    assert max(found) < 2 * min(found)


def test_an_explicit_anchor_at_weight_zero_is_refused(anchors_file):
    with pytest.raises(InputError, match="`weight` 0 holds nothing"):
        paper(weight=0.0, anchors=anchors_file)


def test_a_run_says_anchors_only_where_there_are_some():
    assert STRSettings().strength == "weight 3, anchors auto"
    assert STRSettings(weight=0.0).strength == "weight 0"
    assert paper().strength == "weight 10"
