"""Results as people read them: JSON, and Markdown tables like the paper's Table 1 beside the paper's own figures."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Sequence
from functools import cached_property
from importlib import resources
from pathlib import Path

from .benchmarks import get_benchmark
from .details import describe
from .results import Comparison, Run, compare
from .statistics import LOWER_IS_BETTER, spread

COLUMNS = {
    ("fi2", "accuracy"): "FI/acc2",
    ("fi", "accuracy"): "FI/acc8",
    ("fi", "weighted_f1"): "FI/f1_8",
    ("emotion6", "accuracy"): "Emotion6/acc6",
    ("emotion6", "weighted_f1"): "Emotion6/f1_6",
    ("unbiasedemo", "accuracy"): "UnbiasedEmo/acc6",
    ("unbiasedemo", "weighted_f1"): "UnbiasedEmo/f1_6",
    ("emotic", "mean_average_precision"): "Emotic/mAP",
    ("emotic", "mean_roc_auc"): "Emotic/AUC",
    ("emotic_vad", "mean_mse"): "Emotic-VAD/mse",
    ("emotic_vad", "mean_r2"): "Emotic-VAD/r2",
    ("iaps", "mean_mse"): "IAPS/mse",
    ("iaps", "mean_r2"): "IAPS/r2",
    **{
        (benchmark, f"label{level}/{metric}"): f"WebEmo/{column}{'6' if level == '7' else level}"
        for benchmark, levels in (("webemo", ("2", "7", "25")), ("webemo6", ("2", "6", "25")))
        for level in levels
        for metric, column in (("accuracy", "acc"), ("weighted_f1", "f1_"))
    },
}
"""Columns of the paper's Tables 1 and 2 by benchmark and metric. They say 6 middle classes of WebEmo, its text 7."""

TABLE3 = {"fi": "FI/acc8", "emotion6": "Emotion6/acc6"}
"""Columns of the paper's Table 3 (zero-shot accuracy) by benchmark."""

NO_PERCENT = ("mean_mse", "mean_r2", "pearson_r")


class Evaluation:
    """All runs of one call, and what follows from them.

    Args:
        runs (`Sequence[Run]`): of every protocol, backbone, dataset and seed.
    """

    def __init__(self, runs: Sequence[Run]) -> None:
        self.runs = list(runs)
        self.backbones = list(dict.fromkeys(run.backbone for run in runs))
        self.datasets = list(dict.fromkeys(run.dataset for run in runs))
        self.protocols = list(dict.fromkeys(run.protocol for run in runs))

    def of(self, backbone: str, dataset: str, protocol: str | None = None) -> list[Run]:
        """The runs of one backbone on one dataset under one protocol (by default the first), by seed."""
        key = (backbone, dataset, protocol or self.protocols[0])
        return [run for run in self.runs if (run.backbone, run.dataset, run.protocol) == key]

    def results(self) -> list[dict[str, object]]:
        """One entry for each run: `backbone`, `dataset`, `task`, `protocol`, `seed`, `split`, `metrics`."""
        return [run.record() for run in self.runs]

    @cached_property
    def comparisons(self) -> list[Comparison]:
        """Every further backbone against the first, on every dataset and metric."""
        first, *others = self.backbones
        return [
            comparison
            for protocol in self.protocols
            for other in others
            for dataset in self.datasets
            for comparison in compare(self.of(first, dataset, protocol), self.of(other, dataset, protocol))
        ]

    def table(self) -> str:
        """Markdown: mean ± standard deviation over the seeds, the paper's figures below, then the comparisons."""
        text: list[str] = []
        for protocol in self.protocols:
            text += [*self._table(protocol), ""]
        if self.comparisons:
            text += markdown(COMPARISON_HEADER, [_comparison_row(c) for c in self.comparisons])
        return "\n".join(text).rstrip() + "\n"

    def _table(self, protocol: str) -> list[str]:
        """One protocol's lines: what was tested, and the table."""
        first = {dataset: self.of(self.backbones[0], dataset, protocol) for dataset in self.datasets}
        columns = [(dataset, metric) for dataset in self.datasets for metric in first[dataset][0].metrics]
        header = ["backbone", *(f"{get_benchmark(dataset).title} {metric}" for dataset, metric in columns)]
        rows = [
            [name, *(_cell(self.of(name, dataset, protocol), metric) for dataset, metric in columns)]
            for name in self.backbones
        ]
        seeds = [run.seed for run in first[self.datasets[0]]]
        tested = (f"{get_benchmark(dataset).title} {len(runs[0].examples)}" for dataset, runs in first.items())
        about = f"Protocol {protocol}, split {self.runs[0].split}; tested: {', '.join(tested)}; seeds "
        about += ", ".join(map(str, seeds)) + ("; mean ± standard deviation." if len(seeds) > 1 else ".")
        return [about, "", *markdown(header, [*rows, *_paper_rows(protocol, columns)])]

    def save(self, folder: Path) -> None:
        """Writes `results.json`, `details.json` (see [`describe`]), `comparisons.json` and `results.md`."""
        folder.mkdir(parents=True, exist_ok=True)
        _write_json(folder / "results.json", self.results())
        _write_json(folder / "details.json", [part for run in self.runs for part in describe(run)])
        _write_json(folder / "comparisons.json", [comparison.record() for comparison in self.comparisons])
        (folder / "results.md").write_text(self.table(), encoding="utf-8")


COMPARISON_HEADER = ("before", "after", "dataset", "protocol", "metric", "difference", "95 % interval", "says")


def markdown(header: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Lines of a Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return ["| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines]


def read_paper_table(number: int) -> list[dict[str, str]]:
    """A table of the paper as rows by column; figures in percent, except MSE and R²."""
    path = resources.files("pacl.evaluation") / "paper" / f"table{number}.csv"
    with path.open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


def _cell(runs: Sequence[Run], metric: str) -> str:
    values: dict = spread([run.metrics[metric] for run in runs])
    deviation = f" ± {_shown(metric, values['std'])}" if len(runs) > 1 else ""  # of one run nothing is known
    return _shown(metric, values["mean"]) + deviation


def _paper_rows(protocol: str, columns: Sequence[tuple[str, str]]) -> list[list[str]]:
    """The paper's rows that have a figure in any of the columns."""
    if protocol == "zero_shot":
        lines = [
            (line["model"], {(dataset, f"{line['prompt']}/accuracy"): line[TABLE3[dataset]] for dataset in TABLE3})
            for line in read_paper_table(3)
        ]
    else:
        lines = [
            (_model_of_table1(line), _by_metric(line)) for line in read_paper_table(1) if line["protocol"] == protocol
        ]
        if protocol == "finetune":
            lines += [(f"{line['model']} (Table 2)", _by_metric(line)) for line in read_paper_table(2)]
    rows = [[f"paper: {model}", *(figures.get(column, "") for column in columns)] for model, figures in lines]
    return [row for row in rows if any(row[1:])]


def _model_of_table1(line: dict[str, str]) -> str:
    return line["backbone"] + ("" if line["enhancement"] == "none" else f" + {line['enhancement']}")


def _by_metric(line: dict[str, str]) -> dict[tuple[str, str], str]:
    """A row of Table 1 or 2 by benchmark and metric."""
    return {key: line.get(column, "") for key, column in COLUMNS.items()}


def _comparison_row(comparison: Comparison) -> list[str]:
    metric = comparison.metric
    sign = -1 if metric.rpartition("/")[2] in LOWER_IS_BETTER else 1
    verdict = "no clear difference"
    if comparison.low > 0 or comparison.high < 0:
        verdict = "better" if sign * comparison.mean > 0 else "worse"
    return [
        comparison.before,
        comparison.after,
        get_benchmark(comparison.dataset).title,
        comparison.protocol,
        metric,
        f"{_shown(metric, comparison.mean, '+')}",
        f"{_shown(metric, comparison.low, '+')} to {_shown(metric, comparison.high, '+')}",
        verdict,
    ]


def _shown(metric: str, value: float, sign: str = "") -> str:
    if metric.rpartition("/")[2] in NO_PERCENT:
        return f"{value:{sign}.4f}"
    return f"{100 * value:{sign}.2f}"


def _write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
