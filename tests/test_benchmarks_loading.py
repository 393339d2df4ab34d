"""What all benchmarks share: names, splits, pictures of every kind, and the list of what was dropped."""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path

import numpy as np
import pytest
from datasets import Dataset
from PIL import Image

from pacl.evaluation.benchmarks import BENCHMARKS, Benchmark, Dropped, get_benchmark, load_benchmark, split_8_1_1

REAL = os.environ.get("PACL_REAL_DATA", "")


@pytest.fixture
def twitter(tmp_path: Path) -> Path:
    """Twenty good pictures, every other one positive."""
    add_pictures(tmp_path, {f"{number:02d}.jpg": "RGB" for number in range(20)})
    return tmp_path


def add_pictures(folder: Path, modes: dict[str, str]) -> None:
    table = folder / "labels.csv"
    if not table.exists():
        table.write_text("image,sentiment\n")
    with table.open("a") as stream:
        for number, (file, mode) in enumerate(modes.items()):
            if mode:
                Image.new(mode, (32, 24)).save(folder / file)
            stream.write(f"{file},{'positive' if number % 2 else 'negative'}\n")


def rated(count: int = 200, themes: int = 50) -> Dataset:
    rng = np.random.default_rng(0)
    theme = rng.integers(themes, size=count)
    valence = theme / themes * 6 + rng.uniform(0, 1, count)
    return Dataset.from_dict({"valence": valence, "theme": [f"theme {t}" for t in theme], "row": range(count)})


# --- names and folders ---------------------------------------------------------------------------------------------


def test_every_dataset_of_the_paper_and_beyond_is_there_and_says_what_it_is() -> None:
    assert list(BENCHMARKS) == [
        *("fi", "fi2", "emotion6", "unbiasedemo", "webemo", "webemo6", "emotic", "emotic_vad", "iaps"),
        *("emoset", "oasis", "twitter1"),
    ]
    for benchmark in BENCHMARKS.values():
        assert set(benchmark.label_columns) < set(benchmark.features)
        assert benchmark.citation
        assert (benchmark.scale is not None) == (benchmark.task == "regression")
        assert bool(benchmark.class_names) == (benchmark.task != "regression")
    assert BENCHMARKS["emotic"].class_names["categories"][9] == "Doubt/Confusion"
    assert {b.task for b in BENCHMARKS.values()} == {"single_label", "hierarchical", "multi_label", "regression"}


@pytest.mark.parametrize(("name", "key"), [("Twitter-I", "twitter1"), ("FI-2", "fi2"), ("emotic-VAD", "emotic_vad")])
def test_a_benchmark_answers_to_its_title_whatever_the_punctuation(name: str, key: str) -> None:
    assert get_benchmark(name) is BENCHMARKS[key]


def test_an_unknown_name_or_option_is_refused_with_the_known_ones(twitter: Path) -> None:
    with pytest.raises(ValueError, match="Unknown benchmark 'imagenet'; known are fi, fi2"):
        load_benchmark("imagenet", twitter)
    with pytest.raises(ValueError, match="Twitter-I has no option crop_dir; its options: agreement"):
        load_benchmark("twitter1", twitter, crop_dir="x")


@pytest.mark.parametrize("benchmark", BENCHMARKS.values(), ids=lambda benchmark: benchmark.name)
def test_a_folder_that_is_not_the_dataset_is_told_what_was_expected_and_found(
    benchmark: Benchmark, tmp_path: Path
) -> None:
    for number in range(12):
        (tmp_path / f"holiday{number:02d}.jpg").touch()
    title = "FI" if benchmark.name == "fi2" else benchmark.title.removesuffix("-VAD").removesuffix("-6")
    message = rf"does not look like {title}.*Expected .*; found holiday00\.jpg, .* and 2 more\."
    with pytest.raises(FileNotFoundError, match=message):
        load_benchmark(benchmark.name, tmp_path)
    with pytest.raises(FileNotFoundError, match="is not a folder"):
        load_benchmark(benchmark.name, tmp_path / "nowhere")


# --- pictures ------------------------------------------------------------------------------------------------------


def test_pictures_of_every_mode_decode_to_rgb_and_stay_paths(twitter: Path) -> None:
    modes = {"alpha.PNG": "RGBA", "print.JPG": "CMYK", "palette.gif": "P", "grey.png": "L", "two.png": "LA"}
    add_pictures(twitter, modes)
    data = load_benchmark("twitter1", twitter)
    assert {picture.mode for part in data.values() for picture in part["image"]} == {"RGB"}
    undecoded = data["train"].with_format("arrow")[:]["image"].combine_chunks()
    assert undecoded.field("bytes").null_count == len(data["train"])
    assert all(Path(path).is_file() for path in undecoded.field("path").to_pylist())


def test_pictures_that_cannot_be_used_are_listed_in_a_warning_and_a_file(
    twitter: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    add_pictures(twitter, {"gone.jpg": "", "empty.jpg": "", "page.jpg": "", "00.jpg": "RGB"})
    (twitter / "empty.jpg").touch()
    (twitter / "page.jpg").write_text("<html>404</html>")
    dropped = Dropped()
    with caplog.at_level(logging.WARNING):
        data = load_benchmark("twitter1", twitter, dropped=dropped)
    assert sum(map(len, data.values())) == 20
    expected = [
        {"row": "gone.jpg", "reason": "picture file not found"},
        {"row": "empty.jpg", "reason": "picture file is empty (0 bytes)"},
        {"row": "page.jpg", "reason": "not a picture"},
        {"row": "00.jpg", "reason": "listed twice"},
    ]
    assert dropped.entries == expected
    assert "Twitter-I" in caplog.text
    assert "4 rows dropped: 1 picture file not found (e.g. gone.jpg)" in caplog.text
    dropped.save(tmp_path / "dropped.jsonl")
    assert [json.loads(line) for line in (tmp_path / "dropped.jsonl").read_text().splitlines()] == expected


def test_pictures_that_end_early_are_found_when_pixels_are_checked(twitter: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(twitter / "00.jpg")
    whole = (twitter / "00.jpg").read_bytes()
    (twitter / "00.jpg").write_bytes(whole[: len(whole) // 2])
    quick, thorough = Dropped(), Dropped()
    load_benchmark("twitter1", twitter, dropped=quick)
    load_benchmark("twitter1", twitter, check_pixels=True, dropped=thorough)
    assert not len(quick)
    assert thorough.entries == [{"row": "00.jpg", "reason": "picture cannot be decoded"}]


def test_a_folder_without_one_usable_picture_says_why(tmp_path: Path) -> None:
    add_pictures(tmp_path, {"gone.jpg": ""})
    with pytest.raises(ValueError, match=r"no usable Twitter-I picture.*1 picture file not found"):
        load_benchmark("twitter1", tmp_path)


# --- splits --------------------------------------------------------------------------------------------------------


def test_the_split_depends_on_the_seed_and_on_nothing_else(twitter: Path) -> None:
    first, again, other = (load_benchmark("twitter1", twitter, seed=seed) for seed in (0, 0, 1))
    assert {split: part["id"] for split, part in first.items()} == {split: part["id"] for split, part in again.items()}
    assert first["train"]._fingerprint == again["train"]._fingerprint
    assert first["test"]["id"] != other["test"]["id"]


def test_the_folds_test_every_picture_once_and_validate_on_the_next(twitter: Path) -> None:
    folds = [load_benchmark("twitter1", twitter, fold=fold) for fold in range(10)]
    assert sorted(row_id for data in folds for row_id in data["test"]["id"]) == [f"{i:02d}.jpg" for i in range(20)]
    for data, following in zip(folds, folds[1:] + folds[:1], strict=True):
        assert list(data["validation"]["id"]) == list(following["test"]["id"])
        assert [len(part) for part in data.values()] == [16, 2, 2]
        assert len({row_id for part in data.values() for row_id in part["id"]}) == 20
        assert sorted(data["test"]["label"]) == [0, 1], "classes are balanced"
    with pytest.raises(ValueError, match="fold must lie between 0 and 9, not 10"):
        load_benchmark("twitter1", twitter, fold=10)


def test_an_official_split_has_no_folds(tmp_path: Path) -> None:
    emotions = BENCHMARKS["fi"].class_names["label"]
    for split in ("train", "val", "test"):
        for emotion in emotions:
            (tmp_path / split / emotion).mkdir(parents=True)
            Image.new("RGB", (8, 8)).save(tmp_path / split / emotion / "1.jpg")
    assert [len(part) for part in load_benchmark("fi", tmp_path).values()] == [8, 8, 8]
    with pytest.raises(ValueError, match="FI has an official test split, so there is no fold 1"):
        load_benchmark("fi", tmp_path, fold=1)


def test_groups_stay_whole_and_ratings_are_balanced() -> None:
    dataset = rated()
    for fold in range(10):
        data = split_8_1_1(dataset, BENCHMARKS["oasis"], fold=fold)
        themes = [set(part["theme"]) for part in data.values()]
        assert sum(map(len, themes)) == len(set.union(*themes))
        assert 12 <= len(data["test"]) <= 28
        assert abs(np.mean(data["test"]["valence"]) - np.mean(dataset["valence"])) < 0.8


@pytest.mark.parametrize(
    ("count", "themes", "message"), [(9, 9, "too few"), (200, 6, "fewer than 10 values of theme")]
)
def test_too_few_pictures_or_groups_to_split_are_told_so(count: int, themes: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        split_8_1_1(rated(count, themes), BENCHMARKS["oasis"])


# --- real data -----------------------------------------------------------------------------------------------------


@pytest.mark.real
@pytest.mark.skipif(not REAL, reason="PACL_REAL_DATA is not set")
def test_real_oasis_is_read_whole_and_split_by_theme() -> None:
    dropped = Dropped()
    data = load_benchmark("oasis", Path(REAL) / "oasis", check_pixels=True, dropped=dropped)
    assert not len(dropped)
    assert sum(map(len, data.values())) == 459
    assert not set(data["train"]["theme"]) & (set(data["test"]["theme"]) | set(data["validation"]["theme"]))
    assert 41 <= len(data["test"]) <= 51
    assert abs(np.mean(data["test"]["valence"]) - np.mean(data["train"]["valence"])) < 0.3


@pytest.mark.real
@pytest.mark.skipif(not REAL, reason="PACL_REAL_DATA is not set")
def test_real_twitter_is_read_whole_with_equal_shares_of_positives() -> None:
    dropped = Dropped()
    data = load_benchmark("twitter1", Path(REAL) / "twitter1", check_pixels=True, dropped=dropped)
    assert not len(dropped)
    assert [len(part) for part in data.values()] == [562, 71, 71]
    assert [round(np.mean(part["label"]), 2) for part in data.values()] == [0.66, 0.66, 0.66]
    assert {picture.mode for picture in data["test"]["image"]} == {"RGB"}
