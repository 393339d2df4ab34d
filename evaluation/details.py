"""A run's scores one output at a time: each class's recall, precision and F1 with the confusion matrix, each tag's
average precision and ROC AUC, each rating's error and correlation.
"""

from __future__ import annotations

import numpy as np
from sklearn.metrics import (
    average_precision_score,
    confusion_matrix,
    mean_squared_error,
    precision_recall_fscore_support,
    r2_score,
    roc_auc_score,
)

from . import statistics
from .results import Run


def describe(run: Run) -> list[dict[str, object]]:
    """One entry for each part of a run (see [`Run`]), ready for JSON.

    Returns:
        `list[dict]`, each with `backbone`, `dataset`, `protocol`, `seed`, `part`, and `outputs`: for each class, tag
        or rating its `name`, its scores, and for classes and tags the number of their test examples (`support`).
        Classes also have `confusion`, counts by true (rows) and predicted class (columns). A score that the test
        examples leave undefined is `None`.
    """
    facts = {key: getattr(run, key) for key in ("backbone", "dataset", "protocol", "seed")}
    return [{**facts, "part": part, **_describe_part(run, part)} for part in run.outputs]


def _describe_part(run: Run, part: str) -> dict[str, object]:
    names, targets, predictions = run.outputs[part], run.targets[part], run.predictions[part]
    if targets.ndim == 1:
        return {
            "outputs": _rows(names, class_scores(targets, predictions, len(names))),
            "confusion": confusion_matrix(targets, predictions, labels=range(len(names))).tolist(),
        }
    scores = rating_scores if run.task == "regression" else tag_scores
    return {"outputs": _rows(names, scores(targets, predictions))}


def class_scores(targets: np.ndarray, predictions: np.ndarray, classes: int) -> dict[str, np.ndarray]:
    """`recall`, `precision`, `f1` and `support` of each class; NaN where a class has no example, or no prediction."""
    precision, recall, f1, support = precision_recall_fscore_support(
        targets, predictions, labels=range(classes), zero_division=np.nan
    )
    return {"recall": recall, "precision": precision, "f1": f1, "support": support}


def tag_scores(targets: np.ndarray, predictions: np.ndarray) -> dict[str, np.ndarray]:
    """`average_precision`, `roc_auc` and `support` of each tag; NaN for one that no or every example has."""
    support = (targets > 0).sum(axis=0)
    defined = (support > 0) & (support < len(targets))
    scores = {}
    for name, metric in (("average_precision", average_precision_score), ("roc_auc", roc_auc_score)):
        scores[name] = np.full(len(support), np.nan)
        if defined.any():
            scores[name][defined] = metric(targets[:, defined], predictions[:, defined], average=None)
    return {**scores, "support": support}


def rating_scores(targets: np.ndarray, predictions: np.ndarray) -> dict[str, np.ndarray]:
    """`mse`, `r2` and `pearson_r` of each rating."""
    pairs = zip(targets.T, predictions.T, strict=True)
    return {
        "mse": mean_squared_error(targets, predictions, multioutput="raw_values"),
        "r2": r2_score(targets, predictions, multioutput="raw_values"),
        "pearson_r": np.asarray([statistics.score(statistics.pearson_r, true, guess) for true, guess in pairs]),
    }


def _rows(names: list[str], columns: dict[str, np.ndarray]) -> list[dict[str, object]]:
    return [
        {"name": name, **{key: _number(values[row]) for key, values in columns.items()}}
        for row, name in enumerate(names)
    ]


def _number(value: np.generic) -> float | int | None:
    number = value.item()
    return None if number != number else number
