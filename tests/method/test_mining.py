"""Mining finds what was planted, and refuses where there is nothing to find."""

import math
from types import SimpleNamespace

import pytest
import torch
from helpers import sentencepiece_like
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    BloomConfig,
    Gemma3TextConfig,
    GPT2Config,
    LlamaConfig,
    MambaConfig,
    MistralConfig,
)

from moorline import InputError, embedded, mine_safety_tokens
from moorline.chat.chat_model import ChatModel
from moorline.method.mining import _refuses
from moorline.method.reading import Answered, Reader
from moorline.method.templates import MINING_PROMPTS, REJECTION_TEMPLATES, opener_ids


@pytest.fixture(scope="module")
def aligned():
    path = embedded.aligned_path()
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    return model, AutoTokenizer.from_pretrained(path)


def test_the_embedded_model_refuses_by_the_words_it_was_taught(aligned):
    tokens = mine_safety_tokens(*aligned)
    assert {"I", " sorry", " cannot", " help", "Sorry", " unable"} <= set(tokens.strings)
    assert list(tokens.scores) == sorted(tokens.scores, reverse=True)
    assert tokens.mined["refusal_mass"] > 0.5
    assert not set(tokens.ids) & set(aligned[1].all_special_ids)
    assert all(any(each.isalnum() for each in string) for string in tokens.strings)


def test_the_score_is_the_probability_of_saying_the_template_up_to_the_token(aligned):
    model, tokenizer = aligned
    template, prompt = "I cannot help", "How do I make a pipe bomb?"
    tokens = mine_safety_tokens(model, tokenizer, templates=[template], prompts=[prompt])
    context = tokenizer.apply_chat_template(
        [{"role": "user", "content": prompt}], add_generation_prompt=True, return_dict=False
    )
    answer = tokenizer(template, add_special_tokens=False).input_ids
    with torch.no_grad():
        nats = model(torch.tensor([context + answer])).logits[0].log_softmax(-1)
    expected = 1.0
    for index, token in enumerate(answer):
        expected *= math.exp(nats[len(context) + index - 1, token].item())
        found = dict(zip(tokens.ids, tokens.scores, strict=True))[token]
        assert found == pytest.approx(expected, rel=1e-4)  # order of sums, rounding to 6 digits


def test_words_that_serve_answers_are_dropped_but_openers_stay(aligned):
    everything = mine_safety_tokens(*aligned, harmless_prompts=())
    tokens = mine_safety_tokens(*aligned)
    assert set(tokens.ids) < set(everything.ids)
    dropped = set(everything.strings) - set(tokens.strings)
    assert {" to", " is", " for", " a", " the"} <= dropped
    assert {"I", "Sorry", "No", "My"} <= set(tokens.strings)


def test_fewer_tokens_are_the_first_of_more(aligned):
    many, few = (mine_safety_tokens(*aligned, max_tokens=num) for num in (20, 5))
    assert few.ids == many.ids[:5]


@pytest.mark.lengthy
def test_order_and_batching_do_not_matter(aligned):
    first = mine_safety_tokens(*aligned)
    second = mine_safety_tokens(
        *aligned, templates=REJECTION_TEMPLATES[::-1], prompts=MINING_PROMPTS[::-1], batch_size=7
    )
    assert set(first.ids) == set(second.ids)


def test_a_model_that_does_not_refuse_is_refused(aligned):
    base = AutoModelForCausalLM.from_pretrained(embedded.base_path(), dtype=torch.float32)
    with pytest.raises(InputError, match="does not refuse in these words"):
        mine_safety_tokens(base, aligned[1])
    with pytest.raises(InputError, match="does not refuse in these words"):
        mine_safety_tokens(*aligned, prompts=["How do I bake bread?", "What is 2 plus 3?"])


@pytest.mark.lengthy
def test_no_token_ranks_before_those_that_lead_to_it(aligned):
    """A small set held " with" and " this", and neither "I" nor " sorry"."""
    tokens = mine_safety_tokens(*aligned)
    rank = {string: index for index, string in enumerate(tokens.strings)}
    assert tokens.strings[0] == "I"
    chains = [
        ("I", "'m", " sorry", " but"),
        ("I", " cannot", " help", " with"),
        ("My", " apologies"),
    ]
    for chain in chains:
        assert [rank[each] for each in chain] == sorted(rank[each] for each in chain)
    few = mine_safety_tokens(*aligned, max_tokens=8)
    assert {"I", " sorry", " cannot", "'t"} <= set(few.strings)
    assert " this" not in few.strings


class Parrot(torch.nn.Module):
    """A chat model that answers every prompt with one text, and nothing else, almost surely."""

    def __init__(self, model, tokenizer, text):
        super().__init__()
        self.inner, self.config, self.dtype = model, model.config, torch.float32
        self.end = tokenizer("<|assistant|>", add_special_tokens=False).input_ids[-1]
        self.said = [*tokenizer(text, add_special_tokens=False).input_ids, tokenizer.eos_token_id]
        self.generation_config = model.generation_config

    def get_input_embeddings(self):
        return self.inner.get_input_embeddings()

    def get_output_embeddings(self):
        return self.inner.get_output_embeddings()

    def forward(self, input_ids, attention_mask=None, **_):
        if attention_mask is not None and attention_mask.ndim == 4:
            raise ValueError("no trees")
        logits = torch.zeros(*input_ids.shape, self.config.vocab_size)
        for row, ids in enumerate(input_ids.tolist()):
            begin = max(index for index, each in enumerate(ids) if each == self.end)
            for index in range(begin, len(ids)):
                so_far = ids[begin + 1 : index + 1]
                if so_far == self.said[: len(so_far)] and len(so_far) < len(self.said):
                    logits[row, index, self.said[len(so_far)]] = 30.0
        return SimpleNamespace(logits=logits)


@pytest.mark.parametrize(
    "text", ["I bring a lamp and a drum to the market.", "I can help with that.", "No, a lamp."]
)
def test_a_model_that_helps_and_begins_with_i_is_refused(aligned, text):
    """It was taken as aligned, since "I" opens refusals too."""
    with pytest.raises(InputError, match="does not refuse in these words"):
        mine_safety_tokens(Parrot(*aligned, text), aligned[1], harmless_prompts=())


@pytest.mark.parametrize(
    "text", ["I'm sorry, but I can't assist with that.", "I cannot provide this.", "I can't do it."]
)
def test_a_model_that_refuses_in_one_sentence_is_taken(aligned, text):
    tokens = mine_safety_tokens(Parrot(*aligned, text), aligned[1], harmless_prompts=())
    assert tokens.mined["opening_mass"] > 0.9
    assert tokens.strings[0] == "I"


LLAMA = {
    "vocab_size": 300, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 128,
}  # fmt: skip
SHAPES = {
    "llama": (LlamaConfig, LLAMA, True),
    "learned positions": (
        GPT2Config, {"vocab_size": 300, "n_embd": 32, "n_layer": 2, "n_head": 4}, True
    ),
    "short window": (MistralConfig, {**LLAMA, "sliding_window": 4}, False),
    "window and whole": (
        Gemma3TextConfig, {**LLAMA, "head_dim": 8, "sliding_window": 64}, True
    ),
    "biased by distance": (
        BloomConfig, {"vocab_size": 300, "hidden_size": 32, "n_layer": 2, "n_head": 4}, False
    ),
    "state space": (
        MambaConfig, {"vocab_size": 300, "hidden_size": 32, "num_hidden_layers": 2}, False
    ),
}  # fmt: skip


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@pytest.mark.parametrize("shape", SHAPES)
def test_answers_read_as_one_tree_have_the_nats_of_whole_rows(tokenizer, shape, implementation):
    kind, values, reads_trees = SHAPES[shape]
    config = kind(**values, initializer_range=0.3, bos_token_id=None, eos_token_id=1)
    if implementation == "sdpa" and shape in ("biased by distance", "state space"):
        pytest.skip("has one implementation")
    model = AutoModelForCausalLM.from_config(config, attn_implementation=implementation)
    chat = ChatModel(model.train(), tokenizer)
    generator = torch.Generator().manual_seed(0)

    def ids(num):
        return torch.randint(5, 300, (num,), generator=generator).tolist()

    begin = ids(3)
    asked = [
        Answered(ids(num), [[*begin, 9], ids(1), [*begin, 9, 8, 7, 6, 5], [*begin, 4], ids(7)])
        for num in (20, 9)
    ]
    assert Reader(chat, asked).shares == reads_trees
    done = []
    found = Reader(chat, asked).nats(batch_size=3, progress=done.append)
    assert Reader(chat, asked).nats() == [
        [pytest.approx(each, abs=1e-4) for each in of_prompt] for of_prompt in found
    ]
    assert done == [1, 1]
    assert model.training
    model.eval()
    for each, of_prompt in zip(asked, found, strict=True):
        for answer, nats in zip(each.answers, of_prompt, strict=True):
            with torch.no_grad():
                whole = model(torch.tensor([each.context + answer])).logits[0].log_softmax(-1)
            begin = len(each.context) - 1
            expected = [whole[begin + n, token].item() for n, token in enumerate(answer)]
            assert nats == pytest.approx(expected, abs=1e-4)


@pytest.mark.lengthy
@pytest.mark.parametrize("shape", SHAPES)
def test_greedy_answers_are_those_of_each_prompt_alone(tokenizer, shape):
    """Rows are padded behind what they share, and leave the batch as they end."""
    kind, values, _ = SHAPES[shape]
    config = kind(**values, initializer_range=0.3, bos_token_id=None, eos_token_id=1)
    model = AutoModelForCausalLM.from_config(config)
    generator = torch.Generator().manual_seed(1)
    shared = torch.randint(5, 300, (12,), generator=generator).tolist()
    rows = [
        [*shared, *torch.randint(5, 300, (num,), generator=generator).tolist()]
        for num in (9, 4, 4, 1)
    ]
    chat = ChatModel(model, tokenizer)
    alone = [list(chat.generate([row], max_new_tokens=12)[0].ids) for row in rows]
    # Two of the tokens that come up end an answer, at different steps.
    model.generation_config.eos_token_id = [alone[0][3], alone[1][7]]
    ended = [list(chat.generate([row], max_new_tokens=12)[0].ids) for row in rows]
    assert len({len(each) for each in ended}) > 1
    reader = Reader(chat, [Answered(row, [[5, 6], [7]]) for row in rows])
    done = []
    assert reader.greedy(rows, max_new_tokens=12, progress=done.append) == ended
    assert reader.greedy(rows, max_new_tokens=12, batch_size=3) == ended
    assert sum(done) == len(rows)


def test_progress_is_told_from_the_first_moment(aligned):
    told = []
    mine_safety_tokens(*aligned, progress=lambda done, total: told.append((done, total)))
    assert told[0] == (0, 28)
    assert told[-1] == (28, 28)
    assert [done for done, _ in told] == sorted(done for done, _ in told)


@pytest.mark.lengthy
def test_the_dtype_is_recorded_and_moves_the_set_by_words_of_harmless_answers_only(aligned):
    """Nothing said that a model in bfloat16 may have another set."""
    exact = mine_safety_tokens(*aligned)
    rounded = AutoModelForCausalLM.from_pretrained(embedded.aligned_path(), dtype=torch.bfloat16)
    found = mine_safety_tokens(rounded, aligned[1])
    assert (exact.mined["dtype"], found.mined["dtype"]) == ("float32", "bfloat16")
    without = [mine_safety_tokens(each, aligned[1], harmless_prompts=())
               for each in (aligned[0], rounded)]  # fmt: skip
    assert set(without[0].ids) == set(without[1].ids)
    assert len(set(exact.ids) ^ set(found.ids)) <= 2


TAILS = {"newline": "\n", "space": " "}


@pytest.mark.parametrize("tail", TAILS)
def test_templates_are_spelled_as_they_follow_the_prompt(tail):
    """A tokenizer that puts a space before a first word had none of a refusing model's openers."""
    tokenizer = sentencepiece_like(REJECTION_TEMPLATES, TAILS[tail])
    chat = ChatModel(None, tokenizer)
    context, (answer,) = chat.answer_ids("I cannot", ["I cannot help."])
    assert context == chat.render("I cannot")
    alone = tokenizer("I cannot help.", add_special_tokens=False).input_ids
    assert tokenizer.convert_ids_to_tokens(alone[0]) == "\u2581I"
    if tail == "newline":
        assert tokenizer.convert_ids_to_tokens(answer[0]) == "I"
        said = set(tokenizer.convert_ids_to_tokens(list(opener_ids(tokenizer))))
        assert {"I", "S"} & said
        assert not any(each.startswith("\u2581") for each in said)
    else:  # the space at the end of the prompt would merge with the answer
        assert answer == alone


def test_wrong_arguments_are_refused(aligned, make_model, tokenizer):
    with pytest.raises(InputError, match="`max_tokens` must be 1 or more, got 0"):
        mine_safety_tokens(*aligned, max_tokens=0)
    with pytest.raises(InputError, match="`templates` and `prompts`"):
        mine_safety_tokens(*aligned, templates=[])
    import copy

    bare = copy.deepcopy(aligned[1])
    bare.chat_template = None
    with pytest.raises(InputError, match="no chat template"):
        mine_safety_tokens(aligned[0], bare)


def test_a_refusal_of_a_harmless_prompt_is_no_helpful_answer():
    """A model that refused 8 of 16 harmless prompts lost " sorry" from its set."""
    begins = {(1, 2), (7, 8, 9)}
    assert _refuses([1, 2, 3], begins)
    assert _refuses([5, 7, 8, 9], begins), "after a greeting too"
    assert not _refuses([1, 3, 2, 7, 8], begins)
    assert not _refuses([], begins)
