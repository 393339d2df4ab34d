"""Several processes: the only place that gathers across them, and how evaluation rows are dealt out to them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist
from accelerate import PartialState
from torch import Tensor
from torch.utils.data import Sampler


def world_size() -> int:
    """Number of processes that train together; 1 outside a launcher."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def row_sizes(num_rows: int, device: torch.device) -> list[int]:
    """How many rows each process holds, in the order of their ranks."""
    if world_size() == 1:
        return [num_rows]
    sizes = torch.empty(world_size(), dtype=torch.long, device=device)
    dist.all_gather_into_tensor(sizes, torch.tensor([num_rows], device=device))
    return sizes.tolist()


class _AllGather(torch.autograd.Function):
    """Concatenates tensors of one shape over all processes; each gets back its own gradient, summed over all."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        gathered = tensor.new_empty(world_size() * len(tensor), *tensor.shape[1:])
        dist.all_gather_into_tensor(gathered, tensor)
        return gathered

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        (gradient,) = gradients
        own = gradient.new_empty(len(gradient) // world_size(), *gradient.shape[1:])
        dist.reduce_scatter_tensor(own, gradient.contiguous())
        return own


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
        if min(self.sizes) == longest:
            return _AllGather.apply(tensor.contiguous())
        gathered = _AllGather.apply(torch.cat([tensor, tensor.new_zeros(longest - len(tensor), *tensor.shape[1:])]))
        return torch.cat([part[:size] for part, size in zip(gathered.split(longest), self.sizes, strict=True)])


def gather_rows(data: Any) -> Any:
    """Concatenate a tensor's rows over all processes, or those of each tensor in a tuple, list or dict."""
    if isinstance(data, dict):
        return {name: gather_rows(part) for name, part in data.items()}
    if isinstance(data, (tuple, list)):
        return type(data)(gather_rows(part) for part in data)
    return RowGatherer(len(data), data.device)(data)


class EvaluationBatches(Sampler[list[int]]):
    """
    The rows of a dataset in order, each once, in batches of nearly equal length for the processes in turn.

    The batches that the processes see at the same time are one global batch of at most `num_processes · batch_size`
    rows. All global batches have the same length but for one row, since the loss of a batch grows with its length, and
    so have the processes' parts of each. N processes with batches of b thus see what one sees with batches of N · b.

    Args:
        num_rows (`int`):
            Length of the dataset.
        batch_size (`int`):
            Most rows in a batch, per process. (A batch of 1 may be 2, where rows are left that not every process
            would have one of.)
        num_processes (`int`, *optional*, defaults to 1):
            The number of batches is a multiple of it, so that all processes take equally many steps.

    Raises:
        `ValueError`: there are fewer rows than processes.
    """

    def __init__(self, num_rows: int, batch_size: int, num_processes: int = 1):
        if num_rows < num_processes:
            raise ValueError(
                f"{num_rows} rows cannot be evaluated on {num_processes} processes, of which each needs one: "
                "give more rows or start fewer processes"
            )
        self.num_rows = num_rows
        self.num_processes = num_processes
        fewest = -(-num_rows // (num_processes * batch_size))
        self.num_batches = num_processes * min(fewest, num_rows // num_processes)

    def __len__(self) -> int:
        return self.num_batches

    def __iter__(self) -> Iterator[list[int]]:
        whole = torch.arange(self.num_rows).tensor_split(self.num_batches // self.num_processes)
        for rows in whole:
            yield from (part.tolist() for part in rows.tensor_split(self.num_processes))


def sum_over_processes(tensor: Tensor) -> Tensor:
    """
    Sum of tensors of one shape, given by all processes, on each of them; on one process the tensor as it is.

    It goes through the accelerator's memory, where its backend needs it, and comes back to the tensor's device.
    """
    if world_size() == 1:
        return tensor
    total = tensor.to(PartialState().device, copy=True)
    dist.all_reduce(total)
    return total.to(tensor.device)
