"""A backbone and a linear head trained on its features, as one model for `pipeline("image-classification")`."""

from __future__ import annotations

import copy
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from transformers import AutoModelForImageClassification, BaseImageProcessor, PreTrainedModel

from pacl import PACLModel, PACLProcessor
from pacl.configuration_pacl import VISION_POOLINGS
from pacl.pooling import pool_vision

from .clip_as_timm import clip_as_timm
from .export_base import Export, ExportError, Tower, fresh_folder, load_tower, noise, require_equal, update_json
from .exports import check_pixels, is_timm, save_timm

PROBLEM_TYPES = {
    "single_label": "single_label_classification",
    "hierarchical": "single_label_classification",
    "multi_label": "multi_label_classification",
}


@dataclass(frozen=True)
class Head:
    """
    A linear head: logits are `features @ weight.T + bias`.

    Args:
        name (`str`): what its file calls it.
        weight (`torch.Tensor` of shape `(outputs, dim)`), bias (`torch.Tensor` of shape `(outputs,)`): its weights.
        outputs (`tuple[str, ...]`): names of the classes.
        task (`str`): `single_label`, `hierarchical` or `multi_label`.
        pooling (`str`): how the features were pooled, as in `PACLConfig.vision_pooling`.
        dataset (`str`): what it was trained on.
    """

    name: str
    weight: Tensor
    bias: Tensor
    outputs: tuple[str, ...]
    task: str
    pooling: str
    dataset: str


def read_head(path: str | Path, name: str | None = None) -> Head:
    """
    Read a head from a safetensors file.

    Args:
        path (`str` or `Path`):
            With tensors `NAME.weight` of shape `(outputs, dim)` and `NAME.bias`, and the metadata `task`, `dataset`,
            `pooling` and `outputs` (JSON of `{name: [class, …]}`).
        name (`str`, *optional*):
            Which head; needed where there are several.

    Raises:
        [`ExportError`]: the file or something in it is missing or contradictory, it holds regressions, or `name` has
            to be one of several.
    """
    try:
        with safe_open(path, framework="pt") as file:
            facts = file.metadata() or {}
            tensors = {key: file.get_tensor(key) for key in file.offset_keys()}
    except (OSError, SafetensorError) as error:
        raise ExportError(f"{path} cannot be read as a safetensors file of linear heads: {error}") from error
    missing = [key for key in ("task", "dataset", "outputs", "pooling") if key not in facts]
    if missing:
        raise ExportError(f"{path} has no {', '.join(missing)} in its metadata; write it anew with the evaluation")
    if facts["task"] == "regression":
        raise ExportError(
            f"{path} holds ratings (regression): an image-classification model has classes, with scores that are "
            "probabilities. Keep the backbone, and apply weight and bias to its features"
        )
    if facts["task"] not in PROBLEM_TYPES or facts["pooling"] not in VISION_POOLINGS:
        raise ExportError(f"{path}: task {facts['task']!r} or pooling {facts['pooling']!r} is not known")
    outputs = json.loads(facts["outputs"])
    if name is None and len(outputs) > 1:
        raise ExportError(f"{path} holds several heads; choose one with head=: {', '.join(outputs)}")
    name = next(iter(outputs), "") if name is None else name
    if name not in outputs:
        raise ExportError(f"{path} has no head {name!r}; it has {', '.join(outputs) or 'none'}")
    weight, bias = tensors.get(f"{name}.weight"), tensors.get(f"{name}.bias")
    classes = tuple(outputs[name])
    if weight is None or bias is None or weight.dim() != 2 or not len(weight) == len(bias) == len(classes):
        raise ExportError(f"{path}: weight and bias of head {name!r} must be there, a row for each of {len(classes)}")
    return Head(name, weight, bias, classes, facts["task"], facts["pooling"], facts["dataset"])


def export_classifier(
    backbone: str | Path | PACLModel | PreTrainedModel,
    heads: str | Path,
    folder: str | Path,
    *,
    head: str | None = None,
    processor: PACLProcessor | BaseImageProcessor | None = None,
    overwrite: bool = False,
) -> Export:
    """
    Save backbone and head as one model for `pipeline("image-classification")`, which needs nothing of PACL.

    It is the architecture's own `…ForImageClassification`, where that pools as the head was trained. DINOv2's, which
    takes class token and mean together, gets zeros for the mean; CLIP's, which averages over positions, gives way to
    the same network in timm's form. What is saved is loaded again and its logits compared with those of backbone and
    head, on random pictures.

    Args:
        backbone (`str`, `Path`, [`PACLModel`] or `PreTrainedModel`):
            A run's folder, its `backbone/`, any vision model, or a model in memory.
        heads (`str` or `Path`):
            The safetensors file of heads that linear evaluation saved; see [`read_head`].
        folder (`str` or `Path`):
            Where to; new or empty, unless `overwrite`.
        head (`str`, *optional*):
            Which head, where there are several (the levels of a hierarchy).
        processor (*optional*):
            The image processor, or a processor that has one; needed with a model in memory.
        overwrite (`bool`, *optional*, defaults to `False`):
            Whether a folder that is there may be replaced.

    Raises:
        [`ExportError`]: the head cannot be read or does not fit, or no class of transformers gives the same logits.

    Example:

    ```python
    export_classifier("runs/built_in", "out/heads/fi-seed0.safetensors", "out/fi_classifier")
    pipeline("image-classification", model="out/fi_classifier")("picture.jpg")
    ```
    """
    chosen = read_head(heads, head)
    tower = load_tower(backbone, processor)
    pixels = noise(tower.image_processor).to(tower.model.device, tower.model.dtype)
    with torch.no_grad():
        features = pool_vision(tower.model(pixel_values=pixels, return_dict=True), chosen.pooling).float()
    if features.shape[1] != chosen.weight.shape[1]:
        raise ExportError(
            f"head {chosen.name!r} of {heads} takes features of width {chosen.weight.shape[1]}, this backbone's "
            f"({type(tower.model).__name__}) have {features.shape[1]}: it was trained on another one"
        )
    expected = features @ chosen.weight.float().t().to(features.device) + chosen.bias.float().to(features.device)
    with fresh_folder(folder, overwrite, backbone) as work:
        model = _build(tower, chosen)
        _save(model, tower, chosen, work)
        loaded = AutoModelForImageClassification.from_pretrained(work, dtype=tower.model.dtype)
        with torch.no_grad():
            logits = loaded.eval().to(pixels.device)(pixel_values=pixels).logits
        name = type(model).__name__
        try:
            difference = require_equal(logits, expected, "its logits")
        except ExportError as error:
            raise ExportError(
                f"{name} does not pool as this head was trained ({chosen.pooling!r} of {type(tower.model).__name__}), "
                f"so the head cannot become a ready classifier: {error}"
            ) from error
    problem = "several classes may apply" if chosen.task == "multi_label" else "one class applies"
    note = f"`{name}` of {len(chosen.outputs)} classes, trained on {chosen.dataset}; {problem}."
    return Export("classifier", Path(folder), (note,), difference)


def _build(tower: Tower, head: Head) -> PreTrainedModel:
    """The architecture's own classifier with the weights of backbone and head."""
    is_clip = tower.model.config.model_type == "clip_vision_model"
    backbone = clip_as_timm(tower.model, tower.image_processor) if is_clip else tower.model
    config: Any = copy.deepcopy(backbone.config)
    config.id2label = dict(enumerate(head.outputs))
    config.label2id = {name: i for i, name in enumerate(head.outputs)}
    config.problem_type = PROBLEM_TYPES[head.task]
    config.architectures = []  # None, as a new configuration has it, trips the Auto class where it may choose (DeiT)
    name = type(tower.model).__name__
    try:
        model = AutoModelForImageClassification.from_config(config, dtype=backbone.dtype)
    except (ValueError, AttributeError, TypeError) as error:
        raise ExportError(f"transformers has no image classifier for {name}: {error}") from error
    body = getattr(model, model.base_model_prefix, None)
    inner: Any = backbone.timm_model if is_timm(backbone) else backbone
    linear = _last_linear(model.timm_model.get_classifier() if is_timm(model) else getattr(model, "classifier", None))
    if body is None or linear is None:
        raise ExportError(f"{type(model).__name__} has no body and linear classifier that could be filled from {name}")
    try:
        left = body.load_state_dict(inner.state_dict(), strict=False)
    except RuntimeError as error:
        raise ExportError(f"the weights of {name} do not fit into {type(model).__name__}: {error}") from error
    own = {id(parameter) for parameter in linear.parameters()}
    strange = [key for key in left.missing_keys if id(dict(body.named_parameters()).get(key)) not in own]
    if strange:
        raise ExportError(f"{type(model).__name__} has weights that {name} lacks: {', '.join(strange)}")
    _fill(linear, head)
    return model.eval()


def _last_linear(module: nn.Module | None) -> nn.Linear | None:
    """The linear layer that a classifier is, or that it ends in."""
    layers = [layer for layer in module.modules() if isinstance(layer, nn.Linear)] if module is not None else []
    return layers[-1] if layers else None


def _fill(linear: nn.Linear, head: Head) -> None:
    """Copy a head; where the layer is wider, its further inputs count for nothing (DINOv2's mean over the patches)."""
    width = head.weight.shape[1]
    if linear.in_features < width:
        raise ExportError(f"the classifier takes {linear.in_features} features, the head {width}")
    with torch.no_grad():
        linear.weight.zero_()
        linear.weight[:, :width] = head.weight
        linear.bias.copy_(head.bias)


def _save(model: PreTrainedModel, tower: Tower, head: Head, folder: Path) -> None:
    if is_timm(model):
        save_timm(model, tower.image_processor, folder, list(head.outputs))
        update_json(folder / "config.json", problem_type=PROBLEM_TYPES[head.task])
    else:
        model.save_pretrained(folder)
        tower.image_processor.save_pretrained(folder)
    check_pixels(tower.image_processor, folder)
