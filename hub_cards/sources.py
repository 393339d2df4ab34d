"""What a run was made from, as its recipe names it: licences to be told, Hub ids, the paper's figures beside ours."""

from __future__ import annotations

import re
from typing import Any

from pacl.evaluation.report import COLUMNS, NO_PERCENT, TABLE3, read_paper_table

from .facts import Result, RunFacts

# Fields of a recipe that name posts or models. Those left out are the built-in ones, which are ours.
SOURCE_FIELDS = (
    *("posts", "posts_format", "vision_tower", "text_tower", "factual_model", "factual_text_encoder"),
    *("emotional_model", "emotional_text_encoder", "emotional_vocabulary"),
)

# What the names of known sources look like, and what their licences allow. Read when written; the source's own wins.
LICENCES = {
    "skep": "**SKEP** (text tower): Baidu releases it under Apache-2.0 in Senta; converted checkpoints may state "
    "terms of their own.",
    "bertweet": "**BERTweet** (judge of emotion): its sentiment checkpoints by pysentimiento are for non-commercial "
    "use and scientific research only, and subject to the licences of the tweets that they were trained on.",
    "tumemo": "**TumEmo** (posts): given out for research; pictures and texts belong to the people on Tumblr who "
    "posted them. No licence to pass them on, or to use them commercially, comes with it.",
    "mvsa": "**MVSA** (posts): given out for research; pictures and texts are tweets, which belong to their authors "
    "and stay under the terms of Twitter (X). No licence to pass them on, or to use them commercially, comes with it.",
    "openai/clip": "**CLIP** (judge): MIT; OpenAI's model card calls deployed use, also commercial, out of its scope.",
}
OTHERS = (
    "What was trained here may be used as far as all of its sources allow. Of {names} this card knows no terms: ask "
    "their owners."
)

# Backbones of the paper, by what the names of their checkpoints hold.
FAMILIES = {
    "ResNet-50": ("resnet50", "resnet-50"),
    "Swin-base": ("swin_base", "swin-base"),
    "ViT-clip": ("clip",),
    "ViT-base": ("vit_base", "vit-base"),
}


def licence_notes(facts: RunFacts) -> list[str]:
    """What the licences of the sources allow; only of those that the recipe names."""
    named = sources(facts)
    notes = [text for name, text in LICENCES.items() if any(name in source.lower() for source in named)]
    unknown = [source for source in named if not any(name in source.lower() for name in LICENCES)]
    if unknown:
        notes.append(OTHERS.format(names=", ".join(f"`{source}`" for source in unknown)))
    elif not named and facts.recipe:
        notes.append("Posts, towers and judges are PACL's built-in ones: Apache-2.0, as the code.")
    elif not facts.recipe:
        notes.append("The run's recipe is not there: what it was made from, and under which terms, is not known.")
    return notes


def sources(facts: RunFacts) -> list[str]:
    """The posts and models that the recipe names, without the built-in ones."""
    values = (str(facts.recipe[field]) for field in SOURCE_FIELDS if facts.recipe.get(field))
    return list(dict.fromkeys(value for value in values if value != "built-in" and "pacl.training/" not in value))


def release_licence(facts: RunFacts) -> str:
    """`apache-2.0` for what is all our own, `other` for the rest: its text is in the card."""
    return "apache-2.0" if facts.recipe and not sources(facts) else "other"


def hub_ids(facts: RunFacts) -> tuple[str | None, list[str] | None]:
    """The vision tower and the posts, where they are names on the Hub."""
    tower, posts = (_hub_id(facts.recipe.get(field)) for field in ("vision_tower", "posts"))
    return tower, [posts] if posts else None


def _hub_id(value: Any) -> str | None:
    name = str(value or "")
    return name if re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", name) else None


def paper_figures(result: Result, facts: RunFacts) -> str:
    """
    The paper's figures for the same benchmark, protocol and metric: of the run's kind of backbone, or of all four.

    Returns:
        `str`: such as `"ResNet-50 57.72 → 59.50"`; empty where the paper has none.
    """
    if result.protocol == "zero_shot":
        return _zero_shot_figures(result)
    column = COLUMNS.get((result.data, result.metric))
    if column is None:
        return ""
    rows = [row for row in read_paper_table(1) if row["protocol"] == result.protocol]
    figures = {(row["backbone"], row["enhancement"]): row[column] for row in rows if row[column]}
    families = [family(facts)] if family(facts) else list(FAMILIES)
    unit = "" if result.statistic in NO_PERCENT else " %"
    return "; ".join(
        f"{name} {figures[name, 'none']} → {figures[name, 'PACL']}{unit}"
        for name in families
        if (name, "none") in figures and (name, "PACL") in figures
    )


def _zero_shot_figures(result: Result) -> str:
    prompt, _, statistic = result.metric.rpartition("/")
    column = TABLE3.get(result.data)
    if statistic != "accuracy" or column is None:
        return ""
    rows = [row for row in read_paper_table(3) if row["prompt"] == prompt and row[column]]
    return "; ".join(f"{row['model']} {row[column]} %" for row in rows)


def family(facts: RunFacts) -> str | None:
    """The paper's backbone that the run's vision tower is of, as far as its name tells."""
    tower = str(facts.recipe.get("vision_tower", "")).lower()
    return next((name for name, parts in FAMILIES.items() if any(part in tower for part in parts)), None)
