"""The card that `PACLTrainer` writes by itself: of the dual encoder in its output folder, from what it knows."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from pacl.training.collator import PairDataset
from pacl.training.partition import Partition
from pacl.training.streaming import StreamedPairs

from .cards import PARTITIONS, dual_encoder_card
from .facts import RunFacts, read_facts, without_local_paths

if TYPE_CHECKING:
    from pacl.training import PACLTrainer

# Of the trainer's arguments those that the card shows.
SHOWN = (
    *("learning_rate", "projection_learning_rate", "num_train_epochs", "per_device_train_batch_size"),
    *("gradient_accumulation_steps", "sample_usage", "batch_shares", "augmentation", "crop_scale", "image_size"),
    *("weight_decay", "lr_scheduler_type", "seed"),
)

# Arguments of `Trainer.create_model_card` and where a card's metadata has them.
METADATA = {
    "language": "language",
    "license": "license",
    "tags": "tags",
    "finetuned_from": "base_model",
    "dataset": "datasets",
}


def write_trainer_card(trainer: PACLTrainer, **kwargs: Any) -> Path:
    """
    Write the card into a trainer's output folder.

    Inside a run's folder the run's own files are read; what they lack, or have not yet, comes from the trainer: its
    log, its arguments, and the partitions of the posts it was given.

    Args:
        trainer ([`PACLTrainer`]):
            After training, or in the midst of it.
        kwargs (*optional*):
            As for `Trainer.create_model_card`: `language`, `license`, `tags`, `model_name`, `finetuned_from` and
            `dataset`; what else it takes has no place in this card.

    Returns:
        `Path`: of the card.
    """
    folder = Path(str(trainer.args.output_dir))
    # The main job trains in `RUN/checkpoints`.
    facts = read_facts(folder.absolute().parent if folder.name == "checkpoints" else folder)
    given = {METADATA[key]: value for key, value in kwargs.items() if value is not None and key in METADATA}
    if isinstance(given.get("tags"), str):
        given["tags"] = [given["tags"]]
    repo_id = getattr(trainer, "hub_model_id", None) or trainer.args.hub_model_id or kwargs.get("model_name")
    if not (folder / "config.json").is_file():
        trainer.save_model(str(folder), _internal_call=True)  # the card says how to load what is there
    return dual_encoder_card(folder, complete(facts, trainer), repo_id or folder.absolute().name, **given)


def complete(facts: RunFacts, trainer: PACLTrainer) -> RunFacts:
    """
    What the run's files say of its posts, and what the trainer knows of the rest.

    Results are left out: those of the files were measured on other weights than the trainer's.
    """
    report: dict[str, Any] = {
        name: facts.report[name] for name in ("partition", "environment") if name in facts.report
    }
    if "partition" not in report and trainer.train_dataset is not None:
        report["partition"] = _partition(trainer.train_dataset)
    report = {"environment": _environment(), **report, "training": _training(trainer)}
    recipe = facts.recipe or without_local_paths(_recipe(trainer))
    return replace(facts, recipe=recipe, report=report, results=[], comparisons=[])


def _training(trainer: PACLTrainer) -> dict[str, Any]:
    state = trainer.state
    log = [entry for entry in state.log_history if "loss" in entry]
    return {"steps": state.global_step, "epochs": state.epoch or 0.0, "log": log}


def _environment() -> dict[str, Any]:
    device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else "cpu"
    return {"device": str(device), "threads": torch.get_num_threads(), "torch": torch.__version__}


def _partition(pairs: PairDataset | StreamedPairs) -> dict[str, Any]:
    if isinstance(pairs, StreamedPairs):
        counts = [pairs.counts[partition] for partition in Partition]
    else:
        counts = np.bincount(pairs.partition, minlength=len(Partition)).tolist()
    shares = {name: count / max(sum(counts), 1) for name, count in zip(PARTITIONS, counts, strict=True)}
    return {"posts": sum(counts), "shares": shares}


def _recipe(trainer: PACLTrainer) -> dict[str, Any]:
    """What stands for a recipe where there is none: the towers and the arguments that shape training."""
    model: Any = trainer.accelerator.unwrap_model(trainer.model)
    towers = {"vision_tower": model.config.vision_config, "text_tower": model.config.text_config}
    named = {name: config._name_or_path or "given to the trainer" for name, config in towers.items()}
    arguments = {name: getattr(trainer.args, name) for name in SHOWN}
    arguments = {name: getattr(value, "value", value) for name, value in arguments.items() if value is not None}
    return {"posts": "given to the trainer", **named, "temperature": model.config.temperature, **arguments}
