"""What can be asked of `python -m pacl.evaluation`: the evaluation's own fields, and all those of `Trainer`."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import yaml
from transformers import TrainingArguments

from .benchmarks import get_benchmark
from .finetune import HEADS

PROTOCOLS = ("linear", "finetune", "zero_shot")


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
    protocol: str = field(default="linear", metadata={"help": "The protocol.", "choices": list(PROTOCOLS)})
    seeds: list[int] = field(default_factory=lambda: [0, 1, 2], metadata={"help": "One run each."})
    cross_validate: bool = field(
        default=False,
        metadata={"help": "Test each tenth of the data in turn, where there is no official test split."},
    )
    batch_size: int = field(
        default=64,
        metadata={"help": "Pictures per step, over all processes; the per-device size follows."},
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
    pooling: str = field(default="auto", metadata={"help": "How the backbone's output is pooled: auto, first, mean."})
    features_dir: str | None = field(default=None, metadata={"help": "Folder of cached features."})
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
        # The model takes columns of our own, and the best epoch is chosen by what the task says.
        self.remove_unused_columns, self.label_names = False, ["targets"]
        self.metric_for_best_model, self.greater_is_better = "selection", True
        # accelerate joins processes without a GPU only where told so.
        self.use_cpu = self.use_cpu or not torch.accelerator.is_available()
        super().__post_init__()
        for name in ("backbone", "dataset", "data_dir", "output_dir", "seeds"):
            if not getattr(self, name):
                raise ValueError(f"--{name} is missing")
        datasets = [get_benchmark(name).name for name in self.dataset]
        for field_name, names in (("backbone", self.backbone), ("dataset", datasets)):
            if twice := [name for name in names if names.count(name) > 1]:
                raise ValueError(f"--{field_name} names {twice[0]} twice")
        if self.protocol not in PROTOCOLS:
            raise ValueError(f"--protocol must be one of {', '.join(PROTOCOLS)}; got {self.protocol!r}")
        if self.heads != "linear" and self.protocol != "finetune":
            raise ValueError(
                f"--heads {self.heads} reads the whole feature map, which --protocol {self.protocol} does not keep; "
                "use --protocol finetune"
            )
        if self.prompts is not None and self.protocol != "zero_shot":
            raise ValueError("--prompts goes with --protocol zero_shot")
        if self.batch_size % self.world_size:
            raise ValueError(f"--batch_size {self.batch_size} cannot be shared by {self.world_size} processes")
        self.per_device_train_batch_size = self.batch_size // self.world_size

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

    def folders(self) -> dict[str, Path]:
        """The folder of each dataset, by the benchmark's name.

        Raises:
            ValueError: for an unknown dataset, or another number of folders than datasets.
        """
        benchmarks = [get_benchmark(name) for name in self.dataset]
        if len(self.data_dir) == len(benchmarks) > 1:
            return {b.name: Path(folder) for b, folder in zip(benchmarks, self.data_dir, strict=True)}
        if len(self.data_dir) != 1:
            raise ValueError(f"{len(benchmarks)} datasets need one --data_dir or as many; got {len(self.data_dir)}")
        parent = Path(self.data_dir[0])
        return {b.name: parent / b.name if (parent / b.name).is_dir() else parent for b in benchmarks}
