"""What a run found, for people: a summary to print and a picture to look at, both drawn from `report.json` alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from .partition import Partition

COLOURS = {"strong": "#2a9d8f", "partial_emotional": "#e9c46a", "partial_factual": "#f4a261", "weak": "#8d99ae"}
BEFORE, AFTER = "#b0b7c3", "#e76f51"


def summarise(report: dict[str, Any]) -> str:
    """The report's figures as text: shares, losses by phase, probes before and after, zero-shot accuracy, time."""
    lines = ["", f"PACL: {report['name']}", "", _shares_table(report["partition"])]
    lines += ["", "losses (mean of the first and of the last tenth of the entries that have them)"]
    for name, (_, losses) in _loss_curves(report["training"]["log"]).items():
        tenth = max(len(losses) // 10, 1)
        lines.append(f"  {name:<18} {np.mean(losses[:tenth]):7.3f} → {np.mean(losses[-tenth:]):7.3f}")
    if "probes" in report:
        lines += ["", "linear probes, mean ± standard deviation over seeds; difference with its 95 % interval"]
        lines += [_probe_line(name, probe) for name, probe in report["probes"].items()]
    for name, result in report.get("zero_shot", {}).items():
        lines += ["", f"zero-shot {name}, {len(result['classes'])} classes, {result['examples']} pictures"]
        lines += [f"  {prompt:<36} {values['accuracy']:6.1%}" for prompt, values in result["prompts"].items()]
    seconds = report["seconds"]
    lines += ["", "seconds: " + ", ".join(f"{stage} {time:g}" for stage, time in seconds.items())]
    return "\n".join(lines)


def _shares_table(partition: dict[str, Any]) -> str:
    shares, paper = partition["shares"], partition["paper_shares"]
    partial = shares["partial_emotional"] + shares["partial_factual"]
    rejected = sum(partition["rejected"].values())
    lines = [
        f"{partition['posts']} posts, {rejected} rejected; thresholds: "
        + ", ".join(f"{side} {value:.3f}" for side, value in partition["thresholds"].items()),
        f"  strong {shares['strong']:.0%}, partial {partial:.0%} (emotional {shares['partial_emotional']:.0%}, "
        f"factual {shares['partial_factual']:.0%}), weak {shares['weak']:.0%}",
        f"  paper: strong {paper['strong']:.0%}, partial {paper['partial']:.0%}, weak {paper['weak']:.0%}",
    ]
    if "accuracy" in partition:
        lines.append(f"  agreement with the corpus's truth: {partition['accuracy']:.1%}")
    return "\n".join(lines)


def _main_metric(probe: dict[str, Any]) -> str:
    return "pearson_r" if "pearson_r" in probe["after"] else "accuracy"


def _probe_line(name: str, probe: dict[str, Any]) -> str:
    metric = _main_metric(probe)
    before, after, gain = (probe[key][metric] for key in ("before", "after", "difference"))
    return (
        f"  {name:<18} {metric:<9} {before['mean']:.3f} ± {before['std']:.3f} → {after['mean']:.3f} ± "
        f"{after['std']:.3f}   ({gain['mean']:+.3f}, {gain['low']:+.3f} to {gain['high']:+.3f})"
    )


def draw_report(report: dict[str, Any], path: Path) -> None:
    """
    Draw the shares, the losses, the probes and the zero-shot confusion of a run.

    Args:
        report (`dict`):
            As `report.json` holds it.
        path (`Path`):
            The PNG to write.
    """
    panels = [_draw_shares, _draw_losses]
    panels += [_draw_probes] if "probes" in report else []
    panels += [_draw_confusion] if "zero_shot" in report else []
    figure = Figure(figsize=(6.2 * min(len(panels), 2), 4.6 * -(-len(panels) // 2)), layout="constrained")
    axes = figure.subplots(-(-len(panels) // 2), min(len(panels), 2), squeeze=False).ravel()
    for draw, ax in zip(panels, axes, strict=False):
        draw(ax, report)
    for ax in axes[len(panels) :]:
        ax.set_axis_off()
    figure.suptitle(f"PACL: {report['name']}", weight="bold")
    figure.savefig(path, dpi=130)


def _draw_shares(ax: Axes, report: dict[str, Any]) -> None:
    partition = report["partition"]
    paper = partition["paper_shares"]
    rows = [("this run", partition["shares"])]
    rows += [("its truth", partition["true_shares"])] if "true_shares" in partition else []
    for row, (_, shares) in enumerate(rows):
        left = 0.0
        for name, colour in COLOURS.items():
            ax.barh(row, shares[name], left=left, color=colour, label=name.replace("_", " ") if row == 0 else None)
            if shares[name] > 0.05:
                ax.text(left + shares[name] / 2, row, f"{shares[name]:.0%}", ha="center", va="center")
            left += shares[name]
    row = len(rows)
    left = 0.0
    for name, share in paper.items():
        ax.barh(row, share, left=left, color="#edb867" if name == "partial" else COLOURS[name])
        ax.text(left + share / 2, row, f"{share:.0%}", ha="center", va="center")
        left += share
    ax.set_yticks(range(row + 1), [label for label, _ in rows] + ["paper"])
    ax.invert_yaxis()
    ax.set_xlim(0, 1)
    ax.xaxis.set_major_formatter("{x:.0%}")
    ax.legend(ncols=2, loc="upper center", bbox_to_anchor=(0.5, -0.1), frameon=False)
    found = f"; {partition['accuracy']:.0%} of the posts as in truth" if "accuracy" in partition else ""
    ax.set_title(f"Partitions of {partition['posts']:,} posts{found}")


def _draw_losses(ax: Axes, report: dict[str, Any]) -> None:
    for name, (epochs, losses) in _loss_curves(report["training"]["log"]).items():
        ax.plot(epochs, losses, color=COLOURS[name], alpha=0.35, linewidth=1)
        width = max(len(losses) // 15, 1)
        smooth = np.convolve(losses, np.ones(width) / width, mode="valid")
        ax.plot(epochs[width - 1 :], smooth, color=COLOURS[name], linewidth=2, label=name.replace("_", " "))
    for third in (1, 2):
        ax.axvline(report["training"]["epochs"] * third / 3, color="grey", linestyle=":", linewidth=1)
    ax.set_xlabel("epoch (dotted: the phases)")
    ax.set_ylim(bottom=0)
    ax.legend(frameon=False)
    ax.set_title("Loss of each partition")


def _draw_probes(ax: Axes, report: dict[str, Any]) -> None:
    names = list(report["probes"])
    for offset, side, colour in ((-0.2, "before", BEFORE), (0.2, "after", AFTER)):
        values = [report["probes"][name][side][_main_metric(report["probes"][name])] for name in names]
        heights = [value["mean"] for value in values]
        ax.bar(
            np.arange(len(names)) + offset, heights, 0.38, yerr=[v["std"] for v in values], color=colour, label=side,
            capsize=3,
        )  # fmt: skip
        for x, height in enumerate(heights):
            ax.text(x + offset, 0.01, f"{height:.3f}", ha="center", va="bottom", fontsize=8)
    labels = [f"{name}\n{_main_metric(report['probes'][name]).replace('_', ' ')}" for name in names]
    ax.set_xticks(range(len(names)), labels)
    ax.set_ylim(0, 1)
    ax.legend(frameon=False, ncols=2)
    ax.set_title("Linear probes of the backbone (bars: spread over seeds)")


def _draw_confusion(ax: Axes, report: dict[str, Any]) -> None:
    name, result = next(iter(report["zero_shot"].items()))
    ensemble = result["prompts"]["ensemble"]
    counts = np.asarray(ensemble["confusion"], dtype=float)
    shares = counts / counts.sum(axis=1, keepdims=True).clip(min=1)
    ax.imshow(shares, cmap="Oranges", vmin=0, vmax=1)
    for (row, column), share in np.ndenumerate(shares):
        ax.text(column, row, f"{share:.0%}", ha="center", va="center", fontsize=8)
    classes = result["classes"]
    ax.set_xticks(range(len(classes)), classes, rotation=30, ha="right")
    ax.set_yticks(range(len(classes)), classes)
    ax.set_xlabel("named")
    ax.set_ylabel("true")
    ax.set_title(f"Zero-shot {name}: {ensemble['accuracy']:.1%} right")


def _loss_curves(log: list[dict[str, float]]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """For each partition that trained, the epochs of the log's entries and its loss there."""
    curves = {}
    for p in Partition:
        name = p.name.lower()
        points = [(entry["epoch"], entry[f"loss_{name}"]) for entry in log if f"loss_{name}" in entry]
        if points:
            epochs, losses = zip(*points, strict=True)
            curves[name] = np.asarray(epochs), np.asarray(losses)
    return curves
