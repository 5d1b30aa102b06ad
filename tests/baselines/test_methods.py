"""What methods say of themselves, and what is refused before anything is trained."""

import pytest
from helpers import PeerTrainer, lora, settings
from peft import get_peft_model
from trl import SFTConfig

from moorline import InputError
from moorline.baselines import METHODS, Materials, Need, method_named
from moorline.baselines.states import Reader
from moorline.chat.chat_model import ChatModel


def materials(tokenizer, **more):
    return Materials(chat=ChatModel(None, tokenizer), **more)


def test_the_methods_are_these():
    assert list(METHODS) == [
        "plain", "str", "constrained_sft", "kl", "pact", "sbr", "safe_instr", "wise_ft",
        "lookahead", "lisa", "safe_lora",
    ]  # fmt: skip
    with pytest.raises(InputError, match="Did you mean 'lookahead'"):
        method_named("lookhead")


@pytest.mark.parametrize("name", METHODS)
def test_every_method_says_what_its_strength_is(name):
    method = METHODS[name]
    assert method.source
    assert method.cost
    strength = method.strength
    if strength is None:
        assert name == "plain"
        return
    for each in (*strength.grid, strength.default):
        assert strength.check(each, name) == each
    assert len(strength.grid) > 3
    ordered = sorted(strength.grid, reverse=not strength.more_protects)
    assert list(strength.grid) == ordered, "from the weakest protection to the strongest"


def test_what_each_method_needs():
    needs = {name: tuple(each.needs) for name, each in METHODS.items()}
    assert needs["plain"] == needs["wise_ft"] == needs["lookahead"] == ()
    assert needs["kl"] == needs["constrained_sft"] == (Need.ALIGNED_REFERENCE,)
    assert needs["safe_lora"] == (Need.UNALIGNED_BASE,)
    assert needs["lisa"] == needs["safe_instr"] == (Need.HARMFUL_PROMPTS, Need.REFUSALS)
    assert needs["sbr"] == (Need.HARMFUL_PROMPTS,)
    assert needs["pact"] == needs["str"] == (Need.ALIGNED_REFERENCE, Need.SAFETY_TOKENS)


@pytest.mark.parametrize(
    ("name", "strength", "words"),
    [
        ("kl", -1.0, "'kl' is lambda .*: a number of at least 0, got -1"),
        ("kl", float("nan"), "got nan"),
        ("wise_ft", 1.5, "'wise_ft' is alpha .* at least 0 and at most 1, got 1.5"),
        ("lookahead", 2.5, "'lookahead' is m .*: a whole number of at least 1, got 2.5"),
        ("lookahead", 0, "at least 1, got 0"),
        ("plain", 1.0, "'plain' has no `method_strength`"),
    ],
)
def test_a_strength_out_of_range_is_refused(name, strength, words):
    with pytest.raises(InputError, match=words):
        METHODS[name].check(strength)


def test_what_is_missing_or_in_vain_is_refused(tokenizer, tmp_path, tokens):
    with pytest.raises(InputError, match="'safe_lora' needs the unaligned base"):
        METHODS["safe_lora"].check(None)
    with pytest.raises(InputError, match="'kl' reads no `method_file`"):
        METHODS["kl"].check(None, file="rows.jsonl")
    with pytest.raises(InputError, match="'sbr' has no use for `method_base`"):
        METHODS["sbr"].check(None, base="model")
    with pytest.raises(InputError, match="'pact' needs safety tokens"):
        METHODS["pact"](materials(tokenizer))
    with pytest.raises(InputError, match="needs the unaligned base. Give `method_base` too"):
        METHODS["pact"](materials(tokenizer, tokens=tokens, file="rows.jsonl"))


def test_hosts_that_do_not_fit_are_refused(make_model, rows, tokenizer, tmp_path):
    method = METHODS["kl"](materials(tokenizer))
    compiled = settings(SFTConfig, tmp_path, torch_compile=True)
    with pytest.raises(InputError, match="does not run compiled"):
        PeerTrainer(make_model(), compiled, train_dataset=rows, processing_class=tokenizer,
                    method=method)  # fmt: skip
    on_head = get_peft_model(make_model(), lora(target_modules=["lm_head", "q_proj"]))
    with pytest.raises(InputError, match="puts an adapter on the output head"):
        Reader(on_head)
