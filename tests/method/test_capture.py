"""Safety logits are the model's own, for every architecture that the probe lets through."""

import pytest
import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from moorline import InputError
from moorline.method import head
from moorline.method.capture import check_capture, install
from moorline.method.head import check_whole, log_normaliser, processing_of, project

SMALL = {
    "vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64,
    "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
FAMILIES = {
    "llama": {}, "qwen3": {"head_dim": 8}, "mistral": {}, "phi": {},
    "gemma2": {"head_dim": 8, "final_logit_softcapping": 5.0}, "cohere": {"logit_scale": 0.25},
    "granite": {"logits_scaling": 4.0},
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64},
    "opt": {"ffn_dim": 48, "word_embed_proj_dim": 32},
}  # fmt: skip
IDS = torch.tensor([5, 9, 33, 60])


def build(family, dtype=torch.float32, **changes):
    values = {**SMALL, **FAMILIES[family], **changes}
    if family in ("gpt2", "opt"):
        values.pop("num_key_value_heads")
    torch.manual_seed(0)
    config = AutoConfig.for_model(family, **values)
    model = AutoModelForCausalLM.from_config(config).eval()
    head = model.get_output_embeddings()
    with torch.no_grad():
        head.weight.normal_()
        if head.bias is not None:
            head.bias.normal_()
    return model.to(dtype)


def batch():
    ids = torch.randint(3, 64, (3, 11), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    mask[1, 8:] = 0
    positions = torch.rand(ids.shape, generator=torch.Generator().manual_seed(2)) < 0.4
    return {"input_ids": ids, "attention_mask": mask}, positions & mask.bool()


@pytest.mark.parametrize("normalised", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_safety_logits_equal_the_models_own(family, normalised):
    model = build(family)
    inputs, positions = batch()
    with torch.no_grad():
        own = model(**inputs).logits
        own = own.log_softmax(-1) if normalised else own
        install(model, IDS, normalised=normalised)
        training = model(**inputs, safety_positions=positions)
        reference = model(**inputs, safety_positions=positions, safety_only=True)
    expected = own[positions][:, IDS]
    # float32 sums of 32 products in another order, at logits of size 10
    torch.testing.assert_close(training.safety_logits, expected, rtol=0, atol=2e-5)
    torch.testing.assert_close(reference.safety_logits, expected, rtol=0, atol=2e-5)
    assert torch.equal(training.safety_logits, reference.safety_logits)
    assert not hasattr(reference, "logits")
    assert check_capture(model, IDS) < 1e-4


@pytest.mark.parametrize("family", ["phi", "gemma2", "cohere", "granite"])
def test_a_bare_product_would_be_wrong(family):
    """The positive control: bias, soft-cap and scale matter for these families."""
    model = build(family)
    inputs, positions = batch()
    with torch.no_grad():
        expected = model(**inputs).logits[positions][:, IDS]
        hidden = model.base_model(**inputs).last_hidden_state[positions]
    bare = hidden @ model.get_output_embeddings().weight[IDS].T
    assert (bare - expected).abs().max() > 0.1


def test_plain_calls_and_generation_are_untouched():
    model, other = build("llama"), build("llama")
    install(model, IDS)
    inputs, _ = batch()
    assert torch.equal(model(**inputs).logits, other(**inputs).logits)
    ids = inputs["input_ids"]
    kwargs = {"max_new_tokens": 5, "do_sample": False}
    assert torch.equal(model.generate(ids, **kwargs), other.generate(ids, **kwargs))


def test_a_second_install_replaces_the_ids():
    model = build("llama")
    install(model, IDS)
    forward = model.forward
    install(model, IDS[:2])
    assert model.forward == forward
    inputs, positions = batch()
    assert model(**inputs, safety_positions=positions).safety_logits.shape[1] == 2


class Twisted(LlamaForCausalLM):
    """A model that does something to its logits which no configuration tells."""

    def forward(self, *args, **kwargs):
        output = super().forward(*args, **kwargs)
        output.logits = output.logits + 0.5 * output.logits.square()
        return output


def test_an_architecture_that_the_rule_does_not_know_is_refused_by_name():
    model = Twisted(LlamaConfig(**SMALL))
    install(model, IDS)
    with pytest.raises(InputError, match=r"Twisted \(model_type 'llama'\) cannot be held.*differ"):
        check_capture(model, IDS)


class Deaf(LlamaForCausalLM):
    """A model whose forward calls neither backbone nor head as modules."""

    def forward(self, input_ids=None, attention_mask=None, use_cache=None, **kwargs):
        from transformers.modeling_outputs import CausalLMOutputWithPast

        logits = nn.functional.one_hot(input_ids, self.config.vocab_size).float()
        return CausalLMOutputWithPast(logits=logits)


def test_an_architecture_that_cannot_be_recorded_is_refused_by_name():
    model = Deaf(LlamaConfig(**SMALL))
    install(model, IDS)
    with pytest.raises(InputError, match="Deaf.*calls neither its backbone nor its head"):
        check_capture(model, IDS)


def test_weights_that_are_not_in_memory_are_not_probed(caplog):
    with torch.device("meta"):
        model = LlamaForCausalLM(LlamaConfig(**SMALL))
    install(model, IDS)
    assert check_capture(model, IDS) != check_capture(model, IDS)  # NaN
    assert "probe was skipped" in caplog.text


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_is_projected_in_float32_outside_autocast(dtype):
    hidden, weight = torch.randn(6, 32).to(dtype), torch.randn(64, 32).to(dtype)
    processing = processing_of(LlamaConfig(**SMALL))
    exact = hidden.double() @ weight[IDS].double().T
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = project(hidden, weight, None, IDS, processing)
    assert found.dtype == torch.float32
    # float32 rounding of 32 products of size 1
    torch.testing.assert_close(found.double(), exact, rtol=0, atol=2e-5)


def test_the_normaliser_in_chunks_is_the_normaliser_and_so_is_its_gradient(monkeypatch):
    hidden = torch.randn(7, 32, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(64, 32, dtype=torch.float64, requires_grad=True)
    bias = torch.randn(64, dtype=torch.float64)
    processing = head.Processing(scale=0.5, softcap=4.0)
    whole = (4.0 * torch.tanh(0.5 * (hidden @ weight.T + bias) / 4.0)).logsumexp(-1)
    monkeypatch.setattr(head, "_CHUNK_ELEMENTS", 128)
    chunked = log_normaliser(hidden, weight, bias, processing)
    torch.testing.assert_close(chunked, whole)
    first = torch.autograd.grad(whole.square().sum(), (hidden, weight))
    second = torch.autograd.grad(chunked.square().sum(), (hidden, weight))
    torch.testing.assert_close(first, second)


def test_the_head_gets_its_gradient_through_safety_rows_only():
    model = build("llama")
    install(model, IDS)
    inputs, positions = batch()
    model(**inputs, safety_positions=positions).safety_logits.square().sum().backward()
    rows = model.get_output_embeddings().weight.grad.to_dense().abs().sum(-1) > 0
    assert rows.nonzero().flatten().tolist() == IDS.tolist()


def test_the_projection_in_chunks_is_that_of_all_positions(monkeypatch):
    hidden = torch.randn(23, 8, requires_grad=True)
    weight, ids = torch.randn(40, 8), torch.tensor([3, 5, 39])
    plain = head.Processing(1.0, None)
    whole = head.project(hidden, weight, None, ids, plain)
    (expected,) = torch.autograd.grad(whole.square().sum(), hidden)
    monkeypatch.setattr(head, "_CHUNK_HIDDEN", 40)
    parts = head.project(hidden, weight, None, ids, plain)
    (found,) = torch.autograd.grad(parts.square().sum(), hidden)
    assert torch.allclose(parts, whole, atol=1e-6)
    assert torch.allclose(found, expected, atol=1e-5)
    assert head.project(hidden[:0], weight, None, ids, plain).shape == (0, 3)


@pytest.mark.parametrize("tied", [False, True])
def test_a_trained_head_gets_the_gradient_of_its_rows_without_a_matrix_of_its_size(tied):
    config = LlamaConfig(
        vocab_size=64, hidden_size=16, intermediate_size=16, num_hidden_layers=1,
        num_attention_heads=2, tie_word_embeddings=tied,
    )  # fmt: skip
    ids, tokens = torch.tensor([3, 5, 60]), torch.arange(12)[None]
    positions = torch.ones_like(tokens, dtype=torch.bool)
    model = LlamaForCausalLM(config)
    install(model, ids)
    weight = model.get_output_embeddings().weight
    out = model(input_ids=tokens, labels=tokens, safety_positions=positions)
    rows = torch.autograd.grad(out.safety_logits.square().sum(), weight, retain_graph=True)[0]
    assert tied or (rows.is_sparse and rows._nnz() == len(ids))
    (out.loss + out.safety_logits.square().sum()).backward()
    assert not weight.grad.is_sparse
    found = {name: each.grad.clone() for name, each in model.named_parameters()}
    model.zero_grad()
    whole = model(input_ids=tokens, labels=tokens)
    (whole.loss + whole.logits[0][:, ids].square().sum()).backward()
    for name, each in model.named_parameters():
        assert torch.allclose(found[name], each.grad, atol=1e-5), name


def test_a_model_that_was_partitioned_as_it_was_loaded_is_refused(make_model):
    model = make_model()
    check_whole(model)
    weight = model.model.layers[0].mlp.up_proj.weight
    weight.ds_id, weight.data = 7, torch.empty(0)  # as DeepSpeed's `zero.Init` leaves it
    with pytest.raises(InputError, match="Set `zero3_init_flag: false`"):
        check_whole(model)
