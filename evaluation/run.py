"""From backbones and folders to results: every protocol, backbone, dataset and seed, nothing computed twice.

This is what `python -m pacl.evaluation` calls.
"""

from __future__ import annotations

import hashlib
import shutil
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from datasets import concatenate_datasets
from tqdm.auto import tqdm

from . import figures
from .arguments import EvaluationArguments
from .data import BenchmarkData
from .protocols import Answer, Contestant, Question, check_question
from .report import Evaluation
from .results import Run
from .tasks import TagHead

FOLDS = range(10)


def evaluate(arguments: EvaluationArguments) -> Evaluation:
    """Evaluates backbones on datasets, and writes results, tables and pictures into `arguments.output_dir`.

    Runs whose predictions lie in `output_dir/runs` already are read instead of repeated. Under `accelerate launch`
    every process has to call it; all get the same answer, and the first one writes. Linear evaluation and zero-shot
    then give the same numbers as on one process; fine-tuning gives those of distributed training (normalisation
    statistics and shuffling are each process's own).

    Args:
        arguments ([`EvaluationArguments`]): what to evaluate, and how.

    Returns:
        [`Evaluation`]: the runs, and how each further backbone compares with the first.

    Example:

    ```python
    from pacl.evaluation import EvaluationArguments, evaluate
    arguments = EvaluationArguments(backbone=["old/", "new/"], dataset=["oasis"], data_dir=["data/"], output_dir="out")
    print(evaluate(arguments).table())
    ```
    """
    options = arguments.options_by_dataset()
    datasets = [
        BenchmarkData(name, folders, check_pixels=arguments.check_pixels, **options[name])
        for name, folders in arguments.folders().items()
    ]
    contestants = [
        Contestant(name, protocol, arguments) for protocol in arguments.protocol for name in arguments.backbone
    ]
    # What cannot be read or loaded is refused before anything is computed.
    for data in datasets:
        check_question(data, arguments)
    for contestant in contestants:
        contestant.load()
    evaluation = Evaluation(
        [run for contestant in contestants for data in datasets for run in _runs(contestant, data, arguments)]
    )
    mapped = [contestant for contestant in contestants if arguments.figures and contestant.protocol == "linear"]
    maps = {data.benchmark.name: _features_to_map(data, mapped) for data in datasets if _has_colours(data) and mapped}
    if PartialState().is_main_process:
        folder = Path(str(arguments.output_dir))
        evaluation.save(folder)
        for data in datasets:
            if data.dropped:
                data.dropped.save(folder / f"dropped-{data.benchmark.name}.jsonl")
        if arguments.figures:
            figures.draw(evaluation, folder / "figures")
        for name, drawing in maps.items():
            figures.save(figures.feature_maps(*drawing), folder / "figures" / f"features-{name}.png")
    PartialState().wait_for_everyone()
    return evaluation


def _has_colours(data: BenchmarkData) -> bool:
    """Whether a picture has one label to be coloured by; tags are several."""
    return not isinstance(data.task.heads[0], TagHead)


def _features_to_map(
    data: BenchmarkData, contestants: Sequence[Contestant]
) -> tuple[dict[str, np.ndarray], np.ndarray, Sequence[str]]:
    """What [`figures.feature_maps`] draws: features of some pictures by backbone, their labels, the labels' names.

    The labels are the coarsest of a hierarchy, or the first of several ratings (valence). All processes have to call
    it together, since the features may have to be computed.
    """
    everything = concatenate_datasets(list(data.parts.values()))
    everything = everything.select(figures.shown_on_map(len(everything)))
    rows = data.table.rows(everything)
    features = {contestant.name: contestant.features(data)[rows] for contestant in contestants}
    head = data.task.heads[0]
    labels = head.read(everything)
    return (features, labels, head.outputs) if labels.ndim == 1 else (features, labels[:, 0], head.outputs[:1])


def _runs(contestant: Contestant, data: BenchmarkData, arguments: EvaluationArguments) -> list[Run]:
    """One run per seed, from disk where it is there."""
    state = PartialState()
    paths = {seed: _path(contestant, data, arguments, seed) for seed in arguments.seeds}
    # One process decides for all: a file that appears between two looks must not split them.
    (todo,) = broadcast_object_list([[seed for seed, path in paths.items() if not path.is_file()]])
    together = contestant.protocol == "finetune"
    if todo and not together:
        contestant.features(data)  # by all processes, before each goes its own way
    mine = todo if together else todo[state.process_index :: state.num_processes]
    desc = f"{data.benchmark.title}, {contestant.protocol}, {contestant.name}"
    for seed in tqdm(mine, desc=desc, unit="seed", disable=not state.is_main_process):
        workplace = paths[seed].parent.with_name("checkpoints") / paths[seed].stem
        run = _run(contestant, data, arguments, seed, workplace)
        if state.is_main_process or not together:
            run.save(paths[seed])
            shutil.rmtree(workplace, ignore_errors=True)  # the predictions are safe: no need to go on from there
    state.wait_for_everyone()
    # The same weights may be known by another name since.
    return [replace(Run.load(path), backbone=contestant.name) for path in paths.values()]


def _path(contestant: Contestant, data: BenchmarkData, arguments: EvaluationArguments, seed: int) -> Path:
    """Where a run is kept; the name holds a digest of everything that its predictions depend on."""
    digest = hashlib.blake2b(digest_size=12)
    for part in (contestant.fingerprint, data.fingerprint, *contestant.settings()):
        digest.update(f"{part}\n".encode())
    name = f"{data.benchmark.name}-{contestant.protocol}-seed{seed}-{digest.hexdigest()}.npz"
    return Path(str(arguments.output_dir)) / "runs" / name


def _run(
    contestant: Contestant, data: BenchmarkData, arguments: EvaluationArguments, seed: int, workplace: Path
) -> Run:
    """Trains and tests one seed, over all folds where the data is cross-validated, and scores them together."""
    answers: list[Answer] = []
    targets: dict[str, list[np.ndarray]] = defaultdict(list)
    examples, units = [], []
    for fold in FOLDS if arguments.cross_validate else FOLDS[:1]:
        splits = data.splits(seed, fold)
        keep = None if arguments.cross_validate else workplace.parent.with_name("models") / workplace.name
        question = Question(data, splits, seed, workplace / f"fold{fold}", keep)
        answers.append(contestant.answer(question))
        examples.append(np.asarray(splits["test"]["id"][:], dtype=np.str_))
        units.append(data.units(splits["test"]))
        labels = data.task.read(splits["test"])
        for part, head in answers[-1].heads.items():
            targets[part].append(labels[head])
    truth = {part: np.concatenate(values) for part, values in targets.items()}
    parts = answers[0].heads
    predictions = {part: np.concatenate([answer.predictions[part] for answer in answers]) for part in parts}
    metrics: dict[str, float] = {}
    for part, head in parts.items():
        metrics |= data.task.score_head(head, truth[part], predictions[part], part)
    return Run(
        backbone=contestant.name,
        dataset=data.benchmark.name,
        task=data.task.name,
        protocol=contestant.protocol,
        seed=seed,
        split="cross-validation" if arguments.cross_validate else "test",
        metrics=metrics,
        best_epochs=[answer.epoch for answer in answers if answer.epoch is not None],
        outputs={part: list(data.task.head(head).outputs) for part, head in parts.items()},
        examples=np.concatenate(examples),
        units=np.concatenate(units),
        targets=truth,
        predictions=predictions,
    )
