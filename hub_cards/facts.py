"""What a run's own files say: recipe, report and evaluation results, read at the time of writing and never guessed."""

from __future__ import annotations

import csv
import json
import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from pacl.evaluation.statistics import spread

EVALUATION = "evaluation"

# Questions that a run asks about generated pictures (`probes: [built-in]`).
BUILT_IN_PROBES = ("emotion", "object")

# Fields of a recipe that say something about the machine, and nothing about what came out.
LOCAL_FIELDS = ("output_dir", "overwrite")
TOKEN_FIELDS = ("hub_token", "push_to_hub_token")

# `C:\…`, `/…` and `~/…`: an absolute path, wherever it leads, says something about the author's machine.
ABSOLUTE = re.compile(r"^(?:~?/|[A-Za-z]:[\\/]).*")


@dataclass(frozen=True)
class RunFacts:
    """
    The contents of a run's files; empty where a file is not there.

    Args:
        folder (`Path`): The run's folder.
        recipe (`dict`): Of `recipe.yaml`, without local paths.
        report (`dict`): Of `report.json`.
        results (`list[dict]`): The entries of `results.json`.
        comparisons (`list[dict]`): The entries of `comparisons.json`.
        emissions (`float`, *optional*): Kilograms of CO2 equivalents, where codecarbon has measured them.
    """

    folder: Path
    recipe: dict[str, Any] = field(default_factory=dict)
    report: dict[str, Any] = field(default_factory=dict)
    results: list[dict[str, Any]] = field(default_factory=list)
    comparisons: list[dict[str, Any]] = field(default_factory=list)
    emissions: float | None = None

    @property
    def built_in(self) -> bool:
        """Whether the posts are the generated corpus."""
        return bool(self.recipe) and self.recipe.get("posts", "built-in") == "built-in"

    def of(self, what: str) -> list[dict[str, Any]]:
        """The entries of `results.json` that are about this run's `backbone` or `dual_encoder`."""
        return [entry for entry in self.results if self.is_own(entry["backbone"], what)]

    def is_own(self, name: str, what: str) -> bool:
        """Whether a name in the results is this run's folder of that kind, as it was called on the command line."""
        own = self.folder.resolve() / what
        return Path(name).expanduser().resolve() == own or Path(name).parts[-2:] == own.parts[-2:]


def read_facts(run_folder: str | Path, evaluation: str | Path | None = None) -> RunFacts:
    """
    Read the files of a run.

    Args:
        run_folder (`str` or `Path`):
            The run's folder.
        evaluation (`str` or `Path`, *optional*):
            The output folder of `pacl evaluate` on this run's models; by default `evaluation/` in the run's folder.

    Raises:
        `ValueError`: a file is there, but is not what it should be.
    """
    folder = Path(run_folder)
    evaluated = Path(evaluation) if evaluation else folder / EVALUATION
    if evaluation and not (evaluated / "results.json").is_file():
        raise ValueError(f"{evaluated} holds no results.json: give the --output_dir of pacl evaluate")
    recipe = _read(folder / "recipe.yaml", dict)
    return RunFacts(
        folder,
        recipe=without_local_paths({key: value for key, value in recipe.items() if key not in LOCAL_FIELDS}),
        report=_read(folder / "report.json", dict),
        results=_read(evaluated / "results.json", list),
        comparisons=_read(evaluated / "comparisons.json", list),
        emissions=_read_emissions(folder),
    )


def _read(path: Path, kind: type) -> Any:
    if not path.is_file():
        return kind()
    text = path.read_text(encoding="utf-8")
    try:
        content = yaml.safe_load(text) if path.suffix == ".yaml" else json.loads(text)
    except (ValueError, yaml.YAMLError) as error:
        raise ValueError(f"{path} cannot be read: {error}") from error
    if not isinstance(content, kind):
        raise ValueError(f"{path}: a {kind.__name__} is expected, got {type(content).__name__}")
    return content


def _read_emissions(folder: Path) -> float | None:
    """The last row of codecarbon's `emissions.csv`, which its Trainer callback leaves beside the checkpoints."""
    for path in (folder / "emissions.csv", folder / "checkpoints" / "emissions.csv"):
        if path.is_file():
            with path.open(encoding="utf-8") as file:
                rows = list(csv.DictReader(file))
            return float(rows[-1]["emissions"]) if rows else None
    return None


def without_local_paths(value: Any) -> Any:
    """
    The value as others may see it: without tokens, and with every absolute path cut to its last two parts, after `…`.

    Hub ids and relative paths stay.
    """
    if isinstance(value, dict):
        return {key: without_local_paths(entry) for key, entry in value.items() if key not in TOKEN_FIELDS}
    if isinstance(value, list):
        return [without_local_paths(entry) for entry in value]
    if not isinstance(value, str):
        return value
    key, equals, path = value.rpartition("=")  # `oasis=FOLDER` among the probes
    if not ABSOLUTE.match(path):
        return value
    parts = [part for part in re.split(r"[\\/]", path) if part and part != "~"]
    return key + equals + "/".join(["…", *parts[-2:]])


@dataclass(frozen=True)
class Result:
    """
    One figure of a run, over its seeds, with the same figure before PACL where it was measured.

    Args:
        data, title (`str`): What was tested on: the benchmark's name or the probe's, and as people call it.
        protocol (`str`): `probe`, `linear`, `finetune` or `zero_shot`.
        metric (`str`): Its name; `part/metric` where the predictions have parts.
        split (`str`): `test` or `cross-validation`.
        mean, std (`float`): Over the seeds; a spread of one seed is 0.
        seeds (`int`): Number of seeds.
        before (`float`, *optional*): Mean before PACL.
        difference (`dict`, *optional*): `mean`, `low` and `high` of the paired difference.
    """

    data: str
    title: str
    protocol: str
    metric: str
    split: str
    mean: float
    std: float
    seeds: int
    before: float | None = None
    difference: dict[str, float] | None = None

    @property
    def statistic(self) -> str:
        """The metric without its part."""
        return self.metric.rpartition("/")[2]


def results_of(facts: RunFacts, what: str) -> list[Result]:
    """
    Every figure that a run's files hold about its backbone or its dual encoder, and no other.

    Args:
        facts ([`RunFacts`]):
            From [`read_facts`].
        what (`str`):
            `"backbone"` or `"dual_encoder"`.
    """
    found = _probe_results(facts) if what == "backbone" else _zero_shot_results(facts)
    return found + _evaluation_results(facts, what)


def _probe_results(facts: RunFacts) -> list[Result]:
    found = []
    for name, probe in facts.report.get("probes", {}).items():
        title = f"built-in pictures, {name}" if name in BUILT_IN_PROBES else name
        for metric, after in probe["after"].items():
            found.append(
                Result(
                    data=name,
                    title=f"{title} ({probe['examples']:,})",
                    protocol="probe",
                    metric=metric,
                    split="cross-validation",
                    mean=after["mean"],
                    std=after["std"],
                    seeds=len(probe["seeds"]),
                    before=probe["before"][metric]["mean"],
                    difference=probe["difference"].get(metric),
                )
            )
    return found


def _zero_shot_results(facts: RunFacts) -> list[Result]:
    return [
        Result(
            data=name,
            title=f"built-in pictures, {name}, {len(result['classes'])} classes ({result['examples']:,})",
            protocol="zero_shot",
            metric=f"{prompt}/accuracy",
            split="test",
            mean=figures["accuracy"],
            std=0.0,
            seeds=1,
        )
        for name, result in facts.report.get("zero_shot", {}).items()
        for prompt, figures in result["prompts"].items()
    ]


def _evaluation_results(facts: RunFacts, what: str) -> list[Result]:
    groups: dict[tuple[str, str, str, str], list[float]] = defaultdict(list)
    for entry in facts.of(what):
        for metric, value in entry["metrics"].items():
            groups[entry["dataset"], entry["protocol"], metric, entry["split"]].append(value)
    found = []
    for (data, protocol, metric, split), values in groups.items():
        summary: dict[str, Any] = spread(values)
        before, difference = _before(facts, what, data, protocol, metric)
        found.append(
            Result(
                data,
                benchmark_title(data),
                protocol,
                metric,
                split,
                summary["mean"],
                summary["std"],
                seeds=len(values),
                before=before,
                difference=difference,
            )
        )
    return found


def _before(facts: RunFacts, what: str, *of: str) -> tuple[float | None, dict[str, float] | None]:
    """The figure of the backbone that ours was compared with, and the paired difference."""
    for each in facts.comparisons:
        if facts.is_own(each["after"], what) and (each["dataset"], each["protocol"], each["metric"]) == of:
            values = [
                entry["metrics"][each["metric"]]
                for entry in facts.results
                if (entry["backbone"], entry["dataset"], entry["protocol"]) == (each["before"], *of[:2])
            ]
            return (sum(values) / len(values) if values else None), each
    return None, None


def benchmark_title(name: str) -> str:
    """A benchmark's name as people write it; the name itself for one that is not ours."""
    from pacl.evaluation.benchmarks import get_benchmark

    try:
        return get_benchmark(name).title
    except ValueError:
        return name


def loss_ends(log: Sequence[dict[str, float]]) -> dict[str, tuple[float, float]]:
    """For the whole loss and each partition's, the mean over the first and over the last tenth of its log entries."""
    ends = {}
    for name in ("loss", "loss_strong", "loss_partial_emotional", "loss_partial_factual", "loss_weak"):
        values = [entry[name] for entry in log if name in entry]
        if values:
            tenth = max(len(values) // 10, 1)
            ends[name] = sum(values[:tenth]) / tenth, sum(values[-tenth:]) / tenth
    return ends
