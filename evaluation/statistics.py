"""Spread over seeds and paired bootstrap intervals, so that nobody reads noise as progress.

Every statistic here is a function of weights on the test examples, which turns a bootstrap replicate into one row of
a matrix of multinomial counts: thousands of replicates are a few matrix products, not thousands of loops.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

# (weights (replicates, examples), targets, predictions) -> (replicates,)
Statistic = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]

CHUNK = 256  # replicates held at once


@dataclass(frozen=True)
class PairedRun:
    """Two models' predictions of the same test examples, under one seed.

    Args:
        units (`np.ndarray` of shape `(examples,)`): what a bootstrap draws: each example's own name, or the name of
            its group where the examples of a group aren't independent. The same name in the runs of several seeds
            is the same thing.
        targets, before, after (`np.ndarray` of shape `(examples,)` or `(examples, outputs)`).
    """

    units: np.ndarray
    targets: np.ndarray
    before: np.ndarray
    after: np.ndarray

    def __post_init__(self) -> None:
        lengths = {len(self.units), len(self.targets), len(self.before), len(self.after)}
        if len(lengths) > 1 or self.before.shape != self.after.shape:
            raise ValueError(
                f"predictions of one run must be of the same examples: {len(self.units)} units, {len(self.targets)} "
                f"targets, before {self.before.shape}, after {self.after.shape}"
            )


def spread(values: Sequence[float]) -> dict[str, object]:
    """Every seed's value with their mean and sample standard deviation (0 for a single seed)."""
    array = np.asarray(values, dtype=np.float64)
    deviation = float(array.std(ddof=1)) if len(array) > 1 else 0.0
    return {"values": array.tolist(), "mean": float(array.mean()), "std": deviation}


def accuracy(weights: np.ndarray, targets: np.ndarray, predictions: np.ndarray) -> np.ndarray:
    """Share of right classes."""
    return weights @ (targets == predictions) / weights.sum(axis=1)


def weighted_f1(weights: np.ndarray, targets: np.ndarray, predictions: np.ndarray) -> np.ndarray:
    """F1 of each class, averaged by the number of its examples."""
    classes = np.union1d(targets, predictions)
    actual = targets[:, None] == classes
    predicted = predictions[:, None] == classes
    hits = weights @ (actual & predicted)
    support = weights @ actual
    # 2 TP / (2 TP + FP + FN); a class that a replicate holds neither way has support 0 and counts for nothing.
    f1 = 2 * hits / np.maximum(support + weights @ predicted, 1e-12)
    return (f1 * support).sum(axis=1) / support.sum(axis=1)


def pearson_r(weights: np.ndarray, targets: np.ndarray, predictions: np.ndarray) -> np.ndarray:
    """Pearson's correlation of prediction and target; 0 where one of them is constant."""
    total = weights.sum(axis=1)
    x, y = targets - targets.mean(), predictions - predictions.mean()  # centred first, against cancellation
    mean_x, mean_y = weights @ x / total, weights @ y / total
    covariance = weights @ (x * y) / total - mean_x * mean_y
    variances = (weights @ x**2 / total - mean_x**2) * (weights @ y**2 / total - mean_y**2)
    return np.divide(covariance, np.sqrt(variances), out=np.zeros_like(covariance), where=variances > 0)


def mean_r2(weights: np.ndarray, targets: np.ndarray, predictions: np.ndarray) -> np.ndarray:
    """Coefficient of determination, averaged over the outputs; 0 where the targets are constant."""
    targets, predictions = _columns(targets), _columns(predictions)
    total = weights.sum(axis=1, keepdims=True)
    x = targets - targets.mean(axis=0)
    variance = weights @ x**2 / total - (weights @ x / total) ** 2
    error = weights @ (targets - predictions) ** 2 / total
    return (1 - np.divide(error, variance, out=np.ones_like(error), where=variance > 0)).mean(axis=1)


def mean_mse(weights: np.ndarray, targets: np.ndarray, predictions: np.ndarray) -> np.ndarray:
    """Mean squared error, averaged over the outputs."""
    errors = _columns((targets - predictions) ** 2).mean(axis=1)
    return weights @ errors / weights.sum(axis=1)


def mean_average_precision(weights: np.ndarray, targets: np.ndarray, predictions: np.ndarray) -> np.ndarray:
    """Average precision of each class by its scores, averaged over the classes that a replicate has examples of."""

    def average_precision(hits: np.ndarray, misses: np.ndarray) -> np.ndarray:
        found, shown = hits.cumsum(axis=1), (hits + misses).cumsum(axis=1)
        return (hits * found / np.maximum(shown, 1e-12)).sum(axis=1) / np.maximum(found[:, -1], 1e-12)

    return _mean_over_classes(average_precision, weights, targets, predictions)


def mean_roc_auc(weights: np.ndarray, targets: np.ndarray, predictions: np.ndarray) -> np.ndarray:
    """Area under the ROC curve of each class, averaged as in [`mean_average_precision`]."""

    def area(hits: np.ndarray, misses: np.ndarray) -> np.ndarray:
        below = misses.sum(axis=1, keepdims=True) - misses.cumsum(axis=1)
        pairs = hits.sum(axis=1) * misses.sum(axis=1)
        return (hits * (below + misses / 2)).sum(axis=1) / np.maximum(pairs, 1e-12)

    return _mean_over_classes(area, weights, targets, predictions)


def _mean_over_classes(
    statistic: Callable[[np.ndarray, np.ndarray], np.ndarray],
    weights: np.ndarray,
    targets: np.ndarray,
    predictions: np.ndarray,
) -> np.ndarray:
    """Mean of a ranking statistic over the classes that have both kinds of examples, shape `(replicates,)`.

    The statistic gets the weights of hits and misses by distinct score, best first: examples of equal score, such as
    the persons of one picture, are not ranked among themselves.
    """
    total, classes = np.zeros(len(weights)), np.zeros(len(weights))
    for truth, scores in zip(targets.T, predictions.T, strict=True):
        order = np.argsort(-scores, kind="stable")
        ranked, is_hit, sorted_scores = weights[:, order], truth[order] > 0, scores[order]
        starts = np.flatnonzero(np.append(True, sorted_scores[1:] != sorted_scores[:-1]))
        hits, misses = (np.add.reduceat(ranked * kind, starts, axis=1) for kind in (is_hit, ~is_hit))
        defined = (hits.sum(axis=1) > 0) & (misses.sum(axis=1) > 0)
        total += np.where(defined, statistic(hits, misses), 0)
        classes += defined
    return total / np.maximum(classes, 1)


def _columns(array: np.ndarray) -> np.ndarray:
    return array[:, None] if array.ndim == 1 else array


STATISTICS: dict[str, Statistic] = {
    "accuracy": accuracy,
    "weighted_f1": weighted_f1,
    "mean_average_precision": mean_average_precision,
    "mean_roc_auc": mean_roc_auc,
    "mean_mse": mean_mse,
    "mean_r2": mean_r2,
    "pearson_r": pearson_r,
}

LOWER_IS_BETTER = frozenset({"mean_mse"})


def score(statistic: Statistic, targets: np.ndarray, predictions: np.ndarray) -> float:
    """The statistic on all examples, each once."""
    return float(statistic(np.ones((1, len(targets))), targets, predictions)[0])


def paired_difference(
    metric: str, runs: Sequence[PairedRun], *, replicates: int = 2000, confidence: float = 0.95
) -> dict[str, object]:
    """How much `after` differs from `before` on the same examples, seed by seed, with a bootstrap interval.

    A replicate draws units with replacement, scores both models on the same draw under every seed, and averages
    the difference over the seeds. The interval is the percentile one.

    Args:
        metric (`str`): a key of [`STATISTICS`].
        runs (`Sequence[PairedRun]`): one for each seed.
        replicates (`int`, *optional*, defaults to 2000): bootstrap replicates.
        confidence (`float`, *optional*, defaults to 0.95): of the interval.

    Returns:
        `dict`: `values`, `mean`, `std` over the seeds, the interval's `low`, `high` and `confidence`, and
        `improved`, the share of replicates in which `after` is better.
    """
    statistic = STATISTICS[metric]
    names, codes = np.unique(np.concatenate([run.units for run in runs]), return_inverse=True)
    by_run = np.split(codes, np.cumsum([len(run.units) for run in runs])[:-1])
    drawn = np.concatenate(
        [
            np.nanmean([_difference(statistic, drawn[:, c], run) for c, run in zip(by_run, runs, strict=True)], axis=0)
            for drawn in _draws(len(names), replicates)
        ]
    )
    tail = (1 - confidence) / 2
    low, high = np.quantile(drawn, [tail, 1 - tail])
    return {
        **spread([float(_difference(statistic, np.ones((1, len(run.units))), run)[0]) for run in runs]),
        "low": float(low),
        "high": float(high),
        "confidence": confidence,
        "improved": float((drawn < 0 if metric in LOWER_IS_BETTER else drawn > 0).mean()),
    }


def _difference(statistic: Statistic, weights: np.ndarray, run: PairedRun) -> np.ndarray:
    """Of each replicate; NaN for one that drew nothing of a run with few examples."""
    drawn = weights.any(axis=1)
    difference = np.full(len(weights), np.nan)
    difference[drawn] = statistic(weights[drawn], run.targets, run.after)
    difference[drawn] -= statistic(weights[drawn], run.targets, run.before)
    return difference


def _draws(units: int, replicates: int) -> Iterator[np.ndarray]:
    """Chunks of `(replicates, units)`: how often each replicate draws each unit; the same draws at every call."""
    generator = np.random.default_rng(0)
    for start in range(0, replicates, CHUNK):
        size = min(CHUNK, replicates - start)
        yield generator.multinomial(units, np.full(units, 1 / units), size=size).astype(np.float64)
