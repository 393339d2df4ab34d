"""Stage 2: the same clusters whatever the batch size, and what is refused."""

from __future__ import annotations

import datasets
import numpy as np
import pytest
import torch
from sklearn.cluster import KMeans

from conftest import make_tokenizer
from pacl.training import cluster, kmeans
from pacl.training.cluster import cluster_dataset
from pacl.training.columns import NumberColumn, column_to_numpy
from pacl.training.features import ImageEncoder, TextEncoder, TowerEncoders
from pacl.training.kmeans import kmeans_labels
from pacl.training.rejections import Rejections
from pacl.training.scan import feature_columns, scan_posts
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


def uneven(number=6000, dim=8, seed=0):
    """One cloud, three times as wide in one direction: nothing separates its halves, but there is one best cut."""
    rows = np.random.default_rng(seed).normal(size=(number, dim))
    return (rows * [3, *[1] * (dim - 1)]).astype(np.float16)


class WatchedRows:
    """Features that write down which rows are read."""

    def __init__(self, values):
        self.values = values
        self.read = []

    def __len__(self):
        return len(self.values)

    def __getitem__(self, rows):
        self.read.append(np.arange(len(self))[rows].tolist())
        return self.values[rows]


def within_clusters(rows, labels):
    """Sum of squared distances from the clusters' means: what k-means makes small."""
    rows = rows.astype(np.float64)
    return sum(((rows[labels == k] - rows[labels == k].mean(axis=0)) ** 2).sum() for k in np.unique(labels))


def test_more_rows_than_fit_in_memory_get_the_clusters_of_all_together():
    rows = uneven()
    whole, streamed = kmeans_labels(rows, 2), kmeans_labels(rows, 2, seed=1, rows_in_memory=200)
    # Rounds that start elsewhere may end with rows at the boundary on its other side: 0 to 0.4 % over seeds.
    assert (whole == streamed).mean() > 0.995
    from_sample_alone = kmeans_labels(rows, 2, seed=1, rows_in_memory=200, max_passes=1)
    assert (whole == from_sample_alone).mean() < 0.95, "the passes over all rows are what matters"


def test_where_many_clusterings_are_as_good_streaming_finds_one_of_them():
    rows = np.random.default_rng(0).normal(size=(4000, 8)).astype(np.float16)
    whole, streamed = kmeans_labels(rows, 5), kmeans_labels(rows, 5, rows_in_memory=1000)
    assert within_clusters(rows, streamed) < 1.01 * within_clusters(rows, whole)


def test_passes_over_all_rows_change_nothing_where_the_sample_was_all():
    rows = uneven(2000)
    whole = KMeans(2, n_init=4, tol=0, random_state=0).fit(rows.astype(np.float32))
    labels = kmeans._lloyd(rows, whole.cluster_centers_, max_passes=1, name="features")
    np.testing.assert_array_equal(labels, whole.labels_)


def test_every_row_of_streamed_clusters_is_nearest_to_the_mean_of_its_own():
    rows = uneven(5000)
    labels = kmeans_labels(rows, 4, rows_in_memory=300)
    means = np.stack([rows[labels == k].mean(axis=0, dtype=np.float64) for k in range(4)])
    distances = ((rows[:, None].astype(np.float64) - means) ** 2).sum(axis=2)
    # Equal but for what rounding decides.
    assert (distances[np.arange(len(rows)), labels] - distances.min(axis=1)).max() < 1e-3


def test_rows_are_read_block_by_block_and_of_the_sample_only_its_own():
    features = WatchedRows(uneven(9000))
    kmeans_labels(features, 2, rows_in_memory=200, max_passes=2)
    sample, *passes = [rows for rows in features.read if len(rows) > 1]  # a single row tells the width
    assert len(set(sample)) == 200
    assert sample == sorted(sample)
    assert [len(rows) for rows in passes] == 2 * [4096, 4096, 808]


@pytest.mark.parametrize("shuffled", [False, True])
def test_columns_of_many_pieces_are_streamed_as_arrays_are(shuffled):
    rows = uneven(900)
    dataset = datasets.concatenate_datasets([with_features(part, part) for part in np.array_split(rows, 7)])
    if shuffled:
        order = np.random.default_rng(0).permutation(len(rows))
        dataset, rows = dataset.select(order), rows[order]
    labels = kmeans_labels(NumberColumn(dataset, "vision_features"), 3, rows_in_memory=100)
    np.testing.assert_array_equal(labels, kmeans_labels(rows, 3, rows_in_memory=100))


def test_streamed_clusters_do_not_depend_on_the_block(monkeypatch):
    rows = uneven(3000)
    expected = kmeans_labels(rows, 3, rows_in_memory=400)
    monkeypatch.setattr(kmeans, "_BLOCK_ROWS", 170)
    np.testing.assert_array_equal(kmeans_labels(rows, 3, rows_in_memory=400), expected)


def test_passes_have_a_limit_and_say_so(caplog):
    labels = kmeans_labels(uneven(3000), 3, rows_in_memory=100, max_passes=2)
    assert set(labels) == {0, 1, 2}
    assert "rows still changed their cluster in pass 2" in caplog.text


def test_clusters_are_cached_by_content(tmp_path, monkeypatch):
    vision, text = groups(seed=1)[0], groups(seed=2, dim=5)[0]
    first = cluster_dataset(with_features(vision, text), clusters=3, cache_dir=tmp_path)
    other = cluster_dataset(with_features(text, vision), clusters=3, cache_dir=tmp_path)
    assert first["factual_cluster"][:] == other["emotional_cluster"][:]
    monkeypatch.setattr(cluster, "kmeans_labels", None)  # whoever calls it, fails
    again = cluster_dataset(with_features(vision, text), clusters=3, cache_dir=tmp_path)
    assert again["emotional_cluster"][:] == first["emotional_cluster"][:]
    assert again._fingerprint == first._fingerprint
    for change in ({"clusters": 2}, {"clusters": 3, "seed": 1}, {"clusters": 3, "rows_in_memory": 50}):
        with pytest.raises(TypeError):
            cluster_dataset(with_features(vision, text), cache_dir=tmp_path, **change)
    assert not [path for path in tmp_path.iterdir() if not path.name.startswith(("factual", "emotional"))]


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
    with pytest.raises(
        ValueError, match="vision_features have only 3 distinct rows, too few for 4 clusters; lower `clusters`$"
    ):
        cluster_dataset(with_features(rows, rows), clusters=4)
    refused = (
        "only 3 distinct rows in a sample of 10, too few for 4 clusters; lower `clusters` or raise `rows_in_memory`"
    )
    with pytest.raises(ValueError, match=refused):
        cluster_dataset(with_features(rows, rows), clusters=4, rows_in_memory=10)


def test_features_that_are_missing_without_towers_are_refused(tmp_path):
    with pytest.raises(ValueError, match="lack vision_features and text_features, and no towers"):
        cluster_dataset(make_posts(tmp_path, 2))
