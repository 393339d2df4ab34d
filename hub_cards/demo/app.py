"""Puts the demo together and serves it on this machine: nothing is asked of, or sent to, any other."""

from __future__ import annotations

import os

# Gradio reads it when imported.
os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"

import atexit
import shutil
import tempfile
from pathlib import Path
from typing import Any

import datasets
import gradio as gr

from pacl.evaluation.backbones import Backbone
from pacl.training.synthetic import make_pictures

from .comparison import Comparison
from .dataset_tab import dataset_tab
from .emotions_tab import emotions_tab
from .partitions import PartitionedPosts
from .reading import Reader
from .sources import Sources

LABELLED_PICTURES = 600
EXAMPLES = 6
STYLE = Path(__file__).parent / "style.css"
# A model that was trained on other words starts with those of FI and EmoSet.
VOCABULARY, BUILT_IN_VOCABULARY = "mikels8", "parrott6"


def build_app(sources: Sources) -> gr.Blocks:
    """
    Build the app without starting it.

    Args:
        sources ([`Sources`]): What to show.

    Returns:
        `gradio.Blocks`: For [`launch`].

    Raises:
        DemoError: if a model or the dataset cannot be used.
    """
    reader = Reader(sources.model)
    posts = PartitionedPosts.load(sources.dataset) if sources.dataset else None
    labelled = make_pictures(LABELLED_PICTURES) if sources.built_in else None
    # Other pictures than those that the classifier of the comparison is fitted on.
    shown = make_pictures(60, seed=1) if sources.built_in or posts is None else posts.dataset
    comparison = _comparison(reader, sources, posts, labelled)
    name = "/".join(Path(sources.model).parts[-2:])
    with gr.Blocks(title="PACL: how a picture feels", analytics_enabled=False, delete_cache=(3600, 3600)) as app:
        gr.Markdown(f"# How a picture feels\nModel: `{name}`")
        with gr.Tab("Picture", id="picture"):
            emotions_tab(
                reader,
                comparison,
                example_files(shown),
                vocabulary=BUILT_IN_VOCABULARY if sources.built_in else VOCABULARY,
                figures=measured(sources.report),
            )
        with gr.Tab("Posts", id="posts"):
            if posts is None:
                gr.Markdown("There is no partitioned dataset here. Give a run's folder, or `--dataset FOLDER`.")
            else:
                dataset_tab(posts)
    return app


def launch(app: gr.Blocks, port: int | None = None, **options: Any) -> str:
    """
    Serve the app on this machine, and wait until it is stopped unless `prevent_thread_lock` is given.

    Args:
        app (`gradio.Blocks`): From [`build_app`].
        port (`int`, *optional*): By default the first free one from 7860 on.
        options (*optional*): Further arguments of `gradio.Blocks.launch`.

    Returns:
        `str`: The address.
    """
    defaults: dict[str, Any] = {
        "share": False,
        "ssr_mode": False,
        "enable_monitoring": False,
        "footer_links": [],
        "max_file_size": "20mb",
        "show_error": True,
        "theme": make_theme(),
        "css_paths": [STYLE],
    }
    _, address, _ = app.launch(server_port=port, **(defaults | options))
    return address


def make_theme() -> gr.themes.Base:
    """Gradio's plain theme, with colours dark enough to read and the fonts of the reader's own system."""
    orange = gr.themes.Color(
        c50="#fff7ed", c100="#ffedd5", c200="#fed7aa", c300="#fdba74", c400="#ea580c", c500="#c2410c", c600="#9a3412",
        c700="#7c2d12", c800="#66250f", c900="#431407", c950="#2a0d04",
    )  # fmt: skip
    # A font from elsewhere would be a request to elsewhere.
    theme = gr.themes.Base(
        primary_hue=orange, font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]
    )
    return theme.set(
        body_text_color_subdued="*neutral_600",
        body_text_color_subdued_dark="*neutral_300",
        block_label_text_color="*neutral_600",
        block_title_text_color="*neutral_700",
    )


def measured(report: dict[str, Any]) -> str:
    """What the run's report says of linear probes before and after, as one sentence; empty where it says nothing."""
    parts = []
    for name, probe in report.get("probes", {}).items():
        metric = "pearson_r" if "pearson_r" in probe["after"] else "accuracy"
        before, after = probe["before"][metric]["mean"], probe["after"][metric]["mean"]
        parts.append(f"{name} {metric.replace('_', ' ')} {before:.3f} before, {after:.3f} after")
    return f"The run's report measured with linear probes: {'; '.join(parts)}." if parts else ""


def example_files(pictures: datasets.Dataset, number: int = EXAMPLES) -> dict[str, str]:
    """Some pictures as files by the name they are shown under: one of each emotion where that is known."""
    names = [f"Example {place}" for place in range(1, number + 1)]
    rows = list(range(min(number, len(pictures))))
    if {"emotion", "subject"} <= set(pictures.column_names):
        labels = list(pictures["emotion"])
        rows = [labels.index(label) for label in sorted(set(labels))][:number]
        subjects = pictures.features["subject"].names
        names = [f"{place}: {subjects[pictures[row]['subject']]}" for place, row in enumerate(rows, start=1)]
    folder = Path(tempfile.mkdtemp(prefix="pacl_demo_"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    paths = {}
    for name, row in zip(names, rows, strict=False):
        paths[name] = str(folder / f"{row}.png")
        pictures[row]["image"].convert("RGB").save(paths[name])
    return paths


def _comparison(
    reader: Reader, sources: Sources, posts: PartitionedPosts | None, labelled: datasets.Dataset | None
) -> Comparison | None:
    """The comparison, where there is a backbone before and a dual encoder whose tower can stand beside it."""
    tower = getattr(reader.model, "vision_model", None)
    if sources.before is None or tower is None:
        return None
    pooling = getattr(reader.model.config, "vision_pooling", "auto")
    after = Backbone(tower, reader.pipe.image_processor, sources.model, pooling)
    pictures = make_pictures(LABELLED_PICTURES) if posts is None else posts.dataset
    return Comparison.load(sources.before, after, pictures, labelled)
