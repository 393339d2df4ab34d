"""Writes the demo as a Space for the Hub: the app, what it shows, the package's own files; it runs as it lies."""

from __future__ import annotations

import importlib.metadata
import json
import shutil
from importlib import import_module
from pathlib import Path

import datasets
import numpy as np
from huggingface_hub import SpaceCard, SpaceCardData
from transformers import AutoImageProcessor

from pacl.towers import load_vision_tower

from .command import REQUIREMENTS
from .sources import DemoError, Sources

# Folder inside the Space for each subpackage; installed from a checkout they lie apart.
PACKAGES = {
    "pacl": "pacl",
    "pacl.training": "pacl/training",
    "pacl.evaluation": "pacl/evaluation",
    "pacl.hub_cards": "pacl/hub_cards",
}
SAMPLE = 500
GRADIO = "6.31.0"
LEFT_OUT = shutil.ignore_patterns("__pycache__", "*.pyi", "*.egg-info")

APP = '''"""The demo of PACL as a Space: what it shows lies in the folder run/ beside this file."""

import json
from pathlib import Path

from pacl.hub_cards.demo import Sources
from pacl.hub_cards.demo.app import build_app, launch

RUN = Path(__file__).parent / "run"
before, dataset = RUN / "before", RUN / "dataset"
sources = Sources(
    model=str(RUN / "dual_encoder"),
    before=str(before) if before.is_dir() else None,
    dataset=dataset if dataset.is_dir() else None,
    report=json.loads((RUN / "report.json").read_text(encoding="utf-8")),
    built_in={built_in},
)
demo = build_app(sources)

if __name__ == "__main__":
    launch(demo)
'''

README = """---
{front_matter}
---

# {title}

Give a picture: a dual encoder trained with PACL (Partitioned Adaptive Contrastive Learning, ACM MM 2024) says how it
may feel to those who look at it, and where in the picture that is seen. It does not say what a person in the picture
feels, and must not be used to judge people.

Written by `pacl demo --write_space`. Run it anywhere with `pip install -r requirements.txt` and `python app.py`.
"""


def write_space(
    folder: str | Path, sources: Sources, *, title: str = "How a picture feels", with_dataset: bool = False
) -> Path:
    """
    Write a Space that needs nothing but its own files and the packages in its `requirements.txt`.

    Posts are left out, because most collections may not be passed on, unless they are generated or asked for.

    Args:
        folder (`str` or `Path`): Where to; new or empty.
        sources ([`Sources`]): What the demo shows. Its model must lie in a folder.
        title (`str`, *optional*): Of the Space.
        with_dataset (`bool`, *optional*, defaults to `False`): Whether a sample of [`SAMPLE`] posts goes with it also
            where they are not generated ones.

    Returns:
        `Path`: The folder.

    Raises:
        DemoError: if the folder holds something already, or the model is no folder.
    """
    folder = Path(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise DemoError(f"{folder} holds something already; name a new or an empty folder")
    if not Path(sources.model).is_dir():
        raise DemoError(f"a Space is written from a run or a model in a folder; {sources.model} is none")
    run = folder / "run"
    shutil.copytree(sources.model, run / "dual_encoder")
    if sources.before is not None:
        load_vision_tower(sources.before).save_pretrained(run / "before")
        AutoImageProcessor.from_pretrained(sources.before).save_pretrained(run / "before")
    if sources.dataset and (sources.built_in or with_dataset):
        _write_sample(sources.dataset, run / "dataset")
    report = {"probes": sources.report["probes"]} if "probes" in sources.report else {}
    (run / "report.json").write_text(json.dumps(report, indent=1), encoding="utf-8")
    for package, inside in PACKAGES.items():
        source = Path(str(import_module(package).__file__)).parent
        shutil.copytree(source, folder / inside, ignore=LEFT_OUT, dirs_exist_ok=True)
    (folder / "app.py").write_text(APP.format(built_in=sources.built_in), encoding="utf-8")
    (folder / "requirements.txt").write_text("".join(f"{line}\n" for line in requirements()), encoding="utf-8")
    _write_card(folder, title)
    return folder


def requirements() -> list[str]:
    """What the package needs, without its extras, and what the demo needs beyond."""
    needed = [line for line in importlib.metadata.requires("pacl") or [] if "extra ==" not in line]
    return [*needed, *REQUIREMENTS]


def _write_card(folder: Path, title: str) -> None:
    data = SpaceCardData(
        title=title,
        emoji="🖼️",
        colorFrom="yellow",
        colorTo="red",
        sdk="gradio",
        sdk_version=GRADIO,
        app_file="app.py",
        license="apache-2.0",
        short_description="How a picture may feel to those who look at it",
    )
    card = SpaceCard(README.format(front_matter=data.to_yaml(), title=title))
    card.save(folder / "README.md")


def _write_sample(source: Path, target: Path) -> None:
    dataset = datasets.load_from_disk(str(source))
    if isinstance(dataset, datasets.DatasetDict):
        raise DemoError(f"{source} holds several splits; name the folder of one of them")
    keep = [
        name
        for name in ("image", "text", "factual_score", "emotional_score", "partition")
        if name in dataset.column_names
    ]
    rows = np.sort(np.random.default_rng(0).permutation(len(dataset))[:SAMPLE])
    dataset.select_columns(keep).select(rows).save_to_disk(str(target))
