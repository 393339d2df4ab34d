"""Stages 1 and 2, from posts to partitions and clusters, against the bare forward passes that they make.

Every forward pass of a first run is recorded with its tensors; the bare side replays them. Pictures come ready, so
that neither side decodes.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable, Mapping
from typing import Any

import datasets
import numpy as np
import torch
from _table import HEADER, ratios, row
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor, nn
from training_step import text_tower_config
from transformers import (
    CLIPConfig,
    CLIPModel,
    PreTrainedTokenizerFast,
    ResNetConfig,
    ResNetForImageClassification,
    ResNetModel,
    RobertaConfig,
    RobertaModel,
    ViTImageProcessor,
)

from pacl.training import (
    ClassifierTagger,
    DualEncoderJudge,
    ImageEncoder,
    TagJudge,
    TextEncoder,
    TowerEncoders,
    cluster_dataset,
    partition_dataset,
)

POSTS = 64
REPEATS = 3
WORDS = [f"w{i}" for i in range(1000)]


class ReadyPictures(ImageEncoder):
    """An encoder whose preprocessing costs nothing: a picture's grey says which noise stands for it."""

    noise = torch.randn(16, 3, 224, 224, generator=torch.Generator().manual_seed(0))

    def preprocess(self, picture: Image.Image) -> dict[str, Tensor]:
        """Pixels that are ready."""
        grey = picture.getpixel((0, 0))[0]
        return {"pixel_values": self.noise[grey : grey + 1]}


def make_posts() -> datasets.Dataset:
    """Tiny pictures, and texts of 5 to 40 words."""
    rng = np.random.default_rng(0)
    columns = {
        "image": [Image.new("RGB", (8, 8), (i % 16,) * 3) for i in range(POSTS)],
        "text": [" ".join(rng.choice(WORDS, rng.integers(5, 41))) for _ in range(POSTS)],
    }
    features = datasets.Features(image=datasets.Image(), text=datasets.Value("string"))
    return datasets.Dataset.from_dict(columns, features=features)


def make_tokenizer() -> PreTrainedTokenizerFast:
    """One token for each word."""
    vocabulary = {word: i for i, word in enumerate(["<pad>", "<s>", "</s>", "<unk>", *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", model_max_length=77)


def make_stages(posts: datasets.Dataset) -> tuple[Callable[[], Any], list[nn.Module]]:
    """Both stages with models of the paper's sizes and random weights, and the modules that they run."""
    torch.manual_seed(0)
    tokenizer, processor = make_tokenizer(), ViTImageProcessor()
    clip = CLIPModel(CLIPConfig())
    labels = dict(enumerate(WORDS))
    classifier = ResNetForImageClassification(ResNetConfig(id2label=labels, num_labels=len(labels)))
    sentences = RobertaModel(RobertaConfig(max_position_embeddings=130), add_pooling_layer=False)
    vision, text = ResNetModel(ResNetConfig()), RobertaModel(text_tower_config(24), add_pooling_layer=False)
    factual = DualEncoderJudge(ReadyPictures(clip, processor), TextEncoder(clip, tokenizer))
    emotional = TagJudge(
        ClassifierTagger(ReadyPictures(classifier, processor)), TextEncoder(sentences, tokenizer, pooling="mean")
    )
    towers = TowerEncoders(ReadyPictures(vision, processor), TextEncoder(text, tokenizer, pooling="first"))

    def stages() -> None:
        with tempfile.TemporaryDirectory() as cache:  # nothing of an earlier run is found again
            scored = partition_dataset(
                posts, factual, emotional, towers=towers, matched_shares="paper", cache_dir=cache
            )
            cluster_dataset(scored, cache_dir=cache)

    return stages, [clip.vision_model, clip.text_model, classifier, sentences, vision, text]


def record(function: Callable[[], Any], modules: list[nn.Module]) -> list[tuple[nn.Module, tuple, Mapping]]:
    """Every forward pass of some modules, with what they were given."""
    calls: list[tuple[nn.Module, tuple, Mapping]] = []

    def note(module: nn.Module, args: tuple, kwargs: Mapping) -> None:
        calls.append((module, args, kwargs))

    hooks = [module.register_forward_pre_hook(note, with_kwargs=True) for module in modules]
    function()
    for hook in hooks:
        hook.remove()
    return calls


def main() -> None:
    """Prints the row."""
    datasets.disable_progress_bars()
    stages, modules = make_stages(make_posts())
    calls = record(stages, modules)
    pictures = sum(len(kwargs["pixel_values"]) for _, _, kwargs in calls if "pixel_values" in kwargs)
    print(f"{pictures} pictures through 3 models, {len(calls)} forward passes in all", file=sys.stderr)

    @torch.no_grad()
    def forward_passes() -> None:
        for module, args, kwargs in calls:
            module(*args, **kwargs)

    measured = ratios(stages, forward_passes, REPEATS, warmup=0)
    print(HEADER)
    row(f"stages 1 and 2, {POSTS} posts, 5 towers", "their forward passes alone", measured, at_most=1.15)


if __name__ == "__main__":
    main()
