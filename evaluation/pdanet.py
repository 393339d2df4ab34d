"""PDANet's head, to put on any backbone in fine-tuning: attention over channels, then over places, and a loss that
punishes mistakes of polarity. Zhao et al., "PDANet: Polarity-consistent Deep Attention Network for Fine-grained Visual
Emotion Regression", ACM MM 2019; the PACL paper's Table 2 puts it on the enhanced ViT-clip.

PDANet regresses ratings; the PACL paper does not say how it carries the loss over to classes. Here, a class has the
polarity that its dataset's hierarchy gives it.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional

from .benchmarks.class_folders import MIKELS
from .benchmarks.webemo import LEAVES
from .tasks import ClassHead, Head, RatingHead, Task

POLARITY: dict[str, str] = {
    "positive": "positive",
    "negative": "negative",
    **MIKELS,
    **{leaf: polarity for leaf, (_, polarity) in LEAVES.items()},
    **dict(LEAVES.values()),
}
"""Polarity of the benchmarks' classes: FI's after its two-class form, all others after WebEmo's hierarchy."""


class PDANetHeads(nn.ModuleDict):
    """Attention over a feature map, then one linear layer per head of a task.

    As in PDANet, whose 1 × 1 convolutions are linear layers on the last axis here, alike for maps and tokens (a class
    token counts as a place):

    - channels: weights `1 + σ(mean over the places of σ(W x))` multiply the feature `ReLU(V x)`;
    - places: the channel weights join a second attention, `softmax over the places of u · tanh(P f + Q w)`, with
      `f` the feature and `w` the channel weights.

    The average of the channel-weighted feature and the place-weighted sum of the feature, side by side, go to the
    linear layers. (The authors' code averages the latter where this sums; the linear layer takes up the scale.)

    Args:
        task ([`Task`]): whose heads are built.
        dim (`int`): channels of the feature map, or width of the tokens.
    """

    def __init__(self, task: Task, dim: int) -> None:
        super().__init__({head.name: nn.Linear(2 * dim, len(head.outputs)) for head in task.heads})
        self.attention = ChannelAndSpatialAttention(dim)
        self.head_names = tuple(head.name for head in task.heads)
        self.dim = dim

    def forward(self, hidden_state: Tensor) -> dict[str, Tensor]:
        """Logits by head.

        Args:
            hidden_state (`torch.Tensor` of shape `(batch, dim, height, width)`, `(batch, height, width, dim)` or
                `(batch, places, dim)`): a backbone's last feature map or tokens.

        Raises:
            ValueError: if none of its axes is `dim` wide.
        """
        is_map = hidden_state.dim() == 4
        if is_map and hidden_state.shape[1] == self.dim:
            places = hidden_state.flatten(2).transpose(1, 2)
        elif hidden_state.shape[-1] == self.dim:
            places = hidden_state.flatten(1, 2) if is_map else hidden_state
        else:
            raise ValueError(
                f"PDANet's head was built for {self.dim} channels, the width of the pooled features; the backbone's "
                f"last hidden state is {tuple(hidden_state.shape)}"
            )
        features = self.attention(places)
        return {name: self[name](features) for name in self.head_names}


class ChannelAndSpatialAttention(nn.Module):
    """The two attentions of [`PDANetHeads`]: `(batch, places, dim)` in, `(batch, 2 * dim)` out."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.channel_gate = nn.Linear(dim, dim)
        self.feature = nn.Linear(dim, dim)
        self.place_key = nn.Linear(dim, dim)
        self.channel_key = nn.Linear(dim, dim)
        self.place_score = nn.Linear(dim, 1)

    def forward(self, places: Tensor) -> Tensor:
        """The attended features."""
        feature = functional.relu(self.feature(places))
        channels = 1 + self.channel_gate(places).sigmoid().mean(dim=1).sigmoid()
        keys = torch.tanh(self.place_key(feature) + self.channel_key(channels).unsqueeze(1))
        attention = self.place_score(keys).softmax(dim=1)
        return torch.cat([channels * feature.mean(dim=1), (attention * feature).sum(dim=1)], dim=-1)


class PolarityConsistentLoss:
    """A task's loss with every mistake of polarity counted 1 + λ times.

    Of ratings, as in PDANet's polarity-consistent regression loss, each output on the wrong side of the middle of the
    scale; of classes, each example whose most likely class has the other polarity.

    Args:
        task ([`Task`]): of class heads or ratings.
        weight (`float`, *optional*, defaults to 1.0): λ, by default that of the authors' code.

    Raises:
        ValueError: for a task that has no polarity, or a class whose polarity isn't known.
    """

    def __init__(self, task: Task, weight: float = 1.0) -> None:
        self.task = task
        self.weight = weight
        self.polarities = {head.name: class_polarity(head) for head in task.heads if isinstance(head, ClassHead)}
        for head in task.heads:
            if not isinstance(head, ClassHead | RatingHead):
                raise ValueError(f"PDANet's loss needs classes or ratings; {head.name} ({task.name}) has neither")

    def __call__(self, logits: Mapping[str, Tensor], targets: Mapping[str, Tensor]) -> Tensor:
        """The loss, a scalar, of logits by head of shape `(batch, outputs)`."""
        losses = [self._head_loss(head, logits[head.name], targets[head.name]) for head in self.task.heads]
        return torch.stack(losses).sum()

    def _head_loss(self, head: Head, logits: Tensor, targets: Tensor) -> Tensor:
        if isinstance(head, RatingHead):
            middle = sum(head.scale) / 2
            wrong = (logits > middle) != (targets > middle)
            return ((1 + self.weight * wrong) * (logits - targets) ** 2).mean()
        positive = self.polarities[head.name].to(targets.device)
        wrong = positive[head.predict(logits)] != positive[targets]
        return ((1 + self.weight * wrong) * head.loss(logits, targets)).mean()


def class_polarity(head: Head) -> Tensor:
    """Whether each class of a head is positive, bool of shape `(classes,)`."""
    unknown = [name for name in head.outputs if name not in POLARITY]
    if unknown:
        raise ValueError(f"PDANet's loss needs a polarity for every class; it is not known of {', '.join(unknown)}")
    return torch.tensor([POLARITY[name] == "positive" for name in head.outputs])
