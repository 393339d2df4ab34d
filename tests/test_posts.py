"""Reading posts: every source gives the same columns, and no post that cannot be used is lost in silence."""

from __future__ import annotations

import logging
import os
import time
from pathlib import Path

import datasets
import numpy as np
import pytest
from datasets import Dataset

from pacl.training.posts import read_posts
from pacl.training.rejections import Rejections
from post_fixtures import assert_five_good_posts, rows_of, write_jsonl


def test_saved_dataset_is_read_from_its_own_bytes(posts_file, tmp_path):
    read_posts(posts_file).save_to_disk(tmp_path / "saved")
    for path in (tmp_path / "images").iterdir():
        path.unlink()
    assert_five_good_posts(read_posts(tmp_path / "saved"), {"label"})


def test_saved_dataset_of_a_later_stage_keeps_its_columns_and_row_numbers(posts_file, tmp_path):
    posts = read_posts(posts_file).select([1, 3, 4])
    for name, values in {
        "factual_score": np.array([0.1, 0.2, 0.3], dtype=np.float32),
        "emotional_score": np.array([0.1, 0.2, 0.3], dtype=np.float32),
        "partition": [0, 3, 1],
        "factual_cluster": np.array([0, 1, 0], dtype=np.int32),
        "emotional_cluster": np.array([1, 1, 0], dtype=np.int32),
        "text_features": list(np.ones((3, 4), dtype=np.float16)),
    }.items():
        posts = posts.add_column(name, values)
    posts = posts.cast_column("partition", datasets.ClassLabel(names=["a", "b", "c", "d"]))
    posts.save_to_disk(tmp_path / "saved")
    again = read_posts(tmp_path / "saved")
    assert again.features == posts.features
    assert again.remove_columns("image").to_dict() == posts.remove_columns("image").to_dict()
    assert again["row"][:] == [1, 3, 4]


def test_nothing_is_written_into_a_saved_dataset(posts_file, tmp_path):
    read_posts(posts_file).save_to_disk(tmp_path / "saved")
    before = sorted(os.listdir(tmp_path / "saved"))
    read_posts(tmp_path / "saved")
    assert sorted(os.listdir(tmp_path / "saved")) == before


@pytest.fixture
def mixed_file(posts_file) -> Path:
    """Rows 0, 2 and 7 are good."""
    folder = posts_file.parent
    (folder / "images" / "empty.png").touch()
    (folder / "images" / "page.png").write_text("<html>")
    good = rows_of(5)
    rows = [
        good[0],
        {"image": "images/missing.png", "text": "a"},
        good[2],
        {"image": "images/empty.png", "text": "b"},
        {"image": "images/page.png", "text": "c"},
        {"image": "images/1.png", "text": " \n"},
        {"image": "images/1.png", "text": None},
        good[4],
        {"image": None, "text": "d"},
    ]
    return write_jsonl(folder / "mixed.jsonl", rows)


REASONS = {
    1: "file not found",
    3: "empty file (0 bytes)",
    4: "not an image",
    5: "empty text",
    6: "no text",
    8: "no image: neither a path nor bytes are given",
}


def test_bad_rows_are_listed_with_row_and_reason(mixed_file):
    rejections = Rejections()
    posts = read_posts(mixed_file, rejections=rejections)
    assert posts["row"][:] == [0, 2, 7]
    assert {rejection["row"]: rejection["reason"] for rejection in rejections} == REASONS
    assert all(rejection["stage"] == "read" for rejection in rejections)
    assert next(iter(rejections))["image"] == str(mixed_file.parent / "images" / "missing.png")


def test_a_second_read_finds_the_same_rejections_without_opening_a_picture(mixed_file, monkeypatch):
    first, second = Rejections(), Rejections()
    once = read_posts(mixed_file, rejections=first)
    monkeypatch.setattr("pacl.training.posts.check_image", lambda _: pytest.fail("the check is cached"))
    again = read_posts(mixed_file, rejections=second)
    assert list(first) == list(second)
    assert once._fingerprint == again._fingerprint


def test_rejections_without_a_list_are_logged(mixed_file, caplog):
    with caplog.at_level(logging.WARNING):
        read_posts(mixed_file)
    assert "6 posts rejected: " in caplog.text
    assert "1 × file not found" in caplog.text


def test_rejections_join_those_already_there(mixed_file):
    rejections = Rejections()
    rejections.add(0, "earlier", "elsewhere")
    read_posts(mixed_file, rejections=rejections)
    assert len(rejections) == 7


def test_a_source_without_one_usable_post_is_an_error_that_counts_the_reasons(tmp_path):
    path = write_jsonl(tmp_path / "posts.jsonl", [{"image": f"{i}.png", "text": "x"} for i in range(3)])
    rejections = Rejections()
    with pytest.raises(ValueError, match="not one post can be used; 3 posts rejected: 3 × file not found"):
        read_posts(path, rejections=rejections)
    assert len(rejections) == 3


def test_bad_pictures_in_a_saved_dataset_are_rejected_too(tmp_path, posts_file):
    bad = {"image": [{"bytes": b"<html>", "path": "x.png"}, None], "text": ["a", "b"], "label": ["a", "a"]}
    features = read_posts(posts_file).remove_columns("row").features
    parts = [read_posts(posts_file).remove_columns("row"), Dataset.from_dict(bad, features=features)]
    datasets.concatenate_datasets(parts).save_to_disk(tmp_path / "saved")
    rejections = Rejections()
    assert_five_good_posts(read_posts(tmp_path / "saved", rejections=rejections), {"label"})
    assert [(rejection["row"], rejection["reason"].partition(":")[0]) for rejection in rejections] == [
        (5, "not an image"),
        (6, "no image"),
    ]


def test_limit_takes_the_first_good_posts_and_counts_only_the_bad_ones_before_them(mixed_file):
    rejections = Rejections()
    posts = read_posts(mixed_file, limit=2, rejections=rejections)
    assert posts["row"][:] == [0, 2]
    assert [rejection["row"] for rejection in rejections] == [1]
    assert read_posts(mixed_file, limit=100)["row"][:] == [0, 2, 7]


def test_limit_looks_further_until_it_has_enough(posts_file):
    rows = [{"image": "missing.png", "text": "x"}] * 500 + rows_of(5)
    rejections = Rejections()
    posts = read_posts(write_jsonl(posts_file.with_name("late.jsonl"), rows), limit=3, rejections=rejections)
    assert posts["row"][:] == [500, 501, 502]
    assert len(rejections) == 500


def test_limit_below_one_is_refused(posts_file):
    with pytest.raises(ValueError, match="limit must be at least 1"):
        read_posts(posts_file, limit=0)


def test_fingerprint_stays_while_nothing_changes_and_follows_every_picture(posts_file):
    first = read_posts(posts_file)._fingerprint
    assert read_posts(posts_file)._fingerprint == first
    picture = posts_file.parent / "images" / "3.png"
    state = picture.stat()
    os.utime(picture, ns=(state.st_atime_ns, state.st_mtime_ns + 1))
    assert read_posts(posts_file)._fingerprint != first


def test_a_picture_that_breaks_after_the_first_read_is_found(posts_file):
    assert len(read_posts(posts_file)) == 5
    (posts_file.parent / "images" / "3.png").write_bytes(b"")
    rejections = Rejections()
    assert read_posts(posts_file, rejections=rejections)["row"][:] == [0, 1, 2, 4]
    assert rejections.by_reason() == {"empty file (0 bytes)": 1}


def test_fingerprint_follows_the_table(posts_file):
    first = read_posts(posts_file)._fingerprint
    write_jsonl(posts_file, [row | {"label": "c"} for row in rows_of(5)])
    os.utime(posts_file, (time.time() + 5,) * 2)
    assert read_posts(posts_file)._fingerprint != first


@pytest.mark.real
def test_the_real_posts_are_read_in_seconds(real_data):
    rejections = Rejections()
    start = time.perf_counter()
    posts = read_posts(real_data / "posts" / "posts.jsonl", rejections=rejections)
    assert time.perf_counter() - start < 10
    assert len(posts) == 2980
    assert len(rejections) == 0
    assert set(posts.column_names) == {"image", "text", "row", "id", "sentiment"}
    assert posts[17]["image"].mode == "RGB"
