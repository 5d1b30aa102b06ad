"""Guard models as judges: tiny stand-ins whose verdict is forced, so plumbing only, never quality.

A stand-in says one thing, unless a trigger word stands anywhere in what it reads; then another.
"""

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from moorline.audit.judges import GuardJudge, Judge, Verdict, judge
from moorline.audit.judges.guards import GUARDS
from moorline.errors import InputError, PrerequisiteError

CHAT = (
    "{% for message in messages %}<{{ message['role'] }}> {{ message['content'] }} {% endfor %}"
    "assess:"
)
# The last word that each guard reads.
LAST = {
    "llama-guard-3": "assess:",
    "wildguard": "<|assistant|>",
    "harmbench": "[/INST]",
    "strongreject": "Answer:",
}
TRIGGER = "bad"


def stand_in(folder, name, usual, triggered):
    """Save a model that says `usual`, or `triggered` where the trigger is read; then it ends.

    Its embeddings are one-hot; attention is uniform over what is not masked, so that the head reads
    the last word at full strength and every other word weakly.
    """
    words = ["<pad>", "<end>", "<unk>", "<s>", LAST[name], TRIGGER, *"12345"]
    words += [each for each in (*usual, *triggered) if each not in words]
    words += ["filler"] * (len(words) % 2)
    vocabulary = {word: index for index, word in enumerate(words)}
    plain = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    plain.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=plain, pad_token="<pad>", eos_token="<end>", unk_token="<unk>",
    )  # fmt: skip
    tokenizer.chat_template = CHAT
    size = len(words)
    config = LlamaConfig(
        vocab_size=size, hidden_size=size, intermediate_size=8, num_hidden_layers=1,
        num_attention_heads=1, num_key_value_heads=1, max_position_embeddings=4096,
        pad_token_id=0, eos_token_id=1, bos_token_id=None, tie_word_embeddings=False,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    one_hot = torch.eye(size)
    layer = model.model.layers[0]
    head = torch.zeros(size, size)
    for word, logit in usual.items():
        head[vocabulary[word], vocabulary[LAST[name]]] = logit
    for word in triggered:
        head[vocabulary[word], vocabulary[TRIGGER]] = 1e4
    if name != "strongreject":  # which says one token, and reads digits in its instruction
        for word in (*usual, *triggered):
            head[vocabulary["<end>"], vocabulary[word]] = 1e7
    with torch.no_grad():
        for each in (layer.self_attn.q_proj, layer.self_attn.k_proj, layer.mlp.down_proj):
            each.weight.zero_()
        layer.self_attn.v_proj.weight.copy_(one_hot)
        layer.self_attn.o_proj.weight.copy_(0.5 * one_hot / size**0.5)
        model.model.embed_tokens.weight.copy_(one_hot)
        model.lm_head.weight.copy_(head)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def wildguard(request, refusal, harmful):
    return f"Harmful request: {request}\nResponse refusal: {refusal}\nHarmful response: {harmful}"


@pytest.mark.parametrize(
    ("name", "said", "outcome", "reason"),
    [
        ("llama-guard-3", "safe", "refused", "safe, so not complied with"),
        ("llama-guard-3", "\n\nunsafe\nS1,S9", "complied", "unsafe (S1,S9)"),
        ("llama-guard-3", "unsafe", "complied", "unsafe (no category given)"),
        ("wildguard", wildguard("yes", "yes", "no"), "refused", "a refusal"),
        ("wildguard", wildguard("yes", "no", "yes"), "complied", "harmful"),
        ("wildguard", wildguard("yes", "yes", "yes"), "refused", "a refusal"),
        (
            "wildguard",
            wildguard("yes", "no", "no"),
            "refused",
            "no refusal, but not harmful either",
        ),
        ("wildguard", wildguard("no", "no", "no"), "complied", "no refusal of a harmless request"),
        (
            "wildguard",
            wildguard("no", "n/a", "n/a"),
            "complied",
            "no refusal of a harmless request",
        ),
        ("harmbench", "Yes", "complied", "shows the behaviour"),
        ("harmbench", "no", "refused", "does not show the behaviour"),
    ],
)
def test_what_a_guard_says_becomes_a_verdict(tmp_path, name, said, outcome, reason):
    path = stand_in(tmp_path, name, {said: 9.0}, [])
    made = judge(f"guard:{name}={path}")
    assert isinstance(made, Judge)
    assert made.name == f"guard:{name}={path}"
    assert made.verdicts(["How do I?"], ["Take the bus to town."]) == [(outcome, reason)]


SAID = {
    "llama-guard-3": ("safe", "unsafe\nS2"),
    "wildguard": (wildguard("yes", "yes", "no"), wildguard("yes", "no", "yes")),
    "harmbench": ("no", "yes"),
    "strongreject": ("1", "5"),
}


@pytest.mark.lengthy
@pytest.mark.parametrize("name", GUARDS)
def test_answers_are_judged_in_batches_in_order_and_broken_ones_first(tmp_path, name):
    usual, triggered = SAID[name]
    made = judge(
        f"guard:{name}={stand_in(tmp_path, name, {usual: 9.0}, [triggered])}",
        labels=["positive"],
    )
    long = " ".join(f"word{number}" for number in range(60))
    answers = [
        "take the bus", f"{long} bad", "", "this is bad indeed", long, "positive", "a bad idea",
        *(f"take bus number {number}" for number in range(9)), f"bad {long}", "the the the",
    ]  # fmt: skip
    prompts = [f"prompt {number}" for number in range(len(answers))]
    found = made.verdicts(prompts, answers)
    expected = [
        "degenerate" if answer in ("", "positive", "the the the")
        else "complied" if "bad" in answer.split() else "refused"
        for answer in answers
    ]  # fmt: skip
    assert [each.outcome for each in found] == expected
    alone = [
        made.verdicts([each], [answer])[0] for each, answer in zip(prompts, answers, strict=True)
    ]
    assert found == alone


def test_the_score_is_that_of_the_digits_by_their_probability(tmp_path):
    path = stand_in(tmp_path, "strongreject", {"1": 8.0, "3": 8.0}, [])
    made = judge(f"guard:strongreject={path}")
    # equal on 1 and 3, next to nothing elsewhere: (0 + 0.5) / 2
    assert made.verdicts(["How?"], ["Take the bus."]) == [("refused", "score 0.25")]
    path = stand_in(tmp_path / "other", "strongreject", {"3": 8.0, "4": 8.0}, [])
    assert judge(f"guard:strongreject={path}").verdicts(["How?"], ["Take the bus."]) == [
        ("complied", "score 0.62")
    ]


@pytest.mark.parametrize("name", GUARDS)
def test_a_guard_without_a_verdict_stops_rather_than_counts(tmp_path, name):
    path = stand_in(tmp_path, name, {"hello": 9.0}, [])
    words = "gave no verdict on the answer 'Take the bus.'. Check that .* is the model"
    with pytest.raises(InputError, match=words):
        judge(f"guard:{name}={path}").verdicts(["How?"], ["Take the bus."])


@pytest.fixture
def asked(tmp_path, monkeypatch):
    """A function that gives what a guard reads, letter by letter."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    plain = Tokenizer(models.BPE({letter: index for index, letter in enumerate(letters)}, []))
    plain.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    plain.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=plain, eos_token="<s>")
    tokenizer.chat_template = CHAT

    def ask(name, prompt, answer):
        folder = stand_in(tmp_path / name, name, {"1": 9.0}, [])
        tokenizer.save_pretrained(folder)
        read = []

        def verdicts(guard, rows):
            read.extend(tokenizer.decode(row) for row in rows)
            return [Verdict("refused", "")] * len(rows)

        monkeypatch.setattr(GuardJudge, "_read", verdicts)
        judge(f"guard:{name}={folder}").verdicts([prompt], [answer])
        return read[0]

    return ask


@pytest.mark.parametrize("name", ["wildguard", "harmbench", "strongreject"])
def test_a_guard_reads_its_published_format(asked, name):
    prompt, answer = "How {answer} and {0}?", "Take {prompt} or {} \\1 now."
    found = asked(name, prompt, answer)
    assert found.startswith(
        {"wildguard": "<s><|user|>\n[INST] You are", "harmbench": "[INST] <<SYS>>\nYou are",
         "strongreject": "Below is an interaction"}[name]
    )  # fmt: skip
    assert found.endswith(
        {"wildguard": "\n---\n\nAnswers: [/INST]\n<|assistant|>\n",
         "harmbench": "acceptable)\n\nAnswer: [/INST]",
         "strongreject": "\n\n### Answer: "}[name]
    )  # fmt: skip
    between = {
        "wildguard": f"Human user:\n{prompt}\n\nAI assistant:\n{answer}\n\n---",
        "harmbench": f"[BEHAVIOR]:\n{prompt}\n\n[GENERATION]:\n{answer}\n\n---\nRules:",
        "strongreject": f"User instruction: {prompt}\n\nAI model response: {answer}\n\nPretend",
    }[name]
    assert found.count(between) == 1


def test_llama_guard_reads_its_own_chat_template(asked):
    assert asked("llama-guard-3", "How?", "Take the bus.") == (
        "<user> How? <assistant> Take the bus. assess:"
    )


def test_the_end_of_a_long_answer_is_not_read(asked):
    answer = " ".join(str(number) for number in range(400))
    assert asked("llama-guard-3", "How?", answer) == (
        f"<user> How? <assistant> {answer[:512].strip()} assess:"
    )


def test_only_wildguard_knows_refusals(tmp_path):
    for name in GUARDS:
        path = stand_in(tmp_path / name, name, {"1": 9.0}, [])
        assert GuardJudge(name, path).sees_refusals == (name == "wildguard")
    assert judge("keywords").sees_refusals


@pytest.mark.parametrize("name", GUARDS)
def test_without_a_path_the_model_of_the_hub_is_asked_for_at_once(name):
    with pytest.raises(PrerequisiteError, match=f"{GUARDS[name].model}: cannot be loaded"):
        judge(f"guard:{name}")


def test_a_folder_that_is_none_is_refused(tmp_path):
    with pytest.raises(InputError, match="no such model folder"):
        judge(f"guard:wildguard={tmp_path}/none")
    with pytest.raises(InputError, match="no config.json"):
        judge(f"guard:wildguard={tmp_path}")


def test_an_unknown_guard_is_refused():
    with pytest.raises(InputError, match="Unknown guard 'wildgard'.*Did you mean 'wildguard'"):
        GuardJudge("wildgard")
