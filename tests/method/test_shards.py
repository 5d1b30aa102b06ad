"""A head in shards (FSDP2), on CPU processes: the same values and gradients as in one process."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import moorline

SCRIPT = """
import json, os, sys
import torch
import torch.distributed as dist
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from transformers import LlamaConfig, LlamaForCausalLM
from moorline import Regularizer, SafetyTokens, STRSettings

out, case, form = sys.argv[1:]
dist.init_process_group("gloo")
rank, world = dist.get_rank(), dist.get_world_size()
config = LlamaConfig(
    vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
    num_attention_heads=4, num_key_value_heads=2, initializer_range=0.2,
    tie_word_embeddings=case == "tied",
)
torch.manual_seed(0)
model, aligned = LlamaForCausalLM(config), LlamaForCausalLM(config)
aligned.load_state_dict(model.state_dict())
ids = (3, 9, 33, 60)
tokens = SafetyTokens(ids=ids, strings=("",) * 4, scores=(1.0,) * 4, vocab_size=64)
with torch.no_grad():
    model.lm_head.weight[9] += 0.001
data = torch.randint(3, 64, (4, 10), generator=torch.Generator().manual_seed(1))
mine = data.chunk(world)[rank]
regularizer = Regularizer(model, tokens, STRSettings(form=form), aligned)
half = MixedPrecisionPolicy(output_dtype=torch.bfloat16)
policy = {"mp_policy": half} if case == "bf16" else {}
if case != "whole":
    for layer in model.model.layers:
        fully_shard(layer)
    if case != "tied":
        fully_shard(model.lm_head)
    fully_shard(model, **policy)
batch = {"input_ids": mine, "labels": mine}
with regularizer.watch(model, batch) as drift:
    # as a fused head does: the head is never called
    loss = model(input_ids=mine, labels=mine, fused=True).logits.float().mean() * 0.0
weighted = 1e6 * regularizer.weighted(drift, data[:, 1:].numel()) * world
(loss + weighted).backward()
gradient = model.lm_head.weight.grad
gradient = gradient.full_tensor() if hasattr(gradient, "full_tensor") else gradient
total = drift.sum.total.detach().clone()
dist.all_reduce(total)
if rank == 0:
    found = {"total": total.item(), "gradient": gradient.to_dense().tolist()}
    open(out, "w").write(json.dumps(found))
dist.barrier()
os._exit(0)
"""
# A fused head reads hidden states of the backbone and leaves the head module alone.
FUSED = """
from transformers.modeling_outputs import CausalLMOutputWithPast
def forward(self, input_ids=None, labels=None, fused=False, **kwargs):
    hidden = self.model(input_ids=input_ids).last_hidden_state
    return CausalLMOutputWithPast(logits=hidden if fused else self.lm_head(hidden))
LlamaForCausalLM.forward = forward
"""


def found(tmp_path, case, form="logit", processes=2):
    import json

    script = tmp_path / "shards.py"
    script.write_text(SCRIPT.replace("out, case, form", FUSED + "\nout, case, form", 1))
    out = tmp_path / f"{case}.json"
    words = [
        sys.executable, "-m", "torch.distributed.run", f"--nproc_per_node={processes}",
        "--standalone", str(script), str(out), case, form,
    ]  # fmt: skip
    source = str(Path(moorline.__file__).parents[1])
    path = os.pathsep.join(filter(None, [source, os.environ.get("PYTHONPATH")]))
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path}
    done = subprocess.run(words, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(out.read_text())


@pytest.mark.slow
@pytest.mark.parametrize(("case", "form"), [("sharded", "logit"), ("sharded", "logprob")])
def test_a_head_that_is_sharded_apart_and_never_called_has_the_gradient_of_one_process(
    case, form, tmp_path
):
    one = found(tmp_path, "whole", form, processes=1)
    two = found(tmp_path, case, form)
    assert one["total"] > 0, "there is a drift"
    assert two["total"] == pytest.approx(one["total"], rel=1e-4)
    flat = [[x for row in each["gradient"] for x in row] for each in (one, two)]
    largest = max(map(abs, flat[0]))
    assert largest > 0.1
    assert flat[1] == pytest.approx(flat[0], abs=1e-4 * largest)


@pytest.mark.slow
def test_a_small_drift_survives_a_root_that_rounds_what_leaves_it_to_bfloat16(tmp_path):
    one = found(tmp_path, "whole", processes=1)
    two = found(tmp_path, "bf16")
    assert two["total"] == pytest.approx(one["total"], rel=0.02)


@pytest.mark.slow
def test_a_tied_head_in_the_root_is_read_whole(tmp_path):
    assert found(tmp_path, "tied")["total"] > 0
