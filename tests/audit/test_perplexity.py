"""Perplexity: against a plain loop, against TRL's evaluation loss, and at its edges."""

import copy
import math

import pytest
import torch
from datasets import Dataset
from helpers import conversations
from peft import LoraConfig, get_peft_model
from trl import SFTConfig, SFTTrainer

from moorline.audit.perplexity import Perplexity, labelled, perplexity
from moorline.audit.statistics import mean_interval
from moorline.chat.chat_model import ChatModel
from moorline.chat.conversation import mark_responses
from moorline.errors import InputError

TEXTS = [{"text": "w1 w2 w3 w4"}, {"text": "w5 w6"}, {"text": "w7 w8 w9 w1 w2 w3 w4 w5"}]
PAIRS = [
    {"prompt": "w1 w2 w3 ", "completion": "w4 w5"},
    {"prompt": "w6 ", "completion": "w7 w8 w9 w10"},
]
COMPLETIONS = [
    {
        "prompt": [{"role": "user", "content": each["prompt"]}],
        "completion": [{"role": "assistant", "content": each["completion"]}],
    }
    for each in PAIRS
]
ROWS = {
    "messages": [dict(row) for row in conversations(num=7, turns=2)],
    "text": TEXTS,
    "completion": COMPLETIONS,
}

# float32 sums in another order and with other padding
CLOSE = {"rel_tol": 1e-5}


def _plain(model, ids, mask):
    """Nats of each response token, one row and one token at a time."""
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([ids])).logits[0].double()
    return [
        -float(logits[place - 1].log_softmax(-1)[ids[place]])
        for place in range(1, len(ids))
        if mask[place]
    ]


def _marked(tokenizer, row):
    if "text" not in row:
        messages = row["messages"] if "messages" in row else row["prompt"] + row["completion"]
        found = mark_responses(tokenizer, messages)
        return found["input_ids"], found["assistant_masks"]
    ids = [*tokenizer(row["text"]).input_ids, tokenizer.eos_token_id]
    return ids, [1] * len(ids)


@pytest.mark.parametrize("batch_size", [1, 3, 50])
@pytest.mark.parametrize("shape", ROWS)
def test_it_is_the_mean_over_tokens_of_a_plain_loop(make_model, tokenizer, shape, batch_size):
    model = make_model().eval()
    by_row = [_plain(model, *_marked(tokenizer, row)) for row in ROWS[shape]]
    nats = [each for of_row in by_row for each in of_row]
    found = perplexity(ChatModel(model, tokenizer), ROWS[shape], batch_size=batch_size)
    assert math.isclose(found.nats, sum(nats) / len(nats), **CLOSE)
    assert found.perplexity == math.exp(found.nats)
    assert (found.num_tokens, found.num_rows) == (len(nats), len(ROWS[shape]))
    interval = mean_interval([sum(each) for each in by_row], sizes=[len(each) for each in by_row])
    assert math.isclose(found.low, math.exp(interval.low), **CLOSE)
    assert math.isclose(found.high, math.exp(interval.high), **CLOSE)
    assert found.low < found.perplexity < found.high


@pytest.mark.parametrize("shape", ROWS)
def test_its_nats_are_the_evaluation_loss_of_trl(make_model, tokenizer, tmp_path, shape):
    model = make_model()
    rows = Dataset.from_list(ROWS[shape])
    settings = SFTConfig(
        output_dir=str(tmp_path), per_device_eval_batch_size=50, report_to=[], use_cpu=True,
        bf16=False, assistant_only_loss=shape == "messages", max_length=None,
    )  # fmt: skip
    trainer = SFTTrainer(
        model, settings, train_dataset=rows, eval_dataset=rows, processing_class=tokenizer
    )
    expected = trainer.evaluate()["eval_loss"]
    assert math.isclose(
        perplexity(ChatModel(model, tokenizer), ROWS[shape]).nats, expected, **CLOSE
    )


def test_a_prompt_and_completion_as_texts_are_read_in_the_chat_template(make_model, tokenizer):
    chat = ChatModel(make_model(), tokenizer)
    assert perplexity(chat, PAIRS) == perplexity(chat, COMPLETIONS)


@pytest.mark.parametrize("border", [("w1 w2 ", "w3"), ("w1 w2", "3"), ("w", "1 w2")])
def test_without_a_template_a_token_across_the_border_counts_as_trl_counts_it(
    make_model, tokenizer, tmp_path, border
):
    """A completion that merges with the prompt into one token used to count for nothing."""
    plain, model = copy.deepcopy(tokenizer), make_model()
    plain.chat_template = None
    rows = [dict(zip(("prompt", "completion"), border, strict=True))]
    trainer = SFTTrainer(
        model,
        SFTConfig(output_dir=str(tmp_path), report_to=[], use_cpu=True, bf16=False),
        train_dataset=Dataset.from_list(rows), processing_class=plain,
    )  # fmt: skip
    row = trainer.train_dataset[0]
    assert labelled(plain, rows[0], "row 1", None) == (row["input_ids"], row["labels"])
    assert perplexity(ChatModel(model, plain), rows).num_tokens > 0


def test_an_adapter_counts_and_the_mode_of_the_model_is_left_alone(make_model, tokenizer):
    plain = perplexity(ChatModel(make_model(), tokenizer), TEXTS)
    model = get_peft_model(make_model(), LoraConfig(r=2, lora_dropout=0.5, init_lora_weights=False))
    model.train()
    found = perplexity(ChatModel(model, tokenizer), TEXTS)
    assert found.nats != plain.nats
    assert model.training
    assert perplexity(ChatModel(model, tokenizer), TEXTS) == found  # no dropout


def test_a_model_that_knows_nothing_is_as_perplexed_as_its_vocabulary_is_long(
    make_model, tokenizer
):
    model = make_model()
    torch.nn.init.zeros_(model.lm_head.weight)
    found = perplexity(ChatModel(model, tokenizer), TEXTS)
    assert math.isclose(found.perplexity, len(tokenizer), **CLOSE)


def test_what_lies_behind_the_greatest_length_is_left_out(make_model, tokenizer):
    model = make_model()
    found = perplexity(ChatModel(model, tokenizer), [{"text": "w1 w2 w3 w4 w5"}], max_length=3)
    ids = tokenizer("w1 w2 w3").input_ids
    nats = _plain(model.eval(), ids, [1] * 3)
    assert (found.num_tokens, found.num_rows) == (2, 1)
    assert math.isclose(found.nats, sum(nats) / 2, **CLOSE)
    assert found.low is found.high is None  # one row


def test_rows_without_a_response_token_are_no_rows(make_model, tokenizer):
    nothing = [{"prompt": "w1 w2 w3 w4 ", "completion": "w5"}]
    found = perplexity(ChatModel(make_model(), tokenizer), nothing, max_length=4)
    assert found == Perplexity(None, None, None, None, 0, 0)
    assert perplexity(ChatModel(make_model(), tokenizer), []) == found
    assert (
        perplexity(ChatModel(make_model(), tokenizer), [*nothing, *TEXTS], max_length=4).num_rows
        == 3
    )


def test_progress_counts_every_row_once(make_model, tokenizer):
    done = []
    perplexity(ChatModel(make_model(), tokenizer), TEXTS, batch_size=2, progress=done.append)
    assert done == [2, 1]


@pytest.mark.parametrize("row", [{}, {"prompt": "w1"}, {"question": "w1", "answer": "w2"}])
def test_a_row_of_another_shape_is_refused_with_its_place(make_model, tokenizer, row):
    words = r"row 2: a row needs 'messages', 'text', or 'prompt' and 'completion' \(fields"
    with pytest.raises(InputError, match=words):
        perplexity(ChatModel(make_model(), tokenizer), [TEXTS[0], row])


@pytest.mark.parametrize("values", [{"batch_size": 0}, {"max_length": 1}])
def test_arguments_out_of_range_are_refused(make_model, tokenizer, values):
    with pytest.raises(InputError, match="`batch_size` must be 1 or more and `max_length` 2 or"):
        perplexity(ChatModel(make_model(), tokenizer), TEXTS, **values)
