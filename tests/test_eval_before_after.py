"""Probes and the before/after measurement: honest splits, pairing, and the form of the report."""

from __future__ import annotations

import json

import datasets
import numpy as np
import pytest
from PIL import Image
from sklearn.model_selection import GroupKFold

from eval_fixtures import tiny_backbone
from pacl.evaluation.before_after import ProbeSpec, measure, read_targets
from pacl.evaluation.probes import classification_probe, regression_probe, splits

GENERATOR = np.random.default_rng(0)
LABELS = np.arange(90) % 3
INFORMATIVE = (np.eye(3)[LABELS] + 0.3 * GENERATOR.normal(size=(90, 3))).astype(np.float32)
NOISE = GENERATOR.normal(size=(90, 40)).astype(np.float32)
THEMES = np.repeat(np.arange(18), 5)


def coloured_dataset() -> datasets.Dataset:
    """Pictures whose hue is the class and whose brightness is the rating."""
    images, labels, ratings = [], [], []
    for number in range(60):
        colour = np.zeros(3)
        colour[number % 3] = 80 + 2 * number
        images.append(Image.fromarray(np.full((8, 8, 3), colour, dtype=np.uint8)))
        labels.append(["fear", "joy", "love"][number % 3])
        ratings.append(number / 10)
    columns = {"image": images, "emotion": labels, "valence": ratings, "theme": [str(i // 4) for i in range(60)]}
    return datasets.Dataset.from_dict(columns).cast_column("image", datasets.Image())


def test_probe_finds_what_features_tell_and_nothing_in_noise():
    told = classification_probe(INFORMATIVE, LABELS, seeds=[0, 1]).summary()
    silent = classification_probe(NOISE, LABELS, seeds=[0, 1]).summary()
    assert told["accuracy"]["mean"] > 0.9
    assert silent["accuracy"]["mean"] < 0.5
    assert len(told["weighted_f1"]["values"]) == 2


def test_regression_on_noise_is_not_correlated_and_on_signal_is():
    targets = INFORMATIVE @ [1.0, 2.0, 3.0]
    assert regression_probe(INFORMATIVE, targets, seeds=[0]).summary()["pearson_r"]["mean"] > 0.95
    assert regression_probe(NOISE, targets, seeds=[0]).summary()["mean_r2"]["mean"] < 0.2


def test_no_theme_is_torn_apart_and_used_themes_never_test():
    tested = np.flatnonzero(THEMES >= 6)
    folds = list(splits(GroupKFold(4, shuffle=True, random_state=0), LABELS, THEMES, tested))
    for train, test in folds:
        assert not set(THEMES[train]) & set(THEMES[test])
        assert set(range(6)) <= set(THEMES[train])
    np.testing.assert_array_equal(np.sort(np.concatenate([test for _, test in folds])), tested)


def test_unknown_theme_in_never_test_is_refused_by_name():
    with pytest.raises(ValueError, match="doesn't have: 99"):
        regression_probe(INFORMATIVE, LABELS.astype(float), seeds=[0], groups=THEMES, never_test=[99])


def test_class_too_small_for_the_folds_is_refused_with_the_counts():
    with pytest.raises(ValueError, match="1: 2"):
        classification_probe(INFORMATIVE[:7], np.array([0] * 5 + [1] * 2), seeds=[0])


def test_measurement_is_paired_and_ready_for_json(tmp_path):
    dataset = coloured_dataset()
    probes = [
        ProbeSpec("emotion", dataset, "emotion", folds=3),
        ProbeSpec("valence", dataset, "valence", groups="theme", never_test=["0", "1"], folds=3),
    ]
    report = measure(tiny_backbone(0), tiny_backbone(1), probes, seeds=[0, 1], cache_dir=tmp_path)
    assert json.loads(json.dumps(report)) == report
    assert report["valence"]["tested"] == 52
    for name, metric in (("emotion", "accuracy"), ("valence", "pearson_r")):
        sides = report[name]
        gains = np.subtract(sides["after"][metric]["values"], sides["before"][metric]["values"])
        np.testing.assert_allclose(sides["difference"][metric]["values"], gains)
        assert sides["difference"][metric]["low"] <= gains.mean() <= sides["difference"][metric]["high"]


def test_a_backbone_measured_against_itself_has_no_difference(tmp_path):
    probe = ProbeSpec("emotion", coloured_dataset(), "emotion", folds=3)
    report = measure(tiny_backbone(0), tiny_backbone(0), [probe], seeds=[0], cache_dir=tmp_path)
    assert report["emotion"]["difference"]["accuracy"]["high"] == 0


def test_rows_without_a_label_are_left_out_and_counted():
    dataset = datasets.Dataset.from_dict({"sentiment": ["good", None, "bad"], "rating": [1.0, float("nan"), None]})
    targets, known = read_targets(dataset, "sentiment")
    assert targets[known].tolist() == [1, 0]
    assert read_targets(dataset, "rating")[1].tolist() == [True, False, False]


def test_column_that_is_no_label_is_refused_by_name():
    dataset = datasets.Dataset.from_dict({"scores": [[1.0], [2.0]]})
    with pytest.raises(ValueError, match="'scores' is no label"):
        read_targets(dataset, "scores")
    with pytest.raises(ValueError, match="no column 'mood'"):
        read_targets(dataset, "mood")
