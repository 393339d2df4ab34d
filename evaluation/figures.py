"""Pictures of an evaluation: confusion matrices, gains by class, predicted against true ratings, a map of features.

Each function draws one dataset's pictures for all backbones side by side, and returns the figure.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path

import numpy as np
from matplotlib import colormaps
from matplotlib.figure import Figure
from sklearn.decomposition import PCA
from sklearn.manifold import TSNE
from sklearn.metrics import confusion_matrix

from .details import class_scores, rating_scores, tag_scores
from .report import Evaluation
from .results import Run

MAP_POINTS = 1000  # shown on a map of features; more would only overlap


def draw(evaluation: Evaluation, folder: Path) -> list[Path]:
    """Draws every picture that the runs alone suffice for.

    Args:
        evaluation ([`Evaluation`]): whose runs are drawn.
        folder (`Path`): where the PNG files go.

    Returns:
        The files written.
    """
    figures: dict[str, Figure] = {}
    for dataset, protocol in product(evaluation.datasets, evaluation.protocols):
        runs = [evaluation.of(backbone, dataset, protocol) for backbone in evaluation.backbones]
        for part, outputs in runs[0][0].outputs.items():
            name = "-".join(filter(None, (dataset, protocol, _file_name(part))))
            labels = runs[0][0].targets[part]
            if labels.ndim == 1:
                figures[f"confusion-{name}"] = confusion_matrices(runs, part, outputs)
            if runs[0][0].task == "regression":
                figures[f"ratings-{name}"] = rating_scatter(runs, part, outputs)
            elif len(runs) > 1:
                figures[f"gains-{name}"] = class_gains(runs, part, outputs)
    return [save(figure, folder / f"{name}.png") for name, figure in figures.items()]


def save(figure: Figure, path: Path) -> Path:
    """Writes a figure as PNG."""
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    return path


def confusion_matrices(runs: Sequence[Sequence[Run]], part: str, classes: Sequence[str]) -> Figure:
    """One matrix per backbone, in percent of each true class, over all seeds together."""
    side = max(3.0, 0.45 * len(classes) + 1.5)
    figure = Figure(figsize=(side * len(runs) + 0.8, side), layout="constrained")
    panels = figure.subplots(1, len(runs), squeeze=False, sharey=True)[0]
    for axes, of_backbone in zip(panels, runs, strict=True):
        shares = 100 * _recalls(of_backbone, part, len(classes))
        image = axes.imshow(shares, vmin=0, vmax=100, cmap="Blues")
        axes.set_title(_short(of_backbone[0].backbone))
        axes.set_xticks(range(len(classes)), classes, rotation=90)
        axes.set_yticks(range(len(classes)), classes)
        axes.set_xlabel("predicted")
        if len(classes) <= 10:
            for (row, column), share in np.ndenumerate(shares):
                axes.text(
                    column, row, f"{share:.0f}", ha="center", va="center", color="white" if share > 55 else "black"
                )
    panels[0].set_ylabel("true")
    figure.colorbar(image, ax=figure.axes, label="% of the true class", shrink=0.8)
    return figure


def class_gains(runs: Sequence[Sequence[Run]], part: str, classes: Sequence[str]) -> Figure:
    """How many percent points the further backbones are better at each class than the first, seed by seed.

    In recall; for tags, in average precision.
    """
    first, *others = runs
    score = "recall" if first[0].targets[part].ndim == 1 else "average precision"
    figure = Figure(figsize=(7, 1.5 + 0.32 * len(classes) * len(others)), layout="constrained")
    axes = figure.subplots()
    height = 0.8 / len(others)
    for number, other in enumerate(others):
        gains = 100 * np.stack(
            [_by_class(new, part) - _by_class(old, part) for old, new in zip(first, other, strict=True)]
        )
        error = gains.std(axis=0, ddof=1) if len(gains) > 1 else None
        places = np.arange(len(classes)) + number * height
        axes.barh(places, gains.mean(axis=0), height, xerr=error, label=_short(other[0].backbone))
    axes.set_yticks(np.arange(len(classes)) + 0.4 - height / 2, classes)
    axes.invert_yaxis()
    axes.axvline(0, color="black", linewidth=0.8)
    axes.set_xlabel(f"gain in {score} over {_short(first[0].backbone)}, percent points (bar: s.d. over seeds)")
    axes.legend()
    return figure


def rating_scatter(runs: Sequence[Sequence[Run]], part: str, ratings: Sequence[str]) -> Figure:
    """Predicted against true ratings of the first seed's test pictures, a row for each rating, on the same scales."""
    figure = Figure(figsize=(3.4 * len(runs) + 0.5, 3.2 * len(ratings)), layout="constrained")
    panels = figure.subplots(len(ratings), len(runs), squeeze=False, sharex="row", sharey="row")
    for (rating, column), axes in np.ndenumerate(panels):
        run = runs[column][0]
        true, predicted = run.targets[part][:, rating], run.predictions[part][:, rating]
        scores = rating_scores(run.targets[part], run.predictions[part])
        axes.scatter(true, predicted, s=8, alpha=0.5)
        axes.axline((true.mean(), true.mean()), slope=1, color="black", linewidth=0.8)
        axes.set_title(
            f"{_short(run.backbone)}\nr = {scores['pearson_r'][rating]:.2f}, R² = {scores['r2'][rating]:.2f}"
        )
        axes.set_xlabel(f"true {ratings[rating]}")
        axes.set_ylabel(f"predicted {ratings[rating]}")
    return figure


def feature_maps(features: Mapping[str, np.ndarray], labels: np.ndarray, names: Sequence[str]) -> Figure:
    """t-SNE of each backbone's features in two dimensions, of the same pictures, coloured by label.

    Args:
        features (`Mapping[str, np.ndarray]`): by backbone, each of shape `(examples, dim)`.
        labels (`np.ndarray` of shape `(examples,)`): integer classes, or ratings.
        names (`Sequence[str]`): of the classes, or of the rating.
    """
    figure = Figure(figsize=(4.5 * len(features) + 1.5, 4.5), layout="constrained")
    is_class = np.issubdtype(labels.dtype, np.integer)
    colors = colormaps["tab10" if len(names) <= 10 else "tab20"]
    panels = figure.subplots(1, len(features), squeeze=False)[0]
    for axes, (name, vectors) in zip(panels, features.items(), strict=True):
        rows = np.asarray(vectors, dtype=np.float64)
        reduced = PCA(min(50, *rows.shape), random_state=0).fit_transform(rows)
        perplexity = min(30, max(2, len(rows) // 4))
        places = TSNE(perplexity=perplexity, init="pca", random_state=0).fit_transform(reduced)
        if is_class:
            for label in np.unique(labels):  # the same colour on every panel, also where a class is missing
                axes.scatter(*places[labels == label].T, s=8, color=colors(label % colors.N), label=names[label])
        else:
            points = axes.scatter(*places.T, c=labels, s=8, cmap="coolwarm")
        axes.set_title(_short(name))
        axes.set_xticks([])
        axes.set_yticks([])
    if is_class:
        figure.legend(*panels[0].get_legend_handles_labels(), loc="outside right center")
    else:
        figure.colorbar(points, ax=figure.axes, label=names[0])
    return figure


def shown_on_map(examples: int) -> np.ndarray:
    """Row numbers of the pictures on a map of features: all, or as many as can be told apart, drawn at random."""
    return np.sort(np.random.default_rng(0).permutation(examples)[:MAP_POINTS])


def _by_class(run: Run, part: str) -> np.ndarray:
    """Recall of each class, or average precision of each tag; 0 where the test examples leave it undefined."""
    targets, predictions = run.targets[part], run.predictions[part]
    if targets.ndim == 1:
        return np.nan_to_num(class_scores(targets, predictions, len(run.outputs[part]))["recall"])
    return np.nan_to_num(tag_scores(targets, predictions)["average_precision"])


def _recalls(runs: Sequence[Run], part: str, classes: int) -> np.ndarray:
    """Share of each true class by predicted class, over all runs; classes without examples are 0."""
    counts = sum(confusion_matrix(run.targets[part], run.predictions[part], labels=range(classes)) for run in runs)
    return counts / np.maximum(np.sum(counts, axis=1, keepdims=True), 1)


def _short(backbone: str) -> str:
    """The last two parts of a backbone's name, which tell a run's folder and what it is."""
    return "/".join(backbone.rstrip("/").split("/")[-2:])


def _file_name(part: str) -> str:
    return "".join(character if character.isalnum() else "_" for character in part).strip("_")
