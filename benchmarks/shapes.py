"""What a step and a cache cost for published shapes: counted FLOPs and bytes, nothing timed.

    python benchmarks/shapes.py --json out.json

The models are on the meta device, so that no weight is in memory; torch counts the FLOPs of one
layer's forward pass over 2,048 tokens.
"""

import argparse
from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaDecoderLayer

from moorline.provenance import now, versions, write_json

LENGTH, SAFETY = 2048, 100
SHAPES = {
    "8B": (4096, 14336, 32, 32),
    "70B": (8192, 28672, 80, 64),
    "405B": (16384, 53248, 126, 128),
}
"""Width, width of the feed-forward, layers, heads: those of Llama 3.1."""


def counted(width: int, wide: int, layers: int, heads: int) -> dict[str, float]:
    """FLOPs of a token in the backbone and in the head, and bytes of the weights in bfloat16."""
    config = LlamaConfig(
        vocab_size=128_256, hidden_size=width, intermediate_size=wide, num_hidden_layers=layers,
        num_attention_heads=heads, num_key_value_heads=8, max_position_embeddings=LENGTH,
    )  # fmt: skip
    config._attn_implementation = "eager"
    with torch.device("meta"):
        layer = LlamaDecoderLayer(config, 0).to(torch.bfloat16)
        hidden = torch.zeros(1, LENGTH, width, dtype=torch.bfloat16)
        turn = torch.zeros(1, LENGTH, width // heads, dtype=torch.bfloat16)
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            layer(hidden, position_embeddings=(turn, turn))
    weights = layers * sum(each.numel() for each in layer.parameters())
    backbone = layers * counter.get_total_flops() / LENGTH
    head = config.vocab_size * width
    of_head = 2.0 * head
    step = 3 * backbone + 3 * of_head  # LoRA with gradient checkpointing; docs/performance.md
    return {
        "backbone_flops": backbone,
        "head_flops": of_head,
        "weights_bytes": 2.0 * (weights + 2 * head),  # the embedding is as large as the head
        "live_ratio": (step + backbone) / step,
        "cache_flops_per_token": backbone,
        "step_flops_per_token": step,
    }


def main() -> None:
    """Counts every shape."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path)
    words = parser.parse_args()
    found = {name: counted(*shape) for name, shape in SHAPES.items()}
    for name, each in found.items():
        print(name, {key: f"{value:.4g}" for key, value in each.items()})
    if words.json:
        write_json(words.json, {"at": now(), "versions": versions(), "shapes": found})


if __name__ == "__main__":
    main()
