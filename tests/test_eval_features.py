"""Feature extraction: what is computed once, what is recomputed, and what is refused."""

from __future__ import annotations

from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from transformers import ViTImageProcessor

from eval_fixtures import tiny_backbone
from pacl.evaluation.backbones import Backbone
from pacl.evaluation.features import extract_features, pictures_fingerprint


def write_pictures(folder: Path, count: int) -> list[str]:
    folder.mkdir(parents=True, exist_ok=True)
    generator = np.random.default_rng(0)
    paths = []
    for number in range(count):
        paths.append(str(folder / f"{number}.png"))
        Image.fromarray(generator.integers(0, 255, (20, 24, 3), dtype=np.uint8)).save(paths[-1])
    return paths


def picture_dataset(folder: Path, count: int = 7) -> datasets.Dataset:
    dataset = datasets.Dataset.from_dict({"image": write_pictures(folder, count), "label": list(range(count))})
    return dataset.cast_column("image", datasets.Image())


def test_features_are_those_of_the_model_called_by_hand(tmp_path):
    backbone, dataset = tiny_backbone(), picture_dataset(tmp_path / "p")
    features = extract_features(backbone, dataset, batch_size=3, cache_dir=tmp_path / "c")
    pixel_values = backbone.image_processor(list(dataset["image"]), return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        expected = backbone.model.eval()(pixel_values).pooler_output.flatten(1)
    assert features.dtype == np.float32
    np.testing.assert_allclose(features, expected, atol=1e-6)


def test_worker_processes_give_the_same_features(tmp_path):
    backbone, dataset = tiny_backbone(), picture_dataset(tmp_path / "p")
    alone = extract_features(backbone, dataset, batch_size=3, cache_dir=tmp_path / "a", num_workers=0)
    helped = extract_features(backbone, dataset, batch_size=3, cache_dir=tmp_path / "b", num_workers=2)
    np.testing.assert_array_equal(alone, helped)


def test_frozen_backbone_runs_once_for_the_same_pictures_and_weights(tmp_path, monkeypatch):
    backbone, dataset = tiny_backbone(), picture_dataset(tmp_path / "p")
    first = extract_features(backbone, dataset, cache_dir=tmp_path / "c")
    monkeypatch.setattr(Backbone, "pooled", lambda *_: pytest.fail("the backbone ran again"))
    same_weights, other_labels = tiny_backbone(), dataset.rename_column("label", "emotion")
    np.testing.assert_array_equal(extract_features(same_weights, other_labels, cache_dir=tmp_path / "c"), first)


def test_other_weights_other_transform_and_other_pictures_are_computed_anew(tmp_path):
    backbone, dataset = tiny_backbone(), picture_dataset(tmp_path / "p")
    resized = Backbone(backbone.model, ViTImageProcessor(size={"height": 20, "width": 20}), "resized")
    for variant, pictures in ((backbone, dataset), (tiny_backbone(1), dataset), (resized, dataset)):
        extract_features(variant, pictures, cache_dir=tmp_path / "c")
    extract_features(backbone, dataset.select(range(5)), cache_dir=tmp_path / "c")
    assert len(list((tmp_path / "c").iterdir())) == 4


def test_replaced_picture_changes_the_fingerprint(tmp_path):
    dataset = picture_dataset(tmp_path / "p")
    before = pictures_fingerprint(dataset)
    Image.new("RGB", (9, 9), "red").save(tmp_path / "p" / "3.png")
    assert pictures_fingerprint(dataset) != before


def test_training_mode_of_the_callers_model_is_restored(tmp_path):
    backbone = tiny_backbone()
    backbone.model.train()
    extract_features(backbone, picture_dataset(tmp_path / "p"), cache_dir=tmp_path / "c")
    assert backbone.model.training


def test_missing_picture_is_named_with_its_row(tmp_path):
    dataset = picture_dataset(tmp_path / "p")
    (tmp_path / "p" / "4.png").unlink()
    with pytest.raises(FileNotFoundError, match=r"row 4 .*4\.png"):
        extract_features(tiny_backbone(), dataset, cache_dir=tmp_path / "c")


def test_unreadable_picture_is_named_with_its_row_and_leaves_no_cache(tmp_path):
    dataset = picture_dataset(tmp_path / "p")
    (tmp_path / "p" / "5.png").write_bytes(b"no picture")
    with pytest.raises(ValueError, match=r"row 5 .*5\.png"):
        extract_features(tiny_backbone(), dataset, cache_dir=tmp_path / "c")
    assert not list((tmp_path / "c").iterdir())


def test_column_without_pictures_is_refused_by_name(tmp_path):
    with pytest.raises(ValueError, match="'label' holds no pictures"):
        extract_features(tiny_backbone(), picture_dataset(tmp_path / "p"), image_column="label")
