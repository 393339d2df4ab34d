"""Where a vision tower looks: Grad-CAM (package `grad-cam`) at the last layer that still has a place for every region.

That layer is found by watching one pass, so convolutional and token towers of transformers and timm need no list.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from matplotlib import colormaps
from PIL import Image
from pytorch_grad_cam import GradCAM
from torch import Tensor, nn

# Class tokens and registers come before the patches; DINOv2 and its kin have up to 1 + 4 of them, others up to 8.
MOST_PREFIX_TOKENS = 9
SHOWN_SIZE = 320

ToMap = Callable[[Tensor], Tensor]


def look(model: nn.Module, pixel_values: Tensor, score: Callable[[Tensor], Tensor]) -> np.ndarray | None:
    """
    Where in a picture a score comes from.

    Args:
        model (`nn.Module`):
            The model that the score runs; it is set to evaluation mode.
        pixel_values (`torch.Tensor` of shape `(1, channels, height, width)`):
            The preprocessed picture.
        score (`Callable[[Tensor], Tensor]`):
            From pixel values to a scalar that the model's parameters or the pixels have a gradient to.

    Returns:
        `numpy.ndarray` of shape `(height, width)`, from 0 to 1, all 0 where no region speaks for the score; None where
        the model has no layer that keeps places apart.
    """
    model.eval()
    pixels = pixel_values.detach().clone().requires_grad_(True)
    with torch.enable_grad():
        found = find_layer(model, pixels, score)
        if found is None:
            return None
        layer, to_map = found
        with GradCAM(_Scored(model, score), [layer], reshape_transform=to_map) as cam:
            heat = cam(pixels, targets=[lambda output: output])[0]
    model.zero_grad(set_to_none=True)
    heat = np.nan_to_num(heat)
    return heat / heat.max() if heat.max() > 0 else heat


class _Scored(nn.Module):
    """A model with its score, in the form in which `grad-cam` takes models: a batch of one output."""

    def __init__(self, model: nn.Module, score: Callable[[Tensor], Tensor]):
        super().__init__()
        self.model, self.score = model, score

    def forward(self, pixels: Tensor) -> Tensor:
        return self.score(pixels).reshape(1)


def find_layer(model: nn.Module, pixels: Tensor, score: Callable[[Tensor], Tensor]) -> tuple[nn.Module, ToMap] | None:
    """
    The last module whose output is a map, or tokens on a grid, that the score has a gradient to.

    Args:
        model, score: as in [`look`].
        pixels (`torch.Tensor` of shape `(1, channels, height, width)`): requires a gradient.

    Returns:
        The module, and how its output becomes `(1, channels, rows, columns)`; None if there is none.
    """
    size = (pixels.shape[-2], pixels.shape[-1])
    calls: Counter[nn.Module] = Counter()
    seen: list[tuple[nn.Module, Tensor, ToMap]] = []

    def watch(module: nn.Module, inputs: Any, output: Any) -> None:
        calls[module] += 1
        to_map = map_of(module, output, size) if isinstance(output, Tensor) and output.requires_grad else None
        if to_map is not None:
            seen.append((module, output, to_map))

    handles = [module.register_forward_hook(watch) for module in model.modules()]
    try:
        value = score(pixels)
    finally:
        for handle in handles:
            handle.remove()
    # A module that runs more than once in a pass has more than one output, and the library takes the first.
    seen = [entry for entry in seen if calls[entry[0]] == 1]
    gradients = torch.autograd.grad(value.sum(), [output for _, output, _ in seen], allow_unused=True) if seen else ()
    for (module, _, to_map), gradient in reversed(list(zip(seen, gradients, strict=True))):
        if gradient is not None and to_map(gradient).abs().max() > 0:
            return module, to_map
    return None


def map_of(module: nn.Module, output: Tensor, size: tuple[int, int]) -> ToMap | None:
    """
    How a module's output becomes a map of shape `(batch, channels, rows, columns)`, or None if it is none.

    Considered are normalisations, which both kinds of tower have around every block and whose weight tells the
    channels from the places, and modules made of convolutions.
    """
    weight = getattr(module, "weight", None)
    norm = "norm" in type(module).__name__.lower()
    channels_last = norm and isinstance(weight, Tensor) and weight.shape == output.shape[-1:] and not _is_2d(module)
    if output.dim() == 4 and channels_last:
        return _channels_last if _fits(output.shape[1], output.shape[2], size) else None
    if output.dim() == 4 and (norm or any(isinstance(part, nn.Conv2d) for part in module.modules())):
        return _as_it_is if _fits(output.shape[2], output.shape[3], size) else None
    if output.dim() == 3 and channels_last:
        for prefix in range(MOST_PREFIX_TOKENS):
            if grid := _grid(output.shape[1] - prefix, size):
                return _Tokens(prefix, grid)
    return None


def _is_2d(module: nn.Module) -> bool:
    """Normalisations whose channels are the second dimension."""
    return type(module).__name__.endswith("2d") or getattr(module, "data_format", None) == "channels_first"


def _as_it_is(output: Tensor) -> Tensor:
    return output


def _channels_last(output: Tensor) -> Tensor:
    return output.permute(0, 3, 1, 2)


class _Tokens:
    """Lays tokens out on their grid."""

    def __init__(self, prefix: int, grid: tuple[int, int]):
        self.prefix, self.grid = prefix, grid

    def __call__(self, output: Tensor) -> Tensor:
        return output[:, self.prefix :].transpose(1, 2).reshape(output.shape[0], output.shape[2], *self.grid)


def _fits(rows: int, columns: int, size: tuple[int, int]) -> bool:
    """Whether a grid has the shape of the picture and more than one place, but no more than pixels."""
    return 2 <= rows <= size[0] and 2 <= columns <= size[1] and round(columns * size[0] / size[1]) == rows


def _grid(tokens: int, size: tuple[int, int]) -> tuple[int, int] | None:
    rows = round((max(tokens, 0) * size[0] / size[1]) ** 0.5)
    columns = tokens // rows if rows else 0
    return (rows, columns) if rows * columns == tokens and _fits(rows, columns, size) else None


def shown_pixels(pixel_values: Tensor, image_processor: Any) -> Image.Image:
    """The picture as the model got it: resized, cropped, and with the normalisation taken back."""
    picture = pixel_values[0].detach().float().cpu()
    timm = getattr(image_processor, "data_config", {})
    mean = getattr(image_processor, "image_mean", None) or timm.get("mean")
    std = getattr(image_processor, "image_std", None) or timm.get("std")
    if mean is not None and std is not None and getattr(image_processor, "do_normalize", True):
        picture = picture * torch.tensor(std).reshape(-1, 1, 1) + torch.tensor(mean).reshape(-1, 1, 1)
    else:
        low, high = picture.min(), picture.max()
        picture = (picture - low) / (high - low).clamp(min=1e-6)
    array = (picture.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy()
    return Image.fromarray(array if array.shape[2] == 3 else np.repeat(array[:, :, :1], 3, axis=2))


def overlay(picture: Image.Image, heat: np.ndarray) -> Image.Image:
    """
    Lay a map over its picture: the picture in grey, what speaks for the score in light from violet to yellow.

    Args:
        picture (`PIL.Image.Image`): From [`shown_pixels`].
        heat (`numpy.ndarray` of shape `(height, width)`): From [`look`].
    """
    scale = max(SHOWN_SIZE / max(picture.size), 1)
    size = (round(picture.width * scale), round(picture.height * scale))
    grey = picture.convert("L").convert("RGB").resize(size, Image.Resampling.BICUBIC)
    resized = Image.fromarray((heat.clip(0, 1) * 255).astype(np.uint8)).resize(size, Image.Resampling.BICUBIC)
    strength = np.asarray(resized, dtype=np.float32)[..., None] / 255
    colour = colormaps["inferno"](strength[..., 0])[..., :3] * 255
    blended = np.asarray(grey, dtype=np.float32) * (1 - 0.75 * strength) + colour * 0.75 * strength
    return Image.fromarray(blended.clip(0, 255).astype(np.uint8))
