"""PDANet's head, to put on any backbone in fine-tuning: attention over places and channels, and a loss that weighs
mistakes of polarity. Zhao et al., "PDANet: Polarity-consistent Deep Attention Network for Fine-grained Visual Emotion
Regression", ACM MM 2019; the paper's Table 2 puts it on the enhanced ViT-clip.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

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

    Spatial attention weighs the places: two 1 × 1 convolutions with tanh between, softmax over the places; the
    attended feature is the weighted sum. Channel-wise attention weighs the channels of the globally averaged feature:
    two linear layers with tanh between, then a sigmoid. Both features side by side go to the linear layers.

    Args:
        task ([`Task`]): whose heads are built.
        dim (`int`): channels of the feature map, or width of the tokens.
        hidden (`int`, *optional*, defaults to 512): width between the layers of either attention.
    """

    def __init__(self, task: Task, dim: int, hidden: int = 512) -> None:
        super().__init__({head.name: nn.Linear(2 * dim, len(head.outputs)) for head in task.heads})
        # A linear layer on the last axis is a 1 × 1 convolution, for maps and tokens alike.
        self.spatial = nn.Sequential(nn.Linear(dim, hidden), nn.Tanh(), nn.Linear(hidden, 1))
        self.channel = nn.Sequential(nn.Linear(dim, hidden), nn.Tanh(), nn.Linear(hidden, dim), nn.Sigmoid())
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
        attention = self.spatial(places).softmax(dim=1)
        averaged = places.mean(dim=1)
        features = torch.cat([(attention * places).sum(dim=1), self.channel(averaged) * averaged], dim=-1)
        return {name: self[name](features) for name in self.head_names}


class PolarityConsistentLoss:
    """A task's loss with every example of wrong polarity counted 1 + λ times.

    The polarity of a class is that of its name; of ratings, the side of the middle of the scale that valence lies on.

    Args:
        task ([`Task`]): of class heads, or of ratings that include valence.
        weight (`float`, *optional*, defaults to 0.5): λ.

    Raises:
        ValueError: for a task that has no polarity, or a class whose polarity isn't known.
    """

    def __init__(self, task: Task, weight: float = 0.5) -> None:
        self.task = task
        self.weight = weight
        self.polarities = {head.name: class_polarity(head) for head in task.heads if isinstance(head, ClassHead)}
        for head in task.heads:
            rated = isinstance(head, RatingHead) and "valence" in head.outputs
            if not rated and not isinstance(head, ClassHead):
                raise ValueError(f"PDANet's loss needs classes or a valence; {head.name} ({task.name}) has neither")

    def __call__(self, logits: Mapping[str, Tensor], targets: Mapping[str, Tensor]) -> Tensor:
        """The loss, a scalar, of logits by head of shape `(batch, outputs)`."""
        losses = []
        for head in self.task.heads:
            wrong = self._is_positive(head, head.predict(logits[head.name])) != self._is_positive(
                head, targets[head.name]
            )
            losses.append(((1 + self.weight * wrong) * head.loss(logits[head.name], targets[head.name])).mean())
        return torch.stack(losses).sum()

    def _is_positive(self, head: Head, labels: Tensor) -> Tensor:
        if isinstance(head, RatingHead):
            return labels[:, head.outputs.index("valence")] > sum(head.scale) / 2
        return self.polarities[head.name].to(labels.device)[labels]


def class_polarity(head: Head) -> Tensor:
    """Whether each class of a head is positive, bool of shape `(classes,)`."""
    unknown = [name for name in head.outputs if name not in POLARITY]
    if unknown:
        raise ValueError(f"PDANet's loss needs a polarity for every class; it is not known of {', '.join(unknown)}")
    return torch.tensor([POLARITY[name] == "positive" for name in head.outputs])
