"""Fine-tuning of a backbone with a task's heads through `Trainer`, with the paper's learning rates."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from torch import Tensor, nn
from torch.utils.data import default_collate
from torchvision.transforms import v2
from transformers import EvalPrediction, Trainer, TrainingArguments
from transformers.trainer_utils import get_last_checkpoint

from pacl.pooling import pool_vision

from .backbones import Backbone
from .features import decode_picture, undecoded
from .pdanet import PDANetHeads, PolarityConsistentLoss
from .tasks import LinearHeads, Task, start_at_training_labels

RESNET_LEARNING_RATE = 1e-4
OTHER_LEARNING_RATE = 1e-5

HEADS = ("linear", "pdanet")


class BackboneWithHeads(nn.Module):
    """A backbone with the heads of a task, trained together.

    Args:
        backbone ([`Backbone`]): its model is copied, so that the next seed finds it as it was.
        task ([`Task`]): what is learnt.
        heads (`str`, *optional*, defaults to `"linear"`): linear heads on the pooled features, or `"pdanet"`.
    """

    accepts_loss_kwargs = False

    def __init__(self, backbone: Backbone, task: Task, heads: str = "linear") -> None:
        super().__init__()
        if heads not in HEADS:
            raise ValueError(f"heads must be one of {', '.join(HEADS)}; got {heads!r}")
        self.backbone = copy.deepcopy(backbone.model).float()  # AdamW's small steps vanish in half precision
        self.pooling = backbone.pooling
        self.on_map = heads == "pdanet"
        self.heads = (PDANetHeads if self.on_map else LinearHeads)(task, backbone.embed_dim)
        self.criterion = PolarityConsistentLoss(task) if self.on_map else task.loss

    def gradient_checkpointing_enable(self, **kwargs: Any) -> None:
        """Where `Trainer` asks for it: the backbone's."""
        self.backbone.gradient_checkpointing_enable(**kwargs)

    def forward(self, pixel_values: Tensor, targets: Mapping[str, Tensor]) -> dict[str, Any]:
        """`loss`, a scalar, and `logits` by head of shape `(batch, outputs)`."""
        outputs = self.backbone(pixel_values=pixel_values, return_dict=True)
        logits = self.heads(outputs["last_hidden_state"] if self.on_map else pool_vision(outputs, self.pooling))
        return {"loss": self.criterion(logits, targets), "logits": logits}


class LabelledPictures(torch.utils.data.Dataset):
    """Pictures and labels of one split, decoded and transformed in the loader's workers.

    Args:
        dataset (`datasets.Dataset`): with a column `image`.
        task ([`Task`]): reads the labels.
        backbone ([`Backbone`]): whose image transform is used.
        augment (`bool`): whether to show a random half or more of each picture, and its mirror image at times.
    """

    def __init__(self, dataset: Dataset, task: Task, backbone: Backbone, augment: bool) -> None:
        self.pictures = undecoded(dataset, "image")
        self.targets = task.read(dataset)
        self.image_processor = backbone.image_processor
        self.augmentation: Callable[[Any], Any] | None = None
        if augment:
            size = backbone.image_processor(v2.functional.to_pil_image(torch.zeros(3, 32, 32)), return_tensors="pt")
            height, width = size["pixel_values"].shape[-2:]
            crop = v2.RandomResizedCrop((height, width), scale=(0.5, 1.0), antialias=True)
            self.augmentation = v2.Compose([crop, v2.RandomHorizontalFlip()])

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, row: int) -> dict[str, Any]:
        image = decode_picture(self.pictures[row]["image"], row)
        if self.augmentation is not None:
            image = self.augmentation(image)
        pixel_values = self.image_processor(image, return_tensors="pt")["pixel_values"][0]
        return {"pixel_values": pixel_values, "targets": {name: values[row] for name, values in self.targets.items()}}


class FineTuner(Trainer):
    """`Trainer` with one learning rate for the backbone and one, `args.learning_rate`, for the heads."""

    def __init__(self, *args: Any, backbone_learning_rate: float, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.backbone_learning_rate = backbone_learning_rate
        self.loss_is_scaled_for_ga = False  # the loss is a plain mean; without this, accumulation multiplies gradients

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """Groups by backbone and heads, each with and without weight decay, as `Trainer` divides parameters."""
        if self.optimizer is None:
            module: Any = self.model if model is None else model
            decayed = set(self.get_decay_parameter_names(module))
            groups: dict[tuple[bool, bool], dict[str, Any]] = {}
            for name, parameter in module.named_parameters():
                in_backbone, decay = ".backbone." in f".{name}", name in decayed
                rate = self.backbone_learning_rate if in_backbone else self.args.learning_rate
                group = {"params": [], "lr": rate, "weight_decay": self.args.weight_decay if decay else 0.0}
                groups.setdefault((in_backbone, decay), group)["params"].append(parameter)
            optimizer, options = self.get_optimizer_cls_and_kwargs(self.args, module)
            options.pop("lr", None)
            self.optimizer = optimizer(list(groups.values()), lr=self.args.learning_rate, **options)
        return self.optimizer


def default_backbone_learning_rate(backbone: Backbone) -> float:
    """The paper's: 1e-4 for ResNets, 1e-5 for all other backbones."""
    config = backbone.model.config
    family = f"{config.model_type} {getattr(config, 'architecture', '')}"
    return RESNET_LEARNING_RATE if "resnet" in family else OTHER_LEARNING_RATE


def finetune(
    backbone: Backbone,
    task: Task,
    splits: Mapping[str, Dataset],
    args: TrainingArguments,
    *,
    heads: str = "linear",
    backbone_learning_rate: float | None = None,
    augment: bool = True,
) -> tuple[BackboneWithHeads, dict[str, np.ndarray], int]:
    """Trains on `train`, keeps the epoch that is best on `validation`, predicts `test`.

    Goes on from the last checkpoint in `args.output_dir`, where an earlier call was interrupted.

    Args:
        backbone ([`Backbone`]): is left as it was.
        task ([`Task`]): what is learnt.
        splits (`Mapping[str, Dataset]`): `train`, `validation` and `test`.
        args (`TrainingArguments`): of this seed; must save and evaluate by epoch to choose the best one.
        heads (`str`, *optional*, defaults to `"linear"`): or `"pdanet"`.
        backbone_learning_rate (`float`, *optional*): by default the paper's.
        augment (`bool`, *optional*, defaults to `True`): random crops and mirror images in training.

    Returns:
        The model of the best epoch, each head's predictions of the test split, and the number of that epoch.
    """
    torch.manual_seed(args.seed)
    model = BackboneWithHeads(backbone, task, heads)
    parts = {
        name: LabelledPictures(split, task, backbone, augment and name == "train") for name, split in splits.items()
    }
    start_at_training_labels(model.heads, task, parts["train"].targets)

    def compute_metrics(prediction: EvalPrediction) -> dict[str, float]:
        logits = {name: torch.from_numpy(values) for name, values in _dict(prediction.predictions).items()}
        predictions, targets = task.predict(logits), _dict(prediction.label_ids)
        return {**task.score(predictions, targets), "selection": task.selection(predictions, targets)}

    if backbone_learning_rate is None:
        backbone_learning_rate = default_backbone_learning_rate(backbone)
    trainer = FineTuner(
        model,
        args,
        train_dataset=parts["train"],
        eval_dataset=parts["validation"],
        data_collator=default_collate,
        compute_metrics=compute_metrics,
        backbone_learning_rate=backbone_learning_rate,
    )
    folder = Path(str(args.output_dir))
    trainer.train(resume_from_checkpoint=get_last_checkpoint(folder) if folder.is_dir() else None)
    tested = (entry for entry in trainer.state.log_history if "eval_selection" in entry)
    epoch = next(round(entry["epoch"]) for entry in tested if entry["step"] == trainer.state.best_global_step)
    logits = _dict(trainer.predict(parts["test"]).predictions)
    return model, task.predict({name: torch.from_numpy(values) for name, values in logits.items()}), epoch


def _dict(value: Any) -> dict[str, np.ndarray]:
    if not isinstance(value, dict):
        raise TypeError(f"predictions and labels are dicts by head, not {type(value)}")
    return value
