"""The only place that gathers across processes: a batch's columns, with gradient, and where its own rows begin."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.nn.functional import all_gather as all_gather_with_gradient


def world_size() -> int:
    """Number of processes that train together; 1 outside a launcher."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def row_sizes(num_rows: int, device: torch.device) -> list[int]:
    """How many rows each process holds, in the order of their ranks."""
    if world_size() == 1:
        return [num_rows]
    sizes = [torch.zeros(1, dtype=torch.long, device=device) for _ in range(world_size())]
    dist.all_gather(sizes, torch.tensor([num_rows], device=device))
    return [int(size) for size in sizes]


class RowGatherer:
    """
    Gathers the rows of tensors that share one first dimension across processes; the batches may be of uneven length.

    Args:
        num_rows (`int`):
            Length of this process's batch.
        device (`torch.device`):
            Where its tensors are.
    """

    def __init__(self, num_rows: int, device: torch.device):
        self.sizes = row_sizes(num_rows, device)
        self.rank = dist.get_rank() if len(self.sizes) > 1 else 0
        self.offset = sum(self.sizes[: self.rank])

    def __call__(self, tensor: Tensor) -> Tensor:
        """
        Concatenate `tensor`'s rows over all processes.

        A float tensor's gradient flows back to the process that each row came from, summed over all of them: with rows
        local and columns gathered so, the gradient is that of one process holding the whole batch.
        """
        if len(self.sizes) == 1:
            return tensor
        longest = max(self.sizes)
        padded = torch.cat([tensor, tensor.new_zeros(longest - len(tensor), *tensor.shape[1:])])
        if tensor.is_floating_point():
            parts = all_gather_with_gradient(padded)
        else:
            parts = [torch.empty_like(padded) for _ in self.sizes]
            dist.all_gather(parts, padded)
        return torch.cat([part[:size] for part, size in zip(parts, self.sizes, strict=True)])
