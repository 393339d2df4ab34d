"""Stage 2: the same clusters whatever the batch size, and what is refused."""

from __future__ import annotations

import datasets
import numpy as np
import pytest
import torch

from conftest import make_tokenizer
from pacl.training.cluster import cluster_dataset, kmeans_labels
from pacl.training.features import ImageEncoder, TextEncoder, TowerEncoders
from pacl.training.rejections import Rejections
from pacl.training.scan import column_to_numpy, feature_columns, scan_posts
from stage_helpers import Counter, make_posts, small_processor, tiny_resnet, tiny_roberta, truncate


@pytest.fixture
def towers():
    return TowerEncoders(
        ImageEncoder(tiny_resnet().resnet, small_processor()), TextEncoder(tiny_roberta(), make_tokenizer())
    )


def groups(number=300, dim=8, centres=3, seed=0):
    """Rows around well separated centres, and which one each is from."""
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, centres, number)
    return (10 * np.eye(dim)[truth] + rng.normal(size=(number, dim))).astype(np.float16), truth


def with_features(vision, text) -> datasets.Dataset:
    columns = {"vision_features": vision, "text_features": text}
    features = {
        name: datasets.List(datasets.Value("float16"), length=values.shape[1]) for name, values in columns.items()
    }
    return datasets.Dataset.from_dict(columns, features=datasets.Features(features))


def test_clusters_are_found_on_each_side_and_vision_features_dropped():
    (vision, looks), (text, moods) = groups(seed=1), groups(seed=2, dim=5)
    result = cluster_dataset(with_features(vision, text), clusters=3)
    for name, truth in (("factual_cluster", looks), ("emotional_cluster", moods)):
        pairs = set(zip(result[name], truth.tolist(), strict=True))
        assert len(pairs) == 3, f"{name} is the truth, renumbered"
        assert result.features[name] == datasets.Value("int32")
    np.testing.assert_array_equal(column_to_numpy(result, "text_features"), text)
    assert result.features["text_features"] == datasets.List(datasets.Value("float16"), length=5)
    assert "vision_features" not in result.column_names


def test_each_side_may_have_its_own_number_of_clusters():
    vision, _ = groups()
    result = cluster_dataset(with_features(vision, vision), clusters=[1, 3])
    assert set(result["factual_cluster"]) == {0}
    assert set(result["emotional_cluster"]) == {0, 1, 2}


def test_clusters_are_numbered_as_they_first_appear():
    rows = np.array([[9, 9], [0, 0], [9, 8], [5, 0], [0, 1]], np.float16)
    for seed in range(5):
        assert kmeans_labels(rows, 3, seed=seed).tolist() == [0, 1, 0, 2, 1]


def test_seed_decides_where_clusters_are_vague():
    rows = np.random.default_rng(0).normal(size=(200, 16)).astype(np.float16)
    first, same, other = (kmeans_labels(rows, 12, seed=seed) for seed in (0, 0, 1))
    assert (first == same).all()
    assert (first != other).any()


def test_features_are_not_changed_by_clustering():
    rows = groups()[0].astype(np.float32)
    before = rows.copy()
    kmeans_labels(rows, 3)
    np.testing.assert_array_equal(rows, before)


def test_clusters_are_the_same_whatever_the_batch_size_and_number_of_threads(tmp_path, towers):
    posts = make_posts(tmp_path, 60)
    threads = torch.get_num_threads()
    results = []
    for batch_size, number in ((1, 1), (7, 2), (60, 4)):
        torch.set_num_threads(number)
        cache = tmp_path / f"cache_{batch_size}"
        results.append(cluster_dataset(posts, towers, clusters=4, batch_size=batch_size, cache_dir=cache))
    torch.set_num_threads(threads)
    for name in ("factual_cluster", "emotional_cluster"):
        assert results[0][name][:] == results[1][name][:] == results[2][name][:]
        assert len(set(results[0][name])) == 4
    assert len({result._fingerprint for result in results}) == 1


def test_scan_with_towers_and_clustering_alone_give_the_same(tmp_path, towers):
    posts = make_posts(tmp_path, 12)
    ready = scan_posts(posts, feature_columns(towers), stage="partition", cache_dir=tmp_path / "a")
    alone, after = cluster_dataset(posts, towers, cache_dir=tmp_path / "b"), cluster_dataset(ready)
    assert alone.column_names == after.column_names
    assert alone["factual_cluster"][:] == after["factual_cluster"][:]
    np.testing.assert_array_equal(column_to_numpy(alone, "text_features"), column_to_numpy(after, "text_features"))


def test_clustering_anew_runs_only_the_tower_whose_features_are_gone(tmp_path, towers):
    once = cluster_dataset(make_posts(tmp_path, 8), towers, cache_dir=tmp_path / "c")
    vision, text = Counter(towers.image.model), Counter(towers.text.model)
    twice = cluster_dataset(once, towers, clusters=3, cache_dir=tmp_path / "c")
    assert (vision.rows, text.rows) == (8, 0)
    assert set(twice["factual_cluster"]) == {0, 1, 2}
    assert twice.column_names.count("factual_cluster") == 1


def test_pictures_that_do_not_decode_are_rejected_here_too(tmp_path, towers):
    posts = make_posts(tmp_path, 6)
    truncate(posts, 2)
    rejections = Rejections()
    result = cluster_dataset(posts, towers, rejections=rejections, cache_dir=tmp_path / "c")
    assert [(entry["row"], entry["stage"]) for entry in rejections] == [(200, "cluster")]
    assert len(result) == 5


@pytest.mark.parametrize("clusters", [0, -1, (2, 0), (1, 2, 3)])
def test_impossible_numbers_of_clusters_are_refused(clusters):
    vision, _ = groups(10)
    with pytest.raises(ValueError, match="clusters must be at least 1, one number or a pair"):
        cluster_dataset(with_features(vision, vision), clusters=clusters)


@pytest.mark.filterwarnings("ignore:Number of distinct clusters")
def test_more_clusters_than_distinct_rows_are_refused():
    rows = np.repeat(groups(3)[0], 4, axis=0)
    with pytest.raises(ValueError, match="13 clusters of 12 vision_features are too many"):
        cluster_dataset(with_features(rows, rows), clusters=13)
    with pytest.raises(ValueError, match="vision_features have only 3 distinct rows, too few for 4 clusters"):
        cluster_dataset(with_features(rows, rows), clusters=4)


def test_features_that_are_missing_without_towers_are_refused(tmp_path):
    with pytest.raises(ValueError, match="lack vision_features and text_features, and no towers"):
        cluster_dataset(make_posts(tmp_path, 2))
