"""From rows of a partitioned, clustered dataset to the tensors of a Stage 3 batch, in the data loader's workers."""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import datasets
import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import InterpolationMode, v2
from transformers import ProcessorMixin

from .images import ImageValue, StoredImage

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
    def has_text_features(self) -> bool:
        """Whether the text tower's work is done."""
        return "text_features" in self.dataset.column_names

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
_PIL_RESAMPLING = {mode: Image.Resampling(number) for number, mode in _PIL_INTERPOLATIONS.items()}


def training_transform(
    image_processor: Any, augmentation: str = "crop_flip", image_size: int | None = None, crop_scale: float = 0.5
) -> PictureTransform:
    """
    The transform of a training picture.

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
    if augmentation not in AUGMENTATIONS:
        raise ValueError(f"augmentation must be one of {', '.join(AUGMENTATIONS)}, got {augmentation!r}")
    geometry = ImageGeometry.of(image_processor)
    if image_size:
        geometry = replace(geometry, height=image_size, width=image_size)
    return PictureTransform(geometry, crop_scale if augmentation == "crop_flip" else None)


class PictureTransform:
    """
    From a stored picture to pixels of the training size, and from a batch of these to a tower's input.

    A random crop is chosen before the picture is decoded: a JPEG whose crop is at least 2, 4 or 8 times larger than
    the training size, both ways, is decoded so many times smaller. The result differs by about half a grey level of
    255 from that of the whole picture.

    Args:
        geometry ([`ImageGeometry`]):
            Size, normalisation and interpolation.
        crop_scale (`float`, *optional*):
            Least share of the area that a random crop keeps, before a random flip. Without it the shorter side is
            resized, the centre cropped, and nothing is random.
    """

    def __init__(self, geometry: ImageGeometry, crop_scale: float | None = None):
        self.geometry = geometry
        self.size = [geometry.height, geometry.width]
        how = {"interpolation": geometry.interpolation, "antialias": True}
        self.crop = None if crop_scale is None else v2.RandomResizedCrop(self.size, scale=(crop_scale, 1.0), **how)
        self.flip = v2.RandomHorizontalFlip()
        self.centre = v2.Compose([v2.Resize(min(self.size), **how), v2.CenterCrop(self.size)])

    def __call__(self, value: ImageValue) -> Image.Image:
        """
        The picture as the tower shall see it, in 8-bit RGB, with what is random drawn from torch's global generator.

        Raises:
            [`ImageError`]: it cannot be decoded.
        """
        picture = StoredImage(value)
        if self.crop is None:
            return self.centre(picture.decode())
        width, height = picture.size
        crop = self.crop.make_params([torch.empty(1, height, width, device="meta")])
        image = picture.decode(reduce_by=min(crop["width"] / self.size[1], crop["height"] / self.size[0]))
        if picture.box is None:
            return self.flip(self.crop.transform(image, crop))
        left, top, right, _ = picture.box
        scale = (right - left) / width
        # A box of fractions: rounded to whole pixels of the smaller picture, the crop would be another one.
        left, top = left + crop["left"] * scale, top + crop["top"] * scale
        box = (left, top, left + crop["width"] * scale, top + crop["height"] * scale)
        return self.flip(image.resize(self.size[::-1], _PIL_RESAMPLING[self.geometry.interpolation], box))

    def spare(self, width: int, height: int) -> float:
        """How many times smaller a picture of this size may be stored, with no crop ever too small for training."""
        least = min(width, height)
        if self.crop is None:
            return least / min(self.size)
        least_crop = math.sqrt(min(self.crop.scale) * min(self.crop.ratio) * width * height)
        return min(least, least_crop) / max(self.size)

    def normalize(self, pictures: Sequence[Image.Image]) -> Tensor:
        """
        A tower's input, float of shape `(B, 3, height, width)`.

        It is laid out with channels last, in which convolutions are fastest on CPUs and with mixed precision; others
        do not mind.
        """
        pixels = torch.from_numpy(np.stack([np.asarray(picture) for picture in pictures]))
        pixels = v2.functional.to_dtype(pixels, torch.float32, scale=True)
        # Whole rows of pixels at a time: on three channels alone vector instructions are of no use.
        mean, std = (torch.tensor(values).repeat(self.size[1]) for values in (self.geometry.mean, self.geometry.std))
        pixels.flatten(2).sub_(mean).div_(std)
        return pixels.permute(0, 3, 1, 2)


class PACLCollator:
    """
    Decodes, augments and stacks the rows of a [`PairDataset`].

    A picture's augmentation is drawn from the seed, the epoch and its row alone, so that a run gives the same batches
    with any number of workers and processes, and after a resumption.

    Args:
        processor ([`PACLProcessor`]):
            Its tokenizer is used where rows hold texts instead of `text_features`.
        transform ([`PictureTransform`]):
            From a stored picture to the tower's input.
        seed (`int`, *optional*, defaults to 0):
            Seed of the augmentation.

    Returns:
        `dict[str, torch.Tensor]`: `pixel_values` `(B, 3, H, W)`; `text_features` `(B, D)` or `input_ids` and
        `attention_mask` `(B, L)`; `partition`, `factual_cluster`, `emotional_cluster` `(B,)`.
    """

    def __init__(self, processor: ProcessorMixin, transform: PictureTransform, seed: int = 0):
        self.processor = processor
        self.transform = transform
        self.seed = seed
        # In shared memory, so that workers that outlive an epoch see the next one.
        self._epoch = torch.zeros(1, dtype=torch.long).share_memory_()

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose augmentations are drawn."""
        self._epoch.fill_(epoch)

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        with torch.random.fork_rng(devices=[]):
            pictures = [self._picture(row) for row in rows]
        batch = {"pixel_values": self.transform.normalize(pictures)}
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

    def _picture(self, row: Mapping[str, Any]) -> Image.Image:
        # Not `torch.manual_seed`: it seeds accelerators too, which takes a third of the time of a small picture, and
        # would let what the model draws there begin anew.
        torch.default_generator.manual_seed(zlib.crc32(f"{self.seed} {int(self._epoch)} {row['index']}".encode()))
        return self.transform(row["image"])
