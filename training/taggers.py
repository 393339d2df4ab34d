"""Taggers: what a picture shows or how it feels, as a few words that `TagJudge` can compare with a text.

Three kinds: any image classifier, any CLIP-like model over a vocabulary, and pictures that look alike. The paper's
own, DeepSentiBank, is in `sentibank.py`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from typing import Protocol

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F
from transformers import AutoImageProcessor, AutoModelForImageClassification
from transformers.utils import logging

from .features import ImageEncoder, TextEncoder, content_key, load_dual_encoder, require_dual
from .images import ImageError, decode_image
from .scan import Encoder, PostBatch

VOCABULARIES = Path(__file__).parent / "vocabularies"


class Tagger(Protocol):
    """Anything that names what it sees in a picture."""

    @property
    def key(self) -> str:
        """Hash of everything the tags depend on."""
        ...

    @property
    def encoders(self) -> tuple[Encoder, ...]:
        """What it runs on a batch."""
        ...

    def __call__(self, batch: PostBatch, top_k: int, /) -> list[list[str]]:
        """For each picture of the batch at most `top_k` tags, the best first."""
        ...


class ClassifierTagger:
    """
    The labels of an image classifier. Of an ImageNet label such as "tench, Tinca tinca" only the first name is used.

    Args:
        encoder ([`ImageEncoder`]):
            A classifier whose configuration names its labels.
        ignore (`Sequence[str]`, *optional*, defaults to `("background",)`):
            Labels that are never given.

    Raises:
        `ValueError`: the model is no classifier, or its labels have no names.
    """

    def __init__(self, encoder: ImageEncoder, *, ignore: Sequence[str] = ("background",)):
        name = type(encoder.model).__name__
        if not encoder.has_head or encoder.is_dual:
            raise ValueError(f"{name} is no image classifier: it has no labels to tag with")
        labels = [label for _, label in sorted(encoder.model.config.id2label.items())]
        if all(label == f"LABEL_{i}" for i, label in enumerate(labels)):
            raise ValueError(f"the labels of {name} have no names (config.id2label is {labels[0]!r}, …)")
        self.encoder = encoder
        self.tags = [_as_words(label.split(",")[0]) for label in labels]
        self.kept = [i for i, tag in enumerate(self.tags) if tag not in ignore and labels[i] not in ignore]

    @classmethod
    def from_pretrained(
        cls,
        name_or_path: str,
        *,
        ignore: Sequence[str] = ("background",),
        device: torch.device | str | None = None,
    ) -> ClassifierTagger:
        """
        Load any `image-classification` checkpoint (Hub id or folder).

        Raises:
            `OSError`: there is no such model, or it has no image processor.
            `ValueError`: it has no trained classification head.
        """
        model, report = AutoModelForImageClassification.from_pretrained(
            name_or_path, output_loading_info=True, dtype=torch.float32
        )
        if report["missing_keys"]:
            raise ValueError(
                f"{name_or_path!r} is no trained classifier: {', '.join(sorted(report['missing_keys']))} are missing"
            )
        return cls(ImageEncoder(model, AutoImageProcessor.from_pretrained(name_or_path), device=device), ignore=ignore)

    @cached_property
    def key(self) -> str:
        return content_key("ClassifierTagger", self.encoder.key, self.tags, self.kept)

    @property
    def encoders(self) -> tuple[Encoder, ...]:
        return (self.encoder,)

    def __call__(self, batch: PostBatch, top_k: int) -> list[list[str]]:
        logits = batch.encode_images(self.encoder).head
        assert logits is not None
        return top_tags(logits[:, self.kept], [self.tags[i] for i in self.kept], top_k)


class ZeroShotTagger:
    """
    The entries of a vocabulary that a CLIP-like model finds nearest to the picture.

    Args:
        images ([`ImageEncoder`]), texts ([`TextEncoder`]):
            The two sides of a dual encoder.
        vocabulary (`Sequence[str]`):
            The tags, such as `load_vocabulary` returns them. They are embedded once.
        prompt (`str`, *optional*, defaults to `"a photo of {}"`):
            What a tag is put into.
    """

    def __init__(
        self, images: ImageEncoder, texts: TextEncoder, vocabulary: Sequence[str], *, prompt: str = "a photo of {}"
    ):
        if "{}" not in prompt:
            raise ValueError(f"the prompt {prompt!r} has no {{}} for the tag")
        require_dual(images.model, texts.model)
        self.images = images
        self.texts = texts
        self.vocabulary = list(vocabulary)
        self.prompt = prompt

    @classmethod
    def from_pretrained(
        cls,
        name_or_path: str,
        vocabulary: Sequence[str] | None = None,
        *,
        prompt: str = "a photo of {}",
        device: torch.device | str | None = None,
    ) -> ZeroShotTagger:
        """Load any CLIP-like model (Hub id or folder); the vocabulary is the built-in one if none is given."""
        images, texts = load_dual_encoder(name_or_path, device=device)
        return cls(images, texts, load_vocabulary() if vocabulary is None else vocabulary, prompt=prompt)

    @cached_property
    def key(self) -> str:
        return content_key("ZeroShotTagger", self.images.key, self.texts.key, self.vocabulary, self.prompt)

    @property
    def encoders(self) -> tuple[Encoder, ...]:
        return (self.images,)

    def __call__(self, batch: PostBatch, top_k: int) -> list[list[str]]:
        embeddings = batch.encode_images(self.images).head
        assert embeddings is not None
        return top_tags(F.normalize(embeddings, dim=-1) @ self._embedded.t(), self.vocabulary, top_k)

    @cached_property
    def _embedded(self) -> Tensor:
        """Of shape `(len(vocabulary), dim)`, L2-normalised."""
        embeddings = self.texts.encode([self.prompt.format(tag) for tag in self.vocabulary]).head
        assert embeddings is not None
        return F.normalize(embeddings, dim=-1)


class NeighbourTagger:
    """
    The names of the reference pictures that look most alike, by cosine similarity of an image encoder's features.

    Of `top_k` neighbours with the same name it is given once, so there may be fewer tags than neighbours.

    Args:
        encoder ([`ImageEncoder`]):
            What likeness is measured with. It may well be the vision tower, which then runs once for both.
        pictures (`Sequence` of paths or `PIL.Image.Image`):
            The reference pictures. They are encoded once, at the first batch.
        names (`Sequence[str]`):
            What each of them shows or conveys.

    Raises:
        `ValueError`: there are not as many names as pictures, or a picture cannot be decoded (then at first use).
    """

    def __init__(
        self,
        encoder: ImageEncoder,
        pictures: Sequence[str | os.PathLike[str] | Image.Image],
        names: Sequence[str],
    ):
        if len(pictures) != len(names) or not pictures:
            raise ValueError(
                f"every reference picture needs one name; got {len(pictures)} pictures, {len(names)} names"
            )
        self.encoder = encoder
        self.pictures = list(pictures)
        self.names = [_as_words(name) for name in names]

    @cached_property
    def key(self) -> str:
        contents = [
            picture.tobytes() if isinstance(picture, Image.Image) else Path(picture).read_bytes()
            for picture in self.pictures
        ]
        return content_key("NeighbourTagger", self.encoder.backbone_key, self.names, *contents)

    @property
    def encoders(self) -> tuple[Encoder, ...]:
        return (self.encoder,)

    def __call__(self, batch: PostBatch, top_k: int) -> list[list[str]]:
        features = self._features(batch.encode_images(self.encoder).features)
        neighbours = top_tags(features @ self._reference.t(), self.names, top_k)
        return [list(dict.fromkeys(tags)) for tags in neighbours]

    @cached_property
    def _reference(self) -> Tensor:
        """Of shape `(len(pictures), dim)`, L2-normalised."""
        parts = []
        with ThreadPoolExecutor() as pool:
            # Not datasets' bar, which is off inside a scan's maps.
            for start in logging.tqdm(range(0, len(self.pictures), 32), desc="Reference pictures", leave=False):
                pixels = list(pool.map(self._preprocess, self.pictures[start : start + 32]))
                parts.append(self._features(self.encoder.encode(pixels).features))
        return torch.cat(parts)

    def _preprocess(self, picture: str | os.PathLike[str] | Image.Image) -> dict[str, Tensor]:
        try:
            return self.encoder.preprocess(decode_image(picture))
        except ImageError as error:
            raise ValueError(f"the reference picture {picture} cannot be used: {error}") from error

    def _features(self, features: Tensor | None) -> Tensor:
        if features is None:
            raise ValueError(f"{type(self.encoder.model).__name__} gives no pooled features to compare")
        return F.normalize(features, dim=-1)


def load_vocabulary(name_or_path: str | os.PathLike[str] = "emotional_anps") -> list[str]:
    """
    Read tags.

    Args:
        name_or_path (`str` or `os.PathLike`, *optional*, defaults to `"emotional_anps"`):
            A built-in vocabulary, a text file with one tag a line, or a JSON list (such as DeepSentiBank's 2,089
            adjective-noun pairs). Underscores become spaces; duplicates are read once.

    Raises:
        `FileNotFoundError`: there is neither such a file nor such a built-in vocabulary.
        `ValueError`: the file holds no tags, or is no list of names.
    """
    built_in = VOCABULARIES / f"{name_or_path}.txt"
    path = built_in if built_in.is_file() else Path(name_or_path)
    if not path.is_file():
        known = ", ".join(sorted(file.stem for file in VOCABULARIES.glob("*.txt")))
        raise FileNotFoundError(f"no vocabulary {os.fspath(name_or_path)!r}: no such file, and built in are {known}")
    tags = list(dict.fromkeys(read_tags(path)))
    if not tags:
        raise ValueError(f"{path} holds no tags")
    return tags


def read_tags(path: Path) -> list[str]:
    """Read the tags of a text file or JSON list, as many and in the order as they stand there."""
    text = path.read_text(encoding="utf-8")
    try:
        entries = json.loads(text) if path.suffix == ".json" else filter(str.strip, text.splitlines())
        return [_as_words(entry) for entry in entries]
    except (ValueError, AttributeError, TypeError) as error:
        raise ValueError(f"{path} is no vocabulary: expected a JSON list of names ({error})") from error


def top_tags(scores: Tensor, tags: Sequence[str], top_k: int) -> list[list[str]]:
    """For each row of `scores`, shape `(batch, len(tags))`, the tags with the highest scores, the best first."""
    if not 1 <= top_k <= len(tags):
        raise ValueError(f"top_k must lie between 1 and the number of tags, {len(tags)}; got {top_k}")
    return [[tags[i] for i in row] for row in scores.topk(top_k, dim=-1).indices.tolist()]


def _as_words(name: str) -> str:
    return name.replace("_", " ").strip()
