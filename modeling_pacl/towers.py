"""The two towers: any vision or text encoder that transformers or timm can build, less the parts PACL does not use."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from transformers import AutoConfig, AutoModel, PreTrainedConfig, PreTrainedModel

from .pooling import pool_vision


def load_vision_tower(name_or_path: str, **kwargs: Any) -> PreTrainedModel:
    """
    Load a vision tower with its weights.

    Args:
        name_or_path (`str`):
            A Hub id or a folder: any vision model of transformers, a timm model (`timm/…`), or a dual encoder such as
            CLIP, of which the vision side is taken.
        kwargs (*optional*):
            Passed to `AutoModel.from_pretrained` (`dtype`, `revision`, …).

    Raises:
        `OSError`: there is no such model, or it cannot be read.
        `ValueError`: the model is no vision model.
    """
    tower = _load_side(name_or_path, "vision_model", kwargs)
    if getattr(tower, "main_input_name", None) != "pixel_values":
        raise ValueError(f"{name_or_path!r} is no vision model: {type(tower).__name__} does not take pixel_values")
    return tower


def load_text_tower(name_or_path: str, pooling: str = "first", **kwargs: Any) -> PreTrainedModel:
    """
    Load a text tower with its weights.

    Args:
        name_or_path (`str`):
            A Hub id or a folder: any text encoder of transformers, or a dual encoder such as CLIP, of which the text
            side is taken.
        pooling (`str`, *optional*, defaults to `"first"`):
            How its output will be pooled. Only with `"pooler"` is BERT's pooler kept.
        kwargs (*optional*):
            Passed to `AutoModel.from_pretrained`.

    Raises:
        `OSError`: there is no such model, or it cannot be read.
        `ValueError`: the model is no text encoder.
    """
    tower = _load_side(name_or_path, "text_model", kwargs, keep_pooler=pooling == "pooler")
    if getattr(tower, "main_input_name", None) != "input_ids":
        raise ValueError(f"{name_or_path!r} is no text encoder: {type(tower).__name__} does not take input_ids")
    return tower


def build_vision_tower(config: PreTrainedConfig) -> PreTrainedModel:
    """Build a vision tower with random weights, as `load_vision_tower` would have loaded it."""
    return without_untrained_pooler(AutoModel.from_config(config))


def build_text_tower(config: PreTrainedConfig, pooling: str = "first") -> PreTrainedModel:
    """Build a text tower with random weights, as `load_text_tower` would have loaded it."""
    tower = AutoModel.from_config(config)
    return tower if pooling == "pooler" else without_untrained_pooler(tower)


def without_untrained_pooler(tower: PreTrainedModel) -> PreTrainedModel:
    """
    Take off the dense pooler that BERT and, after it, ViT put on their first token.

    Most checkpoints come without its weights (it served next-sentence prediction), so that it would turn trained
    features into random ones; and where PACL does not use it, its parameters would get no gradient.
    """
    if hasattr(getattr(tower, "pooler", None), "dense"):
        tower.pooler = None  # type: ignore[assignment]
    return tower


def vision_embed_dim(tower: PreTrainedModel, pooling: str = "auto") -> int:
    """
    Width of a vision tower's pooled features, found by showing it one blank picture.

    No configuration field says it for every architecture (ResNet has no `hidden_size`, a timm tower's is not in its
    configuration), while a forward pass does, also on the `meta` device.
    """
    size = _image_size(tower.config)
    parameter = next(tower.parameters())
    blank = torch.zeros(1, _num_channels(tower.config), *size, device=parameter.device, dtype=parameter.dtype)
    was_training = tower.training
    tower.eval()
    with torch.no_grad():
        features = pool_vision(tower(pixel_values=blank, return_dict=True), pooling)
    tower.train(was_training)
    return features.shape[-1]


def _load_side(name_or_path: str, side: str, kwargs: dict[str, Any], keep_pooler: bool = False) -> PreTrainedModel:
    """Load a model; of a dual encoder, the side called `vision_model` or `text_model`."""
    config = AutoConfig.from_pretrained(name_or_path, **_config_kwargs(kwargs))
    if hasattr(config, "vision_config") and hasattr(config, "text_config"):
        tower = getattr(AutoModel.from_pretrained(name_or_path, **kwargs), side, None)
        if not isinstance(tower, PreTrainedModel):
            raise ValueError(f"{name_or_path!r} ({config.model_type}) has no separable {side}")
        return tower
    if keep_pooler:
        return AutoModel.from_pretrained(name_or_path, **kwargs)
    return AutoModel.from_pretrained(name_or_path, **_without_pooler(config), **kwargs)


def _config_kwargs(kwargs: dict[str, Any]) -> dict[str, Any]:
    """Those of `from_pretrained`'s arguments that say where to look."""
    return {
        key: kwargs[key]
        for key in ("cache_dir", "revision", "token", "subfolder", "local_files_only")
        if key in kwargs
    }


def _without_pooler(config: PreTrainedConfig) -> dict[str, bool]:
    """The argument that leaves an unused dense pooler away, so that loading reports no missing weights."""
    with torch.device("meta"):
        tower = AutoModel.from_config(config)
    accepts = "add_pooling_layer" in inspect.signature(type(tower)).parameters
    return {"add_pooling_layer": False} if accepts and without_untrained_pooler(tower).pooler is None else {}


def _image_size(config: PreTrainedConfig) -> tuple[int, int]:
    """`(height, width)` that a tower expects; timm keeps it in `model_args` or `pretrained_cfg`."""
    size = getattr(config, "image_size", None) or (getattr(config, "model_args", None) or {}).get("img_size")
    if size is None:
        input_size = (getattr(config, "pretrained_cfg", None) or {}).get("input_size")
        size = input_size[1:] if input_size else 224
    return (size, size) if isinstance(size, int) else (int(size[0]), int(size[1]))


def _num_channels(config: PreTrainedConfig) -> int:
    return getattr(config, "num_channels", None) or 3
