"""The paper's metrics as `evaluate.Metric`s on scikit-learn, which need no network. A task names those it reports."""

from __future__ import annotations

from typing import Any, ClassVar

import datasets
import evaluate
import numpy as np
from sklearn.metrics import (
    accuracy_score,
    average_precision_score,
    f1_score,
    mean_squared_error,
    r2_score,
    roc_auc_score,
)

CLASSES = datasets.Features({"predictions": datasets.Value("int64"), "references": datasets.Value("int64")})
"""One class per example."""

RATINGS = datasets.Features(
    {"predictions": datasets.List(datasets.Value("float64")), "references": datasets.List(datasets.Value("float64"))}
)
"""One number per output and example."""


class SklearnMetric(evaluate.Metric):
    """A metric that computes in memory; its result has one entry, under the metric's `key`.

    Compute it with `compute(predictions=…, references=…)`, as every metric of `evaluate`.
    """

    key: ClassVar[str]
    inputs: ClassVar[datasets.Features]

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(keep_in_memory=True, **kwargs)

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=self.__doc__ or "", citation="", inputs_description="", features=self.inputs
        )

    def _compute(self, predictions: Any, references: Any) -> dict[str, float]:
        return {self.key: float(self.value(np.asarray(references), np.asarray(predictions)))}

    def value(self, references: np.ndarray, predictions: np.ndarray) -> float:
        """The metric of arrays with one row per example."""
        raise NotImplementedError


class Accuracy(SklearnMetric):
    """Share of right classes."""

    key, inputs = "accuracy", CLASSES

    def value(self, references: np.ndarray, predictions: np.ndarray) -> float:
        return accuracy_score(references, predictions)


class WeightedF1(SklearnMetric):
    """F1 of each class, averaged by the number of its examples."""

    key, inputs = "weighted_f1", CLASSES

    def value(self, references: np.ndarray, predictions: np.ndarray) -> float:
        return f1_score(references, predictions, average="weighted", zero_division=0)


class MeanAveragePrecision(SklearnMetric):
    """Average precision of each class by its scores, averaged over the classes that the references show.

    Classes without a positive or without a negative reference have no defined value, and don't count.
    """

    key, inputs = "mean_average_precision", RATINGS

    def value(self, references: np.ndarray, predictions: np.ndarray) -> float:
        shown = _shown(references)
        return average_precision_score(references[:, shown], predictions[:, shown], average="macro")


class MeanROCAUC(SklearnMetric):
    """Area under the ROC curve of each class, averaged over the classes that the references show."""

    key, inputs = "mean_roc_auc", RATINGS

    def value(self, references: np.ndarray, predictions: np.ndarray) -> float:
        shown = _shown(references)
        return roc_auc_score(references[:, shown], predictions[:, shown], average="macro")


class MeanMSE(SklearnMetric):
    """Mean squared error, averaged over the outputs; lower is better."""

    key, inputs = "mean_mse", RATINGS

    def value(self, references: np.ndarray, predictions: np.ndarray) -> float:
        return mean_squared_error(references, predictions)


class MeanR2(SklearnMetric):
    """Coefficient of determination, averaged over the outputs."""

    key, inputs = "mean_r2", RATINGS

    def value(self, references: np.ndarray, predictions: np.ndarray) -> float:
        return r2_score(references, predictions)


def _shown(references: np.ndarray) -> np.ndarray:
    """The classes that have positive and negative references."""
    shown = np.flatnonzero((references.max(axis=0) > 0) & (references.min(axis=0) <= 0))
    if not len(shown):
        raise ValueError("no class has both positive and negative references, so that no ranking metric is defined")
    return shown
