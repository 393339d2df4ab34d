"""A run's models in formats that others load: the enhanced backbone in its native one, and the dual encoder with its
code beside it.
"""

from __future__ import annotations

import copy
import json
import shutil
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoImageProcessor, AutoModel, BaseImageProcessor, PreTrainedModel

import pacl
from pacl import PACLModel, PACLProcessor
from pacl.pipeline_pacl import TASK
from pacl.pooling import pool_vision

from .export_base import (
    Export,
    Tower,
    fresh_folder,
    load_dual_encoder,
    load_tower,
    noise,
    require_equal,
    update_json,
)

AUTO_MAP = {
    "AutoConfig": "configuration_pacl.PACLConfig",
    "AutoModel": "modeling_pacl.PACLModel",
    "AutoModelForZeroShotImageClassification": "modeling_pacl.PACLModel",
    "AutoProcessor": "processing_pacl.PACLProcessor",
}
CUSTOM_PIPELINES = {
    TASK: {
        "impl": "pipeline_pacl.EmotionClassificationPipeline",
        "pt": ["AutoModelForZeroShotImageClassification"],
        "type": "multimodal",
    }
}


def export_backbone(
    source: str | Path | PACLModel | PreTrainedModel,
    folder: str | Path,
    *,
    processor: PACLProcessor | BaseImageProcessor | None = None,
    overwrite: bool = False,
) -> Export:
    """
    Save an enhanced backbone in its native format, for `AutoModel.from_pretrained` without PACL installed.

    A timm tower is saved in timm's own format, which `timm.create_model("hf-hub:…")` (or `"local-dir:…"`) and
    `AutoModel` (as `TimmWrapperModel`) both read. A ViT-like tower, whose dense pooler PACL does not use, gets a
    pooler that hands the class token on unchanged: so `AutoModel` makes no random one, and `pooler_output` is the
    feature that was trained.

    Args:
        source (`str`, `Path`, [`PACLModel`] or `PreTrainedModel`):
            A run's folder, its `backbone/` or `dual_encoder/`, any vision model, or a model in memory.
        folder (`str` or `Path`):
            Where to; new or empty, unless `overwrite`.
        processor (*optional*):
            The image processor, or a processor that has one; needed with a model in memory.
        overwrite (`bool`, *optional*, defaults to `False`):
            Whether a folder that is there may be replaced.

    Returns:
        [`Export`]: with notes on how features are pooled, and on anything that loading makes anew.

    Raises:
        [`ExportError`]: the source cannot be read, or what was saved does not give the same features.

    Example:

    ```python
    export_backbone("runs/built_in", "out/backbone")
    features = AutoModel.from_pretrained("out/backbone")(pixel_values).pooler_output.flatten(1)
    ```
    """
    tower = load_tower(source, processor)
    kind = "timm_backbone" if is_timm(tower.model) else "backbone"
    with fresh_folder(folder, overwrite, source) as work:
        if kind == "timm_backbone":
            save_timm(tower.model, tower.image_processor, work)
        else:
            with_identity_pooler(tower.model).save_pretrained(work)
            tower.image_processor.save_pretrained(work)
        check_pixels(tower.image_processor, work)
        notes, difference = _check_backbone(tower, work)
    return Export(kind, Path(folder), notes, difference)


def is_timm(tower: PreTrainedModel) -> bool:
    """Whether a tower is a timm model in transformers' wrapper."""
    return tower.config.model_type == "timm_wrapper"


def save_timm(
    tower: PreTrainedModel, image_processor: BaseImageProcessor, folder: Path, labels: list[str] | None = None
) -> None:
    """
    Write a wrapped timm model as timm does, for timm and transformers alike.

    Args:
        tower (`TimmWrapperModel` or `TimmWrapperForImageClassification`): the model.
        image_processor (`BaseImageProcessor`): how its pictures are prepared.
        folder (`Path`): where to.
        labels (`list[str]`, *optional*): names of the classes, for a classifier.
    """
    from timm.models import save_for_hf

    model: Any = tower.timm_model
    own: dict[str, Any] = getattr(image_processor, "data_config", {})
    preprocessing = {**model.pretrained_cfg, **(getattr(tower.config, "pretrained_cfg", None) or {}), **own}
    settings = {"pretrained_cfg": preprocessing} | ({"label_names": labels} if labels else {})
    save_for_hf(model, str(folder), model_config=settings, safe_serialization=True)
    path = folder / "config.json"
    # timm lists all that the model was built with; of these transformers sets the number of classes by itself.
    arguments = json.loads(path.read_text()).get("model_args", {}) | (tower.config.model_args or {})
    arguments = {key: value for key, value in arguments.items() if key != "num_classes"}
    update_json(path, model_args=arguments or None)
    if not own:
        # Not timm's: saved beside, and named where transformers looks in a folder of timm's.
        image_processor.save_pretrained(folder)
        saved = json.loads((folder / "preprocessor_config.json").read_text(encoding="utf-8"))
        update_json(path, image_processor_type=saved["image_processor_type"])


def check_pixels(image_processor: BaseImageProcessor, folder: Path) -> None:
    """
    Raise an [`ExportError`] unless the image processor that a folder gives prepares pictures like this one.
    """
    found = noise(AutoImageProcessor.from_pretrained(folder), pictures=2)
    require_equal(found, noise(image_processor, pictures=2), "pixels of the image processor, reloaded,")


def with_identity_pooler(tower: PreTrainedModel) -> PreTrainedModel:
    """
    A tower whose missing dense pooler is the identity, where its configuration can say so; else the tower itself.

    `AutoModel` always builds ViT's pooler, and with random weights where the checkpoint has none. As identity it makes
    `pooler_output` the class token.
    """
    config = copy.deepcopy(tower.config)
    width = getattr(config, "hidden_size", None)
    if getattr(tower, "pooler", True) is not None or not hasattr(config, "pooler_act"):
        return tower
    config.pooler_act, config.pooler_output_size = "linear", width
    return fill_pooler(AutoModel.from_config(config, dtype=tower.dtype), tower).eval()


def fill_pooler(whole: PreTrainedModel, tower: PreTrainedModel, scale: float = 1.0) -> PreTrainedModel:
    """Give a model with a dense pooler the weights of one without, and `scale` times the identity as its pooler."""
    dense: Any = whole.pooler.dense  # type: ignore[union-attr]
    with torch.no_grad():
        nn.init.eye_(dense.weight).mul_(scale)
        nn.init.zeros_(dense.bias)
    whole.load_state_dict({**whole.state_dict(), **tower.state_dict()})
    return whole


def _check_backbone(tower: Tower, folder: Path) -> tuple[tuple[str, ...], float]:
    """Load a backbone as its users will, compare its features, and say what there is to know about it."""
    loaded, info = AutoModel.from_pretrained(folder, output_loading_info=True, dtype=tower.model.dtype)
    pixels = noise(tower.image_processor).to(tower.model.device, tower.model.dtype)
    with torch.no_grad():
        expected = pool_vision(tower.model(pixel_values=pixels, return_dict=True), tower.pooling)
        outputs = loaded.eval().to(pixels.device)(pixel_values=pixels, return_dict=True)
    pooler_is_new = any(key.startswith("pooler.") for key in info["missing_keys"])
    if pooler_is_new:
        outputs["pooler_output"] = None
    difference = require_equal(pool_vision(outputs, tower.pooling), expected, f"features of {folder.name}, reloaded,")
    notes = [_pooling_note(tower, outputs)]
    if pooler_is_new:
        notes.append(
            f"`AutoModel` adds a pooler with random weights to {type(loaded).__name__}: do not use its "
            "`pooler_output`, or load with `add_pooling_layer=False`."
        )
    elif with_identity_pooler(tower.model) is not tower.model:
        notes.append("The pooler is the identity on the class token: PACL trains that token and no pooler.")
    return tuple(notes), difference


def _pooling_note(tower: Tower, outputs: Any) -> str:
    is_map = outputs["last_hidden_state"].dim() == 4
    pooling = tower.pooling
    if pooling == "auto":
        pooled = outputs.get("pooler_output")
        if pooled is not None:
            flat = "" if pooled.dim() == 2 else ".flatten(1)"
            return f"Features are `model(pixel_values).pooler_output{flat}`, of width {pooled.flatten(1).shape[1]}."
        pooling = "mean" if is_map else "first"
    code = {"first": "[:, 0]", "mean": ".mean(dim=(2, 3))" if is_map else ".mean(dim=1)"}[pooling]
    return f"Features are `model(pixel_values).last_hidden_state{code}`."


def export_dual_encoder(
    source: str | Path | PACLModel,
    folder: str | Path,
    *,
    processor: PACLProcessor | None = None,
    remote_code: bool = True,
    overwrite: bool = False,
) -> Export:
    """
    Save a dual encoder with its processor and, by default, the code that loads it where PACL is not installed.

    With the code, `AutoModel`, `AutoProcessor`, `pipeline("zero-shot-image-classification")` and
    `pipeline("zero-shot-emotion")` load it, if their user trusts that code.

    Args:
        source (`str`, `Path` or [`PACLModel`]):
            A run's folder, its `dual_encoder/`, a Hub id, or a model in memory.
        folder (`str` or `Path`):
            Where to; new or empty, unless `overwrite`.
        processor ([`PACLProcessor`], *optional*):
            Needed with a model in memory.
        remote_code (`bool`, *optional*, defaults to `True`):
            Whether the code travels with the model. Without it, loading needs `import pacl`.
        overwrite (`bool`, *optional*, defaults to `False`):
            Whether a folder that is there may be replaced.

    Raises:
        [`ExportError`]: the source cannot be read, or what was saved does not give the same embeddings.

    Example:

    ```python
    export_dual_encoder("runs/built_in", "out/dual_encoder")
    ```
    """
    model, processor = load_dual_encoder(source, processor)
    with fresh_folder(folder, overwrite, source) as work:
        model.save_pretrained(work)
        processor.save_pretrained(work)
        update_json(work / "config.json", auto_map=None, custom_pipelines=None)
        update_json(work / "processor_config.json", auto_map=None)
        if remote_code:
            update_json(work / "config.json", auto_map=AUTO_MAP, custom_pipelines=CUSTOM_PIPELINES)
            processor_map = {"AutoProcessor": AUTO_MAP["AutoProcessor"]}
            update_json(work / "processor_config.json", auto_map=processor_map)
            _copy_code(work)
        pixels = noise(processor.image_processor).to(model.device, model.dtype)
        loaded = PACLModel.from_pretrained(work, dtype=model.dtype).eval().to(model.device)
        with torch.no_grad():
            found, expected = (m.get_image_features(pixels).pooler_output for m in (loaded, model))
        difference = require_equal(found, expected, "picture embeddings, reloaded,")
    needed = "`trust_remote_code=True`, or `import pacl`" if remote_code else "`import pacl`"
    return Export("dual_encoder", Path(folder), (f"Loading needs {needed}.",), difference)


def _copy_code(folder: Path) -> None:
    """The files of `modeling_pacl/`, which import nothing but each other, torch and transformers."""
    for path in sorted(Path(pacl.__file__).parent.glob("*.py")):
        if path.name != "__init__.py":
            shutil.copyfile(path, folder / path.name)
