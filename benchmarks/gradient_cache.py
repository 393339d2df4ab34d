"""Gradient caching of a batch of 2,048 in chunks of 64: peak memory against a batch of 64 and against the whole batch,
and what the second forward pass costs. Each figure of memory comes from a process of its own.
"""

from __future__ import annotations

import subprocess
import sys

import torch
from _table import HEADER, ratios, row
from torch import Tensor
from training_memory import peak_bytes
from training_step import DEVICE, WIDTH, stepper, text_tower_config
from transformers import ResNetConfig

from pacl import PACLConfig, PACLModel
from pacl.training import pacl_loss

BATCH, CHUNK, SIDE, REPEATS = 2048, 64, 64, 2


def make_step(batch: int, chunk: int | None):
    """A training step of ResNet-18 on small pictures, so that the whole batch fits for comparison."""
    config = ResNetConfig(embedding_size=64, hidden_sizes=[64, 128, 256, 512], depths=[2] * 4, layer_type="basic")
    torch.manual_seed(0)
    model = PACLModel(PACLConfig(vision_config=config.to_dict(), text_config=text_tower_config(1).to_dict()))
    model.train().to(DEVICE, memory_format=torch.channels_last)
    pixels = torch.randn(batch, 3, SIDE, SIDE, device=DEVICE).contiguous(memory_format=torch.channels_last)
    texts = torch.randn(batch, WIDTH, device=DEVICE)
    labels = [torch.arange(batch, device=DEVICE) % 4, *torch.randint(2, (2, batch), device=DEVICE)]

    def loss() -> Tensor:
        output = model(pixel_values=pixels, text_features=texts, chunk_size=chunk)
        return pacl_loss(output.image_embeds, output.text_embeds, *labels).loss

    return stepper([p for p in model.parameters() if p.requires_grad], loss)


def peak(batch: int, chunk: int) -> int:
    """Peak bytes of a step in a fresh process."""
    command = [sys.executable, __file__, str(batch), str(chunk)]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def main() -> None:
    """Prints the rows."""
    if len(sys.argv) == 3:
        batch, chunk = map(int, sys.argv[1:])
        step = make_step(batch, chunk or None)
        step()
        print(peak_bytes())
        return
    what = f"{BATCH:,} pairs in chunks of {CHUNK}"
    inputs = 4 * (BATCH - CHUNK) * (3 * SIDE * SIDE + WIDTH)
    print(HEADER)
    small = [(peak(BATCH, CHUNK) - inputs) / peak(CHUNK, 0) for _ in range(REPEATS)]
    row(f"peak memory, {what}, pictures and texts themselves left out", f"a batch of {CHUNK}", small, at_most=1.1)
    large = [peak(BATCH, CHUNK) / peak(BATCH, 0) for _ in range(REPEATS)]
    row(f"peak memory, {what}", "the whole batch", large, at_most=1)
    times = ratios(make_step(BATCH, CHUNK), make_step(BATCH, None), REPEATS, warmup=0)
    row(f"step, {what}", "the whole batch", times, at_most=1.4)


if __name__ == "__main__":
    main()
