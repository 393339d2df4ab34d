"""The collator: pictures as before where they are decoded whole, the same crop where a JPEG is decoded smaller."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import v2
from transformers import ViTImageProcessor

from conftest import random_pictures
from pacl.training import collator as module
from pacl.training.collator import PACLCollator, PairDataset, training_transform
from pacl.training.images import StoredImage, decode_image

SIDE = 32


def photo(width: int, height: int) -> Image.Image:
    """A smooth gradient with an edge and some noise."""
    x, y = np.meshgrid(np.linspace(0, 1, width), np.linspace(0, 1, height))
    pixels = np.stack([255 * x, 255 * y, 255 * (x + y < 0.9)], axis=2)
    pixels += np.random.default_rng(0).normal(0, 3, (height, width, 1))
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def encoded(image: Image.Image, format: str = "JPEG", **options) -> dict:
    stream = io.BytesIO()
    image.save(stream, format, **options)
    return {"bytes": stream.getvalue(), "path": None}


def rows_of(*values) -> list[dict]:
    labels = dict.fromkeys(module.PAIR_COLUMNS, 0)
    features = np.zeros(4, np.float16)
    return [{"index": i, "image": value, "text_features": features, **labels} for i, value in enumerate(values)]


def torchvisions(value, seed: int = 0, row: int = 0, scale: float = 0.5, side: int = SIDE) -> torch.Tensor:
    """What torchvision's own transforms make of the whole picture with the same random numbers."""
    crop = v2.RandomResizedCrop([side, side], scale=(scale, 1.0), interpolation=v2.InterpolationMode.BILINEAR)
    to_tensor = [v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize([0.5] * 3, [0.5] * 3)]
    with torch.random.fork_rng():
        torch.manual_seed(module.zlib.crc32(f"{seed} 0 {row}".encode()))
        return v2.Compose([crop, v2.RandomHorizontalFlip(), *to_tensor])(decode_image(value))


@pytest.fixture
def collate(processor):
    return PACLCollator(processor, training_transform(processor.image_processor))


def test_whole_pictures_are_what_torchvisions_transforms_give(collate):
    values = [encoded(image) for image in random_pictures(4)] + [encoded(photo(90, 50), "PNG")]
    pixels = collate(rows_of(*values))["pixel_values"]
    assert torch.equal(pixels, torch.stack([torchvisions(value, row=i) for i, value in enumerate(values)]))
    assert pixels.is_contiguous(memory_format=torch.channels_last)


def test_channels_are_normalised_each_its_own_way(processor):
    image_processor = ViTImageProcessor(size={"height": 8, "width": 20}, image_mean=[0, 0.2, 0.5], image_std=[1, 2, 4])
    transform = training_transform(image_processor)
    image = random_pictures(1)[0].resize((20, 8))
    expected = v2.functional.normalize(v2.functional.to_dtype(v2.functional.to_image(image), scale=True),
                                       [0, 0.2, 0.5], [1, 2, 4])  # fmt: skip
    assert torch.equal(transform.normalize([image, image])[1], expected)


# A size that the decoder can divide, and two that it pads.
@pytest.mark.parametrize("size", [(640, 480), (1001, 801), (521, 519)])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_large_jpeg_is_decoded_smaller_and_the_crop_stays(collate, monkeypatch, orientation, size):
    decoded = []
    decode = StoredImage.decode
    monkeypatch.setattr(StoredImage, "decode", lambda *args, **kw: decoded.append(decode(*args, **kw)) or decoded[-1])
    exif = Image.Exif()
    exif[0x0112] = orientation
    values = [encoded(photo(*size), quality=95, exif=exif)] * 8
    pixels = collate(rows_of(*values))["pixel_values"]
    assert all(4 * min(image.size) < min(size) + 4 for image in decoded)
    expected = torch.stack([torchvisions(value, row=i) for i, value in enumerate(values)])
    assert (pixels - expected).abs().mean() * 127.5 < 0.8


@pytest.mark.parametrize("size", [(95, 70), (130, 130), (300, 280), (1000, 300)])
def test_no_picture_is_decoded_smaller_than_its_crop_needs(processor, monkeypatch, size):
    """And where it could be twice as small still, it is."""
    transform = training_transform(processor.image_processor, crop_scale=0.2)
    value, whole, crops = encoded(photo(*size)), [], []
    make_params = transform.crop.make_params
    monkeypatch.setattr(transform.crop, "make_params", lambda inputs: crops.append(make_params(inputs)) or crops[-1])
    decode = StoredImage.decode
    monkeypatch.setattr(StoredImage, "decode", lambda *args, **kw: whole.append(decode(*args, **kw)) or whole[-1])
    for _ in range(40):
        transform(value)
    for image, crop in zip(whole, crops, strict=True):
        reduced = round(size[0] / image.width)
        assert reduced in (1, 2, 4, 8)
        least = min(crop["width"], crop["height"]) / SIDE
        assert reduced <= max(least, 1)
        assert reduced == 8 or 2 * reduced > least


@pytest.mark.parametrize("format", ["PNG", "WEBP", "BMP"])
def test_other_formats_are_decoded_whole(collate, format):
    value = encoded(photo(400, 300), format)
    assert torch.equal(collate(rows_of(value))["pixel_values"][0], torchvisions(value))


def test_without_augmentation_every_picture_is_decoded_whole(processor):
    transform = training_transform(processor.image_processor, "none")
    value = encoded(photo(400, 300))
    expected = v2.Compose([v2.Resize(SIDE, antialias=True), v2.CenterCrop(SIDE)])(decode_image(value))
    assert np.array_equal(np.asarray(transform(value)), np.asarray(expected))


def test_the_collator_leaves_no_trace_in_the_random_numbers_of_the_process(collate):
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    collate(rows_of(encoded(photo(40, 40))))
    assert torch.equal(torch.rand(3), expected)


def test_seeding_a_picture_leaves_accelerators_alone(collate, monkeypatch):
    def refuse(*args):
        raise AssertionError("the model's own random numbers would begin anew with every batch")

    monkeypatch.setattr(torch, "manual_seed", refuse)
    monkeypatch.setattr(torch.cuda, "manual_seed_all", refuse)
    collate(rows_of(encoded(photo(40, 40))))


def test_rows_become_one_batch(collate, pairs):
    batch = collate(PairDataset(pairs).__getitems__([3, 1]))
    assert batch["pixel_values"].shape == (2, 3, SIDE, SIDE)
    assert batch["text_features"].tolist() == [pairs["text_features"][3], pairs["text_features"][1]]
    assert batch["partition"].tolist() == pairs["partition"][3:0:-2]
