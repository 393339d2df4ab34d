"""Scores one class, tag or rating at a time."""

from __future__ import annotations

import numpy as np
import pytest

from pacl.evaluation.details import describe
from pacl.evaluation.figures import class_gains
from pacl.evaluation.results import Run


def make_run(task: str, outputs: list[str], targets: np.ndarray, predictions: np.ndarray) -> Run:
    ids = np.arange(len(targets)).astype(str)
    pair = {"": targets}, {"": predictions}
    return Run("mine", "set", task, "linear", 0, "test", {}, [1], {"": outputs}, ids, ids, *pair)


def test_classes_have_recall_precision_support_and_confusion():
    run = make_run("single_label", ["a", "b", "c"], np.array([0, 0, 0, 1]), np.array([0, 1, 0, 1]))
    (part,) = describe(run)
    assert part["confusion"] == [[2, 1, 0], [0, 1, 0], [0, 0, 0]]
    a, b, c = part["outputs"]
    assert a == {"name": "a", "recall": pytest.approx(2 / 3), "precision": 1.0, "f1": pytest.approx(0.8), "support": 3}
    assert (b["recall"], b["precision"]) == (1.0, 0.5)
    assert (c["recall"], c["support"]) == (None, 0)


def test_tags_have_average_precision_and_auc_where_these_are_defined():
    truth = np.array([[1, 0], [0, 0], [1, 0], [0, 0]], dtype=np.float32)
    scores = np.array([[0.9, 0.1], [0.8, 0.1], [0.7, 0.1], [0.1, 0.1]])
    shown, never = describe(make_run("multi_label", ["joy", "pain"], truth, scores))[0]["outputs"]
    assert shown["average_precision"] == pytest.approx((1 + 2 / 3) / 2)
    assert shown["roc_auc"] == pytest.approx(0.75)
    assert never == {"name": "pain", "average_precision": None, "roc_auc": None, "support": 0}


def test_ratings_have_error_and_correlation():
    truth = np.array([[1.0, 5.0], [2.0, 3.0], [3.0, 1.0]])
    first, second = describe(make_run("regression", ["valence", "arousal"], truth, truth * [2, -1]))[0]["outputs"]
    assert first["mse"] == pytest.approx((1 + 4 + 9) / 3)
    assert (first["pearson_r"], second["pearson_r"]) == (pytest.approx(1), pytest.approx(-1))


def test_gains_of_tags_are_drawn_in_average_precision():
    truth = np.array([[1, 0], [0, 1], [1, 0]], dtype=np.float32)
    runs = [[make_run("multi_label", ["joy", "pain"], truth, scores)] for scores in (1 - truth, truth)]
    axes = class_gains(runs, "", ["joy", "pain"]).axes[0]
    assert "average precision" in axes.get_xlabel()
    np.testing.assert_allclose([bar.get_width() for bar in axes.patches], [100 * (1 - 2 / 3), 100 * (1 - 1 / 3)])
