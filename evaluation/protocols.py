"""The three ways to ask a backbone: linear evaluation, fine-tuning, zero-shot. Each takes one question, a dataset's
splits under one seed, and gives its predictions of the test split.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np
from accelerate import PartialState
from datasets import DatasetDict
from transformers import AutoModel, AutoProcessor, CLIPModel, ProcessorMixin

from pacl import PACLModel
from pacl.emotions import PROMPTS

from .arguments import EvaluationArguments
from .backbones import Backbone
from .data import BenchmarkData
from .features import extract_features
from .finetune import finetune
from .linear import LinearProtocol, Split, from_memory, predict, train_heads
from .pdanet import PolarityConsistentLoss
from .saved_heads import save_heads
from .tasks import ClassHead, LinearHeads
from .zero_shot import ENSEMBLE, classify, read_prompts, vision_side

# Beginnings of the names of fields that do not change what fine-tuning predicts, or that a run's name has already.
NO_SETTINGS = (
    *("backbone", "dataset", "data_dir", "seed", "protocol", "output_dir", "features_dir", "figures", "prompts"),
    *("check_pixels", "disable_tqdm", "hub_", "log", "project", "push_to_hub", "report_to", "run_name", "save_total"),
    *("save_models", "skip_memory_metrics", "trackio"),
)


class Answer(NamedTuple):
    """Predictions of a test split by part, and the epoch chosen on validation (None where nothing is trained).

    The part of a task's only head is `""`, of one head among several its name, and of a prompt `prompt` or
    `head/prompt`; `heads` tells each part's head.
    """

    predictions: dict[str, np.ndarray]
    heads: dict[str, str]
    epoch: int | None


class Question(NamedTuple):
    """One dataset's splits under one seed and fold.

    `workplace` is a folder for what must outlive an interruption, `keep` (without suffix) where the trained model goes
    that others may use; None where a fold's model is of no use to anybody.
    """

    data: BenchmarkData
    splits: DatasetDict
    seed: int
    workplace: Path
    keep: Path | None


class Contestant:
    """A backbone by its name under one protocol, loaded when first needed.

    Args:
        name (`str`): as in [`Backbone.load`]; for zero-shot, a dual encoder.
        protocol (`str`): one of [`PROTOCOLS`].
        arguments ([`EvaluationArguments`]): the protocol's settings.
    """

    def __init__(self, name: str, protocol: str, arguments: EvaluationArguments) -> None:
        self.name = name
        self.protocol = protocol
        self.arguments = arguments
        self._features: dict[str, np.ndarray] = {}

    @cached_property
    def backbone(self) -> Backbone:
        """The backbone that features come from; for zero-shot, the dual encoder's vision side."""
        if self.protocol == "zero_shot":
            return vision_side(*self.dual_encoder, self.name)
        return Backbone.load(self.name, pooling=self.arguments.pooling)

    @cached_property
    def dual_encoder(self) -> tuple[PACLModel | CLIPModel, ProcessorMixin]:
        """Model and processor.

        Raises:
            ValueError: if the model isn't a dual encoder.
        """
        model = AutoModel.from_pretrained(self.name)
        if not hasattr(model, "get_text_features") or not hasattr(model, "visual_projection"):
            raise ValueError(
                f"{self.name} is no dual encoder of pictures and texts ({type(model).__name__}), which --protocol "
                "zero_shot needs; give the folder dual_encoder/ of a run, or a CLIP"
            )
        return model, AutoProcessor.from_pretrained(self.name)

    @cached_property
    def fingerprint(self) -> str:
        """Of all weights and transforms that decide the predictions."""
        if self.protocol != "zero_shot":
            return self.backbone.fingerprint
        model, processor = self.dual_encoder
        tokens = sorted(processor.tokenizer.get_vocab().items())
        return f"{Backbone(model, processor.image_processor, self.name).fingerprint} {tokens}"

    def load(self) -> None:
        """Loads the model.

        Raises:
            OSError, ValueError: if there is none of this name, or it is of another kind than the protocol needs.
        """
        _ = self.fingerprint

    def features(self, data: BenchmarkData) -> np.ndarray:
        """Of the pictures in the data's table; the first call must be made by all processes together."""
        if data.benchmark.name not in self._features:
            self._features[data.benchmark.name] = extract_features(
                self.backbone,
                data.table.dataset,
                cache_dir=self.arguments.features_dir,
                num_workers=self.arguments.dataloader_num_workers or None,
            )
        return self._features[data.benchmark.name]

    def settings(self) -> Sequence[object]:
        """Whatever else the predictions depend on, beside weights, data and seed."""
        arguments = self.arguments
        if self.protocol == "linear":
            return [linear_protocol(arguments), arguments.cross_validate]
        if self.protocol == "zero_shot":
            return [zero_shot_prompts(arguments), arguments.cross_validate]
        settings = ((key, str(value)) for key, value in arguments.to_dict().items())
        return sorted((key, value) for key, value in settings if not key.startswith(NO_SETTINGS))

    def answer(self, question: Question) -> Answer:
        """The protocol's answer to a question."""
        return ANSWERS[self.protocol](self, question)


def check_question(data: BenchmarkData, arguments: EvaluationArguments) -> None:
    """Reads a dataset, and raises a `ValueError` where a protocol cannot be used on it."""
    title = data.benchmark.title
    data.splits(arguments.seeds[0])
    if arguments.cross_validate and "all" not in data.parts:
        raise ValueError(f"{title} has an official test split; evaluate it without --cross_validate")
    if "zero_shot" in arguments.protocol and not all(isinstance(head, ClassHead) for head in data.task.heads):
        raise ValueError(f"zero-shot needs one class per picture, which {title} doesn't have")
    if arguments.heads == "pdanet":
        PolarityConsistentLoss(data.task)


def linear_answer(contestant: Contestant, question: Question) -> Answer:
    """Linear evaluation: heads are trained on cached features."""
    data, splits, seed = question.data, question.splits, question.seed
    features, task = contestant.features(data), data.task
    source = from_memory(features)
    parts = {name: Split(data.table.rows(part), task.read(part)) for name, part in splits.items()}
    protocol = linear_protocol(contestant.arguments)
    heads, epoch = train_heads(
        task, source, features.shape[1], parts["train"], parts["validation"], seed=seed, protocol=protocol
    )
    if question.keep is not None:
        file = question.keep.with_name(f"{question.keep.name}.safetensors")
        save_heads(file, heads, task, data.benchmark, contestant.arguments.pooling)
    return _trained_answer(data, predict(task, heads, source, parts["test"].rows), epoch)


def finetune_answer(contestant: Contestant, question: Question) -> Answer:
    """Fine-tuning: a copy of the backbone is trained with the heads, from the last checkpoint where there is one."""
    data = question.data
    arguments = copy.copy(contestant.arguments)
    arguments.seed, arguments.output_dir = question.seed, str(question.workplace)
    model, predictions, epoch = finetune(
        contestant.backbone,
        data.task,
        question.splits,
        arguments,
        heads=arguments.heads,
        backbone_learning_rate=arguments.backbone_learning_rate,
        augment=arguments.augment,
    )
    if question.keep is not None and arguments.save_models and PartialState().is_main_process:
        model.backbone.save_pretrained(question.keep)
        contestant.backbone.image_processor.save_pretrained(question.keep)
        if isinstance(model.heads, LinearHeads):
            save_heads(question.keep / "heads.safetensors", model.heads, data.task, data.benchmark, model.pooling)
    return _trained_answer(data, predictions, epoch)


def zero_shot_answer(contestant: Contestant, question: Question) -> Answer:
    """Zero-shot: the test pictures against prompts over the names of the classes, at every level."""
    data = question.data
    features = contestant.features(data)[data.table.rows(question.splits["test"])]
    prompts = zero_shot_prompts(contestant.arguments)
    predictions, heads = {}, {}
    for head in data.task.heads:
        by_prompt, _ = classify(*contestant.dual_encoder, features, head.outputs, prompts=prompts)
        for prompt, predicted in by_prompt.items():
            names = [head.name] * (len(data.task.heads) > 1) + [prompt] * (prompt != ENSEMBLE)
            predictions["/".join(names)] = predicted
            heads["/".join(names)] = head.name
    return Answer(predictions, heads, None)


ANSWERS: dict[str, Callable[[Contestant, Question], Answer]] = {
    "linear": linear_answer,
    "finetune": finetune_answer,
    "zero_shot": zero_shot_answer,
}


def linear_protocol(arguments: EvaluationArguments) -> LinearProtocol:
    """The arguments' hyperparameters of linear evaluation."""
    return LinearProtocol(
        epochs=round(arguments.num_train_epochs),
        batch_size=arguments.batch_size,
        learning_rate=arguments.learning_rate,
        weight_decay=arguments.weight_decay,
    )


def zero_shot_prompts(arguments: EvaluationArguments) -> tuple[str, ...]:
    """The prompts of the arguments' file, or the paper's."""
    return PROMPTS if arguments.prompts is None else read_prompts(arguments.prompts)


def _trained_answer(data: BenchmarkData, predictions: dict[str, np.ndarray], epoch: int) -> Answer:
    parts = {name if len(predictions) > 1 else "": name for name in predictions}
    return Answer({part: predictions[name] for part, name in parts.items()}, parts, epoch)
