"""Tiny models, posts on disk and counters for the tests of Stages 1 and 2."""

from __future__ import annotations

from pathlib import Path

import datasets
import numpy as np
import torch
import transformers

from conftest import WORDS, make_tokenizer, random_pictures, tiny_roberta_config
from pacl.training.features import Encoding, ImageEncoder, TextEncoder


def small_processor(**changes) -> transformers.ViTImageProcessor:
    return transformers.ViTImageProcessor(**({"size": {"height": 32, "width": 32}} | changes))


def tiny_resnet(seed: int = 0) -> transformers.ResNetForImageClassification:
    torch.manual_seed(seed)
    labels = {0: "background", 1: "tench, Tinca tinca", 2: "tabby_cat", 3: "sea", 4: "dog"}
    config = transformers.ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], id2label=labels)
    return transformers.ResNetForImageClassification(config).eval()


def tiny_clip(seed: int = 0) -> transformers.CLIPModel:
    torch.manual_seed(seed)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = transformers.CLIPConfig(
        text_config=sizes
        | {"vocab_size": len(WORDS) + 4, "max_position_embeddings": 20, "eos_token_id": 2, "bos_token_id": 0},
        vision_config=sizes | {"image_size": 32, "patch_size": 16},
        projection_dim=12,
    )
    return transformers.CLIPModel(config).eval()


def tiny_roberta(seed: int = 0) -> transformers.RobertaModel:
    torch.manual_seed(seed)
    return transformers.RobertaModel(tiny_roberta_config(), add_pooling_layer=False).eval()


def clip_encoders(seed: int = 0) -> tuple[ImageEncoder, TextEncoder]:
    model = tiny_clip(seed)
    return ImageEncoder(model, small_processor()), TextEncoder(model, make_tokenizer())


def make_posts(folder: Path, number: int = 10, seed: int = 0) -> datasets.Dataset:
    """Posts as `read_posts` returns them, their rows counted in hundreds, so that a row is no position."""
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    paths = [str(folder / f"{i}.jpg") for i in range(number)]
    for path, picture in zip(paths, random_pictures(number, seed), strict=True):
        picture.save(path)
    columns = {
        "image": paths,
        "text": [" ".join(rng.choice(WORDS, rng.integers(1, 9))) for _ in range(number)],
        "row": [100 * i for i in range(number)],
        "language": ["en"] * number,
    }
    return datasets.Dataset.from_dict(columns).cast_column("image", datasets.Image())


def truncate(dataset: datasets.Dataset, position: int) -> str:
    """Cut a picture off behind its header; its path."""
    path = Path(dataset.cast_column("image", datasets.Image(decode=False))[position]["image"]["path"])
    path.write_bytes(path.read_bytes()[:700])
    return str(path)


class Counter:
    """Counts the rows that a model sees and its forward passes."""

    def __init__(self, model: torch.nn.Module):
        self.rows = self.passes = 0
        model.register_forward_hook(self._count, with_kwargs=True)

    def _count(self, module, args, kwargs, output) -> None:
        self.passes += 1
        self.rows += len(args[0] if args else kwargs.get("pixel_values", kwargs.get("input_ids")))


class BrightnessEncoder:
    """An encoder of one's own: the mean brightness of the raw picture. It counts what it sees."""

    has_head = False
    key = backbone_key = pixels_key = "brightness"

    def __init__(self, fail_at: int | None = None):
        self.rows = 0
        self.fail_at = fail_at

    def preprocess(self, picture):
        return {"value": torch.tensor([np.asarray(picture).mean() / 255])}

    def encode(self, pixels):
        self.rows += len(pixels)
        if self.fail_at is not None and self.rows > self.fail_at:
            raise KeyboardInterrupt
        return Encoding(torch.stack([inputs["value"] for inputs in pixels]), None)


class BrightnessJudge:
    """A judge of one's own."""

    key = "brightness-judge"

    def __init__(self, fail_at: int | None = None):
        self.encoder = BrightnessEncoder(fail_at)
        self.encoders = (self.encoder,)

    def __call__(self, batch):
        return batch.encode_images(self.encoder).features[:, 0].numpy().astype(np.float32)


class LengthJudge:
    """A judge that looks at texts only."""

    key = "length-judge"
    encoders = ()

    def __call__(self, batch):
        return np.array([len(text) for text in batch.texts], np.float32)
