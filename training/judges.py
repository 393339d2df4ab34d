"""Makes Stage 1's two judges from what a recipe asks for."""

from __future__ import annotations

import csv
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from .arguments import JudgeArguments, RecipeError
from .evaluators import DualEncoderJudge, Judge, TagJudge
from .features import ImageEncoder, TextEncoder
from .sentibank import SentiBankTagger
from .taggers import ClassifierTagger, NeighbourTagger, Tagger, ZeroShotTagger, load_vocabulary


def make_judges(arguments: JudgeArguments, seed: int = 0) -> tuple[Judge, Judge, list[str]]:
    """
    Load both judges; models that both of them use are loaded once.

    Args:
        arguments ([`JudgeArguments`]):
            What the recipe asks for.
        seed (`int`, *optional*, defaults to 0):
            Seed of the choice of reference names (`reference_share`).

    Returns:
        The judge of fact, the judge of emotion, and the names of the reference pictures that a `neighbours` tagger
        uses, which measurements must not test on.

    Raises:
        [`RecipeError`]: fields contradict each other, or something that they need is missing.
        `OSError`, `ValueError`: a model or a file cannot be loaded.
    """
    names: list[str] = []
    load_text = cache(TextEncoder.from_pretrained)
    judges: list[Judge] = []
    for side in ("factual", "emotional"):
        fields = {name.removeprefix(f"{side}_"): value for name, value in vars(arguments).items()}
        if fields["judge"] == "dual_encoder":
            judges.append(DualEncoderJudge.from_pretrained(fields["model"], scale=fields["scale"]))
            continue
        if not fields["text_encoder"]:
            raise RecipeError(f"{side}_judge is tags, which needs {side}_text_encoder")
        tagger, used = _make_tagger(side, fields, seed)
        names += used
        text_encoder = load_text(fields["text_encoder"], pooling=fields["text_pooling"])
        judges.append(TagJudge(tagger, text_encoder, top_k=arguments.top_k))
    return judges[0], judges[1], names


def _make_tagger(side: str, fields: dict[str, Any], seed: int) -> tuple[Tagger, list[str]]:
    kind, model, vocabulary = fields["tagger"], fields["model"], fields["vocabulary"]
    if kind == "neighbours":
        if not vocabulary:
            raise RecipeError(
                f"{side}_tagger is neighbours, which needs {side}_vocabulary: a CSV of reference pictures"
            )
        pictures, names = read_references(Path(vocabulary), fields["reference_share"], seed)
        return NeighbourTagger(ImageEncoder.from_pretrained(model), pictures, names), sorted(set(names))
    makers: dict[str, Callable[[], Tagger]] = {
        "classifier": lambda: ClassifierTagger.from_pretrained(model),
        "sentibank": lambda: SentiBankTagger(model),
        "zero_shot": lambda: ZeroShotTagger.from_pretrained(model, vocabulary and load_vocabulary(vocabulary)),
    }
    return makers[kind](), []


def read_references(table: Path, share: float = 1.0, seed: int = 0) -> tuple[list[str], list[str]]:
    """
    Read reference pictures with their names, such as OASIS's ratings with their themes.

    Args:
        table (`Path`):
            CSV with the columns `image` (a path relative to the file) and `name` or `theme`.
        share (`float`, *optional*, defaults to 1.0):
            Share of the distinct names that are used; which ones is drawn by seed.
        seed (`int`, *optional*, defaults to 0):
            Seed of the draw.

    Returns:
        Paths of the pictures, and a name for each.

    Raises:
        [`RecipeError`]: the table is missing, lacks a column, or the share leaves nothing.
    """
    if not table.is_file():
        raise RecipeError(f"there are no reference pictures {table}")
    with table.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    columns = list(rows[0]) if rows else []
    name = next((column for column in ("name", "theme") if column in columns), None)
    if name is None or "image" not in columns:
        raise RecipeError(f"{table} must have the columns image and name (or theme); it has {', '.join(columns)}")
    distinct = sorted({row[name] for row in rows})
    chosen = set(np.random.default_rng(seed).permutation(distinct)[: round(share * len(distinct))])
    if not chosen:
        raise RecipeError(f"reference_share {share} of {len(distinct)} names leaves none")
    used = [row for row in rows if row[name] in chosen]
    return [str(table.parent / row["image"]) for row in used], [row[name] for row in used]
