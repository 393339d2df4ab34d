"""Stage 1's judges of fact and emotion: each gives every post one score for how well its picture and text agree.

A judge is anything with a `key`, its `encoders` and a call on a batch; `partition.py` runs two of them in one pass.
"""

from __future__ import annotations

from functools import cached_property
from typing import Literal, Protocol, get_args

import numpy as np
import torch
from torch.nn import functional as F

from .features import ImageEncoder, TextEncoder, content_key, load_dual_encoder, require_dual
from .scan import Encoder, PostBatch
from .taggers import Tagger

Scale = Literal["clipscore", "cosine"]


class Judge(Protocol):
    """
    Anything that scores posts.

    Example:

    ```python
    class LengthJudge:
        key = "length-1"  # changes whenever the scores would
        encoders = ()

        def __call__(self, batch):
            return np.array([min(len(text) / 280, 1) for text in batch.texts], np.float32)
    ```
    """

    @property
    def key(self) -> str:
        """What cached scores are found by: a hash of everything they depend on."""
        ...

    @property
    def encoders(self) -> tuple[Encoder, ...]:
        """The encoders that it calls `batch.encode_images` or `batch.encode_texts` with."""
        ...

    def __call__(self, batch: PostBatch, /) -> np.ndarray:
        """Finite scores, float32 of shape `(len(batch),)`; the higher, the better picture and text agree."""
        ...


class DualEncoderJudge:
    """
    Factual score: how near picture and text lie in the space of a CLIP-like model (paper, Stage 1).

    Args:
        images ([`ImageEncoder`]), texts ([`TextEncoder`]):
            The two sides of the model.
        scale (`str`, *optional*, defaults to `"clipscore"`):
            `"clipscore"` is 2.5 · max(cos, 0) (Hessel et al. 2021), which spreads CLIP's cosines of real pairs over
            most of 0 to 1, so that a threshold of 0.7 means something (method.md, reading 1). `"cosine"` is bare.

    Raises:
        `ValueError`: the model is no dual encoder, or the scale is unknown.
    """

    def __init__(self, images: ImageEncoder, texts: TextEncoder, *, scale: Scale = "clipscore"):
        require_dual(images.model, texts.model)
        if scale not in get_args(Scale):
            raise ValueError(f"scale must be one of {', '.join(get_args(Scale))}, got {scale!r}")
        self.images = images
        self.texts = texts
        self.scale = scale

    @classmethod
    def from_pretrained(
        cls,
        name_or_path: str = "openai/clip-vit-base-patch32",
        *,
        scale: Scale = "clipscore",
        device: torch.device | str | None = None,
    ) -> DualEncoderJudge:
        """Load any model that transformers' `AutoModel` knows to embed pictures and texts (Hub id or folder)."""
        return cls(*load_dual_encoder(name_or_path, device=device), scale=scale)

    @cached_property
    def key(self) -> str:
        return content_key("DualEncoderJudge", self.images.key, self.texts.key, self.scale)

    @property
    def encoders(self) -> tuple[Encoder, ...]:
        return (self.images, self.texts)

    def __call__(self, batch: PostBatch) -> np.ndarray:
        images, texts = batch.encode_images(self.images).head, batch.encode_texts(self.texts).head
        assert images is not None
        assert texts is not None
        cosines = F.cosine_similarity(images, texts)
        return (2.5 * cosines.clamp(min=0) if self.scale == "clipscore" else cosines).numpy()


class TagJudge:
    """
    Tag and compare: the cosine similarity of a picture's top tags, written as text, with the post's text.

    With adjective-noun pairs and BERTweet this is the paper's emotional score; with an image classifier's labels it
    judges facts where no CLIP is at hand.

    Args:
        tagger ([`Tagger`]):
            From picture to tags.
        text_encoder ([`TextEncoder`]):
            What both texts are compared under. It may well be the text tower, which then runs once for both.
        top_k (`int`, *optional*, defaults to 3):
            How many tags are taken (paper: 3). They are joined as `"happy dog, sunny beach, great party"`.
    """

    def __init__(self, tagger: Tagger, text_encoder: TextEncoder, *, top_k: int = 3):
        if top_k < 1:
            raise ValueError(f"top_k must be at least 1, got {top_k}")
        self.tagger = tagger
        self.text_encoder = text_encoder
        self.top_k = top_k

    @cached_property
    def key(self) -> str:
        return content_key("TagJudge", self.tagger.key, self.text_encoder.backbone_key, self.top_k)

    @property
    def encoders(self) -> tuple[Encoder, ...]:
        return (*self.tagger.encoders, self.text_encoder)

    def __call__(self, batch: PostBatch) -> np.ndarray:
        tags = [", ".join(names) for names in self.tagger(batch, self.top_k)]
        place = {text: i for i, text in enumerate(dict.fromkeys(tags))}
        tagged = self.text_encoder.encode(list(place)).features
        said = batch.encode_texts(self.text_encoder).features
        if tagged is None or said is None:
            raise ValueError(f"{type(self.text_encoder.model).__name__} gives no pooled features to compare")
        return F.cosine_similarity(tagged[[place[text] for text in tags]], said).numpy()
