"""Zero-shot emotion classification with a dual encoder: pictures against the paper's prompts over the class names."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from accelerate import PartialState
from datasets import ClassLabel, Dataset
from sklearn.metrics import confusion_matrix
from torch import Tensor
from transformers import CLIPModel, ProcessorMixin

from pacl import PACLModel
from pacl.emotions import PROMPTS, check_prompts, fill_prompt

from . import statistics
from .backbones import Backbone
from .features import extract_features

ENSEMBLE = "ensemble"


@dataclass(frozen=True)
class ZeroShotResult:
    """Predicted classes by prompt.

    Args:
        classes (`tuple[str, ...]`): the class names.
        targets (`np.ndarray` of shape `(examples,)`): what is true.
        predictions (`dict[str, np.ndarray]`): for each prompt, and for their ensemble under `"ensemble"`, the
            predicted class of each example.
        scores (`np.ndarray` of shape `(examples, classes)`): the ensemble's cosine similarities.
        missing (`int`): rows that were left out because they have no label.
    """

    classes: tuple[str, ...]
    targets: np.ndarray
    predictions: dict[str, np.ndarray]
    scores: np.ndarray
    missing: int

    def metrics(self, prompt: str = ENSEMBLE) -> dict[str, float]:
        """Accuracy and weighted F1 of one prompt."""
        predicted = self.predictions[prompt]
        metrics = {"accuracy": statistics.accuracy, "weighted_f1": statistics.weighted_f1}
        return {name: statistics.score(metric, self.targets, predicted) for name, metric in metrics.items()}

    def confusion(self, prompt: str = ENSEMBLE) -> np.ndarray:
        """Counts of shape `(classes, classes)`: rows are true, columns predicted."""
        return confusion_matrix(self.targets, self.predictions[prompt], labels=range(len(self.classes)))

    def summary(self) -> dict[str, object]:
        """Everything but the predictions, ready for JSON."""
        return {
            "classes": list(self.classes),
            "examples": len(self.targets),
            "missing": self.missing,
            "prompts": {
                prompt: {**self.metrics(prompt), "confusion": self.confusion(prompt).tolist()}
                for prompt in self.predictions
            },
        }


def zero_shot(
    model: PACLModel | CLIPModel,
    processor: ProcessorMixin,
    dataset: Dataset,
    label_column: str,
    *,
    image_column: str = "image",
    class_names: Sequence[str] | None = None,
    prompts: Sequence[str] = PROMPTS,
    name: str = "dual encoder",
    cache_dir: str | Path | None = None,
    num_workers: int | None = None,
) -> ZeroShotResult:
    """Classifies pictures by the nearest prompt, and by the nearest mean of all prompts of a class.

    The text side runs once, over prompts × classes; the vision side takes its features from the cache that linear
    evaluation uses. Under `accelerate launch` every process has to call it.

    Args:
        model ([`PACLModel`] or `CLIPModel`): the dual encoder.
        processor (`ProcessorMixin`): its processor.
        dataset (`datasets.Dataset`): pictures with a `ClassLabel` column; rows without a label are left out.
        label_column (`str`): that column.
        image_column (`str`, *optional*, defaults to `"image"`): the pictures.
        class_names (`Sequence[str]`, *optional*): words to put for `[C]`, in the order of the classes; by default
            the classes' own names, with spaces for underscores.
        prompts (`Sequence[str]`, *optional*, defaults to [`PROMPTS`]): each contains `[C]`.
        name (`str`, *optional*): for the progress bar.
        cache_dir, num_workers: as in [`extract_features`].

    Raises:
        ValueError: if the column has no classes, a prompt lacks `[C]`, or the number of class names differs.
    """
    prompts = check_prompts(prompts)  # before the pictures go through the tower
    feature = dataset.features.get(label_column)
    if not isinstance(feature, ClassLabel):
        raise ValueError(f"zero-shot needs a ClassLabel column; {label_column!r} is {feature}")
    features = extract_features(
        vision_side(model, processor, name),
        dataset,
        image_column=image_column,
        cache_dir=cache_dir,
        num_workers=num_workers,
    )
    labels = dataset.select_columns(label_column).to_pandas()[label_column].fillna(-1).to_numpy(dtype=np.int64)
    known = labels >= 0
    predictions, scores = classify(
        model, processor, features[known], feature.names, class_names=class_names, prompts=prompts
    )
    return ZeroShotResult(tuple(feature.names), labels[known], predictions, scores, int((~known).sum()))


def vision_side(model: PACLModel | CLIPModel, processor: ProcessorMixin, name: str) -> Backbone:
    """The vision tower of a dual encoder as a backbone."""
    return Backbone(
        model.vision_model, processor.image_processor, name, getattr(model.config, "vision_pooling", "auto")
    )


def classify(
    model: PACLModel | CLIPModel,
    processor: ProcessorMixin,
    features: np.ndarray,
    classes: Sequence[str],
    *,
    class_names: Sequence[str] | None = None,
    prompts: Sequence[str] = PROMPTS,
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Classifies pictures by their features, as [`zero_shot`] does.

    Args:
        model, processor, class_names, prompts: as in [`zero_shot`].
        features (`np.ndarray` of shape `(examples, dim)`): of the model's [`vision_side`].
        classes (`Sequence[str]`): the classes' own names.

    Returns:
        The predicted classes by prompt, and the ensemble's scores of shape `(examples, classes)`.
    """
    words = list(classes if class_names is None else class_names)
    if len(words) != len(classes):
        raise ValueError(f"{len(classes)} classes need as many names; got {len(words)}: {', '.join(words)}")
    prompts = check_prompts(prompts)
    images = _project(model, features)
    texts = _embed_prompts(model, processor, words, prompts)
    ensemble = torch.nn.functional.normalize(texts.mean(dim=0), dim=-1)
    scores = images @ ensemble.T
    predictions = {
        prompt: (images @ text.T).argmax(dim=1).numpy() for prompt, text in zip(prompts, texts, strict=True)
    }
    return {**predictions, ENSEMBLE: scores.argmax(dim=1).numpy()}, scores.numpy()


def read_prompts(path: str | Path) -> tuple[str, ...]:
    """The prompts of a text file, one a line; empty lines and lines that begin with `#` don't count.

    Raises:
        ValueError: if a line lacks `[C]` or none is left.
    """
    lines = (line.strip() for line in Path(path).read_text(encoding="utf-8").splitlines())
    prompts = tuple(line for line in lines if line and not line.startswith("#"))
    try:
        return check_prompts(prompts)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


@torch.inference_mode()
def _project(model: PACLModel | CLIPModel, features: np.ndarray, chunk: int = 8192) -> Tensor:
    """Normalised picture embeddings of shape `(examples, dim)`, on the CPU: `get_image_features` from its features."""
    weight = model.get_parameter("visual_projection.weight").detach().float().cpu()
    parts = (torch.from_numpy(np.array(features[i : i + chunk])) for i in range(0, len(features), chunk))
    return torch.cat([torch.nn.functional.normalize(part @ weight.T, dim=-1) for part in parts])


@torch.inference_mode()
def _embed_prompts(
    model: PACLModel | CLIPModel, processor: ProcessorMixin, words: Sequence[str], prompts: Sequence[str]
) -> Tensor:
    """Normalised text embeddings of shape `(prompts, classes, dim)`, on the CPU."""
    texts = [fill_prompt(prompt, word) for prompt in prompts for word in words]
    device = PartialState().device
    model = model.to(device)
    was_training = model.training
    model.eval()
    tokens = processor.tokenizer(texts, padding=True, truncation=True, return_tensors="pt").to(device)
    output = model.get_text_features(**tokens)
    model.train(was_training)
    embeds = output if isinstance(output, Tensor) else output.pooler_output
    return torch.nn.functional.normalize(embeds.float().cpu(), dim=-1).reshape(len(prompts), len(words), -1)
