"""Before and after PACL, by what both backbones can do alike.

The backbone before has no projection into the space of texts and names no emotion. Compared are therefore where the
features come from, which pictures are nearest by them, and, where labelled pictures are at hand, the same linear
classifier fitted on either's features.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import datasets
import numpy as np
import torch
from PIL import Image
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from pacl.evaluation.backbones import Backbone

from .attention import look, overlay, shown_pixels
from .sources import DemoError

REFERENCE_PICTURES = 400
BATCH = 32


@dataclass(frozen=True)
class View:
    """
    One backbone's view of a picture.

    Args:
        where (`PIL.Image.Image`, *optional*): Where its features come from, over the picture.
        nearest (`np.ndarray` of shape `(k,)`): Rows of the nearest reference pictures, the nearest first.
        similarity (`np.ndarray` of shape `(k,)`): Their cosine similarities.
        probe (`dict[str, float]`): The linear classifier's shares, the best first; empty without labelled pictures.
    """

    where: Image.Image | None
    nearest: np.ndarray
    similarity: np.ndarray
    probe: dict[str, float]


class Side:
    """
    One backbone with what it makes of the reference pictures, computed when first asked for.

    Args:
        backbone ([`pacl.evaluation.backbones.Backbone`]): Before or after PACL.
        pictures (`datasets.Dataset`): Reference pictures, in the column `image`.
        labelled (`datasets.Dataset`, *optional*): Pictures with a `ClassLabel` column `emotion`.
    """

    def __init__(self, backbone: Backbone, pictures: datasets.Dataset, labelled: datasets.Dataset | None = None):
        self.backbone, self.pictures, self.labelled = backbone, pictures, labelled

    def features(self, pictures: Sequence[Image.Image]) -> np.ndarray:
        """Features of shape `(len(pictures), dim)`, before any projection."""
        with torch.inference_mode():
            return self.backbone.pooled(self.pixels(pictures)).float().cpu().numpy()

    def pixels(self, pictures: Sequence[Image.Image]) -> torch.Tensor:
        """Preprocessed pictures of shape `(len(pictures), channels, height, width)`."""
        ready = self.backbone.image_processor(
            images=[picture.convert("RGB") for picture in pictures], return_tensors="pt"
        )
        return ready["pixel_values"].to(next(self.backbone.model.parameters()).device)

    @cached_property
    def references(self) -> np.ndarray:
        """Unit features of the reference pictures, shape `(pictures, dim)`."""
        return _unit(self._all(self.pictures))

    @cached_property
    def probe(self) -> Callable[[np.ndarray], dict[str, float]] | None:
        """A linear classifier of the labelled pictures' emotions: from features of shape `(1, dim)` to shares."""
        if self.labelled is None:
            return None
        names = self.labelled.features["emotion"].names
        targets = np.asarray(self.labelled["emotion"])
        classifier = make_pipeline(StandardScaler(), LogisticRegression(C=0.05, max_iter=300))
        classifier.fit(self._all(self.labelled), targets)

        def shares(features: np.ndarray) -> dict[str, float]:
            found = zip(classifier.classes_, classifier.predict_proba(features)[0], strict=True)
            return {names[label]: float(share) for label, share in sorted(found, key=lambda pair: -pair[1])}

        return shares

    def view(self, picture: Image.Image, nearest: int = 4) -> View:
        """What this backbone makes of a picture."""
        pixels = self.pixels([picture])

        def own_likeness(pixel_values: torch.Tensor) -> torch.Tensor:
            feature = self.backbone.pooled(pixel_values)[0]
            return feature @ (feature / feature.norm().clamp(min=1e-6)).detach()

        heat = look(self.backbone.model, pixels, own_likeness)
        shown = shown_pixels(pixels, self.backbone.image_processor)
        features = self.features([picture])
        similarity = (self.references @ _unit(features)[0]) if len(self.pictures) else np.zeros(0)
        order = np.argsort(-similarity, kind="stable")[:nearest]
        return View(
            overlay(shown, heat) if heat is not None and heat.any() else None,
            order,
            similarity[order],
            self.probe(features) if self.probe else {},
        )

    def _all(self, pictures: datasets.Dataset) -> np.ndarray:
        images = pictures.select_columns("image")
        return np.concatenate(
            [self.features(images[start : start + BATCH]["image"]) for start in range(0, len(images), BATCH)]
        )


class Comparison:
    """
    Both backbones beside each other, over the same reference pictures.

    Args:
        before, after ([`Backbone`]): Of the same kind, before and after PACL.
        pictures (`datasets.Dataset`): Posts with a column `image`; a sample of [`REFERENCE_PICTURES`] is used.
        labelled (`datasets.Dataset`, *optional*): As in [`Side`].
    """

    def __init__(
        self,
        before: Backbone,
        after: Backbone,
        pictures: datasets.Dataset,
        labelled: datasets.Dataset | None = None,
    ):
        chosen = np.random.default_rng(0).permutation(len(pictures))[:REFERENCE_PICTURES]
        self.pictures = pictures.select(np.sort(chosen))
        self.labelled = labelled
        self.before = Side(before, self.pictures, labelled)
        self.after = Side(after, self.pictures, labelled)

    @classmethod
    def load(
        cls, before: str, after: Backbone, pictures: datasets.Dataset, labelled: datasets.Dataset | None = None
    ) -> Comparison:
        """
        Load the backbone before PACL by its folder or Hub id.

        Raises:
            DemoError: if it cannot be loaded.
        """
        try:
            loaded = Backbone.load(before, pooling=after.pooling)
        except (OSError, ValueError) as error:
            reason = next(iter(str(error).splitlines()), type(error).__name__)
            raise DemoError(f"the backbone before PACL, {before}, cannot be loaded: {reason}") from error
        loaded.model.eval().to(next(after.model.parameters()).device)
        return cls(loaded, after, pictures, labelled)


def _unit(features: np.ndarray) -> np.ndarray:
    return features / np.linalg.norm(features, axis=-1, keepdims=True).clip(min=1e-6)
