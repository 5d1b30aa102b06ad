"""Each loss against a slow restatement of its published formula in float64."""

import math

import pytest
import torch
from helpers import refusals_file

from moorline.baselines import METHODS, Materials
from moorline.baselines.lisa import is_safety_step
from moorline.baselines.pact import own_tokens, pact_kl
from moorline.baselines.peer import Responses, Training
from moorline.baselines.states import Reader, States
from moorline.chat.chat_model import ChatModel
from moorline.method.head import Processing
from moorline.method.safety_tokens import SafetyTokens

VOCAB, WIDTH = 11, 4


def softmax(values):
    highest = max(values)
    powers = [math.exp(each - highest) for each in values]
    return [each / sum(powers) for each in powers]


def responses(num=9, indices=None, seed=0):
    generator = torch.Generator().manual_seed(seed)

    def states():
        return States(
            torch.randn(num, WIDTH, generator=generator, dtype=torch.float64),
            torch.randn(VOCAB, WIDTH, generator=generator, dtype=torch.float64),
            torch.randn(VOCAB, generator=generator, dtype=torch.float64),
            Processing(1.3, 5.0),
        )

    trained, aligned = states(), states()
    trained.hidden.requires_grad_()
    labels = torch.randint(VOCAB, (num,), generator=generator)
    indices = torch.arange(1, num + 1) if indices is None else torch.tensor(indices)
    return Responses(trained, aligned, labels, indices, lambda inputs, mask: None)


def logits_of(states):
    weight, bias = states.weight.tolist(), states.bias.tolist()
    found = []
    for hidden in states.hidden.tolist():
        plain = [sum(h * w for h, w in zip(hidden, row, strict=True)) + b
                 for row, b in zip(weight, bias, strict=True)]  # fmt: skip
        scaled = [states.processing.scale * each for each in plain]
        found.append([5.0 * math.tanh(each / 5.0) for each in scaled])
    return found


def materials(tokenizer, **more):
    return Materials(chat=ChatModel(None, tokenizer), **more)


@pytest.fixture(params=[1 << 24, 22])
def _chunk(request, monkeypatch):
    """All positions at once, and two at a time."""
    monkeypatch.setattr("moorline.baselines.states._CHUNK_ELEMENTS", request.param)


@pytest.mark.usefixtures("_chunk")
def test_kl_is_the_sum_over_the_vocabulary(tokenizer):
    batch = responses()
    found = METHODS["kl"](materials(tokenizer)).of_responses(batch)
    expected = []
    for z, z0 in zip(logits_of(batch.trained), logits_of(batch.aligned), strict=True):
        p, p0 = softmax(z), softmax(z0)
        expected.append(sum(b * (math.log(b) - math.log(a)) for a, b in zip(p, p0, strict=True)))
    assert found.tolist() == pytest.approx(expected, rel=1e-12)
    assert min(expected) > 0.01


@pytest.mark.usefixtures("_chunk")
@pytest.mark.parametrize("strength", [1.0, 3.0])
def test_constrained_sft_weights_every_token(strength, tokenizer):
    """Values and gradient: the gradient at the logits is w (p - onehot), without one through w."""
    indices = [1, 2, 3, 4, 5, 6, 7, 1, 2]
    batch = responses(indices=indices)
    method = METHODS["constrained_sft"](materials(tokenizer), strength)
    found = method.of_responses(batch)
    expected, weights = [], []
    rows = zip(logits_of(batch.trained), logits_of(batch.aligned), batch.labels.tolist(), indices,
               strict=True)  # fmt: skip
    for z, z0, label, index in rows:
        beta = strength * (0.5 if index == 1 else 2.0 if index <= 5 else 0.1)
        nats, nats0 = math.log(softmax(z)[label]), math.log(softmax(z0)[label])
        weights.append(max(2 * (1 - 1 / (1 + math.exp(-beta * (nats - nats0)))), 1e-3))
        expected.append(-weights[-1] * nats)
    # beta is a float32, so 0.1 is 0.1 to 8 digits
    assert found.tolist() == pytest.approx(expected, rel=1e-6)
    assert method.factor == 1.0
    assert method.replaces_task
    (gradient,) = torch.autograd.grad(found.sum(), batch.trained.hidden)
    nats = batch.trained.logits().log_softmax(-1).gather(-1, batch.labels[:, None])[:, 0]
    plain = -(torch.tensor(weights, dtype=torch.float64) * nats).sum()
    (by_hand,) = torch.autograd.grad(plain, batch.trained.hidden)
    assert torch.allclose(gradient, by_hand, rtol=1e-6)


def test_constrained_sft_never_lets_go_of_a_token(tokenizer):
    batch = responses()
    far = batch.trained._replace(hidden=100 * batch.trained.hidden)
    found = METHODS["constrained_sft"](materials(tokenizer), 100.0).of_responses(
        batch._replace(trained=far)
    )
    nats = far.logits().log_softmax(-1).gather(-1, batch.labels[:, None])[:, 0]
    least = (found / -nats).min().item()
    assert least == pytest.approx(1e-3)


def top_p(values):
    total = 0.0
    for count, each in enumerate(sorted(softmax(values), reverse=True), start=1):
        total += each
        if total >= 0.9:
            return count
    return len(values)


def test_pact_is_its_published_formula():
    generator = torch.Generator().manual_seed(3)
    num, size = 14, 5
    z, z0, alone = (3 * torch.randn(num, size, generator=generator, dtype=torch.float64)
                    for _ in range(3))  # fmt: skip
    w = torch.tensor([0.4, 0.0, 0.3, 0.0, 0.9], dtype=torch.float64)
    indices = torch.arange(1, num + 1)
    expected = []
    for t in range(num):
        gate = 1 / (1 + math.exp(-2 * (top_p(z[t].tolist()) - top_p(alone[t].tolist())) / size))
        gate *= math.exp(-max(t - 8, 0) / 8)
        mixed = [(1 - gate) * a + gate * b for a, b in zip(z0[t].tolist(), alone[t].tolist(),
                                                           strict=True)]  # fmt: skip
        q = [p * v for p, v in zip(softmax([each / 2 for each in mixed]), w.tolist(), strict=True)]
        q = [each / sum(q) for each in q]
        p = softmax([each / 2 for each in z[t].tolist()])
        kl = sum(a * (math.log(a) - math.log(b)) for a, b in zip(q, p, strict=True) if a > 0)
        expected.append(4 * kl)
    assert pact_kl(z, z0, alone, w, indices).tolist() == pytest.approx(expected, rel=1e-9)
    assert pact_kl(z0, z0, z0, torch.ones(size), indices).tolist() == pytest.approx([0.0] * num)
    # the oddity that is kept: weights alone make it larger than 0 at the untouched model
    assert pact_kl(z0, z0, z0, w, indices).min() > 0.1


def test_pact_reads_each_response_without_its_prompt(tokenizer, tokens):
    method = METHODS["pact"](materials(tokenizer, tokens=tokens))
    method.begin(None)
    batch = responses(num=6, indices=[1, 2, 3, 1, 1, 2])
    inputs, wanted = method._without_prompt(batch)
    header = tokenizer("<assistant>", add_special_tokens=False).input_ids
    y = batch.labels.tolist()
    assert len(header) == 1
    assert inputs["input_ids"].tolist() == [
        [*header, y[0], y[1]], [*header, 0, 0], [*header, y[4], 0]
    ]  # fmt: skip
    assert inputs["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0], [1, 1, 0]]
    assert wanted.int().tolist() == [[1, 1, 1], [1, 0, 0], [1, 1, 0]]


def test_pacts_own_tokens_are_the_likeliest_weighted_by_what_alignment_raised(
    make_model, tokenizer, tmp_path, monkeypatch
):
    monkeypatch.setattr("moorline.baselines.pact.NUM_TOKENS", 7)
    aligned, base = make_model(), make_model(seed=1)
    chat = ChatModel(aligned, tokenizer)
    given = Materials(chat=chat, base=base, file=refusals_file(tmp_path))
    found = own_tokens(given)
    likely, moved = torch.zeros(len(tokenizer)), torch.zeros(len(tokenizer))
    for each in range(6):
        answer = tokenizer(f"w80 w81 w{each}").input_ids
        means = []
        for model, text in (
            (aligned, f"<user> w{each} w1 <end> <assistant> "),
            (base, f"User: w{each} w1\n\nAssistant: "),
        ):
            asked = tokenizer(text).input_ids
            logits = model(torch.tensor([[*asked, *answer]])).logits[0, len(asked) - 1 : -1]
            means.append(logits.softmax(-1).mean(0).detach())
        likely += means[0] / 6
        moved += (means[0] - means[1]) / 6
    top = sorted(sorted(range(len(likely)), key=lambda v: -likely[v])[:7])
    assert found.ids.tolist() == top
    kept = moved[top].double()
    kept = (kept - kept.mean()) / kept.std()
    kept = (kept / kept.norm()).clamp_min(0)
    assert torch.allclose(found.weights.double(), kept, atol=1e-4)
    assert 0 < (found.weights == 0).sum() < 7


def test_sbr_is_the_mean_squared_distance_at_the_last_prompt_tokens(
    make_model, tokenizer, tmp_path
):
    model = make_model()
    file = tmp_path / "prompts.jsonl"
    file.write_text('{"prompt": "w1 w2 w3"}\n{"messages": [{"role": "user", "content": "w4"}]}\n')
    chat = ChatModel(model, tokenizer)
    method = METHODS["sbr"](Materials(chat=chat, file=file))
    method.begin(Training(Reader(model, keep=False)))

    def states():
        found = []
        for prompt in ("w1 w2 w3", "w4"):
            ids = torch.tensor([chat.render(prompt)])
            found.append(model(ids, output_hidden_states=True).hidden_states[-1][0, -1].double())
        return torch.stack(found)

    before = states()
    assert method.of_step(0, 10).item() == 0.0
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight.mul_(1.5)
    expected = (states() - before).square().sum().item() / (2 * 32)
    assert method.of_step(0, 10).item() == pytest.approx(expected, rel=1e-5)
    assert expected > 1e-4


def test_sbr_takes_eight_prompts_of_ours(make_model, tokenizer):
    model = make_model()
    method = METHODS["sbr"](Materials(chat=ChatModel(model, tokenizer)))
    method.begin(Training(Reader(model, keep=False)))
    assert method._inputs["input_ids"].shape[0] == 8


def test_lisa_takes_turns_and_pulls_towards_the_phase_before(make_model, tokenizer, tmp_path):
    model = make_model()
    chat = ChatModel(model, tokenizer)
    method = METHODS["lisa"](Materials(chat=chat, file=refusals_file(tmp_path)))
    method.begin(Training(Reader(model, keep=False), batch_size=3))
    first = {name: each.detach().clone() for name, each in model.named_parameters()}
    batches = method.batches(0, 100, 2)
    assert [each["input_ids"].shape[0] for each in batches] == [3, 3]
    repeated = method.batches(0, 100, 2)
    assert all(
        torch.equal(one["input_ids"], two["input_ids"])
        for one, two in zip(batches, repeated, strict=True)
    )
    assert batches[0]["labels"].ne(-100).sum(1).tolist() == [4, 4, 4], "three words and the end"
    assert method.of_step(10, 100) is None
    with torch.no_grad():
        for each in model.parameters():
            each.add_(0.01)
    distance = sum(((each - first[name]).double() ** 2).sum() for name, each in
                   model.named_parameters())  # fmt: skip
    assert method.of_step(11, 100).item() == pytest.approx(distance.item() / 2, rel=1e-4)
    assert method.batches(1, 100, 2) is None, "a phase of ten steps has one on refusals"
    assert method.of_step(11, 100).item() == 0.0, "the phase begins where the other ended"


def test_lisas_phases_are_those_of_the_paper_in_a_long_run():
    assert [step for step in range(2100) if is_safety_step(step, 40_000)] == [
        *range(100), *range(1000, 1100), *range(2000, 2100)
    ]  # fmt: skip
    assert sum(is_safety_step(step, 300) for step in range(300)) == 30
    assert sum(is_safety_step(step, 20) for step in range(20)) == 2


def test_strength_of_the_safety_tokens_is_one_each(tokenizer, tokens):
    found = METHODS["pact"](materials(tokenizer, tokens=tokens)).tokens
    assert found.ids.tolist() == list(tokens.ids)
    assert found.weights.tolist() == [1.0] * len(tokens)
    assert isinstance(tokens, SafetyTokens)
