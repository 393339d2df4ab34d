"""Rows gathered from two and three processes, in batches of uneven length; and how evaluation rows are dealt out."""

from __future__ import annotations

import pytest
import torch
from accelerate.data_loader import BatchSamplerShard

from launch_helpers import launch
from pacl.training.distributed import EvaluationBatches, RowGatherer, gather_rows, world_size
from pacl.training.losses import pacl_loss
from test_losses import random_batch


def share_of_the_loss(sizes):
    """What one process computes of a batch of `sum(sizes)` pairs."""
    torch.distributed.init_process_group("gloo")
    rank = torch.distributed.get_rank()
    batch = random_batch(7, size=sum(sizes))
    own = slice(sum(sizes[:rank]), sum(sizes[: rank + 1]))
    images, texts, *labels = (tensor[own].clone() for tensor in batch)
    images.requires_grad_()
    texts.requires_grad_()
    gather = RowGatherer(len(images), images.device)
    output = pacl_loss(images, texts, *labels, gather=gather, offset=gather.offset)
    output.loss.backward()
    rows = gather_rows({"images": images.detach(), "labels": tuple(labels)})
    return output.per_partition.detach(), output.counts, images.grad, texts.grad, rows


@pytest.mark.parametrize("sizes", [(12, 12), (9, 14, 5)])
def test_shares_add_up_to_the_loss_and_gradient_of_one_process(sizes):
    shares, counts, *gradients, rows = zip(*launch(share_of_the_loss, len(sizes), sizes), strict=True)

    images, texts, *labels = random_batch(7, size=sum(sizes))
    images.requires_grad_()
    texts.requires_grad_()
    whole = pacl_loss(images, texts, *labels)
    whole.loss.backward()
    torch.testing.assert_close(sum(shares), whole.per_partition, rtol=1e-12, atol=1e-12)
    assert all(torch.equal(count, whole.counts) for count in counts)
    for gathered, expected in zip(gradients, (images.grad, texts.grad), strict=True):
        torch.testing.assert_close(torch.cat(gathered), expected, rtol=1e-10, atol=1e-12)
    for gathered in rows:
        assert torch.equal(gathered["images"], images)
        assert all(torch.equal(*pair) for pair in zip(gathered["labels"], labels, strict=True))


def test_a_single_process_gathers_nothing():
    rows = torch.rand(3, 2)
    gather = RowGatherer(3, rows.device)
    assert world_size() == 1
    assert gather(rows) is rows
    assert gather.offset == 0


@pytest.mark.parametrize("num_processes", [1, 2, 3, 4])
@pytest.mark.parametrize("num_rows", [4, 5, 15, 16, 17, 100])
@pytest.mark.parametrize("batch_size", [1, 4, 64])
def test_processes_take_equally_many_evaluation_batches_and_every_row_once(num_rows, batch_size, num_processes):
    batches = EvaluationBatches(num_rows, batch_size, num_processes)
    # As accelerate shares them out, which must neither fill up nor drop any.
    shards = [list(BatchSamplerShard(batches, num_processes, rank)) for rank in range(num_processes)]
    assert {len(shard) for shard in shards} == {len(batches) / num_processes}
    together = [[row for part in parts for row in part] for parts in zip(*shards, strict=True)]
    assert sum(together, []) == list(range(num_rows))
    lengths = [len(rows) for rows in together]
    assert max(lengths) - min(lengths) <= 1
    for parts in zip(*shards, strict=True):
        assert min(map(len, parts)) >= 1
        assert max(map(len, parts)) <= max(batch_size, 2)
    if batch_size > 1:
        assert together == list(EvaluationBatches(num_rows, num_processes * batch_size))


def test_fewer_rows_than_processes_are_refused():
    with pytest.raises(ValueError, match="3 rows cannot be evaluated on 4 processes"):
        EvaluationBatches(3, 8, 4)
