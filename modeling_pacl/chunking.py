"""Encodes a large batch at the memory of a small one: gradient caching by recomputation, chunk after chunk."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint


@torch.compiler.disable(recursive=False)  # it cannot trace what keeps the statistics; it may what is encoded
def encode_in_chunks(
    module: nn.Module, encode: Callable[..., torch.Tensor], chunk_size: int | None, **inputs: torch.Tensor | None
) -> torch.Tensor:
    """
    `encode(**inputs)`, chunk after chunk where there are several; the backward pass then computes each a second time.

    What is kept between the two passes are inputs and outputs, and no activation (Gao et al. 2021, *Scaling Deep
    Contrastive Learning Batch Size under Memory Limited Setup*). The gradient is that of the whole batch, but for what
    depends on the rows that go through together: batch normalisation, whose running statistics are updated once, and
    the order in which dropout draws its random numbers, the same ones in both passes.

    Args:
        module (`nn.Module`): What `encode` runs.
        encode (`Callable`): From inputs of B rows to a tensor of B rows.
        chunk_size (`int`, *optional*): Rows that go through together; all at once, and nothing twice, when `None`.
        inputs (`torch.Tensor` of B rows, or `None`): What `encode` is given.

    Returns:
        `torch.Tensor` of B rows.

    Raises:
        `ValueError`: the chunk size is below 1.
    """
    given = {name: values for name, values in inputs.items() if values is not None}
    if chunk_size is not None and chunk_size < 1:
        raise ValueError(f"chunk_size must be at least 1, got {chunk_size}")
    if chunk_size is None or all(len(values) <= chunk_size for values in given.values()):
        return encode(**given)
    split = {name: values.split(chunk_size) for name, values in given.items()}
    # Reentrant checkpoints would want an input that needs a gradient; and two gradients in one step confuse DDP.
    run = partial(
        checkpoint, encode, use_reentrant=False, context_fn=lambda: (nullcontext(), _statistics_kept(module))
    )
    chunks = zip(*split.values(), strict=True)
    return torch.cat([run(**dict(zip(split, chunk, strict=True))) for chunk in chunks])


@contextmanager
def _statistics_kept(module: nn.Module) -> Iterator[None]:
    """Batch normalisation as ever, but its running statistics stay what they are."""
    layers = [m for m in module.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    # Not `track_running_stats`: without it other tensors would be saved than in the first pass.
    before = [(m.momentum, m.num_batches_tracked) for m in layers]
    for layer in layers:
        layer.momentum = 0.0
        layer.num_batches_tracked = None if layer.num_batches_tracked is None else layer.num_batches_tracked.clone()
    try:
        yield
    finally:
        for layer, (momentum, batches) in zip(layers, before, strict=True):
            layer.momentum, layer.num_batches_tracked = momentum, batches
