"""One backward pass in each of several cases, by hand in shards, for tests in their own processes.

python run_shards.py OUT.json
Under torchrun each head is sharded as its case says; alone nothing is.
"""

import json
import os
import sys
from pathlib import Path

import torch
import torch.distributed as together
from peft import LoraConfig, get_peft_model
from torch import nn
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.modeling_outputs import CausalLMOutputWithPast

from moorline import InputError, Regularizer, SafetyTokens, STRSettings
from moorline.processes import from_first

IDS = (3, 9, 33, 60)
SHIFT = 0.01


def fused(self, input_ids=None, labels=None, fused=False, **kwargs):
    """A forward with a fused head: it reads hidden states and leaves the head module alone."""
    hidden = self.model(input_ids=input_ids).last_hidden_state
    return CausalLMOutputWithPast(logits=hidden if fused else self.lm_head(hidden))


def case_of(name, world, rank):
    """Total drift over all processes, and the gradient of the head, where the head is."""
    form = "logprob" if name == "logprob" else "logit"
    config = LlamaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, initializer_range=0.2,
        tie_word_embeddings=name == "tied",
    )  # fmt: skip
    torch.manual_seed(0)
    model, aligned = LlamaForCausalLM(config), LlamaForCausalLM(config)
    if name == "bf16":  # with a bias, one logit can be moved by the same everywhere
        for each in (model, aligned):
            each.lm_head.bias = nn.Parameter(torch.zeros(64))
            each.lm_head.weight.data *= 8  # logits of 16, of which bfloat16 keeps eighths
    aligned.load_state_dict(model.state_dict())
    with torch.no_grad():
        if name == "bf16":
            model.lm_head.bias[9] += SHIFT
        else:
            model.lm_head.weight[9] += 0.001
    base = model
    if name == "saved":
        adapter = LoraConfig(r=2, target_modules=["q_proj"], modules_to_save=["lm_head"])
        model = get_peft_model(model, adapter)
    tokens = SafetyTokens(ids=IDS, strings=("",) * 4, scores=(1.0,) * 4, vocab_size=64)
    data = torch.randint(3, 64, (4, 10), generator=torch.Generator().manual_seed(1))
    mine = data.chunk(world)[rank]
    regularizer = Regularizer(model, tokens, STRSettings(form=form, anchors="off"), aligned)
    if world > 1:
        _shard(model, base, name)
        if name == "bf16":  # what is read in another precision has another drift
            _shard(aligned, aligned, name)
    with regularizer.watch(model, {"input_ids": mine, "labels": mine}) as drift:
        loss = model(input_ids=mine, labels=mine, fused=True).logits.float().mean() * 0.0
    # The mean over processes is what their gradients are reduced to.
    total = 1e6 * regularizer.weighted(drift, data[:, 1:].numel()) * world
    (loss + total).backward()
    gradient = next(
        each.grad
        for each_name, each in model.named_parameters()
        if each.grad is not None and each.shape[0] == 64 and each.ndim == 2
    )
    gradient = gradient.full_tensor() if hasattr(gradient, "full_tensor") else gradient
    measured = drift.sum.total.detach().clone()
    found = {"gradient": gradient.float().to_dense().tolist()}
    if name == "bf16":
        found["through the root"] = _through_the_root(model, aligned, mine).item()
    if world > 1:
        together.all_reduce(measured)
    return {**found, "mean": measured.item() / data[:, 1:].numel()}


def _shard(model, base, name):
    policy = {}
    if name == "bf16":  # as accelerate builds it
        half = torch.bfloat16
        policy = {"mp_policy": MixedPrecisionPolicy(half, half, half)}
    for layer in base.model.layers:
        fully_shard(layer, **policy)
    if name != "tied":
        fully_shard(base.lm_head, **policy)
    fully_shard(model, **policy)


def _through_the_root(model, aligned, mine):
    """The drift, had each side's safety logits left the root as a tensor: the control."""
    mask = torch.ones_like(mine, dtype=torch.bool)
    asked = {"safety_positions": mask, "safety_only": True}
    with torch.no_grad():
        z = model(input_ids=mine, **asked).safety_logits.float()
        z0 = aligned(input_ids=mine, **asked).safety_logits.float()
    return (z - z0).square().mean()


def _told(world, rank):
    """What every process has of the first one's answer, and of its refusal."""

    def refuse():
        raise InputError("not so")

    answer = from_first(lambda: f"by {rank}")
    try:
        from_first(refuse)
        error = ""
    except InputError as raised:
        error = str(raised)
    mine, every = [answer, error], [None] * world
    if world == 1:
        return [mine]
    together.all_gather_object(every, mine)
    return every


def main():
    LlamaForCausalLM.forward = fused
    rank, world = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    if world > 1:
        together.init_process_group("gloo")
    cases = ("apart", "logprob", "tied", "saved", "bf16")
    found = {name: case_of(name, world, rank) for name in cases}
    found["first"] = _told(world, rank)
    if rank == 0:
        Path(sys.argv[1]).write_text(json.dumps(found))
    if world > 1:
        together.barrier()
    # Gloo's threads now and then abort as the interpreter takes them down, after all is done.
    os._exit(0)


if __name__ == "__main__":
    main()
