"""Pictures stored once at training size: small enough to be quick, never too small for a crop, and made only once."""

from __future__ import annotations

import io
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from PIL import Image

from conftest import make_pairs
from pacl.training import prepare
from pacl.training.collator import PACLCollator, PairDataset, training_transform
from pacl.training.images import StoredImage
from pacl.training.prepare import prepare_pictures
from stage_helpers import truncate


def photo(width: int, height: int, seed: int = 0) -> Image.Image:
    """Smooth colours, as in a photograph out of focus."""
    pixels = np.random.default_rng(seed).integers(0, 256, (3, 3, 3), dtype=np.uint8)
    return Image.fromarray(pixels).resize((width, height), Image.Resampling.BICUBIC)


def save(image: Image.Image, path: Path, **options) -> str:
    image.save(path, **options)
    return str(path)


def stored(dataset: datasets.Dataset, row: int) -> dict:
    return dataset.cast_column("image", datasets.Image(decode=False))[row]["image"]


def test_a_jpeg_whose_sides_the_decoder_rounds_up_is_not_stretched(transform, tmp_path):
    path = save(photo(1001, 801), tmp_path / "odd.jpg", quality=95)
    posts = datasets.Dataset.from_dict({"image": [path]}).cast_column("image", datasets.Image())
    found = prepare_pictures(posts, transform, cache_dir=tmp_path)[0]["image"]
    whole = Image.open(path).resize(found.size, Image.Resampling.LANCZOS)
    assert np.abs(np.asarray(found, float) - np.asarray(whole, float)).mean() < 1.1


@pytest.fixture
def transform(processor):
    return training_transform(processor.image_processor)  # 32 pixels


@pytest.fixture
def posts(tmp_path):
    """A large JPEG, one on its side, a large PNG with alpha, a small JPEG and a small PNG."""
    exif = Image.Exif()
    exif[0x0112] = 6
    paths = [
        save(photo(400, 300), tmp_path / "large.jpg", quality=95),
        save(photo(400, 300), tmp_path / "turned.jpg", exif=exif),
        save(photo(320, 240).convert("RGBA"), tmp_path / "large.png"),
        save(photo(50, 40), tmp_path / "small.jpg"),
        save(photo(50, 40), tmp_path / "small.png"),
    ]
    columns = {"image": paths, "text": list("abcde"), "row": [10, 20, 30, 40, 50]}
    return datasets.Dataset.from_dict(columns).cast_column("image", datasets.Image())


def test_pictures_become_small_upright_jpegs_and_all_else_stays(posts, transform, tmp_path):
    prepared = prepare_pictures(posts, transform, cache_dir=tmp_path)
    images = prepared["image"][:]
    assert [image.size for image in images] == [(61, 46), (46, 61), (61, 46), (50, 40), (50, 40)]
    assert {image.format for image in images} == {"JPEG"}
    assert stored(prepared, 3)["bytes"] == (tmp_path / "small.jpg").read_bytes()
    assert {name: prepared[name][:] for name in ("text", "row")} == {name: posts[name][:] for name in ("text", "row")}
    expected = photo(400, 300).resize((61, 46), Image.Resampling.LANCZOS)
    assert np.abs(np.asarray(images[0], float) - np.asarray(expected, float)).mean() < 1


@pytest.mark.parametrize("augmentation", ["crop_flip", "none"])
@pytest.mark.parametrize("size", [(400, 300), (300, 400), (900, 60), (33, 1000)])
def test_no_crop_of_a_prepared_picture_is_smaller_than_the_training_size(processor, augmentation, size):
    transform = training_transform(processor.image_processor, augmentation, crop_scale=0.3)
    width, height = (side / max(transform.spare(*size), 1) for side in size)
    assert min(width, height) >= 32
    if transform.crop is None:
        return
    torch.manual_seed(0)
    full = torch.empty(1, size[1], size[0])
    crops = [transform.crop.make_params([full]) for _ in range(300)]
    least = min(min(crop["height"], crop["width"]) for crop in crops) * width / size[0]
    # It is the least, too: nothing is spared where half the size would do.
    assert 31 <= least <= 48


def test_training_sees_nearly_the_same_picture(processor, transform, posts, tmp_path):
    prepared = prepare_pictures(posts, transform, cache_dir=tmp_path)
    same = training_transform(processor.image_processor, "none")
    for row in range(len(posts)):
        before, after = (np.asarray(same(stored(part, row)), float) for part in (posts, prepared))
        assert np.abs(before - after).mean() < 1.5, row


def test_prepared_pictures_are_found_again(posts, transform, tmp_path, monkeypatch):
    first = prepare_pictures(posts, transform, cache_dir=tmp_path)
    monkeypatch.setattr(prepare, "StoredImage", None)  # a picture that is opened would fail
    again = prepare_pictures(posts, transform, cache_dir=tmp_path)
    assert [stored(again, row) for row in range(5)] == [stored(first, row) for row in range(5)]
    with pytest.raises(TypeError):
        prepare_pictures(posts, training_transform_of_another_size(transform), cache_dir=tmp_path)


def training_transform_of_another_size(transform):
    other = type(transform)(transform.geometry, crop_scale=0.25)
    assert other.size == transform.size
    return other


def test_a_killed_run_keeps_its_finished_shards(posts, transform, tmp_path, monkeypatch):
    monkeypatch.setattr(prepare, "shard_rows", lambda rows, batch_size: 2)
    opened = []

    def open_one(value):
        opened.append(Path(value["path"]).name)
        if opened.count("small.png") == 1 and opened[-1] == "small.png":
            raise KeyboardInterrupt
        return StoredImage(value)

    monkeypatch.setattr(prepare, "StoredImage", open_one)
    with pytest.raises(KeyboardInterrupt):
        prepare_pictures(posts, transform, cache_dir=tmp_path)
    prepared = prepare_pictures(posts, transform, cache_dir=tmp_path)
    assert sorted(opened) == sorted(["large.jpg", "turned.jpg", "large.png", "small.jpg", *["small.png"] * 2])
    assert prepared["text"][:] == list("abcde")


def test_one_bar_is_shown_for_all_shards(posts, transform, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(prepare, "shard_rows", lambda rows, batch_size: 2)
    datasets.enable_progress_bars()
    prepare_pictures(posts, transform, cache_dir=tmp_path)
    assert len(list(tmp_path.glob("prepare-*.arrow"))) == 3
    shown = capsys.readouterr().err
    assert "Prepare: 100%" in shown
    assert "5/5" in shown
    assert "Map" not in shown


def test_a_damaged_picture_is_named(posts, transform, tmp_path):
    path = truncate(posts, 1)
    with pytest.raises(ValueError, match=r"picture of row 1 .*turned\.jpg.* cannot be prepared: truncated"):
        prepare_pictures(posts, transform, cache_dir=tmp_path)
    Path(path).unlink()
    with pytest.raises(ValueError, match="row 1 .* cannot be prepared: file not found"):
        prepare_pictures(posts, transform, cache_dir=tmp_path)


def test_a_dataset_without_pictures_is_refused(posts, transform):
    with pytest.raises(ValueError, match="no rows, so there are no pictures"):
        prepare_pictures(posts.select([]), transform)
    with pytest.raises(ValueError, match="no column image; its columns are text, row"):
        prepare_pictures(posts.remove_columns("image"), transform)


def test_prepared_pairs_train(processor, transform, tmp_path):
    pairs = make_pairs(6)
    prepared = prepare_pictures(pairs, transform, cache_dir=tmp_path)
    assert prepared.features["image"] == datasets.Image()
    batch, expected = (
        PACLCollator(processor, transform)(PairDataset(part).__getitems__([5, 2])) for part in (prepared, pairs)
    )
    assert torch.equal(batch["text_features"], expected["text_features"])
    assert (batch["pixel_values"] - expected["pixel_values"]).abs().mean() < 0.15
    assert Image.open(io.BytesIO(stored(prepared, 0)["bytes"])).size == (40, 40)
