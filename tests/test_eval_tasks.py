"""Metrics offline, and tasks: how labels are read, what heads learn, what is scored."""

from __future__ import annotations

import datasets
import numpy as np
import pytest
import torch
from datasets import ClassLabel, Features, List, Value
from sklearn.metrics import average_precision_score, f1_score, roc_auc_score
from torch.nn import functional

from pacl.evaluation import BENCHMARKS
from pacl.evaluation.metrics import (
    Accuracy,
    MeanAveragePrecision,
    MeanMSE,
    MeanR2,
    MeanROCAUC,
    WeightedF1,
)
from pacl.evaluation.statistics import STATISTICS, score
from pacl.evaluation.tasks import ClassHead, LinearHeads, RatingHead, TagHead, Task, task_of

GENERATOR = np.random.default_rng(0)
CLASSES, GUESSES = GENERATOR.integers(0, 4, (2, 40))
TAGS, SCORES = GENERATOR.integers(0, 2, (40, 5)), GENERATOR.random((40, 5))
RATINGS, RATED = GENERATOR.normal(5, 1, (2, 40, 3))


@pytest.mark.parametrize(
    ("metric", "references", "predictions"),
    [
        (Accuracy, CLASSES, GUESSES),
        (WeightedF1, CLASSES, GUESSES),
        (MeanAveragePrecision, TAGS, SCORES),
        (MeanROCAUC, TAGS, SCORES),
        (MeanAveragePrecision, TAGS, SCORES.round(1)),  # equal scores are not ranked among themselves
        (MeanROCAUC, TAGS, SCORES.round(1)),
        (MeanMSE, RATINGS, RATED),
        (MeanR2, RATINGS, RATED),
    ],
)
def test_metric_computes_offline_and_agrees_with_the_bootstraps_statistic(metric, references, predictions):
    computed = metric().compute(references=references, predictions=predictions)
    assert computed[metric.key] == pytest.approx(score(STATISTICS[metric.key], references, predictions))


def test_metrics_are_scikit_learns():
    assert WeightedF1().compute(references=CLASSES, predictions=GUESSES)["weighted_f1"] == pytest.approx(
        f1_score(CLASSES, GUESSES, average="weighted")
    )
    assert MeanROCAUC().value(TAGS, SCORES) == pytest.approx(roc_auc_score(TAGS, SCORES, average="macro"))


def test_tag_that_nobody_has_does_not_count():
    tags = TAGS.copy()
    tags[:, 2] = 0
    others = [0, 1, 3, 4]
    assert MeanAveragePrecision().value(tags, SCORES) == pytest.approx(
        average_precision_score(TAGS[:, others], SCORES[:, others])
    )
    with pytest.raises(ValueError, match="no class has both"):
        MeanROCAUC().value(np.zeros((3, 2)), np.zeros((3, 2)))


def test_every_benchmark_has_a_task_with_its_outputs():
    tasks = {name: task_of(benchmark) for name, benchmark in BENCHMARKS.items()}
    widths = {name: [len(head.outputs) for head in task.heads] for name, task in tasks.items()}
    assert widths["fi"] == [8]
    assert widths["fi2"] == [2]
    assert widths["webemo"] == [2, 7, 25]
    assert widths["webemo6"] == [2, 6, 25]
    assert widths["emotic"] == [26]
    assert tasks["iaps"].heads[0].outputs == ("valence", "arousal", "dominance")
    assert tasks["oasis"].heads[0].scale == (1.0, 7.0)


def test_labels_are_read_as_each_head_needs_them():
    features = Features(
        {
            "label": ClassLabel(names=["a", "b"]),
            "tags": List(ClassLabel(names=["x", "y", "z"])),
            "valence": Value("float32"),
            "arousal": Value("float32"),
        }
    )
    columns = {"label": [1, 0], "tags": [[0, 2], []], "valence": [1.5, 2.5], "arousal": [3.0, 4.0]}
    dataset = datasets.Dataset.from_dict(columns, features=features)
    assert ClassHead("label", ("a", "b")).read(dataset).tolist() == [1, 0]
    assert TagHead("tags", ("x", "y", "z")).read(dataset).tolist() == [[1, 0, 1], [0, 0, 0]]
    rated = RatingHead("ratings", ("valence", "arousal"), (1, 9)).read(dataset)
    assert rated.tolist() == [[1.5, 3.0], [2.5, 4.0]]


def test_levels_of_a_hierarchy_are_trained_together():
    task = Task("hierarchical", (ClassHead("label2", ("a", "b")), ClassHead("label3", ("x", "y", "z"))))
    heads = LinearHeads(task, 4)
    logits = heads(torch.randn(6, 4))
    targets = {"label2": torch.tensor([0, 1] * 3), "label3": torch.tensor([0, 1, 2] * 2)}
    loss = task.loss(logits, targets)
    expected = sum(functional.cross_entropy(logits[name], targets[name]) for name in targets)
    torch.testing.assert_close(loss, expected)
    loss.backward()
    assert all(layer.weight.grad.abs().sum() > 0 for layer in heads.values())
    scores = task.score(task.predict(logits), {name: value.numpy() for name, value in targets.items()})
    assert set(scores) == {"label2/accuracy", "label2/weighted_f1", "label3/accuracy", "label3/weighted_f1"}
    selection = task.selection(task.predict(logits), {name: value.numpy() for name, value in targets.items()})
    assert selection == pytest.approx((scores["label2/accuracy"] + scores["label3/accuracy"]) / 2)


def test_less_error_is_the_better_epoch():
    task = Task("regression", (RatingHead("ratings", ("valence",), (1, 9)),))
    truth = {"ratings": np.array([[1.0], [5.0]])}
    near, far = {"ratings": np.array([[1.5], [5.0]])}, {"ratings": np.array([[3.0], [5.0]])}
    assert task.selection(near, truth) > task.selection(far, truth)
