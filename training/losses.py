"""Stage 3's losses: pure functions on tensors, the whole batch in one similarity matrix (method.md, Stage 3)."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

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
    images, texts = image_embeds.to(dtype), text_embeds.to(dtype)
    if gather is None:
        image_logits = images @ texts.t() / temperature
        text_logits = image_logits.t()
        all_pairs = pairs
    else:
        image_logits = images @ gather(texts).t() / temperature
        text_logits = texts @ gather(images).t() / temperature
        all_pairs = gather(pairs)

    same = pairs[:, 0, None] == all_pairs[None, :, 0]
    best_text, best_image = _best_match(image_logits, same), _best_match(text_logits, same)
    negatives = _negatives(pairs, all_pairs, same, best_text, best_image, gather, offset)

    own = torch.arange(len(pairs), device=pairs.device) + offset
    weak = pairs[:, 0] == Partition.WEAK
    image_loss = _contrast(image_logits, torch.where(weak, best_text, own), negatives[0])
    text_loss = _contrast(text_logits, torch.where(weak, best_image, own), negatives[1])

    counts = all_pairs[:, 0].bincount(minlength=len(Partition))
    sums = image_loss.new_zeros(len(Partition)).index_add(0, pairs[:, 0], (image_loss + text_loss) / 2)
    per_partition = sums / counts.clamp(min=1)
    chosen = list(Partition) if active is None else sorted({Partition(p) for p in active})
    return PACLLossOutput(per_partition[chosen].sum(), per_partition, counts)


@torch.no_grad()
def _best_match(logits: Tensor, same: Tensor) -> Tensor:
    """Column of each row's greatest similarity inside its partition (method.md, reading 2), shape `(B,)`."""
    return logits.masked_fill(~same, -torch.inf).argmax(dim=1)


@torch.no_grad()
def _negatives(
    pairs: Tensor,
    all_pairs: Tensor,
    same: Tensor,
    best_text: Tensor,
    best_image: Tensor,
    gather: Callable[[Tensor], Tensor] | None,
    offset: int,
) -> tuple[Tensor, Tensor]:
    """
    Which columns are negatives of each row: texts of pictures, and pictures of texts, both `(B, columns)` booleans.

    A cell (v_i, t_j) is excluded from both directions alike: by M_f where the factual cluster of v_i is that of t_j's
    best picture, by M_e where the emotional cluster of t_j is that of v_i's best text. So each side of a pair carries
    one cluster of its own and one that it points to, and exclusion is their equality.
    """
    _, own_factual, own_emotional = pairs.unbind(1)
    pointed = torch.stack([all_pairs[best_image, 1], all_pairs[best_text, 2]], dim=1)
    pointed_factual, pointed_emotional = pointed.unbind(1)
    all_pointed = pointed if gather is None else gather(pointed)

    # A weak pair's positives lie in excluded cells by construction; elsewhere the positive is the pair itself.
    positive = torch.zeros_like(same)
    rows = torch.arange(len(pairs), device=pairs.device)
    positive[rows, rows + offset] = pairs[:, 0] != Partition.WEAK
    candidates = same & ~positive

    by_image = _excluded(pairs[:, 0], own_factual, all_pointed[:, 0], pointed_emotional, all_pairs[:, 2])
    of_images = candidates & ~by_image
    if gather is None:
        return of_images, of_images.t()
    by_text = _excluded(pairs[:, 0], pointed_factual, all_pairs[:, 1], own_emotional, all_pointed[:, 1])
    return of_images, candidates & ~by_text


def _excluded(
    partition: Tensor, row_factual: Tensor, column_factual: Tensor, row_emotional: Tensor, column_emotional: Tensor
) -> Tensor:
    """The cells that M_f (partial_emotional, weak) and M_e (partial_factual, weak) exclude, `(rows, columns)`."""
    no_cluster = torch.iinfo(torch.long).min
    by_fact = (partition == Partition.PARTIAL_EMOTIONAL) | (partition == Partition.WEAK)
    by_emotion = (partition == Partition.PARTIAL_FACTUAL) | (partition == Partition.WEAK)
    row_factual = row_factual.masked_fill(~by_fact, no_cluster)
    row_emotional = row_emotional.masked_fill(~by_emotion, no_cluster)
    return (row_factual[:, None] == column_factual) | (row_emotional[:, None] == column_emotional)


def _contrast(logits: Tensor, positive: Tensor, negatives: Tensor) -> Tensor:
    """ℓ of each row: its positive's column against its negatives, shape `(B,)`."""
    positive_logit = logits.gather(1, positive[:, None]).squeeze(1)
    # The lowest finite number, not -inf: a row without negatives then has the gradient 0 and not NaN.
    floor = torch.finfo(logits.dtype).min
    negative_logit = logits.masked_fill(~negatives, floor).logsumexp(dim=1)
    return torch.logaddexp(negative_logit, positive_logit) - positive_logit


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
