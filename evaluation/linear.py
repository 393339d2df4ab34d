"""Linear evaluation as the paper does it: a linear head trained by AdamW on the features of a frozen backbone.

The backbone has run already (`features.py`), so that 40 epochs cost about as much as one picture each through it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from accelerate import PartialState
from torch import Tensor, nn
from transformers import get_cosine_schedule_with_warmup

from .tasks import LinearHeads, Task, start_at_training_labels

# Rows of one split (int64, shape (batch,)) -> their features (batch, dim)
FeatureSource = Callable[[np.ndarray], Tensor]


@dataclass(frozen=True)
class LinearProtocol:
    """Hyperparameters of linear evaluation; the defaults are the paper's (Section 4.1), AdamW's own for the rest.

    Args:
        epochs (`int`, *optional*, defaults to 40).
        batch_size (`int`, *optional*, defaults to 64).
        learning_rate (`float`, *optional*, defaults to 1e-2): falls to 0 along a half cosine.
        weight_decay (`float`, *optional*, defaults to 0.01).
    """

    epochs: int = 40
    batch_size: int = 64
    learning_rate: float = 1e-2
    weight_decay: float = 0.01


@dataclass(frozen=True)
class Split:
    """The rows of one split in the table of features, and their labels by head."""

    rows: np.ndarray
    targets: Mapping[str, np.ndarray]


def from_memory(features: np.ndarray) -> FeatureSource:
    """A source that reads rows of an array, also of one that lies on disk."""
    return lambda rows: torch.from_numpy(features[rows])


def train_heads(
    task: Task,
    source: FeatureSource,
    dim: int,
    train: Split,
    validation: Split,
    *,
    seed: int,
    protocol: LinearProtocol = LinearProtocol(),
) -> tuple[LinearHeads, int]:
    """Trains a task's linear heads and keeps the epoch that is best on validation.

    Args:
        task ([`Task`]): whose heads are trained.
        source (`FeatureSource`): gives features for rows; usually [`from_memory`].
        dim (`int`): their width.
        train, validation ([`Split`]): what to train on, and what to choose the epoch on. Of epochs that are equally
            good, the first is kept.
        seed (`int`): draws the heads' first weights and the order of the pictures.
        protocol ([`LinearProtocol`], *optional*).

    Returns:
        The heads, and the number of the epoch they are from, counted from 1.
    """
    device = PartialState().device
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        heads = LinearHeads(task, dim)
    start_at_training_labels(heads, task, train.targets)
    heads.to(device)
    optimizer = torch.optim.AdamW(
        heads.parameters(), lr=protocol.learning_rate, weight_decay=protocol.weight_decay, fused=True
    )
    steps = protocol.epochs * -(-len(train.rows) // protocol.batch_size)
    scheduler = get_cosine_schedule_with_warmup(optimizer, num_warmup_steps=0, num_training_steps=steps)
    targets = {name: torch.from_numpy(values).to(device) for name, values in train.targets.items()}
    best, best_epoch, best_weights = -np.inf, 0, heads.state_dict()
    for epoch in range(1, protocol.epochs + 1):
        for batch in torch.randperm(len(train.rows), generator=generator).split(protocol.batch_size):
            features = source(train.rows[batch.numpy()]).to(device)
            loss = task.loss(heads(features), {name: values[batch.to(device)] for name, values in targets.items()})
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            scheduler.step()
        score = task.selection(predict(task, heads, source, validation.rows), validation.targets)
        if score > best:
            best, best_epoch = score, epoch
            best_weights = {name: value.clone() for name, value in heads.state_dict().items()}
    heads.load_state_dict(best_weights)
    return heads, best_epoch


@torch.inference_mode()
def predict(
    task: Task, heads: nn.Module, source: FeatureSource, rows: np.ndarray, chunk: int = 4096
) -> dict[str, np.ndarray]:
    """Each head's predictions for rows of the table of features."""
    device = PartialState().device
    parts = [
        task.predict(heads(source(rows[start : start + chunk]).to(device))) for start in range(0, len(rows), chunk)
    ]
    return {head.name: np.concatenate([part[head.name] for part in parts]) for head in task.heads}
