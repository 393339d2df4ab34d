"""The card of a partitioned dataset: columns, shares, how it was scored, what was rejected, and who may use it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from huggingface_hub import DatasetCard, DatasetCardData

from pacl.evaluation.report import markdown

from .cards import TAGS, partition_text, save_card, template_text
from .facts import RunFacts, read_facts
from .sources import licence_notes, release_licence

COLUMNS = {
    "image": "the picture",
    "text": "what its author wrote",
    "factual_score": "how far they agree in fact, as the factual judge scores it",
    "emotional_score": "how far they agree in emotion, as the emotional judge scores it",
    "partition": "strong, partial_emotional, partial_factual or weak",
    "factual_cluster": "cluster of the picture's features (Stage 2)",
    "emotional_cluster": "cluster of the text's features (Stage 2)",
    "text_features": "the frozen text tower's features before the projection",
}


def write_dataset_card(folder: str | Path, run_folder: str | Path, *, repo_id: str) -> Path:
    """
    Write the card of a partitioned dataset: columns, shares, how it was scored, what was rejected.

    Args:
        folder (`str` or `Path`):
            The dataset's files; the card becomes their `README.md`.
        run_folder (`str` or `Path`):
            The run that made it.
        repo_id (`str`):
            The repo that the card's code loads.

    Raises:
        `ValueError`: a file of the run cannot be read.
    """
    facts = read_facts(run_folder)
    partition = facts.report.get("partition", {})
    data = DatasetCardData(
        license=release_licence(facts),
        task_categories=["image-classification", "zero-shot-image-classification"],
        pretty_name=repo_id.split("/")[-1],
        size_categories=_size_category(partition["posts"]) if partition else None,
        tags=["pacl", TAGS["dataset"], "emotion", "image-text", "arxiv:2511.17103"],
        configs=[{"config_name": "default", "data_files": [{"split": "train", "path": "data/train-*.parquet"}]}],
    )
    card = DatasetCard.from_template(
        data,
        template_str=template_text("dataset", "citation"),
        title=repo_id.split("/")[-1],
        repo_id=repo_id,
        columns="\n".join(_column_rows(facts)),
        judges="\n".join(_judges(facts.recipe)),
        licences="\n".join(f"- {note}" for note in licence_notes(facts)),
        both=facts.recipe.get("partition_by", "both") == "both",
        built_in=facts.built_in,
        **partition_text(facts, long=True),
    )
    return save_card(card, Path(folder))


def _column_rows(facts: RunFacts) -> list[str]:
    path = facts.folder / "dataset" / "dataset_info.json"
    features = json.loads(path.read_text(encoding="utf-8"))["features"] if path.is_file() else {}
    return markdown(
        ("column", "type", "what"),
        [(f"`{name}`", _type(spec), COLUMNS.get(name, "as it came with the post")) for name, spec in features.items()],
    )


def _type(spec: dict[str, Any]) -> str:
    kind = spec.get("_type", "")
    if kind == "Value":
        return spec["dtype"]
    if kind == "List":
        return f"{spec.get('length', '')} × {_type(spec['feature'])}"
    return kind


def _judges(recipe: dict[str, Any]) -> list[str]:
    lines = []
    for side in ("factual", "emotional"):
        fields = {key: value for key, value in recipe.items() if key.startswith(f"{side}_")}
        said = ", ".join(f"{key} `{value}`" for key, value in fields.items())
        lines.append(f"- {side.capitalize()} score: {said or 'the built-in judge'}.")
    return lines


def _size_category(posts: int) -> str:
    edges = [(1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M")]
    return next((name for edge, name in edges if posts < edge), "1M<n<10M")
