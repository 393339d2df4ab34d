"""The main job, stage after stage: posts in; partition, clusters, training; an enhanced backbone and a report out."""

from __future__ import annotations

import json
import platform
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import accelerate
import datasets
import numpy as np
import torch
import transformers
import yaml
from transformers.trainer_utils import get_last_checkpoint
from transformers.utils import logging

from pacl import PACLModel, PACLProcessor

from .arguments import BUILT_IN, RecipeError, Settings
from .cluster import cluster_dataset
from .columns import column_to_numpy
from .evaluators import Judge
from .features import TowerEncoders
from .judges import make_judges
from .partition import (
    PAPER_SHARES,
    Partition,
    find_thresholds,
    partition_dataset,
    partition_shares,
    partition_table,
)
from .posts import PostFormat, read_posts
from .prepare import prepare_pictures
from .rejections import Rejections
from .report import draw_report, summarise
from .synthetic import make_corpus
from .trainer import PACLTrainer

logger = logging.get_logger(__name__)


@dataclass
class Run:
    """
    A run in progress: what was asked, where its results go, and what the stages have left so far.

    Args:
        settings ([`Settings`]): What the recipe and the command line ask for.
        folder (`Path`): The run's folder.
        report (`dict`): Every figure of the run, as `report.json` will hold it.
        reference_names (`list[str]`): Names that a judge's reference pictures bear; not to be tested on.
        rejections ([`Rejections`]): The posts that were left out, with reasons.
        dataset (`datasets.Dataset`): The posts, with the columns of the stages that are done.
        truth (`datasets.Dataset`, *optional*): The truth about the built-in corpus, for scoring only.
    """

    settings: Settings
    folder: Path
    report: dict[str, Any] = field(default_factory=dict)
    reference_names: list[str] = field(default_factory=list)
    rejections: Rejections = field(default_factory=Rejections)
    dataset: datasets.Dataset = field(init=False)
    truth: datasets.Dataset | None = None

    @property
    def backbone(self) -> Path:
        """Folder of the enhanced backbone, in its native format."""
        return self.folder / "backbone"

    @property
    def dual_encoder(self) -> Path:
        """Folder of the dual encoder."""
        return self.folder / "dual_encoder"


Measure = Callable[[Run], dict[str, Any]]


def run(settings: Settings, measure: Measure) -> dict[str, Any]:
    """
    Do everything that a recipe asks for.

    A run that was stopped is taken up where it was: scores and features are found again in the cache, training goes on
    from its last checkpoint.

    Args:
        settings ([`Settings`]):
            From [`parse_settings`].
        measure (`Callable[[Run], dict]`):
            Measures the backbone before and after; what it returns goes into the report.

    Returns:
        `dict`: the report, as in `report.json`.
    """
    job = Run(settings, Path(str(settings.training.output_dir)))
    arguments = settings.training
    arguments.output_dir = str(job.folder / "checkpoints")
    with arguments.main_process_first(local=False, desc="preparing the run's folder"):
        if arguments.process_index == 0:
            _claim_folder(job)
    job.report |= {"name": settings.name, "asked": settings.asked, "environment": _environment(), "seconds": {}}

    # What is downloaded, generated or checked here, the other processes then find in the cache.
    with arguments.main_process_first(local=False, desc="models and posts"):
        model, processor = _load_model(settings)
        with _timed(job, "posts"):
            job.dataset = _read(job)
        with _timed(job, "partition"):
            factual, emotional, job.reference_names = make_judges(settings.judges, arguments.seed)
    _stages_one_and_two(job, factual, emotional, TowerEncoders.from_model(model, processor))
    del factual, emotional  # and the memory they take
    _stage_three(job, model, processor)
    with _timed(job, "measure"):
        job.report |= measure(job)
    if arguments.process_index == 0:
        _write_report(job)
    return job.report


def _load_model(settings: Settings) -> tuple[PACLModel, PACLProcessor]:
    torch.manual_seed(settings.training.seed)
    chosen = settings.model
    model = PACLModel.from_vision_text_pretrained(
        chosen.vision_tower,
        chosen.text_tower,
        projection_dim=chosen.projection_dim,
        temperature=chosen.temperature,
        vision_pooling=chosen.vision_pooling,
        freeze_batch_norm=chosen.freeze_batch_norm,
        **({"text_pooling": chosen.text_pooling} if chosen.text_pooling else {}),
    )
    return model, PACLProcessor.from_vision_text_pretrained(chosen.vision_tower, chosen.text_tower)


def _stages_one_and_two(job: Run, factual: Judge, emotional: Judge, towers: TowerEncoders) -> None:
    settings, chosen = job.settings, job.settings.partition
    with _timed(job, "partition"):
        rule: dict[str, Any] = {
            "threshold": _one_or_two("threshold", chosen.threshold),
            "matched_shares": _matched_shares(chosen.matched_shares),
            "partition_by": chosen.partition_by,
        }
        job.dataset = partition_dataset(
            job.dataset,
            factual,
            emotional,
            **rule,
            towers=towers,
            batch_size=chosen.scoring_batch_size,
            rejections=job.rejections,
        )
        job.report["partition"] = _describe_partition(job, find_thresholds(job.dataset, **rule))
        if settings.training.process_index == 0:
            print(partition_table(job.dataset))
    with _timed(job, "cluster"):
        clusters = _one_or_two("clusters", chosen.clusters)
        job.dataset = cluster_dataset(job.dataset, towers, clusters=clusters, seed=settings.training.seed)
        job.report["clusters"] = {
            name: np.bincount(column_to_numpy(job.dataset, name)).tolist()
            for name in ("factual_cluster", "emotional_cluster")
        }
    if settings.training.process_index == 0:
        job.rejections.save(job.folder / "rejected.jsonl")
        _save_dataset(job.dataset, job.folder / "dataset")
        if job.reference_names:
            names = "".join(f"{name}\n" for name in sorted(set(job.reference_names)))
            (job.folder / "reference_names.txt").write_text(names, encoding="utf-8")


def _read(job: Run) -> datasets.Dataset:
    chosen = job.settings.posts
    if chosen.posts == BUILT_IN:
        corpus = make_corpus(chosen.num_posts or 3000, seed=job.settings.training.seed)
        job.truth = corpus.truth
        return corpus.posts
    return read_posts(
        chosen.posts,
        format=cast(PostFormat | None, chosen.posts_format),
        image_column=chosen.image_column,
        text_column=chosen.text_column,
        split=chosen.posts_split,
        limit=chosen.num_posts,
        rejections=job.rejections,
    )


def _describe_partition(job: Run, thresholds: dict[str, float]) -> dict[str, Any]:
    dataset = job.dataset
    description: dict[str, Any] = {
        "posts": len(dataset),
        "rejected": dict(job.rejections.by_reason()),
        "thresholds": thresholds,
        "shares": partition_shares(dataset),
        "paper_shares": dict(zip(("strong", "partial", "weak"), PAPER_SHARES, strict=True)),
    }
    if job.truth is not None:
        # The truth's rows are the corpus's posts in order; `row` or the id says which of them are left.
        where = {name: i for i, name in enumerate(job.truth["id"])}
        kept = [where[name] for name in dataset["id"]]
        truth, found = np.asarray(job.truth["partition"])[kept], np.asarray(dataset["partition"])
        description["accuracy"] = float((truth == found).mean())
        description["true_shares"] = {p.name.lower(): float((truth == p).mean()) for p in Partition}
        description["confusion"] = np.histogram2d(truth, found, bins=[range(5), range(5)])[0].astype(int).tolist()
    return description


def _stage_three(job: Run, model: PACLModel, processor: PACLProcessor) -> None:
    arguments = job.settings.training
    dataset = _prepared(job, processor) if job.settings.posts.prepare else job.dataset
    trainer = PACLTrainer(model, arguments, train_dataset=dataset, processing_class=processor)
    with _timed(job, "train"):
        folder = job.folder / "checkpoints"
        checkpoint = get_last_checkpoint(folder) if folder.is_dir() else None
        if checkpoint:
            logger.warning(f"going on from {checkpoint}")
        trainer.train(resume_from_checkpoint=checkpoint)
    model = trainer.accelerator.unwrap_model(trainer.model)
    job.report["training"] = {
        "steps": trainer.state.global_step,
        "epochs": trainer.state.epoch,
        "parameters": sum(p.numel() for p in model.vision_model.parameters()),
        "log": [entry for entry in trainer.state.log_history if "loss" in entry],
    }
    weights = trainer.accelerator.get_state_dict(trainer.model)  # whole on the first process, also where it is sharded
    if trainer.is_world_process_zero():
        # The backbone leaves as it came: same class, same configuration, its own image processor.
        tower = "vision_model."
        backbone = {name.removeprefix(tower): value for name, value in weights.items() if name.startswith(tower)}
        model.vision_model.save_pretrained(job.backbone, state_dict=backbone)
        processor.image_processor.save_pretrained(job.backbone)
        model.save_pretrained(job.dual_encoder, state_dict=weights)
        processor.save_pretrained(job.dual_encoder)
    trainer.accelerator.wait_for_everyone()


def _prepared(job: Run, processor: PACLProcessor) -> datasets.Dataset:
    """The posts with pictures of the training size; what the run leaves has the posts' own."""
    with _timed(job, "prepare"):
        return prepare_pictures(job.dataset, job.settings.training.picture_transform(processor.image_processor))


def _claim_folder(job: Run) -> None:
    """Make the folder, or take up what an earlier run of the same recipe left in it."""
    recipe = job.folder / "recipe.yaml"
    asked = {key: value for key, value in job.settings.asked.items() if key != "overwrite"}
    if job.settings.training.overwrite and job.folder.is_dir():
        shutil.rmtree(job.folder)
    elif recipe.is_file() and yaml.safe_load(recipe.read_text()) != asked:
        raise RecipeError(
            f"output_dir: {job.folder} holds a run of another recipe (see its recipe.yaml); choose another folder, or "
            "discard it with --overwrite"
        )
    job.folder.mkdir(parents=True, exist_ok=True)
    recipe.write_text(yaml.safe_dump(asked, sort_keys=False, allow_unicode=True))


def _save_dataset(dataset: datasets.Dataset, folder: Path) -> None:
    """Save beside, then move: a run that is taken up may be reading the very files it would overwrite."""
    fresh = folder.with_name(f".{folder.name}")
    dataset.save_to_disk(fresh)
    shutil.rmtree(folder, ignore_errors=True)
    fresh.rename(folder)


def _write_report(job: Run) -> None:
    path = job.folder / "report.json"
    if path.is_file():
        # The run was finished before, and this time found most of its work done: what it cost is the longer time.
        for stage, seconds in json.loads(path.read_text())["seconds"].items():
            job.report["seconds"][stage] = max(seconds, job.report["seconds"].get(stage, 0))
    path.write_text(json.dumps(job.report, indent=1, ensure_ascii=False))
    draw_report(job.report, job.folder / "report.png")
    print(summarise(job.report))
    print(
        f"\nbackbone      {job.backbone}\ndual encoder  {job.dual_encoder}\nreport        {job.folder / 'report.png'}"
    )


@contextmanager
def _timed(job: Run, stage: str) -> Iterator[None]:
    start = time.perf_counter()
    yield
    seconds = job.report["seconds"]
    seconds[stage] = round(seconds.get(stage, 0) + time.perf_counter() - start, 1)


def _environment() -> dict[str, Any]:
    packages = {module.__name__: module.__version__ for module in (torch, transformers, datasets, accelerate)}
    device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else "cpu"
    return {"python": platform.python_version(), "device": str(device), "threads": torch.get_num_threads(), **packages}


def _one_or_two(name: str, values: list[Any]) -> Any:
    if len(values) not in (1, 2):
        raise RecipeError(f"{name}: one number or two are expected, got {len(values)}")
    return values[0] if len(values) == 1 else tuple(values)


def _matched_shares(values: list[str] | None) -> Any:
    if values is None or values == ["paper"]:
        return "paper" if values else None
    try:
        factual, emotional = (float(value) for value in values)
    except ValueError:
        raise RecipeError(f"matched_shares: paper or two shares are expected, got {' '.join(values)}") from None
    return factual, emotional
