"""What one run of a protocol leaves: predictions of the test pictures, kept on disk so that nothing is computed twice,
and all that follows from them: scores, and comparisons of two backbones.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np

from .statistics import STATISTICS, PairedRun, paired_difference


@dataclass(frozen=True)
class Run:
    """One backbone on one dataset under one protocol and seed.

    Args:
        backbone, dataset, task, protocol (`str`), seed (`int`), split (`str`): what was run.
        metrics (`dict[str, float]`): by name; `part/metric` where the predictions have parts.
        best_epochs (`list[int]`): chosen on validation, one for each fold; empty where nothing is trained.
        outputs (`dict[str, list[str]]`): for each part, the classes or ratings that its outputs stand for.
        examples (`np.ndarray` of shape `(examples,)`): ids of the test pictures.
        units (`np.ndarray` of shape `(examples,)`): what a bootstrap draws: their groups, or their ids.
        targets, predictions (`dict[str, np.ndarray]`): for each part, of shape `(examples,)` or
            `(examples, outputs)`. A part is a head of a task with several or a prompt; the only or main one is `""`.
    """

    backbone: str
    dataset: str
    task: str
    protocol: str
    seed: int
    split: str
    metrics: dict[str, float]
    best_epochs: list[int]
    outputs: dict[str, list[str]]
    examples: np.ndarray = field(repr=False)
    units: np.ndarray = field(repr=False)
    targets: dict[str, np.ndarray] = field(repr=False)
    predictions: dict[str, np.ndarray] = field(repr=False)

    def record(self) -> dict[str, object]:
        """The run's entry in `results.json`."""
        keys = ("backbone", "dataset", "task", "protocol", "seed", "split", "metrics")
        return {key: getattr(self, key) for key in keys}

    def save(self, path: Path) -> None:
        """Writes the run as one `.npz` file, whole or not at all."""
        facts = {**self.record(), "best_epochs": self.best_epochs, "outputs": self.outputs}
        arrays = {"facts": np.asarray(json.dumps(facts)), "examples": self.examples, "units": self.units}
        for number, part in enumerate(self.outputs):
            arrays[f"targets_{number}"] = self.targets[part]
            arrays[f"predictions_{number}"] = self.predictions[part]
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(f".{os.getpid()}.partial")
        with partial.open("wb") as file:
            np.savez_compressed(file, allow_pickle=False, **arrays)
        os.replace(partial, path)

    @classmethod
    def load(cls, path: Path) -> Run:
        """Reads what [`save`] wrote."""
        with np.load(path, allow_pickle=False) as stored:
            facts = json.loads(str(stored["facts"]))
            parts = list(enumerate(facts["outputs"]))
            return cls(
                **facts,
                examples=stored["examples"],
                units=stored["units"],
                targets={part: stored[f"targets_{number}"] for number, part in parts},
                predictions={part: stored[f"predictions_{number}"] for number, part in parts},
            )


@dataclass(frozen=True)
class Comparison:
    """How one backbone differs from another on the same test pictures; see [`statistics.paired_difference`]."""

    before: str
    after: str
    dataset: str
    protocol: str
    metric: str
    seeds: list[int]
    values: list[float]
    mean: float
    std: float
    low: float
    high: float
    confidence: float
    improved: float

    def record(self) -> dict[str, object]:
        """The comparison's entry in `comparisons.json`."""
        return asdict(self)


def compare(before: Sequence[Run], after: Sequence[Run]) -> list[Comparison]:
    """Compares two backbones metric by metric, paired by seed and picture.

    Args:
        before, after (`Sequence[Run]`): of one dataset and protocol, with the same seeds in the same order.

    Raises:
        ValueError: if the two have not been tested on the same pictures.
    """
    for old, new in zip(before, after, strict=True):
        if old.seed != new.seed or not np.array_equal(old.examples, new.examples):
            raise ValueError(
                f"{old.backbone} and {new.backbone} cannot be compared on {old.dataset}: seeds {old.seed} and "
                f"{new.seed} have different test pictures"
            )
    first, second = before[0], after[0]
    comparisons = []
    for name in first.metrics:
        part, _, metric = name.rpartition("/")
        if metric not in STATISTICS:
            continue
        runs = [
            PairedRun(old.units, old.targets[part], old.predictions[part], new.predictions[part])
            for old, new in zip(before, after, strict=True)
        ]
        difference: dict = paired_difference(metric, runs)
        seeds = [run.seed for run in before]
        comparisons.append(
            Comparison(first.backbone, second.backbone, first.dataset, first.protocol, name, seeds=seeds, **difference)
        )
    return comparisons
