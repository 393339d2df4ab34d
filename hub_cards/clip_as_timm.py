"""CLIP's vision tower as the same network in timm, whose classifier stands on the class token, as PACL's features."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import BaseImageProcessor, PreTrainedModel, TimmWrapperConfig, TimmWrapperModel

from .export_base import ExportError

ARCHITECTURE = "vit_base_patch16_clip_quickgelu_224"
ACTIVATIONS = {"quick_gelu": "quick_gelu", "gelu": "gelu"}

NAMES = {
    "embeddings.class_embedding": "cls_token",
    "embeddings.patch_embedding.weight": "patch_embed.proj.weight",
    "embeddings.position_embedding.weight": "pos_embed",
    "pre_layrnorm": "norm_pre",
    "post_layernorm": "norm",
}
LAYER_NAMES = {
    "layer_norm1": "norm1",
    "layer_norm2": "norm2",
    "self_attn.out_proj": "attn.proj",
    "mlp.fc1": "mlp.fc1",
    "mlp.fc2": "mlp.fc2",
}


def clip_as_timm(tower: PreTrainedModel, image_processor: BaseImageProcessor) -> TimmWrapperModel:
    """
    The same network with the same weights as a wrapped timm model.

    Args:
        tower (`CLIPVisionModel`): the vision tower.
        image_processor (`BaseImageProcessor`): its image processor, for the colours that timm is to expect.

    Raises:
        [`ExportError`]: its activation is none that timm's CLIP has.
    """
    config: Any = tower.config
    if config.hidden_act not in ACTIVATIONS or config.layer_norm_eps != 1e-5:
        raise ExportError(f"CLIP with {config.hidden_act} and an epsilon of {config.layer_norm_eps} is not in timm")
    size, channels = config.image_size, config.num_channels
    wrapped = TimmWrapperConfig(
        architecture=ARCHITECTURE,
        model_args={
            "img_size": size,
            "in_chans": channels,
            "patch_size": config.patch_size,
            "embed_dim": config.hidden_size,
            "depth": config.num_hidden_layers,
            "num_heads": config.num_attention_heads,
            "mlp_ratio": config.intermediate_size / config.hidden_size,
            "act_layer": ACTIVATIONS[config.hidden_act],
        },
    )
    colours = {
        ours: list(getattr(image_processor, theirs))
        for ours, theirs in (("mean", "image_mean"), ("std", "image_std"))
        if getattr(image_processor, theirs, None)
    }
    wrapped.pretrained_cfg = {"architecture": ARCHITECTURE, "input_size": [channels, size, size], **colours}
    model: Any = TimmWrapperModel(wrapped)
    model.timm_model.load_state_dict(_renamed(tower.state_dict(), config.num_hidden_layers))
    return model.to(tower.device, tower.dtype).eval()


def _renamed(weights: dict[str, Tensor], layers: int) -> dict[str, Tensor]:
    """CLIP's weights under timm's names, queries, keys and values in one."""
    weights = {key.removeprefix("vision_model."): value for key, value in weights.items()}
    renamed = {}
    for old, new in NAMES.items():
        for ending in ("", ".weight", ".bias"):
            if old + ending in weights:
                renamed[new + ending] = weights[old + ending]
    renamed["cls_token"] = renamed["cls_token"][None, None]
    renamed["pos_embed"] = renamed["pos_embed"][None]
    for i in range(layers):
        old, new = f"encoder.layers.{i}.", f"blocks.{i}."
        for ending in (".weight", ".bias"):
            parts = [weights[f"{old}self_attn.{side}_proj{ending}"] for side in "qkv"]
            renamed[f"{new}attn.qkv{ending}"] = torch.cat(parts)
            renamed |= {new + theirs + ending: weights[old + ours + ending] for ours, theirs in LAYER_NAMES.items()}
    return renamed
