"""What can be asked of `python -m pacl.evaluation`: the evaluation's own fields, and all those of `Trainer`."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
import yaml
from transformers import TrainingArguments

from pacl.configuration_pacl import VISION_POOLINGS, require_choice

from .benchmarks import get_benchmark
from .finetune import HEADS

PROTOCOLS = ("linear", "finetune", "zero_shot")

# Fields of `TrainingArguments` that others of the evaluation stand for.
INSTEAD = {"per_device_train_batch_size": "batch_size", "seed": "seeds"}

# Fields that one protocol alone looks at. Linear evaluation has no `Trainer`: it is always AdamW on a cosine.
ONLY_FOR = {
    "prompts": "zero_shot",
    **dict.fromkeys(("heads", "augment", "backbone_learning_rate", "save_models"), "finetune"),
    **dict.fromkeys(("optim", "lr_scheduler_type", "warmup_steps", "max_steps"), "finetune"),
}


@dataclass
class EvaluationArguments(TrainingArguments):
    """Which backbones to evaluate on which datasets, and how. The fields of `TrainingArguments` have the paper's
    values as defaults (Section 4.1); linear evaluation uses `num_train_epochs`, `learning_rate` and `weight_decay`,
    fine-tuning uses all of them.
    """

    backbone: list[str] = field(
        default_factory=list,
        metadata={"help": "Folders, Hub ids, timm/… ids or EmotionCLIP's file; others are compared with the first."},
    )
    dataset: list[str] = field(default_factory=list, metadata={"help": "Names of benchmarks."})
    data_dir: list[str] = field(
        default_factory=list,
        metadata={"help": "The dataset's folder; of several datasets one each, or one that has them as NAME/."},
    )
    dataset_options: list[str] = field(
        default_factory=list,
        metadata={"help": "NAME.OPTION=VALUE of a reader, such as emotic.crop_dir=DIR."},
    )
    protocol: list[str] = field(
        default_factory=lambda: ["linear"], metadata={"help": "One or several.", "choices": list(PROTOCOLS)}
    )
    seeds: list[int] = field(default_factory=lambda: [0, 1, 2], metadata={"help": "One run each."})
    cross_validate: bool = field(
        default=False,
        metadata={"help": "Test each tenth of the data in turn, where there is no official test split."},
    )
    batch_size: int = field(
        default=64,
        metadata={"help": "Pictures per step over all devices and accumulated batches; each device's size follows."},
    )
    heads: str = field(default="linear", metadata={"help": "Heads to fine-tune with.", "choices": list(HEADS)})
    backbone_learning_rate: float | None = field(
        default=None,
        metadata={"help": "Of the backbone in fine-tuning; by default 1e-4 for ResNets, else 1e-5."},
    )
    augment: bool = field(default=True, metadata={"help": "Random crops and mirror images in fine-tuning."})
    prompts: str | None = field(
        default=None, metadata={"help": "Text file of zero-shot prompts, one a line, [C] for the class name."}
    )
    pooling: str = field(
        default="auto", metadata={"help": "How the backbone's output is pooled.", "choices": list(VISION_POOLINGS)}
    )
    check_pixels: bool = field(
        default=False, metadata={"help": "Decode every picture first, and leave out those whose file ends early."}
    )
    features_dir: str | None = field(default=None, metadata={"help": "Folder of cached features."})
    save_models: bool = field(
        default=False,
        metadata={"help": "Keep fine-tuned models in OUT/models/; the heads of linear evaluation stay anyway."},
    )
    figures: bool = field(default=True, metadata={"help": "Draw the pictures."})

    output_dir: str | None = field(default=None, metadata={"help": "Folder that the results are written to."})
    num_train_epochs: float = field(default=40, metadata={"help": "Epochs."})
    learning_rate: float = field(default=1e-2, metadata={"help": "Of the heads."})
    weight_decay: float = field(default=0.01, metadata={"help": "AdamW's."})
    lr_scheduler_type: str = field(default="cosine", metadata={"help": "As in Trainer."})
    eval_strategy: str = field(default="epoch", metadata={"help": "As in Trainer."})
    save_strategy: str = field(default="epoch", metadata={"help": "As in Trainer."})
    logging_strategy: str = field(default="epoch", metadata={"help": "As in Trainer."})
    save_total_limit: int | None = field(default=1, metadata={"help": "As in Trainer."})
    load_best_model_at_end: bool = field(default=True, metadata={"help": "As in Trainer."})
    report_to: None | str | list[str] = field(default="none", metadata={"help": "As in Trainer."})

    def __post_init__(self) -> None:
        self.protocol = [self.protocol] if isinstance(self.protocol, str) else list(self.protocol)
        self._check()
        # The model takes columns of our own, and the best epoch is chosen by what the task says.
        self.remove_unused_columns, self.label_names = False, ["targets"]
        self.metric_for_best_model, self.greater_is_better = "selection", True
        # accelerate joins processes without a GPU only where told so.
        self.use_cpu = self.use_cpu or not torch.accelerator.is_available()
        super().__post_init__()
        devices = self.world_size * max(1, self.n_gpu) * self.gradient_accumulation_steps
        if self.batch_size % devices:
            shares = f"{devices} devices and accumulated steps"
            raise ValueError(f"--batch_size {self.batch_size} cannot be shared by {shares}")
        self.per_device_train_batch_size = self.batch_size // devices

    def _check(self) -> None:
        """Raises a `ValueError` for what is missing, unknown, or would be ignored."""
        for name in ("backbone", "dataset", "data_dir", "output_dir", "seeds", "protocol"):
            if not getattr(self, name):
                raise ValueError(f"--{name} is missing")
        _refuse_twice("dataset", [get_benchmark(name).name for name in self.dataset])
        for name in ("backbone", "seeds", "protocol"):
            _refuse_twice(name, getattr(self, name))
        for protocol in self.protocol:
            require_choice("--protocol", protocol, PROTOCOLS)
        require_choice("--pooling", self.pooling, VISION_POOLINGS)
        require_choice("--heads", self.heads, HEADS)
        if self.pooling != "auto" and self.protocol == ["zero_shot"]:
            raise ValueError("--pooling: a dual encoder has its own, which zero-shot uses")
        if not self.load_best_model_at_end:
            raise ValueError("--load_best_model_at_end False: the epoch that is best on validation is what is tested")
        given = {each.name for each in fields(self) if getattr(self, each.name) != each.default}
        for name in given & INSTEAD.keys():
            raise ValueError(f"--{name}: give --{INSTEAD[name]}")
        for name in given & ONLY_FOR.keys():
            if ONLY_FOR[name] not in self.protocol:
                raise ValueError(f"--{name} goes with --protocol {ONLY_FOR[name]}")

    def options_by_dataset(self) -> dict[str, dict[str, Any]]:
        """The reader's options of each dataset, by the benchmark's name.

        Raises:
            ValueError: for an option of another form, or of a dataset that isn't evaluated.
        """
        options: dict[str, dict[str, Any]] = {get_benchmark(name).name: {} for name in self.dataset}
        for given in self.dataset_options:
            name, value = given.partition("=")[::2]
            dataset, option = name.partition(".")[::2]
            if not option or not value or dataset not in options:
                raise ValueError(
                    f"--dataset_options {given}: expected NAME.OPTION=VALUE, NAME one of {', '.join(options)}"
                )
            options[dataset][option] = yaml.safe_load(value)
        return options

    def folders(self) -> dict[str, list[Path]]:
        """Where each dataset may lie, by the benchmark's name; the first of these folders that is the dataset counts.

        Raises:
            ValueError: for an unknown dataset, or another number of folders than datasets.
        """
        benchmarks = [get_benchmark(name) for name in self.dataset]
        if len(self.data_dir) == len(benchmarks) > 1:
            return {b.name: [Path(folder)] for b, folder in zip(benchmarks, self.data_dir, strict=True)}
        if len(self.data_dir) != 1:
            raise ValueError(f"{len(benchmarks)} datasets need one --data_dir or as many; got {len(self.data_dir)}")
        parent = Path(self.data_dir[0])
        # The parent first: Emotic's own folder has its pictures in one that is called emotic.
        inside = {b.name: [parent / name for name in dict.fromkeys((b.name, b.folder))] for b in benchmarks}
        return {name: [parent, *(f for f in folders if f.is_dir())] for name, folders in inside.items()}


def _refuse_twice(name: str, values: list[Any]) -> None:
    if twice := [value for value in values if values.count(value) > 1]:
        raise ValueError(f"--{name} names {twice[0]} twice")
