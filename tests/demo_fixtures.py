"""A tiny run for the demo's tests: the shipped towers joined without training, and posts with made-up scores."""

from __future__ import annotations

import json
from pathlib import Path

import datasets
import numpy as np
import torch

from pacl import PACLModel, PACLProcessor
from pacl.training.partition import partition_dataset
from pacl.training.synthetic import asset_path, make_corpus

POSTS = 60
THRESHOLDS = (0.6, 0.35)


def make_posts(number: int = POSTS) -> datasets.Dataset:
    """Generated posts, partitioned by random scores."""
    rng = np.random.default_rng(0)
    posts = make_corpus(number).posts
    for side in ("factual", "emotional"):
        posts = posts.add_column(f"{side}_score", rng.uniform(-0.2, 1, number).astype(np.float32))
    return partition_dataset(posts, threshold=THRESHOLDS)


def make_run(folder: Path) -> Path:
    """What a run leaves, as far as the demo reads it."""
    torch.manual_seed(0)
    vision, text = str(asset_path("vision_tower")), str(asset_path("text_tower"))
    PACLModel.from_vision_text_pretrained(vision, text, projection_dim=16).save_pretrained(folder / "dual_encoder")
    PACLProcessor.from_vision_text_pretrained(vision, text).save_pretrained(folder / "dual_encoder")
    make_posts().save_to_disk(folder / "dataset")
    (folder / "recipe.yaml").write_text("posts: built-in\n")
    probe = {"before": {"accuracy": {"mean": 0.25}}, "after": {"accuracy": {"mean": 0.75}}}
    (folder / "report.json").write_text(json.dumps({"probes": {"emotion": probe}}))
    return folder
