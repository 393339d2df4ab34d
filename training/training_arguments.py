"""Transformers' `TrainingArguments` with the paper's values as defaults, and what Stage 3 adds to them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from transformers import PreTrainedConfig, TrainingArguments

from pacl.configuration_pacl import require_choice

from .collator import AUGMENTATIONS, PictureTransform, training_transform
from .sampler import BATCH_SHARES
from .schedule import SAMPLE_USAGES


@dataclass
class PACLTrainingArguments(TrainingArguments):
    """
    `TrainingArguments` with the paper's values as defaults, and what PACL adds.

    The temperature is the model's (`PACLConfig.temperature`).
    """

    learning_rate: float | None = field(  # type: ignore[assignment]
        default=None,
        metadata={"help": "Of the vision tower. By default the paper's: ResNet 1e-3, Swin 2e-5, ViT and CLIP 1e-5."},
    )
    projection_learning_rate: float = field(default=1e-3, metadata={"help": "Of both projections (the paper's)."})
    sample_usage: str = field(
        default="all",
        metadata={"help": "Partitions that train (paper, Table 4).", "choices": list(SAMPLE_USAGES)},
    )
    batch_shares: str = field(
        default="equal",
        metadata={"help": "Shares of the partitions in a batch (method.md, reading 5).", "choices": BATCH_SHARES},
    )
    augmentation: str = field(
        default="crop_flip",
        metadata={"help": "Random resized crop and flip, or none.", "choices": AUGMENTATIONS},
    )
    crop_scale: float = field(default=0.5, metadata={"help": "Least share of a picture's area that a crop keeps."})
    image_size: int | None = field(
        default=None, metadata={"help": "Side of training pictures in pixels. By default the image processor's."}
    )
    gradient_cache_chunk_size: int | None = field(
        default=None,
        metadata={
            "help": "Gradient caching: pictures that go through the vision tower together, fewer than a batch holds."
        },
    )
    park_text_tower: bool = field(
        default=True,
        metadata={
            "help": "Whether a frozen text tower whose features are ready is out of memory during training. Callbacks "
            "that embed texts need it."
        },
    )

    num_train_epochs: float = field(default=30, metadata={"help": "Epochs; each third of them is one phase."})
    per_device_train_batch_size: int = field(default=64, metadata={"help": "Pairs in a batch, per device."})
    per_device_eval_batch_size: int = field(default=64, metadata={"help": "Pairs in an evaluation batch, per device."})
    lr_scheduler_type: str = field(default="cosine", metadata={"help": "Decay of the learning rates."})  # type: ignore[assignment]
    weight_decay: float = field(default=0.01, metadata={"help": "AdamW's own default; the paper names none."})
    # The partition columns are no arguments of the model's forward; and a NaN loss is to be seen.
    remove_unused_columns: bool = field(default=False, metadata={"help": "Must be False."})
    logging_nan_inf_filter: bool = field(default=False, metadata={"help": "Whether to hide NaN losses in the log."})

    hub_private_repo: bool | None = field(
        default=True, metadata={"help": "Whether a repo that push_to_hub makes is private."}
    )

    def picture_transform(self, image_processor: Any) -> PictureTransform:
        """What training pictures go through for a tower with this image processor."""
        return training_transform(image_processor, self.augmentation, self.image_size, self.crop_scale)

    def __getstate__(self) -> dict[str, Any]:
        # `Trainer` pickles its arguments beside the weights and pushes both: the token stays at home.
        return self.__dict__ | {"hub_token": None}

    def __post_init__(self) -> None:
        super().__post_init__()
        require_choice("sample_usage", self.sample_usage, SAMPLE_USAGES)
        require_choice("batch_shares", self.batch_shares, BATCH_SHARES)
        require_choice("augmentation", self.augmentation, AUGMENTATIONS)
        if not 0 < self.crop_scale <= 1:
            raise ValueError(f"crop_scale must be greater than 0 and at most 1, got {self.crop_scale}")
        if self.gradient_cache_chunk_size is not None and self.gradient_cache_chunk_size < 1:
            raise ValueError(f"gradient_cache_chunk_size must be at least 1, got {self.gradient_cache_chunk_size}")
        checkpointing: Any = self.gradient_checkpointing_kwargs or {}
        if self.gradient_cache_chunk_size and checkpointing.get("use_reentrant"):
            raise ValueError("gradient_cache_chunk_size needs use_reentrant=False in gradient_checkpointing_kwargs")
        if self.remove_unused_columns:
            raise ValueError("remove_unused_columns must be False: the loss reads columns that the model does not")
        accelerator_config: Any = self.accelerator_config
        if accelerator_config.dispatch_batches or accelerator_config.split_batches:
            raise ValueError(
                "dispatch_batches and split_batches must not be True: batches are made whole, with every partition"
            )


def paper_learning_rate(vision_config: PreTrainedConfig) -> float:
    """
    The paper's learning rate for a vision tower: 1e-3 for ResNet-50, 2e-5 for Swin, 1e-5 for ViT and CLIP.

    Other convolutional families go with ResNet; everything unknown takes the smallest.
    """
    name = (getattr(vision_config, "architecture", None) or vision_config.model_type).lower()
    if "swin" in name:
        return 2e-5
    convolutional = ("resnet", "resnext", "regnet", "mobilenet", "efficientnet", "densenet", "vgg")
    return 1e-3 if any(family in name for family in convolutional) else 1e-5
