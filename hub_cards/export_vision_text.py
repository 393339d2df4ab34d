"""A dual encoder in the format of transformers' own `VisionTextDualEncoderModel`, which loads without code of ours."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoModel,
    PreTrainedModel,
    VisionTextDualEncoderConfig,
    VisionTextDualEncoderModel,
    VisionTextDualEncoderProcessor,
)

from pacl import PACLModel, PACLProcessor

from .export_base import Export, ExportError, fresh_folder, load_dual_encoder, noise, require_equal, update_json
from .exports import fill_pooler, with_identity_pooler

# BERT's pooler ends in tanh, which is the identity near 0: at this scale its relative error is below float32's for
# hidden states of up to about 20. A power of two, so that scaling back is exact.
SMALL = 2.0**-16

SENTENCES = ["A photo with joy emotion.", "The photo makes me feel so sad!", "rain", "a cat and a dog in the sun"]


def export_vision_text_dual_encoder(
    source: str | Path | PACLModel,
    folder: str | Path,
    *,
    processor: PACLProcessor | None = None,
    overwrite: bool = False,
) -> Export:
    """
    Save a dual encoder as a `VisionTextDualEncoderModel`: plain `AutoModel.from_pretrained` loads it, no code of ours
    has to be trusted.

    That model takes each tower's own pooler. Where PACL uses the first token and the tower has a dense pooler (ViT,
    BERT, RoBERTa, …), this pooler is made to hand the first token on: as the identity where its activation can be
    configured away, scaled down to where tanh is the identity otherwise. What is saved is loaded again and its logits
    compared, on random pictures and some sentences.

    Args:
        source (`str`, `Path` or [`PACLModel`]):
            A run's folder, its `dual_encoder/`, a Hub id, or a model in memory.
        folder (`str` or `Path`):
            Where to; new or empty, unless `overwrite`.
        processor ([`PACLProcessor`], *optional*):
            Needed with a model in memory.
        overwrite (`bool`, *optional*, defaults to `False`):
            Whether a folder that is there may be replaced.

    Raises:
        [`ExportError`]: towers or pooling do not fit this format; the message says which and why.

    Example:

    ```python
    export_vision_text_dual_encoder("runs/built_in", "out/vision_text")
    classify = pipeline("zero-shot-image-classification", model="out/vision_text")
    ```
    """
    model, processor = load_dual_encoder(source, processor)
    if model.dtype != torch.float32:
        # The scaled pooler is exact in float32 only; whoever loads it may choose another precision.
        model = copy.deepcopy(model).float()
    vision = _vision_tower(model, processor)
    text, scale = _text_tower(model)
    notes: tuple[str, ...] = ("Loads by plain `AutoModel.from_pretrained`; no remote code.",)
    if scale != 1:
        notes += ("The text tower's pooler is a scaled identity: use float32; float16 is too coarse for it.",)
    with fresh_folder(folder, overwrite, source) as work:
        _join(model, vision, text, scale).save_pretrained(work)
        VisionTextDualEncoderProcessor(processor.image_processor, processor.tokenizer).save_pretrained(work)
        if made_from := processor.to_dict()["image_processor"].get("pretrained_cfg"):
            # timm's image processor leaves out what it cannot be made without; ours puts it back, this one does not.
            path = work / "processor_config.json"
            saved = json.loads(path.read_text(encoding="utf-8"))["image_processor"]
            update_json(path, image_processor={**saved, "pretrained_cfg": made_from})
        difference = _compare(model, processor, work)
    return Export("vision_text_dual_encoder", Path(folder), notes, difference)


def _vision_tower(model: PACLModel, processor: Any) -> PreTrainedModel:
    """The vision tower as the format wants it: `pooler_output` of shape `(batch, dim)` is what PACL pools."""
    tower, pooling = model.vision_model, model.config.vision_pooling
    name = type(tower).__name__
    if pooling == "mean":
        raise ExportError(_impossible(f"vision_pooling is mean, while it takes the pooler_output of {name}"))
    whole = with_identity_pooler(tower).to(tower.device)
    pixels = noise(processor.image_processor, pictures=1).to(tower.device, tower.dtype)
    with torch.no_grad():
        pooled = whole(pixel_values=pixels, return_dict=True).get("pooler_output")
    if pooled is None:
        raise ExportError(_impossible(f"{name} has no pooler_output"))
    if pooled.dim() != 2:
        raise ExportError(_impossible(f"the pooler_output of {name} is a map of shape {tuple(pooled.shape[1:])}"))
    return whole


def _text_tower(model: PACLModel) -> tuple[PreTrainedModel, float]:
    """The text tower with a pooler that gives what PACL pools, times the number that is returned with it."""
    tower, pooling = model.text_model, model.config.text_pooling
    name = type(tower).__name__
    if pooling == "pooler":
        return tower, 1.0
    if pooling == "mean":
        raise ExportError(_impossible(f"text_pooling is mean, while it takes the pooler_output of {name}"))
    whole = AutoModel.from_config(copy.deepcopy(tower.config), dtype=tower.dtype)
    dense = getattr(getattr(whole, "pooler", None), "dense", None)
    if not isinstance(dense, torch.nn.Linear) or dense.in_features != dense.out_features:
        raise ExportError(_impossible(f"text_pooling is first, and {name} has no dense pooler that could hand it on"))
    activation = getattr(whole.pooler, "activation", None)
    if not isinstance(activation, torch.nn.Tanh):
        raise ExportError(_impossible(f"the pooler of {name} ends in {activation}, not in tanh"))
    return fill_pooler(whole, tower, SMALL).eval(), SMALL


def _impossible(reason: str) -> str:
    return (
        f"not possible as VisionTextDualEncoderModel: {reason}. Use export_dual_encoder, whose code travels with the "
        "model"
    )


def _join(
    model: PACLModel, vision: PreTrainedModel, text: PreTrainedModel, scale: float
) -> VisionTextDualEncoderModel:
    vision_config, text_config = copy.deepcopy(vision.config), copy.deepcopy(text.config)
    # Not every vision configuration says this width, but the format asks for it.
    vision_config.hidden_size = model.config.vision_embed_dim
    config = VisionTextDualEncoderConfig.from_vision_text_configs(
        vision_config,
        text_config,
        projection_dim=model.config.projection_dim,
        logit_scale_init_value=model.config.logit_scale_init_value,
    )
    # It gives the towers its own configuration objects: not to those of the model that is exported.
    vision, text = (copy.deepcopy(t) if t in model.children() else t for t in (vision, text))
    joined = VisionTextDualEncoderModel(config, vision_model=vision, text_model=text).to(model.device, model.dtype)
    with torch.no_grad():
        joined.visual_projection.weight.copy_(model.visual_projection.weight)
        joined.text_projection.weight.copy_(model.text_projection.weight / scale)
        joined.logit_scale.copy_(model.logit_scale)
    return joined.eval()


def _compare(model: PACLModel, processor: Any, folder: Path) -> float:
    """Load what was saved as its users will, and compare its logits."""
    pixels = noise(processor.image_processor).to(model.device, model.dtype)
    tokens = processor.tokenizer(SENTENCES, padding=True, truncation=True, return_tensors="pt").to(model.device)
    try:
        loaded, info = AutoModel.from_pretrained(folder, output_loading_info=True, dtype=model.dtype)
        with torch.no_grad():
            found = loaded.eval().to(model.device)(pixel_values=pixels, **tokens).logits_per_image
            expected = model(pixel_values=pixels, **tokens).logits_per_image
    except (OSError, ValueError, RuntimeError, AttributeError) as error:
        raise ExportError(_impossible(f"what was saved cannot be loaded and run: {error}")) from error
    if info["missing_keys"]:
        raise ExportError(_impossible(f"it would make {', '.join(sorted(info['missing_keys']))} anew"))
    try:
        return require_equal(found, expected, "its logits")
    except ExportError as error:
        poolings = f"vision_pooling {model.config.vision_pooling!r}, text_pooling {model.config.text_pooling!r}"
        raise ExportError(_impossible(f"the towers' own poolers are not {poolings}: {error}")) from error
