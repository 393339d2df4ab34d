"""What a push would send, prepared as a folder to be looked at: exported weights, Parquet or results, with a card."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from datasets import Dataset, load_from_disk
from datasets.table import embed_table_storage

from .cards import write_backbone_card, write_dual_encoder_card
from .dataset_card import write_dataset_card
from .exports import export_backbone, export_dual_encoder
from .facts import EVALUATION, without_local_paths

# A picture's file is some hundred kB: a shard fits into memory, and stays well under the Hub's limits.
POSTS_PER_SHARD = 2_000

# Where transformers writes down what it has loaded.
ORIGINS = ("_name_or_path", "name_or_path", "tokenizer_file")

# For each thing that can be pushed: what a repo of it cannot do without, one of each group.
NEEDED: dict[str, tuple[tuple[str, ...], ...]] = {
    "backbone": (
        ("config.json",),
        ("model.safetensors", "model.safetensors.index.json"),
        ("README.md",),
    ),
    "dual_encoder": (
        ("config.json",),
        ("model.safetensors", "model.safetensors.index.json"),
        ("processor_config.json", "preprocessor_config.json"),
        ("tokenizer_config.json",),
        ("README.md",),
    ),
    "dataset": (("data/*.parquet",), ("README.md",)),
    "evaluation": ((f"{EVALUATION}/report.json", f"{EVALUATION}/results.json"),),
}


def stage(what: str, run_folder: Path, folder: Path, repo_id: str, evaluation: Path | None = None) -> list[str]:
    """
    Prepare one thing that a run left for the Hub.

    Args:
        what (`str`):
            `"backbone"`, `"dual_encoder"`, `"dataset"` or `"evaluation"`.
        run_folder (`Path`):
            The run's folder.
        folder (`Path`):
            Where to prepare it. What it held is replaced.
        repo_id (`str`):
            The repo that the card's usage names.
        evaluation (`Path`, *optional*):
            The output folder of `pacl evaluate` on this run's models.

    Returns:
        `list[str]`: what is missing, each with the reason; empty when the folder is ready.
    """
    source = run_folder if what == EVALUATION else run_folder / what
    if not source.is_dir():
        return [f"{source.name}/ in {run_folder}: the run has not written it"]
    STAGES[what](source, run_folder, folder, repo_id, evaluation)
    return [" or ".join(group) for group in NEEDED[what] if not any(any(folder.glob(name)) for name in group)]


def _stage_backbone(source: Path, run: Path, folder: Path, repo_id: str, evaluation: Path | None) -> None:
    export = export_backbone(source, folder, overwrite=True)
    _forget_origin(folder)
    write_backbone_card(folder, run, repo_id=repo_id, evaluation=evaluation, notes=export.notes)


def _stage_dual_encoder(source: Path, run: Path, folder: Path, repo_id: str, evaluation: Path | None) -> None:
    export = export_dual_encoder(source, folder, overwrite=True)
    _forget_origin(folder)
    write_dual_encoder_card(folder, run, repo_id=repo_id, evaluation=evaluation, notes=export.notes)


def _stage_dataset(source: Path, run: Path, folder: Path, repo_id: str, evaluation: Path | None) -> None:
    # The table is large and the card is not: shards are written anew only when the dataset is another.
    state, written = (source / "state.json").read_text(), folder.with_name(f"{folder.name}.state.json")
    if not (folder.is_dir() and written.is_file() and written.read_text() == state):
        shutil.rmtree(folder, ignore_errors=True)
        written.unlink(missing_ok=True)
        _write_parquet(load_from_disk(source), folder / "data")
        written.write_text(state)
    write_dataset_card(folder, run, repo_id=repo_id)


def _write_parquet(dataset: Dataset, folder: Path) -> None:
    """Shards with the pictures inside them, as `load_dataset` reads them from the Hub."""
    folder.mkdir(parents=True)
    shards = -(-len(dataset) // POSTS_PER_SHARD)
    plain = dataset.with_format("arrow")
    for number in range(shards):
        shard = plain.shard(shards, number, contiguous=True)
        embedded = shard.map(embed_table_storage, batched=True, batch_size=1_000, keep_in_memory=True)
        embedded.to_parquet(folder / f"train-{number:05d}-of-{shards:05d}.parquet")


def _stage_evaluation(source: Path, run: Path, folder: Path, repo_id: str, evaluation: Path | None) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    target = folder / EVALUATION
    target.mkdir(parents=True)
    results = evaluation or run / EVALUATION
    files = [run / "report.json", run / "report.png"]
    files += [results / name for name in ("results.json", "comparisons.json", "details.json", "results.md")]
    pictures = sorted((results / "figures").glob("*.png"))
    for file in [file for file in files if file.is_file()]:
        shutil.copyfile(file, target / file.name)
    for picture in pictures:
        (target / "figures").mkdir(exist_ok=True)
        shutil.copyfile(picture, target / "figures" / picture.name)
    _forget_local_paths(target)


def _forget_origin(folder: Path) -> None:
    """Take the author's own folders out of a model's configurations, where transformers notes what was loaded."""
    for file in folder.glob("*config.json"):
        content = json.loads(file.read_text(encoding="utf-8"))
        cleaned = _without_origin(content)
        if cleaned != content:
            file.write_text(json.dumps(cleaned, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _without_origin(value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    return {
        key: without_local_paths(entry) if key in ORIGINS else _without_origin(entry) for key, entry in value.items()
    }


def _forget_local_paths(folder: Path) -> None:
    """Take the author's own folders out of results: they say nothing to others, but much about a machine."""
    for file in folder.glob("*.json"):
        cleaned = without_local_paths(json.loads(file.read_text(encoding="utf-8")))
        file.write_text(json.dumps(cleaned, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    for file in folder.glob("*.md"):
        lines = file.read_text(encoding="utf-8").splitlines()
        cells = ("|".join(_cell_without_path(cell) for cell in line.split("|")) for line in lines)
        file.write_text("\n".join(cells) + "\n", encoding="utf-8")


def _cell_without_path(cell: str) -> str:
    return cell.replace(cell.strip(), without_local_paths(cell.strip())) if cell.strip() else cell


Stage = Callable[[Path, Path, Path, str, Path | None], Any]
STAGES: dict[str, Stage] = {
    "backbone": _stage_backbone,
    "dual_encoder": _stage_dual_encoder,
    "dataset": _stage_dataset,
    EVALUATION: _stage_evaluation,
}
