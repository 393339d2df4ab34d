"""Where the main job meets its measurement: the only module that knows both `pacl.training` and `pacl.evaluation`."""

from __future__ import annotations

import runpy
import sys
from collections.abc import Sequence
from functools import cache
from typing import Any

from datasets import Dataset, concatenate_datasets
from transformers.utils import logging

from pacl import PACLModel, PACLProcessor
from pacl.evaluation.before_after import ProbeSpec, measure
from pacl.evaluation.benchmarks import load_benchmark
from pacl.evaluation.zero_shot import zero_shot

from .arguments import BUILT_IN, RecipeError, parse_settings
from .run import Run, run
from .synthetic import make_pictures

logger = logging.get_logger(__name__)

# Benchmarks that a run can probe: title, columns, and the column whose values a judge may have used as references.
BENCHMARK_PROBES: dict[str, tuple[str, tuple[str, ...], str | None]] = {
    "oasis": ("OASIS", ("valence", "arousal"), "theme"),
    "twitter1": ("Twitter-I", ("label",), None),
}
COMMANDS = {
    "train": "pacl.training",
    "evaluate": "pacl.evaluation",
    "export": "pacl.hub_cards.export_command",
    "push": "pacl.hub_cards",
    "demo": "pacl.hub_cards.demo",
}


def main(argv: Sequence[str]) -> None:
    """Run a recipe: `[RECIPE] [--field value …]`."""
    try:
        settings = parse_settings(argv)
        check_probes(settings.measure.probes)
        run(settings, measure_run)
    except (ValueError, OSError) as error:
        # What a user can mend is said in one line; --log_level debug shows where it came from.
        logger.debug("the run ended", exc_info=True)
        sys.exit(f"train: {error}")


def check_probes(probes: Sequence[str]) -> None:
    """Refuse a wrong entry of the field `probes` before hours of training, not after."""
    for name in probes:
        kind, _, value = name.partition("=")
        if name != BUILT_IN and not (kind in ("posts", *BENCHMARK_PROBES) and value):
            known = ", ".join(f"{benchmark}=FOLDER" for benchmark in BENCHMARK_PROBES)
            raise RecipeError(f"probes: {name!r} is none of {BUILT_IN}, {known}, posts=COLUMN")
        if kind in BENCHMARK_PROBES:
            read_pictures(kind, value)


@cache
def read_pictures(benchmark: str, folder: str) -> Dataset:
    """All pictures of a benchmark, for the probes deal their own folds; read once for check and measurement."""
    return concatenate_datasets(list(load_benchmark(benchmark, folder).values()))


def measure_run(job: Run) -> dict[str, Any]:
    """Linear probes on the backbone before and after, and the dual encoder's zero-shot accuracy."""
    pictures = make_pictures(seed=job.settings.training.seed) if BUILT_IN in job.settings.measure.probes else None
    results: dict[str, Any] = {}
    if probes := [spec for name in job.settings.measure.probes for spec in probe_specs(job, name, pictures)]:
        results["probes"] = measure(
            job.settings.model.vision_tower, job.backbone, probes, seeds=job.settings.measure.probe_seeds
        )
    if pictures is not None:
        model = PACLModel.from_pretrained(job.dual_encoder)
        processor = PACLProcessor.from_pretrained(job.dual_encoder)
        results["zero_shot"] = {"emotion": zero_shot(model, processor, pictures, "emotion").summary()}
    return results


def probe_specs(job: Run, name: str, pictures: Any) -> list[ProbeSpec]:
    """The questions that one entry of the field `probes` stands for."""
    kind, _, value = name.partition("=")
    if name == BUILT_IN:
        return [ProbeSpec("emotion", pictures, "emotion"), ProbeSpec("object", pictures, "subject")]
    if kind == "posts":
        if value not in job.dataset.column_names:
            raise RecipeError(
                f"probes: the posts have no column {value!r}; they have {', '.join(job.dataset.column_names)}"
            )
        return [ProbeSpec(f"posts {value}", job.dataset, value)]
    everything = read_pictures(kind, value)
    title, columns, groups = BENCHMARK_PROBES[kind]
    never_test = job.reference_names if groups else ()
    return [
        ProbeSpec(f"{title} {column}".removesuffix(" label"), everything, column, groups=groups, never_test=never_test)
        for column in columns
    ]


def console() -> None:
    """The command `pacl`: `pacl train`, `pacl evaluate`, `pacl export`, `pacl push`, `pacl demo`."""
    command = sys.argv[1] if len(sys.argv) > 1 else None
    if command not in COMMANDS:
        sys.exit(f"usage: pacl {{{','.join(COMMANDS)}}} …")
    sys.argv[:2] = [f"pacl {command}"]
    runpy.run_module(COMMANDS[command], run_name="__main__")


if __name__ == "__main__":
    main(sys.argv[1:])
