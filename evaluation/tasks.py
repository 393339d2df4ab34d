"""What a backbone can be asked: a task is a few heads, each with its labels, loss, predictions and metrics.

A protocol (linear evaluation, fine-tuning) trains whatever heads a task has; a new task is a new object here.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import numpy as np
import torch
from datasets import Dataset
from torch import Tensor, nn
from torch.nn import functional

from .benchmarks import Benchmark
from .metrics import Accuracy, MeanAveragePrecision, MeanMSE, MeanR2, MeanROCAUC, SklearnMetric, WeightedF1
from .statistics import LOWER_IS_BETTER


@dataclass(frozen=True)
class Head(ABC):
    """One group of outputs that is trained and scored together.

    Args:
        name (`str`): of the head, also in the results of a task with several.
        outputs (`tuple[str, ...]`): what each output stands for: a class, or a rating.
    """

    name: str
    outputs: tuple[str, ...]

    metric_types: ClassVar[tuple[type[SklearnMetric], ...]]  # the first one chooses the best epoch

    @abstractmethod
    def read(self, dataset: Dataset) -> np.ndarray:
        """The labels of a dataset's rows, shape `(rows,)` or `(rows, outputs)`."""

    @abstractmethod
    def loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Loss of each example, shape `(batch,)`, of logits of shape `(batch, outputs)`."""

    @abstractmethod
    def predict(self, logits: Tensor) -> Tensor:
        """What is scored: as the labels, or scores of each output."""

    def bias(self, targets: np.ndarray) -> np.ndarray:
        """Where the outputs begin, shape `(outputs,)`, from the training labels."""
        return np.zeros(len(self.outputs))


@dataclass(frozen=True)
class ClassHead(Head):
    """One class per picture: a softmax over a `ClassLabel` column of the head's name."""

    metric_types = (Accuracy, WeightedF1)

    def read(self, dataset: Dataset) -> np.ndarray:
        return np.asarray(dataset.with_format("numpy")[self.name], dtype=np.int64)

    def loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        return functional.cross_entropy(logits, targets, reduction="none")

    def predict(self, logits: Tensor) -> Tensor:
        return logits.argmax(dim=-1)


@dataclass(frozen=True)
class TagHead(Head):
    """Any number of classes per picture: one sigmoid each over a column of lists of classes."""

    metric_types = (MeanAveragePrecision, MeanROCAUC)

    def read(self, dataset: Dataset) -> np.ndarray:
        tags = np.zeros((len(dataset), len(self.outputs)), dtype=np.float32)
        for row, classes in enumerate(dataset[self.name]):
            tags[row, classes] = 1
        return tags

    def loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        return functional.binary_cross_entropy_with_logits(logits, targets, reduction="none").mean(dim=-1)

    def predict(self, logits: Tensor) -> Tensor:
        return logits.sigmoid()


@dataclass(frozen=True)
class RatingHead(Head):
    """Continuous ratings, such as valence, arousal and dominance: one float column per output.

    Args:
        scale (`tuple[float, float]`): lowest and highest possible rating.
    """

    scale: tuple[float, float]

    metric_types = (MeanMSE, MeanR2)

    def read(self, dataset: Dataset) -> np.ndarray:
        columns = dataset.select_columns(list(self.outputs)).with_format("numpy")
        return np.stack([np.asarray(columns[name], dtype=np.float32) for name in self.outputs], axis=1)

    def loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        return functional.mse_loss(logits, targets, reduction="none").mean(dim=-1)

    def predict(self, logits: Tensor) -> Tensor:
        return logits

    def bias(self, targets: np.ndarray) -> np.ndarray:
        # From 0, the first epochs would only climb to the middle of the scale.
        return targets.mean(axis=0)


@dataclass(frozen=True)
class Task:
    """Heads that are trained together on the same pictures; the loss is the sum of theirs.

    Args:
        name (`str`): `"single_label"`, `"hierarchical"`, `"multi_label"` or `"regression"`.
        heads (`tuple[Head, ...]`): at least one.
    """

    name: str
    heads: tuple[Head, ...]

    @cached_property
    def metrics_by_head(self) -> dict[str, list[SklearnMetric]]:
        """Each head's metrics."""
        return {head.name: [metric() for metric in head.metric_types] for head in self.heads}

    def head(self, name: str) -> Head:
        """The head of this name."""
        return next(head for head in self.heads if head.name == name)

    def read(self, dataset: Dataset) -> dict[str, np.ndarray]:
        """Each head's labels."""
        return {head.name: head.read(dataset) for head in self.heads}

    def loss(self, logits: Mapping[str, Tensor], targets: Mapping[str, Tensor]) -> Tensor:
        """Sum of the heads' mean losses, a scalar."""
        losses = [head.loss(logits[head.name], targets[head.name]).mean() for head in self.heads]
        return torch.stack(losses).sum()

    def predict(self, logits: Mapping[str, Tensor]) -> dict[str, np.ndarray]:
        """Each head's predictions."""
        return {head.name: head.predict(logits[head.name]).cpu().numpy() for head in self.heads}

    def score(self, predictions: Mapping[str, np.ndarray], targets: Mapping[str, np.ndarray]) -> dict[str, float]:
        """Every metric of every head; with several heads, under `head/metric`."""
        scores: dict[str, float] = {}
        for head in self.metrics_by_head:
            part = head if len(self.heads) > 1 else ""
            scores |= self.score_head(head, targets[head], predictions[head], part)
        return scores

    def score_head(self, head: str, targets: np.ndarray, predictions: np.ndarray, part: str = "") -> dict[str, float]:
        """Every metric of one head, under `part/metric` where a part is given."""
        prefix = f"{part}/" if part else ""
        return {
            prefix + metric.key: float(metric.value(targets, predictions)) for metric in self.metrics_by_head[head]
        }

    def selection(self, predictions: Mapping[str, np.ndarray], targets: Mapping[str, np.ndarray]) -> float:
        """What the best epoch has most of: the mean over the heads of their first metric (less error is more)."""
        firsts = [(head, metrics[0]) for head, metrics in self.metrics_by_head.items()]
        signs = [-1 if metric.key in LOWER_IS_BETTER else 1 for _, metric in firsts]
        values = [metric.value(targets[head], predictions[head]) for head, metric in firsts]
        return float(np.mean(np.multiply(signs, values)))


class LinearHeads(nn.ModuleDict):
    """One linear layer per head of a task, on features of shape `(batch, dim)`."""

    def __init__(self, task: Task, dim: int) -> None:
        super().__init__({head.name: nn.Linear(dim, len(head.outputs)) for head in task.heads})

    def forward(self, features: Tensor) -> dict[str, Tensor]:
        """Logits by head, each of shape `(batch, outputs)`."""
        return {name: layer(features) for name, layer in self.items()}


@torch.no_grad()
def start_at_training_labels(heads: nn.ModuleDict, task: Task, targets: Mapping[str, np.ndarray]) -> None:
    """Sets the biases of the heads' linear layers as their labels suggest."""
    for head in task.heads:
        bias = heads[head.name].get_parameter("bias")
        bias.copy_(torch.as_tensor(head.bias(targets[head.name])))


def task_of(benchmark: Benchmark) -> Task:
    """The task of a benchmark, with its classes or ratings.

    Raises:
        ValueError: for a kind of task that no head is made for.
    """
    names, classes = benchmark.label_columns, benchmark.class_names
    heads: Sequence[Head]
    match benchmark.task:
        case "single_label" | "hierarchical":
            heads = [ClassHead(name, classes[name]) for name in names]
        case "multi_label":
            heads = [TagHead(name, classes[name]) for name in names]
        case "regression" if benchmark.scale is not None:
            heads = [RatingHead("ratings", names, benchmark.scale)]
        case kind:
            raise ValueError(f"{benchmark.title} has a task that no head is made for: {kind!r}")
    return Task(benchmark.task, tuple(heads))
