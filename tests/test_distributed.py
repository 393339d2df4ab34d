"""Two and three processes, with batches of uneven length, give the loss and gradient of one that holds all pairs."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist

from pacl.training.distributed import RowGatherer, world_size
from pacl.training.losses import pacl_loss
from test_losses import random_batch


def share_of_the_loss(rank, sizes, folder):
    """What one process computes of a batch of `sum(sizes)` pairs; saved for the test to read."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=len(sizes))
    batch = random_batch(7, size=sum(sizes))
    own = slice(sum(sizes[:rank]), sum(sizes[: rank + 1]))
    images, texts, *labels = (tensor[own].clone() for tensor in batch)
    images.requires_grad_()
    texts.requires_grad_()
    gather = RowGatherer(len(images), images.device)
    output = pacl_loss(images, texts, *labels, gather=gather, offset=gather.offset)
    output.loss.backward()
    torch.save((output.per_partition.detach(), output.counts, images.grad, texts.grad), f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.parametrize("sizes", [(12, 12), (9, 14, 5)])
def test_shares_add_up_to_the_loss_and_gradient_of_one_process(sizes, tmp_path):
    torch.multiprocessing.spawn(share_of_the_loss, (sizes, str(tmp_path)), nprocs=len(sizes))
    shares, counts, *gradients = zip(*(torch.load(tmp_path / f"{rank}.pt") for rank in range(len(sizes))), strict=True)

    images, texts, *labels = random_batch(7, size=sum(sizes))
    images.requires_grad_()
    texts.requires_grad_()
    whole = pacl_loss(images, texts, *labels)
    whole.loss.backward()
    torch.testing.assert_close(sum(shares), whole.per_partition, rtol=1e-12, atol=1e-12)
    assert all(torch.equal(count, whole.counts) for count in counts)
    for gathered, expected in zip(gradients, (images.grad, texts.grad), strict=True):
        torch.testing.assert_close(torch.cat(gathered), expected, rtol=1e-10, atol=1e-12)


def test_a_single_process_gathers_nothing():
    rows = torch.rand(3, 2)
    gather = RowGatherer(3, rows.device)
    assert world_size() == 1
    assert gather(rows) is rows
    assert gather.offset == 0
