"""Two processes on one core each against one process on both cores with twice the batch: the same pairs, the same loss
and the same gradient, so that what is left is the price of talking to each other.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import torch
from _table import HEADER, keep_freed_memory, row, seconds
from accelerate import PartialState, debug_launcher
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel
from training_step import WIDTH, stepper, text_tower_config
from transformers import ResNetConfig

from pacl import PACLConfig, PACLModel
from pacl.training import pacl_loss
from pacl.training.distributed import RowGatherer

PROCESSES, BATCH, REPEATS = 2, 16, 5


def step_seconds(num_processes: int, folder: str) -> None:
    """Times ResNet-50's steps on this process's share of a global batch, and leaves them in the folder."""
    torch.set_num_threads(PROCESSES // num_processes)
    state = PartialState(cpu=True)
    size = BATCH * PROCESSES // num_processes
    torch.manual_seed(0)
    towers = {"vision_config": ResNetConfig().to_dict(), "text_config": text_tower_config(1).to_dict()}
    model = PACLModel(PACLConfig(**towers)).train().to(memory_format=torch.channels_last)
    model.text_model = torch.nn.Module()  # as in training: its features are ready
    wrapped = DistributedDataParallel(model) if num_processes > 1 else model
    pixels = torch.randn(size, 3, 224, 224).contiguous(memory_format=torch.channels_last)
    texts, labels = torch.randn(size, WIDTH), [torch.arange(size) % 4, *torch.randint(2, (2, size))]

    def loss() -> Tensor:
        output = wrapped(pixel_values=pixels, text_features=texts)
        gather = RowGatherer(size, pixels.device)
        several = {"gather": gather, "offset": gather.offset} if num_processes > 1 else {}
        return pacl_loss(output.image_embeds, output.text_embeds, *labels, **several).loss * num_processes

    step = stepper([p for p in model.parameters() if p.requires_grad], loss)
    step()
    times = [seconds(step) for _ in range(REPEATS)]
    if state.is_main_process:
        np.save(Path(folder, f"{num_processes}.npy"), times)


def main() -> None:
    """Prints the row."""
    keep_freed_memory()
    with tempfile.TemporaryDirectory() as folder:
        for num_processes in (1, PROCESSES):
            debug_launcher(step_seconds, (num_processes, folder), num_processes=num_processes)
        alone, together = (np.load(Path(folder, f"{number}.npy")) for number in (1, PROCESSES))
    print(HEADER)
    what = f"step of ResNet-50, {PROCESSES} processes of {BATCH} pairs on a core each"
    row(what, f"one process of {PROCESSES * BATCH} pairs on both", (together / alone).tolist(), at_most=1.1)


if __name__ == "__main__":
    main()
