"""Stage 3's loss: a pure function on tensors (method.md, Stage 3); how it is computed is in `contrast.py`."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from .contrast import Pairs, PartitionedContrast
from .partition import Partition


@dataclass
class PACLLossOutput:
    """
    What [`pacl_loss`] returns.

    Args:
        loss (`torch.Tensor`, scalar):
            Sum of the active partitions' losses.
        per_partition (`torch.Tensor` of shape `(4,)`):
            Each partition's loss, active or not; 0 where the batch holds none of it.
        counts (`torch.Tensor` of shape `(4,)`):
            Number of the (global) batch's pairs in each partition.
    """

    loss: Tensor
    per_partition: Tensor
    counts: Tensor


def pacl_loss(
    image_embeds: Tensor,
    text_embeds: Tensor,
    partition: Tensor,
    factual_cluster: Tensor,
    emotional_cluster: Tensor,
    *,
    temperature: float = 0.07,
    active: Iterable[int] | None = None,
    gather: Callable[[Tensor], Tensor] | None = None,
    offset: int = 0,
) -> PACLLossOutput:
    r"""
    Partitioned adaptive contrastive loss of a batch of B pairs.

    Within each partition an anchor `a` with positive `p` and negatives `N(a)` has

        ℓ(a) = -log( exp(s_ap/τ) / ( exp(s_ap/τ) + Σ_{n∈N(a)} exp(s_an/τ) ) )

    and the partition's loss is the mean over its pairs of ½(ℓ(v_i) + ℓ(t_i)). Which texts and pictures are positives
    and negatives is said by the table in method.md, Stage 3. An anchor without negatives has ℓ = 0.

    On several processes each gives its own pairs and `gather`: rows are local, columns come from all of them. Each
    process then holds its share of the global batch's loss; the shares add up to it.

    Args:
        image_embeds (`torch.Tensor` of shape `(B, D)`):
            L2-normalised embeddings of the pictures, in any float dtype.
        text_embeds (`torch.Tensor` of shape `(B, D)`):
            L2-normalised embeddings of their texts.
        partition (`torch.Tensor` of shape `(B,)`, integer):
            [`Partition`] of each pair.
        factual_cluster (`torch.Tensor` of shape `(B,)`, integer):
            c^f, the cluster of each picture.
        emotional_cluster (`torch.Tensor` of shape `(B,)`, integer):
            c^e, the cluster of each text.
        temperature (`float`, *optional*, defaults to 0.07):
            τ.
        active (`Iterable[int]`, *optional*):
            The partitions that count towards `loss`; all when `None`.
        gather (`Callable`, *optional*):
            Concatenates a tensor's rows over all processes, with gradient. Not given on a single process.
        offset (`int`, *optional*, defaults to 0):
            Where this process's rows begin in what `gather` returns.

    Returns:
        [`PACLLossOutput`]

    Raises:
        `ValueError`: shapes do not agree, or the temperature is not positive.
    """
    _check_inputs(image_embeds, text_embeds, (partition, factual_cluster, emotional_cluster), temperature)
    pairs = torch.stack([partition.long(), factual_cluster.long(), emotional_cluster.long()], dim=1)
    # Half precision has neither the range nor the digits for a log-sum-exp over a large batch.
    dtype = torch.promote_types(image_embeds.dtype, torch.float32)
    rows = Pairs(image_embeds.to(dtype), text_embeds.to(dtype), pairs)
    columns = rows if gather is None else Pairs(*(gather(tensor) for tensor in rows))
    per_partition = PartitionedContrast.apply(*rows, *columns, temperature, gather, offset)
    counts = columns.labels[:, 0].bincount(minlength=len(Partition))
    chosen = list(Partition) if active is None else sorted({Partition(p) for p in active})
    return PACLLossOutput(per_partition[chosen].sum(), per_partition, counts)


def _check_inputs(image_embeds: Tensor, text_embeds: Tensor, labels: tuple[Tensor, ...], temperature: float) -> None:
    if image_embeds.dim() != 2 or image_embeds.shape != text_embeds.shape:
        raise ValueError(
            "image_embeds and text_embeds must both have the shape (B, D), "
            f"got {tuple(image_embeds.shape)} and {tuple(text_embeds.shape)}"
        )
    if any(label.shape != image_embeds.shape[:1] for label in labels):
        raise ValueError(
            f"partition, factual_cluster and emotional_cluster must have the shape ({len(image_embeds)},), "
            f"got {', '.join(str(tuple(label.shape)) for label in labels)}"
        )
    if not temperature > 0:
        raise ValueError(f"temperature must be greater than 0, got {temperature}")
