"""A tiny backbone and a benchmark folder whose pictures tell their label, for the tests of the evaluation."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from transformers import ResNetConfig, ResNetModel, ViTImageProcessor

from pacl.evaluation.backbones import Backbone


def tiny_backbone(seed: int = 0, size: int = 16) -> Backbone:
    torch.manual_seed(seed)
    config = ResNetConfig(embedding_size=4, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic")
    return Backbone(
        ResNetModel(config).eval(), ViTImageProcessor(size={"height": size, "width": size}), f"tiny-{seed}"
    )


def save_backbone(folder: Path, seed: int = 0) -> str:
    backbone = tiny_backbone(seed)
    backbone.model.save_pretrained(folder)
    backbone.image_processor.save_pretrained(folder)
    return str(folder)


def write_twitter(folder: Path, count: int = 60) -> Path:
    """Twitter-I's plain table: positive pictures are bright and a little noisy, negative ones dark."""
    (folder / "images").mkdir(parents=True)
    generator = np.random.default_rng(0)
    lines = ["image,sentiment"]
    for number in range(count):
        positive = number % 2
        pixels = generator.integers(0, 110, (12, 12, 3)) + 120 * positive
        Image.fromarray(pixels.astype(np.uint8)).save(folder / "images" / f"{number:03}.png")
        lines.append(f"images/{number:03}.png,{'positive' if positive else 'negative'}")
    (folder / "labels.csv").write_text("\n".join(lines) + "\n")
    return folder


def write_oasis(folder: Path, count: int = 60) -> Path:
    """OASIS's plain table: valence is the brightness, arousal the redness."""
    (folder / "images").mkdir(parents=True)
    lines = ["image,theme,category,valence,arousal"]
    for number in range(count):
        valence, arousal = 1 + number / 12, 1 + (number * 7 % count) / 12
        pixels = np.full((12, 12, 3), [arousal * 35, valence * 35, valence * 35], dtype=np.uint8)
        Image.fromarray(pixels).save(folder / "images" / f"{number:03}.png")
        lines.append(f"images/{number:03}.png,theme {number // 2},Object,{valence},{arousal}")
    (folder / "ratings.csv").write_text("\n".join(lines) + "\n")
    return folder
