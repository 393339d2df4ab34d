"""Peak memory of training under `PACLTrainer`, with a text tower of RoBERTa-large's size whose features are ready,
against training the vision tower alone; each in a process of its own.
"""

from __future__ import annotations

import resource
import subprocess
import sys
import tempfile

import torch
from _table import HEADER, row
from trainer_loop import BATCH, Clock, bare_loop, make_trainer
from training_step import make_model

REPEATS = 3


def peak_bytes() -> int:
    """Of the accelerator where there is one, else of this process's resident memory."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def train(side: str, name: str) -> None:
    """Trains some steps and prints the peak."""
    if side == "bare":
        model = make_model(name, text_layers=1)
        model.text_model = torch.nn.Module()  # the vision tower alone
        bare_loop(model)
    else:
        with tempfile.TemporaryDirectory() as folder:
            make_trainer(make_model(name, text_layers=24), folder, Clock()).train()
    print(peak_bytes())


def peak(side: str, name: str) -> int:
    """The same in a fresh process."""
    command = [sys.executable, __file__, side, name]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1])


def main() -> None:
    """Prints the row."""
    if len(sys.argv) == 3:
        train(*sys.argv[1:])
        return
    print(HEADER)
    for name in sys.argv[1:] or ["ResNet-50"]:
        measured = [peak("whole", name) / peak("bare", name) for _ in range(REPEATS)]
        row(f"peak memory of training, {name}, batch {BATCH}", "the bare tower's", measured, at_most=1.05)


if __name__ == "__main__":
    main()
