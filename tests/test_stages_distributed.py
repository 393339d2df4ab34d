"""Stages 1 and 2 and `prepare` on several processes give what one gives; nothing is done twice, nothing done again."""

from __future__ import annotations

import os
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from accelerate import PartialState

from conftest import make_tokenizer
from pacl.training import kmeans, prepare
from pacl.training.cluster import cluster_dataset
from pacl.training.collator import training_transform
from pacl.training.columns import column_to_numpy
from pacl.training.features import ImageEncoder, TextEncoder, TowerEncoders
from pacl.training.images import StoredImage
from pacl.training.kmeans import kmeans_labels
from pacl.training.partition import partition_dataset
from pacl.training.prepare import prepare_pictures
from pacl.training.rejections import Rejections
from stage_helpers import (
    BrightnessEncoder,
    BrightnessJudge,
    LengthJudge,
    make_posts,
    small_processor,
    tiny_resnet,
    tiny_roberta,
    truncate,
)
from test_cluster import WatchedRows, uneven

DAMAGED = (3, 50)
COLUMNS = (
    "row",
    "factual_score",
    "emotional_score",
    "partition",
    "text_features",
    "factual_cluster",
    "emotional_cluster",
)


class LoggedEncoder(BrightnessEncoder):
    """Writes down how many pictures it sees, and fails behind so many."""

    def __init__(self, log: Path, fail_at: int | None = None):
        super().__init__(fail_at)
        self.log = log

    def encode(self, pixels):
        encoding = super().encode(pixels)
        with self.log.open("a") as file:
            file.write(f"{len(pixels)}\n")
        return encoding

    @staticmethod
    def seen(folder: Path) -> list[int]:
        """Pictures that each process has encoded."""
        return [sum(map(int, log.read_text().split())) for log in sorted(folder.glob("*.log"))]


def both_stages(posts, cache, log, fail_at=None):
    judge = BrightnessJudge()
    judge.encoder = LoggedEncoder(log, fail_at)
    judge.encoders = (judge.encoder,)
    towers = TowerEncoders(
        ImageEncoder(tiny_resnet().resnet, small_processor()), TextEncoder(tiny_roberta(), make_tokenizer())
    )
    rejections = Rejections()
    options = {"batch_size": 4, "cache_dir": cache}
    scored = partition_dataset(
        posts, judge, LengthJudge(), matched_shares="paper", towers=towers, rejections=rejections, **options
    )
    return cluster_dataset(scored, clusters=3, **options), rejections


def small_pictures(posts, cache):
    """The bytes that `prepare` makes of the pictures that are sound."""
    sound = posts.select([row for row in range(len(posts)) if row not in DAMAGED])
    small = prepare_pictures(sound, training_transform(small_processor()), cache_dir=cache)
    return [image["bytes"] for image in small.cast_column("image", datasets.Image(decode=False))["image"]]


def shared_work(posts, cache):
    """Prepared pictures and streamed clusters, and what this process has opened and read for them."""
    opened, features = [], WatchedRows(uneven(1000))

    def open_one(value):
        opened.append(value["path"])
        return StoredImage(value)

    prepare.StoredImage, prepare.shard_rows = open_one, lambda rows, batch_size: 4
    kmeans._BLOCK_ROWS = 128
    labels = kmeans_labels(features, 3, rows_in_memory=100)
    return small_pictures(posts, cache), opened, labels, features.read


def work(rank, folder):
    """What one process does, first as one of three, then as one of two; the test reads what it has saved."""
    torch.set_num_threads(1)
    if rank:
        kmeans.KMeans = None  # the main process fits for all what fits in memory
    posts = datasets.load_from_disk(folder / "posts")
    for processes, caches in ((3, ("fresh", "killed")), (2, ("alone", "other"))):
        if rank >= processes:
            return
        place = {"LOCAL_RANK": rank, "RANK": rank, "WORLD_SIZE": processes, "LOCAL_WORLD_SIZE": processes}
        os.environ.update({name: str(value) for name, value in place.items()})
        PartialState(cpu=True, init_method=f"file://{folder}/rendezvous_{processes}")
        for cache in caches:
            logs = folder / f"{cache}_{processes}"
            logs.mkdir(exist_ok=True)
            result, rejections = both_stages(posts, folder / cache, logs / f"{rank}.log")
            columns = {name: column_to_numpy(result, name) for name in COLUMNS}
            torch.save((result._fingerprint, list(rejections), columns), logs / f"{rank}.pt")
        torch.save(shared_work(posts, folder / f"prepared_{processes}"), folder / f"shared_{processes}_{rank}.pt")
        PartialState().destroy_process_group()
        PartialState._reset_state()  # other processes would first import the libraries again


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """A folder with posts, two of them damaged, and what one process makes of them."""
    folder = tmp_path_factory.mktemp("stages")
    posts = make_posts(folder / "pictures", 90)
    for position in DAMAGED:
        truncate(posts, position)
    posts.save_to_disk(folder / "posts")
    return folder, both_stages(datasets.load_from_disk(folder / "posts"), folder / "alone", folder / "alone.log")


@pytest.fixture(scope="module")
def together(alone):
    """Three processes from nothing and on what a killed one has left; then two, on what one has finished."""
    folder, _ = alone
    with pytest.raises(KeyboardInterrupt):
        both_stages(datasets.load_from_disk(folder / "posts"), folder / "killed", folder / "killed.log", fail_at=30)
    torch.multiprocessing.spawn(work, (folder,), nprocs=3)
    return folder


@pytest.mark.parametrize("name", ["fresh_3", "killed_3", "alone_2", "other_2"])
def test_every_process_ends_with_what_one_process_makes(alone, together, name):
    _, (expected, rejections) = alone
    paths = list((together / name).glob("*.pt"))
    assert len(paths) == int(name[-1])
    for path in paths:
        fingerprint, rejected, columns = torch.load(path, weights_only=False)  # arrays of NumPy
        assert fingerprint == expected._fingerprint
        assert rejected == list(rejections)
        for column, values in columns.items():
            np.testing.assert_array_equal(values, column_to_numpy(expected, column), err_msg=column)
    assert [entry["row"] for entry in rejections] == [300, 5000]


def test_each_picture_is_encoded_once_by_one_of_them_and_all_have_work(together):
    for name in ("fresh_3", "other_2"):
        seen = LoggedEncoder.seen(together / name)
        assert sum(seen) == 88
        assert max(seen) - min(seen) <= 8, seen


def test_a_killed_pass_goes_on_behind_its_finished_shards_with_more_processes(together):
    assert sum(LoggedEncoder.seen(together / "killed_3")) == 88 - 27  # seven shards of four, one picture damaged


def test_what_one_process_has_finished_is_not_done_again(together):
    assert LoggedEncoder.seen(together / "alone_2") == []


@pytest.fixture(params=[2, 3])
def shared(together, request):
    """What each process returned from `shared_work`, field by field."""
    paths = [together / f"shared_{request.param}_{rank}.pt" for rank in range(request.param)]
    return zip(*[torch.load(path, weights_only=False) for path in paths], strict=True)


def test_each_picture_is_prepared_once_and_all_have_them(together, shared):
    pictures, opened, *_ = shared
    expected = small_pictures(datasets.load_from_disk(together / "posts"), together / "prepared_alone")
    assert all(found == expected for found in pictures)
    assert len(sum(opened, [])) == len(set(sum(opened, []))) == 88
    assert max(map(len, opened)) - min(map(len, opened)) <= 4


def test_more_rows_than_fit_in_memory_are_clustered_as_by_one_process(shared):
    *_, labels, _ = shared
    expected = kmeans_labels(uneven(1000), 3, rows_in_memory=100)
    assert set(expected) == {0, 1, 2}
    for found in labels:
        np.testing.assert_array_equal(found, expected)


def test_each_block_is_read_by_one_process_in_every_pass_and_the_sample_by_the_main_one(shared):
    *_, read = shared
    main, *others = ([rows for rows in slices if len(rows) > 1] for slices in read)  # a single row tells the width
    assert len(main.pop(0)) == 100, "the sample"
    own = [{rows[0] for rows in slices} for slices in (main, *others)]
    assert sorted(row for starts in own for row in starts) == list(range(0, 1000, 128))
    passes = {len(slices) / len(starts) for slices, starts in zip((main, *others), own, strict=True)}
    assert len(passes) == 1
    assert passes.pop() > 2
