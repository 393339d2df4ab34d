"""Linear evaluation on cached features: the same as with the backbone in the loop, honest, and repeatable."""

from __future__ import annotations

import numpy as np
import torch

from eval_fixtures import tiny_backbone
from pacl.evaluation.linear import LinearProtocol, Split, from_memory, predict, train_heads
from pacl.evaluation.tasks import ClassHead, RatingHead, Task

TASK = Task("single_label", (ClassHead("label", ("a", "b", "c")),))
GENERATOR = np.random.default_rng(0)
LABELS = np.arange(90) % 3
FEATURES = (np.eye(3)[LABELS] + 0.4 * GENERATOR.normal(size=(90, 3))).astype(np.float32)


def split(rows, labels=LABELS) -> Split:
    return Split(np.asarray(rows), {"label": labels[rows]})


TRAIN, VALIDATION = split(np.arange(60)), split(np.arange(60, 75))
QUICK = LinearProtocol(epochs=6, batch_size=16)
LONG = LinearProtocol(epochs=30, batch_size=8, learning_rate=5e-2)


def test_cached_features_give_the_score_of_the_backbone_in_the_loop():
    backbone = tiny_backbone(size=8)
    pictures = torch.randn(90, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    pictures += torch.from_numpy(LABELS).float()[:, None, None, None]

    @torch.no_grad()
    def in_the_loop(rows: np.ndarray) -> torch.Tensor:
        return backbone.pooled(pictures[rows])

    cached = in_the_loop(np.arange(90)).numpy()
    heads = []
    for source in (from_memory(cached), in_the_loop):
        trained, epoch = train_heads(TASK, source, 16, TRAIN, VALIDATION, seed=0, protocol=QUICK)
        heads.append((epoch, trained.state_dict(), predict(TASK, trained, source, np.arange(75, 90))["label"]))
    assert heads[0][0] == heads[1][0]
    torch.testing.assert_close(heads[0][1], heads[1][1], atol=1e-4, rtol=1e-4)
    np.testing.assert_array_equal(heads[0][2], heads[1][2])


def test_heads_learn_what_the_features_tell():
    heads, _ = train_heads(TASK, from_memory(FEATURES), 3, TRAIN, VALIDATION, seed=0, protocol=LONG)
    predicted = predict(TASK, heads, from_memory(FEATURES), np.arange(75, 90))["label"]
    assert (predicted == LABELS[75:]).mean() > 0.8


def test_same_seed_same_heads_and_another_seed_others():
    first, again, other = (
        train_heads(TASK, from_memory(FEATURES), 3, TRAIN, VALIDATION, seed=seed, protocol=QUICK)[0]["label"].weight
        for seed in (0, 0, 1)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_best_epoch_is_the_one_that_is_best_on_validation(monkeypatch):
    scores = iter([0.1, 0.6, 0.3, 0.6, 0.2, 0.5])
    seen = []
    monkeypatch.setattr(Task, "selection", lambda _, *pair: seen.append(pair) or next(scores))
    heads, epoch = train_heads(TASK, from_memory(FEATURES), 3, TRAIN, VALIDATION, seed=0, protocol=QUICK)
    assert epoch == 2  # the first of two that are equally good
    predictions, targets = seen[1]
    np.testing.assert_array_equal(targets["label"], LABELS[60:75])
    kept = predict(TASK, heads, from_memory(FEATURES), VALIDATION.rows)
    np.testing.assert_array_equal(kept["label"], predictions["label"])


def test_ratings_begin_at_their_mean():
    task = Task("regression", (RatingHead("ratings", ("valence", "arousal"), (1, 9)),))
    ratings = np.stack([4 + FEATURES[:, 0], 7 - FEATURES[:, 1]], axis=1).astype(np.float32)
    parts = [Split(part.rows, {"ratings": ratings[part.rows]}) for part in (TRAIN, VALIDATION)]
    heads, _ = train_heads(task, from_memory(FEATURES), 3, *parts, seed=0, protocol=LONG)
    test = np.arange(75, 90)
    scores = task.score(predict(task, heads, from_memory(FEATURES), test), {"ratings": ratings[test]})
    assert scores["mean_r2"] > 0.7


def test_training_leaves_the_callers_random_state_alone():
    torch.manual_seed(5)
    before = torch.get_rng_state()
    train_heads(TASK, from_memory(FEATURES), 3, TRAIN, VALIDATION, seed=0, protocol=QUICK)
    assert torch.equal(torch.get_rng_state(), before)
