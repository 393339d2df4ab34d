"""From rows of a partitioned, clustered dataset to the tensors of a Stage 3 batch, in the data loader's workers."""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import datasets
import numpy as np
import torch
from torch import Tensor
from torchvision.transforms import InterpolationMode, v2
from transformers import ProcessorMixin

from .images import decode_image

AUGMENTATIONS = ("crop_flip", "none")
PAIR_COLUMNS = ("partition", "factual_cluster", "emotional_cluster")


class PairDataset(torch.utils.data.Dataset):
    """
    Rows of a dataset for the collator: only what Stage 3 reads, pictures undecoded, numbers as arrays, and each row's
    own index, from which its augmentation is drawn.

    Args:
        dataset (`datasets.Dataset`):
            With the columns of Stages 1 and 2. Without `text_features` the texts go along, and the frozen text tower
            will run at every step.

    Raises:
        `ValueError`: a column is missing.
    """

    def __init__(self, dataset: datasets.Dataset):
        if missing := [name for name in ("image", *PAIR_COLUMNS) if name not in dataset.column_names]:
            raise ValueError(
                f"the dataset lacks {', '.join(missing)}; it has {', '.join(dataset.column_names)}. "
                "partition_dataset and cluster_dataset write these columns."
            )
        text = "text_features" if "text_features" in dataset.column_names else "text"
        if text not in dataset.column_names:
            raise ValueError("the dataset has neither text_features nor text")
        dataset = dataset.select_columns(["image", text, *PAIR_COLUMNS])
        dataset = dataset.cast_column("image", datasets.Image(decode=False))
        arrays = [name for name in (text, *PAIR_COLUMNS) if name != "text"]
        self.dataset = dataset.with_format("numpy", columns=arrays, output_all_columns=True)

    @property
    def partition(self) -> np.ndarray:
        """Partition of every row, shape `(N,)`."""
        return self.dataset.with_format("numpy")["partition"][:]

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitems__(self, indices: list[int]) -> list[dict[str, Any]]:
        rows = self.dataset[indices]
        return [{"index": i, **{name: rows[name][k] for name in rows}} for k, i in enumerate(indices)]

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.__getitems__([index])[0]


@dataclass(frozen=True)
class ImageGeometry:
    """What an image processor makes of a picture: size in pixels, normalisation per channel, interpolation."""

    height: int
    width: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    interpolation: InterpolationMode

    @classmethod
    def of(cls, image_processor: Any) -> ImageGeometry:
        """
        Read it from an image processor of transformers or, for timm models, a `TimmWrapperImageProcessor`.

        Raises:
            `ValueError`: the processor names no size.
        """
        if (timm_config := getattr(image_processor, "data_config", None)) is not None:
            _, height, width = timm_config["input_size"]
            interpolation = InterpolationMode(timm_config["interpolation"])
            return cls(height, width, tuple(timm_config["mean"]), tuple(timm_config["std"]), interpolation)
        crops = getattr(image_processor, "do_center_crop", False)
        size = dict((image_processor.crop_size if crops else image_processor.size) or {})
        edge = size.get("shortest_edge")
        height, width = size.get("height", edge), size.get("width", edge)
        if not height or not width:
            raise ValueError(f"{type(image_processor).__name__} names no picture size (size={size})")
        normalises = getattr(image_processor, "do_normalize", True)
        mean = tuple(image_processor.image_mean) if normalises else (0.0, 0.0, 0.0)
        std = tuple(image_processor.image_std) if normalises else (1.0, 1.0, 1.0)
        resample = int(getattr(image_processor, "resample", None) or 2)
        return cls(int(height), int(width), mean, std, _PIL_INTERPOLATIONS[resample])


_PIL_INTERPOLATIONS = {
    0: InterpolationMode.NEAREST,
    1: InterpolationMode.LANCZOS,
    2: InterpolationMode.BILINEAR,
    3: InterpolationMode.BICUBIC,
    4: InterpolationMode.BOX,
    5: InterpolationMode.HAMMING,
}


def training_transform(
    image_processor: Any, augmentation: str = "crop_flip", image_size: int | None = None, crop_scale: float = 0.5
) -> v2.Compose:
    """
    The transform of a training picture, from PIL to a normalised float tensor `(3, height, width)`.

    Args:
        image_processor (`BaseImageProcessor`):
            Of the vision tower; gives the size and the normalisation.
        augmentation (`str`, *optional*, defaults to `"crop_flip"`):
            `"crop_flip"`: random resized crop and horizontal flip. `"none"`: resize of the shorter
            side and centre crop.
        image_size (`int`, *optional*):
            Another size in pixels for both sides, for towers that take any.
        crop_scale (`float`, *optional*, defaults to 0.5):
            Least share of the picture's area that a crop keeps.
    """
    geometry = ImageGeometry.of(image_processor)
    size = [image_size or geometry.height, image_size or geometry.width]
    if augmentation == "crop_flip":
        spatial = [
            v2.RandomResizedCrop(size, scale=(crop_scale, 1.0), interpolation=geometry.interpolation, antialias=True),
            v2.RandomHorizontalFlip(),
        ]
    elif augmentation == "none":
        spatial = [v2.Resize(min(size), interpolation=geometry.interpolation, antialias=True), v2.CenterCrop(size)]
    else:
        raise ValueError(f"augmentation must be one of {', '.join(AUGMENTATIONS)}, got {augmentation!r}")
    to_tensor = [v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(geometry.mean, geometry.std)]
    return v2.Compose([*spatial, *to_tensor])


class PACLCollator:
    """
    Decodes, augments and stacks the rows of a [`PairDataset`].

    A picture's augmentation is drawn from the seed, the epoch and its row alone, so that a run gives the same batches
    with any number of workers and processes, and after a resumption.

    Args:
        processor ([`PACLProcessor`]):
            Its tokenizer is used where rows hold texts instead of `text_features`.
        transform (`v2.Compose`):
            From a PIL picture to a tensor `(3, height, width)`.
        seed (`int`, *optional*, defaults to 0):
            Seed of the augmentation.

    Returns:
        `dict[str, torch.Tensor]`: `pixel_values` `(B, 3, H, W)`; `text_features` `(B, D)` or `input_ids` and
        `attention_mask` `(B, L)`; `partition`, `factual_cluster`, `emotional_cluster` `(B,)`.
    """

    def __init__(self, processor: ProcessorMixin, transform: v2.Compose, seed: int = 0):
        self.processor = processor
        self.transform = transform
        self.seed = seed
        # In shared memory, so that workers that outlive an epoch see the next one.
        self._epoch = torch.zeros(1, dtype=torch.long).share_memory_()

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose augmentations are drawn."""
        self._epoch.fill_(epoch)

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        pictures = torch.stack([self._picture(row) for row in rows])
        # The layout in which convolutions are fastest on CPUs and with mixed precision; others do not mind.
        batch = {"pixel_values": pictures.contiguous(memory_format=torch.channels_last)}
        if "text_features" in rows[0]:
            batch["text_features"] = torch.from_numpy(np.stack([row["text_features"] for row in rows]))
        else:
            tokens = self.processor.tokenizer(
                [row["text"] for row in rows], padding=True, truncation=True, return_tensors="pt"
            )
            batch |= dict(tokens)
        for name in PAIR_COLUMNS:
            batch[name] = torch.tensor([int(row[name]) for row in rows])
        return batch

    def _picture(self, row: Mapping[str, Any]) -> Tensor:
        image = decode_image(row["image"])
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(zlib.crc32(f"{self.seed} {int(self._epoch)} {row['index']}".encode()))
            return self.transform(image)
