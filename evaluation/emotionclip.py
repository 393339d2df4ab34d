"""The vision side of EmotionCLIP's released checkpoint as a backbone, for the same table as ours.

Zhang et al., "Learning Emotion Representations from Verbal and Nonverbal Communication", CVPR 2023. The release is a
PyTorch file of an OpenCLIP ViT-B/32 whose picture tokens are followed by one more, the sum of the positions of the
person in focus; for a whole picture without such a person it is zero.
"""

from __future__ import annotations

import pickle
import re
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import CLIPImageProcessor, CLIPVisionConfig, CLIPVisionModel
from transformers.utils.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

PREFIX = "backbone.visual."
HEAD_WIDTH = 64  # of every OpenCLIP ViT-B

RENAMED = {
    "class_embedding": "embeddings.class_embedding",
    "conv1.weight": "embeddings.patch_embedding.weight",
    "positional_embedding": "embeddings.position_embedding.weight",
    "ln_pre": "pre_layrnorm",
    "ln_post": "post_layernorm",
    "transformer.resblocks": "encoder.layers",
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "attn.out_proj": "self_attn.out_proj",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}


class EmotionCLIPVisionModel(CLIPVisionModel):
    """CLIP's vision tower with EmotionCLIP's person token, which is zero here: no person is singled out."""

    def __init__(self, config: CLIPVisionConfig) -> None:
        super().__init__(config)
        self.embeddings.register_forward_hook(_append_person_token)


def _append_person_token(module: nn.Module, inputs: Any, tokens: Tensor) -> Tensor:
    return torch.cat([tokens, torch.zeros_like(tokens[:, :1])], dim=1)


def load_emotionclip(path: str | Path) -> tuple[EmotionCLIPVisionModel, CLIPImageProcessor]:
    """Loads the vision side and its image transform.

    Args:
        path (`str` or `Path`): the released checkpoint; read as tensors only, no code in it is run.

    Raises:
        ValueError: if the file is no EmotionCLIP checkpoint.
    """
    if not zipfile.is_zipfile(path):
        raise ValueError(f"{path} is no PyTorch checkpoint")
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"{path} holds objects that only running its code could open ({error}); where you trust the file, load it "
            "once yourself, torch.save({'model': checkpoint['model']}, …), and give that file"
        ) from error
    state = checkpoint.get("model", {}) if isinstance(checkpoint, dict) else {}
    visual = {name.removeprefix(PREFIX): value for name, value in state.items() if name.startswith(PREFIX)}
    if "conv1.weight" not in visual or "positional_embedding" not in visual:
        raise ValueError(f"{path} is no EmotionCLIP checkpoint: it has no tensors under model/{PREFIX}…")
    config, size = _config(visual)
    model = EmotionCLIPVisionModel(config)
    model.load_state_dict(_converted(visual), strict=True)
    processor = CLIPImageProcessor(
        size={"shortest_edge": size},
        crop_size={"height": size, "width": size},
        image_mean=IMAGENET_DEFAULT_MEAN,
        image_std=IMAGENET_DEFAULT_STD,
    )
    return model.eval(), processor


def _config(visual: dict[str, Tensor]) -> tuple[CLIPVisionConfig, int]:
    """The tower's configuration and its image size, both read off the shapes of its weights."""
    width, _, patch, _ = visual["conv1.weight"].shape
    layers = {match.group(1) for name in visual if (match := re.match(r"transformer\.resblocks\.(\d+)\.", name))}
    grid = round((len(visual["positional_embedding"]) - 1) ** 0.5)
    config = CLIPVisionConfig(
        hidden_size=width,
        intermediate_size=len(visual["transformer.resblocks.0.mlp.c_fc.weight"]),
        num_hidden_layers=len(layers),
        num_attention_heads=max(1, width // HEAD_WIDTH),
        image_size=patch * grid,
        patch_size=patch,
        hidden_act="gelu",  # its start, OpenCLIP's LAION weights, has no quick GELU
    )
    return config, patch * grid


def _converted(visual: dict[str, Tensor]) -> dict[str, Tensor]:
    """OpenCLIP's names to those of transformers; the three projections of an attention come apart."""
    state = {}
    for name, value in visual.items():
        if name == "proj":  # into the space shared with text; the pooled feature is what stands before it
            continue
        for old, new in RENAMED.items():
            name = name.replace(old, new, 1) if name.startswith(old) or f".{old}" in name else name
        if ".attn.in_proj_" in name:
            for part, tensor in zip("qkv", value.chunk(3), strict=True):
                state[name.replace("attn.in_proj_", f"self_attn.{part}_proj.")] = tensor.float()
        else:
            state[name] = value.float()
    return state
