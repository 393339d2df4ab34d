"""An enhanced backbone as ONNX, by torch's own exporter, checked in ONNX Runtime. Needs the extra `onnx`."""

from __future__ import annotations

import copy
import importlib
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import BaseImageProcessor, PreTrainedModel

from pacl import PACLModel, PACLProcessor
from pacl.pooling import pool_vision

from .export_base import Export, ExportError, load_tower, noise, require_equal
from .exports import is_timm

OUTPUTS = ("features", "last_hidden_state")
BATCHES = (1, 3)  # the exporter sees two pictures: other numbers show that the batch is free


class PooledTower(nn.Module):
    """A vision tower that returns what ONNX is to hold: pooled features, and the last hidden state."""

    def __init__(self, tower: PreTrainedModel, pooling: str):
        super().__init__()
        self.tower, self.pooling = tower, pooling

    def forward(self, pixel_values: Tensor) -> tuple[Tensor, Tensor]:
        """Features of shape `(batch, dim)`; tokens `(batch, tokens, dim)` or maps `(batch, dim, height, width)`."""
        outputs = self.tower(pixel_values=pixel_values, return_dict=True)
        return pool_vision(outputs, self.pooling), outputs["last_hidden_state"]


def export_onnx(
    backbone: str | Path | PACLModel | PreTrainedModel,
    file: str | Path,
    *,
    processor: PACLProcessor | BaseImageProcessor | None = None,
    pooling: str = "auto",
    overwrite: bool = False,
) -> Export:
    """
    Save a backbone as one ONNX file with a free batch size.

    Its input is `pixel_values`, as the backbone's image processor makes them; its outputs are `features` of shape
    `(batch, dim)` and `last_hidden_state`. ONNX Runtime then runs the file on random pictures, and what comes out must
    equal what torch gives.

    Args:
        backbone (`str`, `Path`, [`PACLModel`] or `PreTrainedModel`):
            A run's folder, its `backbone/` or `dual_encoder/`, any vision model, or a model in memory.
        file (`str` or `Path`):
            The file to write, `….onnx`.
        processor (*optional*):
            The image processor, or a processor that has one; needed with a model in memory.
        pooling (`str`, *optional*, defaults to `"auto"`):
            As in `PACLConfig.vision_pooling`; a [`PACLModel`]'s own wins.
        overwrite (`bool`, *optional*, defaults to `False`):
            Whether a file that is there may be replaced.

    Returns:
        [`Export`]: its `difference` is the largest one between ONNX Runtime's outputs and torch's.

    Raises:
        [`ExportError`]: the extra is not installed, the model cannot be exported, or its outputs differ.

    Example:

    ```python
    export_onnx("runs/built_in", "out/backbone.onnx")
    features, _ = onnxruntime.InferenceSession("out/backbone.onnx").run(None, {"pixel_values": pixels})
    ```
    """
    runtime = _require_extra()
    target = Path(file)
    if target.exists() and not overwrite:
        raise ExportError(f"{target} is there; choose another name, or pass overwrite=True")
    tower = load_tower(backbone, processor, pooling)
    copied = copy.deepcopy(tower.model).float().cpu()
    if copied._supports_sdpa and not is_timm(copied):
        # The exporter loses the memory layout of scaled_dot_product_attention where windows are reordered (Swin).
        copied.set_attn_implementation("eager")
    model = PooledTower(copied, tower.pooling).eval()
    pixels = noise(tower.image_processor, pictures=max(BATCHES))
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{target.name}-", dir=target.parent) as place:
        work = Path(place) / target.name
        try:
            torch.onnx.export(
                model,
                (pixels[:2],),
                work,
                input_names=["pixel_values"],
                output_names=list(OUTPUTS),
                dynamic_shapes={"pixel_values": {0: torch.export.Dim("batch")}},
                dynamo=True,
                external_data=False,
                verbose=False,
            )
        except Exception as error:  # the exporter's own errors have no common base but this
            name = type(tower.model).__name__
            raise ExportError(f"torch cannot export {name} to ONNX: {_first_line(error)}") from error
        difference = _compare(runtime, work, model, pixels)
        work.replace(target)
    size = "×".join(str(side) for side in pixels.shape[1:])
    note = (
        f"`{target.name}` takes `pixel_values` of shape (batch, {size}) and gives `features` and `last_hidden_state`."
    )
    return Export("onnx", target, (note,), difference)


def _require_extra() -> Any:
    """ONNX Runtime, if all that exporting needs is installed."""
    try:
        importlib.import_module("onnxscript")
        return importlib.import_module("onnxruntime")
    except ImportError as error:
        raise ExportError(f'exporting to ONNX needs {error.name}: pip install "pacl[onnx]"') from error


def _compare(runtime: Any, file: Path, model: PooledTower, pixels: Tensor) -> float:
    """The largest relative difference between ONNX Runtime and torch, over several batch sizes."""
    session = runtime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    differences = []
    for batch in BATCHES:
        found = session.run(list(OUTPUTS), {"pixel_values": pixels[:batch].numpy()})
        with torch.no_grad():
            expected = model(pixels[:batch])
        for name, one, other in zip(OUTPUTS, found, expected, strict=True):
            differences.append(require_equal(torch.from_numpy(one), other, f"{name} of ONNX Runtime"))
    return max(differences)


def _first_line(error: Exception) -> str:
    return next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
