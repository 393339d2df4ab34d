"""Trained linear heads on disk: what turns an evaluated backbone into a classifier for others to use."""

from __future__ import annotations

import json
from pathlib import Path

from safetensors.torch import save_file

from .benchmarks import Benchmark
from .tasks import LinearHeads, Task


def save_heads(path: Path, heads: LinearHeads, task: Task, benchmark: Benchmark, pooling: str) -> None:
    """Writes a task's linear heads as one safetensors file.

    Its tensors are `HEAD.weight` of shape `(outputs, dim)` and `HEAD.bias` of shape `(outputs,)`; its metadata say
    `task`, `dataset`, `pooling` (how the backbone's features were pooled) and, as JSON, `outputs`: what the outputs of
    each head stand for.

    Args:
        path (`Path`): the file; its folder is made.
        heads ([`LinearHeads`]): on the CPU or not.
        task, benchmark: what the heads were trained for.
        pooling (`str`): as in [`pacl.pooling.pool_vision`].
    """
    outputs = {head.name: list(head.outputs) for head in task.heads}
    metadata = {"task": task.name, "dataset": benchmark.name, "pooling": pooling, "outputs": json.dumps(outputs)}
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: value.cpu().contiguous() for name, value in heads.state_dict().items()}, path, metadata)
