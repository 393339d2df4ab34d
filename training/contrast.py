"""The loss of a batch, partition by partition, with its gradient in closed form: what `losses.py` calls.

Only pairs of one partition ever meet, so that each partition is one block of pictures by texts. From a block's softmax
follows its gradient by the similarities, and from that, at once, the one by the embeddings: nothing as large as a
matrix of similarities is kept for the backward pass, and none is ever computed between partitions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .partition import Partition

# Partitions in which M_f, and in which M_e, excludes negatives.
BY_FACT = (Partition.PARTIAL_EMOTIONAL, Partition.WEAK)
BY_EMOTION = (Partition.PARTIAL_FACTUAL, Partition.WEAK)


class Pairs(NamedTuple):
    """Embeddings of n pairs, `(n, D)` each, and their partition, c^f and c^e as `labels` of shape `(n, 3)`."""

    images: Tensor
    texts: Tensor
    labels: Tensor

    def at(self, rows: Tensor | slice) -> Pairs:
        """Some of them; a slice's are views."""
        return Pairs(*(tensor[rows] for tensor in self))


class PartitionedContrast(torch.autograd.Function):
    """
    Each partition's loss, shape `(4,)`: `apply(*rows, *columns, temperature, gather, offset)`.

    `rows` are this process's [`Pairs`], `columns` those of all processes (the same ones on a single process, where
    `gather` is `None`); `offset` says where the rows begin among the columns.
    """

    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> Tensor:
        """Losses, and the gradient of each pair's embeddings by its own partition's loss."""
        rows, columns = _Sorted(Pairs(*arguments[:3])), None
        temperature, gather, offset = arguments[6:]
        if gather is not None:
            columns = _Sorted(Pairs(*arguments[3:6]))
        with torch.autocast(rows.pairs.images.device.type, enabled=False):
            losses = _fill(rows, columns or rows, temperature, gather, offset)
        sides = [rows] if columns is None else [rows, columns]
        ctx.save_for_backward(*(t for side in sides for t in (side.places, side.pairs.labels, *side.gradients)))
        return losses

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        """Every gradient times that of its pair's partition, in the order in which the pairs came."""
        of_rows = _unsorted(ctx.saved_tensors[:4], upstream[0])
        of_columns = _unsorted(ctx.saved_tensors[4:], upstream[0]) if ctx.saved_tensors[4:] else (None, None)
        return *of_rows, None, *of_columns, None, None, None, None


def _unsorted(saved: Sequence[Tensor], upstream: Tensor) -> tuple[Tensor, Tensor]:
    places, labels, of_images, of_texts = saved
    weights = upstream[labels[:, 0]].unsqueeze(1)
    return (of_images * weights)[places], (of_texts * weights)[places]


class _Sorted:
    """
    Pairs sorted by partition, so that each partition's are a slice.

    `order` says where each one came from, `places` where each pair went. What is filled in later: `gradients`, by
    images and by texts; and `pointed`, of shape `(n, 2)`, the factual cluster of each text's best picture and the
    emotional one of each picture's best text.
    """

    def __init__(self, pairs: Pairs):
        self.order = pairs.labels[:, 0].argsort(stable=True)
        self.places = self.order.argsort()
        self.pairs = pairs.at(self.order)
        self.gradients = (torch.zeros_like(pairs.images), torch.zeros_like(pairs.texts))
        self.pointed = self.pairs.labels[:, 1:]
        self.sizes: list[int] = pairs.labels[:, 0].bincount(minlength=len(Partition)).tolist()

    def slices(self) -> Iterator[slice]:
        """Where each partition's pairs lie."""
        start = 0
        for size in self.sizes:
            yield slice(start, start + size)
            start += size


def _fill(
    rows: _Sorted, columns: _Sorted, temperature: float, gather: Callable[[Tensor], Tensor] | None, offset: int
) -> Tensor:
    """Compute every partition's loss and fill in the gradients."""
    own = columns.places[offset + rows.order]
    blocks = [
        Block(Partition(number), here, there, rows, columns, own[here] - there.start, temperature)
        for number, (here, there) in enumerate(zip(rows.slices(), columns.slices(), strict=True))
        if here.start < here.stop
    ]
    found = [block.point() for block in blocks]
    if found:
        rows.pointed = torch.cat(found)
    if gather is not None:
        columns.pointed = gather(rows.pointed[rows.places])[columns.order]
    losses = rows.pairs.images.new_zeros(len(Partition))
    for block in blocks:
        losses[block.partition] = block.contrast()
    return losses


@dataclass
class Block:
    """
    One partition's pictures by texts.

    Args:
        partition ([`Partition`]): which one.
        here, there (`slice`): its members among the sorted rows, and among the sorted columns.
        rows, columns ([`_Sorted`]): this process's pairs and all pairs; on a single process the same object.
        own (`torch.Tensor` of shape `(rows,)`): where each row's own pair stands among the block's columns.
        temperature (`float`): τ.
    """

    partition: Partition
    here: slice
    there: slice
    rows: _Sorted
    columns: _Sorted
    own: Tensor
    temperature: float

    def __post_init__(self) -> None:
        self.is_shared = self.rows is self.columns
        self.row_pairs, self.column_pairs = self.rows.pairs.at(self.here), self.columns.pairs.at(self.there)
        # Pictures by texts, s/τ: this process's pictures with all texts, and all pictures with this process's texts.
        self.of_images = self.row_pairs.images @ self.column_pairs.texts.t() / self.temperature
        self.of_texts = self.of_images
        if not self.is_shared:
            self.of_texts = self.column_pairs.images @ self.row_pairs.texts.t() / self.temperature

    def point(self) -> Tensor:
        """The clusters of each row's best matches (method.md, reading 2), shape `(rows, 2)`; see [`_Sorted`]."""
        if self.partition == Partition.STRONG:  # which excludes nothing and looks for no best match
            return self.row_pairs.labels[:, 1:]
        self.best_text, self.best_image = self.of_images.argmax(dim=1), self.of_texts.argmax(dim=0)
        labels = self.column_pairs.labels
        return torch.stack([labels[self.best_image, 1], labels[self.best_text, 2]], dim=1)

    def contrast(self) -> Tensor:
        """This process's share of the partition's loss, a scalar; its gradients are added where they belong."""
        here, there = self.row_pairs.labels, self.column_pairs.labels
        pointed_here, pointed_there = self.rows.pointed[self.here], self.columns.pointed[self.there]
        excluded = self._excluded(here[:, 1], pointed_there[:, 0], pointed_here[:, 1], there[:, 2])
        others = excluded
        if not self.is_shared:
            others = self._excluded(there[:, 1], pointed_here[:, 0], pointed_there[:, 1], here[:, 2])

        is_weak = self.partition == Partition.WEAK
        text, image = (self.best_text, self.best_image) if is_weak else (self.own, self.own)
        image_loss, by_image = contrast(self.of_images, text, excluded, dim=1)
        text_loss, by_text = contrast(self.of_texts, image, others, dim=0)
        if self.is_shared:
            self._descend(by_image.add_(by_text), self.rows, self.here, self.rows, self.here)
        else:
            self._descend(by_image, self.rows, self.here, self.columns, self.there)
            self._descend(by_text, self.columns, self.there, self.rows, self.here)
        return (image_loss + text_loss) / (2 * len(there))

    def _excluded(
        self, factual: Tensor, pointed_factual: Tensor, pointed_emotional: Tensor, emotional: Tensor
    ) -> Tensor | None:
        """
        Cells (v_i, t_j) that are no negatives, pictures by texts; `None` where every cell may be one.

        M_f excludes a cell where the factual cluster of v_i is that of t_j's best picture, M_e where the emotional
        cluster of t_j is that of v_i's best text: each side carries a cluster of its own and one that it points to.
        """
        by_fact = factual[:, None] == pointed_factual if self.partition in BY_FACT else None
        by_emotion = pointed_emotional[:, None] == emotional if self.partition in BY_EMOTION else None
        if by_fact is None or by_emotion is None:
            return by_emotion if by_fact is None else by_fact
        return by_fact.logical_or_(by_emotion)

    def _descend(
        self, by_cell: Tensor, pictures: _Sorted, of_pictures: slice, texts: _Sorted, of_texts: slice
    ) -> None:
        """Pass the gradient by the cells, pictures by texts, on to the embeddings."""
        by_cell.mul_(1 / (2 * self.temperature * len(self.column_pairs.labels)))
        torch.mm(by_cell, texts.pairs.texts[of_texts], out=pictures.gradients[0][of_pictures])
        torch.mm(by_cell.t(), pictures.pairs.images[of_pictures], out=texts.gradients[1][of_texts])


def contrast(logits: Tensor, positive: Tensor, excluded: Tensor | None, *, dim: int) -> tuple[Tensor, Tensor]:
    """
    ℓ of every anchor, summed, and its gradient by the similarities.

    Args:
        logits (`torch.Tensor` of shape `(pictures, texts)`): s/τ.
        positive (`torch.Tensor` of shape `(anchors,)`): where each anchor's positive stands along `dim`.
        excluded (`torch.Tensor` of the logits' shape, *optional*): cells that are no negatives.
        dim (`int`): along which the candidates lie: 1 for anchors that are pictures, 0 for texts.

    Returns:
        The sum, a scalar, and the gradient, of the logits' shape.
    """
    index = positive.unsqueeze(dim)
    if excluded is not None:
        # The lowest finite number, not -inf: an anchor without negatives then has the gradient 0 and not NaN.
        logits = logits.masked_fill(excluded.scatter(dim, index, False), torch.finfo(logits.dtype).min)
    log_softmax = logits.log_softmax(dim)
    loss = -log_softmax.gather(dim, index).sum()
    gradient = log_softmax.exp_()
    return loss, gradient.scatter_add_(dim, index, gradient.new_full((1, 1), -1).expand(index.shape))
