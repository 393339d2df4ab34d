"""What all exports share: what they return, how they fail, where they read from, and folders written whole or not at
all.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoProcessor, BaseImageProcessor, PreTrainedModel

from pacl import PACLConfig, PACLModel, PACLProcessor
from pacl.towers import load_vision_tower

TOLERANCE = 1e-4
"""Largest difference allowed between what was exported and what is loaded again, relative to the largest value."""


class ExportError(ValueError):
    """A model cannot be had in the format that was asked for; the message says why, and what can be done instead."""


@dataclass(frozen=True)
class Export:
    """
    What an export has written.

    Args:
        kind (`str`): `backbone`, `timm_backbone`, `dual_encoder`, `vision_text_dual_encoder`, `classifier` or `onnx`.
        path (`Path`): where it lies: a folder, or the one file of ONNX.
        notes (`tuple[str, ...]`): what its users must know, one sentence or two each; for the model card.
        difference (`float`): the largest difference that was seen between its outputs, loaded again, and
            those of the model it was made from, relative to the largest output.
    """

    kind: str
    path: Path
    notes: tuple[str, ...] = ()
    difference: float = 0.0

    @property
    def files(self) -> list[Path]:
        """The files, relative to the folder they are in."""
        if self.path.is_file():
            return [Path(self.path.name)]
        return sorted(path.relative_to(self.path) for path in self.path.rglob("*") if path.is_file())


@dataclass(frozen=True)
class Tower:
    """A vision tower ready for export: the model, its image processor, and how its output is pooled."""

    model: PreTrainedModel
    image_processor: BaseImageProcessor
    pooling: str


def load_dual_encoder(source: str | Path | PACLModel, processor: PACLProcessor | None) -> tuple[PACLModel, Any]:
    """
    A [`PACLModel`] in evaluation mode, with its processor.

    Args:
        source (`str`, `Path` or [`PACLModel`]): a run's folder, its `dual_encoder/`, a Hub id, or the model.
        processor ([`PACLProcessor`], *optional*): needed with a model, read from the folder otherwise.

    Raises:
        [`ExportError`]: a model without processor, or a source that is no dual encoder of PACL.
    """
    if isinstance(source, PACLModel):
        if processor is None:
            raise ExportError("processor is missing: with a model in memory, give its PACLProcessor too")
        return source.eval(), processor
    path = _part_of_run(source, "dual_encoder")
    try:
        model = PACLModel.from_pretrained(path)
        return model.eval(), processor or AutoProcessor.from_pretrained(path)
    except (OSError, ValueError, TypeError) as error:
        raise ExportError(f"{path} cannot be read as a PACL dual encoder: {error}") from error


def load_tower(
    source: str | Path | PACLModel | PreTrainedModel,
    processor: PACLProcessor | BaseImageProcessor | None = None,
    pooling: str = "auto",
) -> Tower:
    """
    A vision tower in evaluation mode.

    Args:
        source (`str`, `Path`, [`PACLModel`] or `PreTrainedModel`): a run's folder, its `backbone/` or `dual_encoder/`,
            any vision model's folder or Hub id, or a model.
        processor (*optional*): its image processor, or a processor that has one; needed with a model.
        pooling (`str`, *optional*, defaults to `"auto"`): as in `PACLConfig.vision_pooling`; a [`PACLModel`]'s own
            wins.

    Raises:
        [`ExportError`]: a model without processor, or a source that cannot be read.
    """
    if isinstance(source, PreTrainedModel):
        if processor is None:
            raise ExportError("processor is missing: with a model in memory, give its image processor too")
        tower, name = source, type(source).__name__
    else:
        name = _part_of_run(source, "backbone")
        try:
            if PACLConfig.get_config_dict(name)[0].get("model_type") == PACLConfig.model_type:
                tower, processor = load_dual_encoder(name, processor)  # type: ignore[arg-type]
            else:
                tower = load_vision_tower(name)
                processor = processor or AutoImageProcessor.from_pretrained(name)
        except (OSError, ValueError) as error:
            raise ExportError(f"{name} cannot be read as a vision model: {error}") from error
    if isinstance(tower, PACLModel):
        tower, pooling = tower.vision_model, tower.config.vision_pooling
    if tower.main_input_name != "pixel_values":
        raise ExportError(f"{name} is no vision model: it does not take pixel_values")
    return Tower(tower.eval(), getattr(processor, "image_processor", processor), pooling)


def _part_of_run(source: str | Path, part: str) -> str:
    """The part of a run's folder, or the source itself where it is no run's folder."""
    inside = Path(source) / part
    return str(inside if inside.is_dir() else source)


@contextmanager
def fresh_folder(folder: str | Path, overwrite: bool, source: Any = None) -> Iterator[Path]:
    """
    A folder beside the one asked for, which takes its place once everything is written and checked.

    Raises:
        [`ExportError`]: there is something at that place, and it is not to be overwritten or holds the source.
    """
    target = Path(folder)
    if isinstance(source, str | Path) and Path(source).exists():
        inside = Path(source).resolve()
        if target.resolve() in (inside, *inside.parents):
            raise ExportError(f"{target} holds what is to be exported ({source}); choose another folder")
    if target.exists() and not overwrite and (not target.is_dir() or any(target.iterdir())):
        raise ExportError(f"{target} is there and not empty; choose another folder, or pass overwrite=True")
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{target.name}-", dir=target.parent) as place:
        work = Path(place) / target.name  # made anew with the usual permissions, which a temporary folder has not
        work.mkdir()
        yield work
        for path in work.glob("*config.json"):
            content = json.loads(path.read_text(encoding="utf-8"))
            if content != (clean := _without_local_names(content)):
                _write_json(path, clean)
        if target.is_dir():
            shutil.rmtree(target)
        else:
            target.unlink(missing_ok=True)
        work.rename(target)


def _without_local_names(content: Any) -> Any:
    """JSON without the folders that models were loaded from; Hub ids, which tell where weights are from, stay."""
    if isinstance(content, list):
        return [_without_local_names(entry) for entry in content]
    if not isinstance(content, dict):
        return content
    return {
        key: _without_local_names(value)
        for key, value in content.items()
        if not (key.endswith("name_or_path") and value and (Path(value).is_absolute() or Path(value).exists()))
    }


def update_json(path: Path, **values: Any) -> None:
    """Set entries of a JSON file; None removes them."""
    content = json.loads(path.read_text(encoding="utf-8")) | values
    _write_json(path, {key: value for key, value in content.items() if value is not None or key not in values})


def _write_json(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def noise(image_processor: Any, pictures: int = 4, seed: int = 0) -> torch.Tensor:
    """Pictures of random noise as the model gets them, of shape `(pictures, channels, height, width)`."""
    rng = np.random.default_rng(seed)
    images = [Image.fromarray(rng.integers(0, 256, (96, 128, 3), dtype=np.uint8)) for _ in range(pictures)]
    return image_processor(images=images, return_tensors="pt")["pixel_values"]


def require_equal(found: torch.Tensor, expected: torch.Tensor, what: str) -> float:
    """
    The largest difference between two tensors, relative to the largest value that is expected.

    Raises:
        [`ExportError`]: it is more than `TOLERANCE`, or the shapes differ.
    """
    if found.shape != expected.shape:
        raise ExportError(f"{what} have the shape {tuple(found.shape)} instead of {tuple(expected.shape)}")
    difference = float((found.float() - expected.float()).abs().max() / expected.float().abs().max().clamp(min=1e-12))
    if not difference <= TOLERANCE:
        raise ExportError(f"{what} differ by {difference:.2g} of the largest value; at most {TOLERANCE:g} is allowed")
    return difference
