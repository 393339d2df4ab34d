"""What the demo shows: finds the model, the backbone before PACL and the posts that belong to a run or were named."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from pacl.training.arguments import BUILT_IN, ModelArguments, RecipeError, resolve

DEFAULT_RUN = Path("runs/built_in")


class DemoError(ValueError):
    """Something the demo needs is missing or unusable; says what, and how to get it."""


@dataclass(frozen=True)
class Sources:
    """
    What the demo was asked to show.

    Args:
        model (`str`): Folder or Hub id of a dual encoder.
        before (`str`, *optional*): Folder or Hub id of the backbone before PACL.
        dataset (`Path`, *optional*): Folder of a partitioned dataset.
        report (`dict`): The run's `report.json`; empty where there is none.
        built_in (`bool`): Whether the run was on the built-in corpus, whose labelled pictures then are of use.
    """

    model: str
    before: str | None
    dataset: Path | None
    report: dict[str, Any]
    built_in: bool

    @classmethod
    def find(cls, where: str | None = None, *, dataset: str | None = None, before: str | None = None) -> Sources:
        """
        Find everything from a run's folder, or from a model's folder or Hub id.

        Args:
            where (`str`, *optional*): A run's folder, or a dual encoder's folder or Hub id. By default the run that
                `make train` leaves in `runs/built_in`.
            dataset (`str`, *optional*): Folder of a partitioned dataset, instead of the run's.
            before (`str`, *optional*): The backbone before PACL, instead of the one in the run's recipe.

        Raises:
            DemoError: if a folder that is named is not there or is not what it should be.
        """
        if where is None and not (DEFAULT_RUN / "dual_encoder").is_dir():
            raise DemoError(
                f"there is no run in {DEFAULT_RUN}; `make train` (or `pacl train`) makes one on the built-in corpus "
                "in minutes, or name a run's folder or a model: pacl demo RUN_FOLDER_OR_MODEL"
            )
        run = Path(where) if where is not None else DEFAULT_RUN
        is_run = (run / "dual_encoder").is_dir()
        if run.is_dir() and not is_run and not (run / "config.json").is_file():
            raise DemoError(f"{run} is neither a run (it has no dual_encoder/) nor a model (it has no config.json)")
        if not run.exists() and (run.is_absolute() or str(where).startswith(("./", "../", "runs/"))):
            raise DemoError(f"there is no folder {run}")
        recipe = _read_recipe(run) if is_run else {}
        posts = Path(dataset) if dataset else run / "dataset"
        if dataset and not (posts / "dataset_info.json").is_file():
            raise DemoError(f"--dataset: {posts} is no saved dataset (it has no dataset_info.json)")
        return cls(
            model=str(run / "dual_encoder") if is_run else str(where),
            before=before or (initial_tower(recipe) if is_run else None),
            dataset=posts if (posts / "dataset_info.json").is_file() else None,
            report=_read_report(run) if is_run else {},
            built_in=is_run and recipe.get("posts", BUILT_IN) == BUILT_IN,
        )


def initial_tower(recipe: dict[str, Any]) -> str:
    """The vision tower that a recipe starts from, as the run itself found it."""
    try:
        return resolve("vision_tower", recipe.get("vision_tower") or ModelArguments.vision_tower)
    except RecipeError as error:
        raise DemoError(f"{error}; or name the backbone before PACL with --before") from error


def _read_recipe(run: Path) -> dict[str, Any]:
    path = run / "recipe.yaml"
    return (yaml.safe_load(path.read_text(encoding="utf-8")) or {}) if path.is_file() else {}


def _read_report(run: Path) -> dict[str, Any]:
    path = run / "report.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
