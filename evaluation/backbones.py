"""A frozen vision backbone with its image processor: what every protocol of the evaluation measures."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor
from transformers import AutoImageProcessor, BaseImageProcessor, PreTrainedModel

from pacl.pooling import pool_vision
from pacl.towers import load_vision_tower, vision_embed_dim

from .emotionclip import load_emotionclip


@dataclass(frozen=True)
class Backbone:
    """A vision tower and the image processor it was trained with.

    Its weights must not change during its life, because [`fingerprint`] names the features in the cache.

    Args:
        model (`PreTrainedModel`): a vision tower, such as [`pacl.towers.load_vision_tower`] returns.
        image_processor (`BaseImageProcessor`): its evaluation transform.
        name (`str`): how results call it.
        pooling (`str`, *optional*, defaults to `"auto"`): as in [`pacl.pooling.pool_vision`].
    """

    model: PreTrainedModel
    image_processor: BaseImageProcessor
    name: str
    pooling: str = "auto"

    @classmethod
    def load(cls, name_or_path: str | Path, *, pooling: str = "auto") -> Backbone:
        """Loads a backbone from a folder, a Hub id, a `timm/…` id, or EmotionCLIP's checkpoint file.

        Raises:
            OSError, ValueError: from [`pacl.towers.load_vision_tower`], where no vision model is found.
        """
        name = str(name_or_path)
        if Path(name).is_file():
            return cls(*load_emotionclip(name), name, pooling)
        model = load_vision_tower(name)
        return cls(model, AutoImageProcessor.from_pretrained(name), name, pooling)

    @cached_property
    def fingerprint(self) -> str:
        """Hexadecimal digest of architecture, weights, pooling and image transform, but not of the name."""
        digest = hashlib.blake2b(digest_size=16)
        parts = (type(self.model).__name__, self.model.config.to_json_string(), self.pooling)
        for part in (*parts, self.image_processor.to_json_string()):
            digest.update(part.encode())
        for key, value in sorted(self.model.state_dict().items()):
            digest.update(f"{key} {value.dtype} {tuple(value.shape)}".encode())
            digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
        return digest.hexdigest()

    @cached_property
    def embed_dim(self) -> int:
        """Width of the pooled features."""
        return vision_embed_dim(self.model, self.pooling)

    def pooled(self, pixel_values: Tensor) -> Tensor:
        """Features before any projection or head.

        Args:
            pixel_values (`torch.Tensor` of shape `(batch, channels, height, width)`): preprocessed pictures.

        Returns:
            `torch.Tensor` of shape `(batch, dim)`, on the device and in the dtype of the model.
        """
        pixel_values = pixel_values.to(next(self.model.parameters()).dtype)
        return pool_vision(self.model(pixel_values=pixel_values, return_dict=True), self.pooling)
