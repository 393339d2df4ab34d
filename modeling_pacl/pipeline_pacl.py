"""The pipeline `zero-shot-emotion`: pictures in, emotions (and, if asked for, valence) out, from any dual encoder."""

from __future__ import annotations

from typing import Any

import torch
from transformers import AutoModelForZeroShotImageClassification, Pipeline
from transformers.image_utils import load_image
from transformers.pipelines import PIPELINE_REGISTRY

from .emotions import POLES, PROMPTS, VOCABULARIES, check_prompts, emotion_words, fill_prompt

TASK = "zero-shot-emotion"
KEPT = 32  # sets of text embeddings that a pipeline remembers


class EmotionClassificationPipeline(Pipeline):
    """
    Names the emotions of pictures with a dual encoder that was not trained on these names.

    Works with a [`PACLModel`] and with every other dual encoder that has `get_image_features`, `get_text_features`
    and `logit_scale`, such as `CLIPModel` and `VisionTextDualEncoderModel`. Each label is put into each prompt; a
    label's embedding is the normalised mean over the prompts, as in the paper. Text embeddings are computed once for
    given labels and prompts and then kept: make a new pipeline after the model's weights have changed.

    A score says how well a word fits a picture beside the other words. It is no statement about what the people in the
    picture feel.

    Example:

    ```python
    from transformers import pipeline

    import pacl

    feel = pipeline("zero-shot-emotion", model="runs/built_in/dual_encoder")
    feel("picture.jpg", top_k=2)  # [{'label': 'awe', 'score': 0.61}, {'label': 'contentment', 'score': 0.2}]
    feel(["a.jpg", "b.jpg"], vocabulary="ekman6", batch_size=2)
    feel("picture.jpg", candidate_labels=["calm", "tense"], prompts="a picture that is {}")
    feel("picture.jpg", valence=True)  # {'valence': 0.83, 'emotions': [{'label': …, 'score': …}, …]}
    ```
    """

    model: Any
    tokenizer: Any
    image_processor: Any

    _load_processor: Any = False
    _load_feature_extractor: Any = False
    _load_video_processor: Any = False
    _load_image_processor: Any = True
    # Not "must": a backbone, which has no tokenizer, is to be refused with this pipeline's own words.
    _load_tokenizer: Any = None

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        for part in ("get_image_features", "get_text_features", "logit_scale"):
            if not hasattr(self.model, part):
                raise ValueError(
                    f"{TASK} compares pictures with words and so needs a dual encoder; {type(self.model).__name__} "
                    f"has no {part}. Give the run's dual_encoder/ folder or a CLIP-like model"
                )
        if self.tokenizer is None:
            raise ValueError(f"{TASK} needs the tokenizer of the model's text side; none was given or found")
        self._texts: dict[tuple, torch.Tensor] = {}

    def __call__(self, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        """
        Name the emotions of pictures.

        Args:
            inputs (`str`, `PIL.Image.Image`, a list or a generator of them, or a `torch.utils.data.Dataset`):
                Paths, URLs or pictures. A column of a `datasets.Dataset` is given as
                `KeyDataset(dataset, "image")` (from `transformers.pipelines.pt_utils`).
            vocabulary (`str`, *optional*, defaults to `"mikels8"`):
                The labels: `mikels8`, `ekman6`, `parrott6`, `parrott25` or `emotic26`.
            candidate_labels (`list[str]`, *optional*):
                Labels of one's own, in place of a vocabulary.
            prompts (`str` or `list[str]`, *optional*):
                Sentences with `[C]` or `{}` where the label goes. By default the paper's two.
            top_k (`int`, *optional*):
                How many labels to return, the best ones. By default all.
            valence (`bool` or a pair of `list[str]`, *optional*, defaults to `False`):
                Whether to return also how pleasant the picture is, from 0 to 1: the probability of the pleasant words
                against the unpleasant ones under the same prompts; 0.5 is undecided. A pair of lists, pleasant and
                unpleasant, puts other words in the place of `POLES`.
            batch_size, num_workers (`int`, *optional*):
                As in every pipeline.
            timeout (`float`, *optional*):
                Seconds to wait for a picture from the web.

        Returns:
            `list[dict]` for one picture: `{"label": str, "score": float}`, the best first, where scores are the
            softmax over all labels. With `valence`, `{"valence": float, "emotions": list[dict]}`. For a list of
            pictures, a list of these; for a dataset or a generator, an iterator.

        Raises:
            `ValueError`: the vocabulary is unknown, a prompt has no place for the label, labels are none or repeated,
                or `top_k` is less than 1.
        """
        return super().__call__(inputs, *args, **kwargs)

    def _sanitize_parameters(self, **kwargs: Any) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
        known = {"vocabulary", "candidate_labels", "prompts", "top_k", "valence", "timeout"}
        if unknown := sorted(set(kwargs) - known):
            raise TypeError(f"{TASK} takes {', '.join(sorted(known))}; got {', '.join(unknown)}")
        given = {key: value for key, value in kwargs.items() if value is not None}
        preprocess = {"timeout": given["timeout"]} if "timeout" in given else {}
        forward: dict[str, Any] = {}
        postprocess: dict[str, Any] = {}
        if "vocabulary" in given or "candidate_labels" in given:
            labels = _labels(given.get("vocabulary"), given.get("candidate_labels"))
            forward["labels"] = postprocess["labels"] = labels
        if "prompts" in given:
            forward["prompts"] = check_prompts(given["prompts"])
        if "valence" in given:
            forward["poles"] = _poles(given["valence"])
        if "top_k" in given:
            if given["top_k"] < 1:
                raise ValueError(f"top_k must be at least 1, got {given['top_k']}")
            postprocess["top_k"] = given["top_k"]
        return preprocess, forward, postprocess

    def preprocess(self, image: Any, timeout: float | None = None) -> Any:  # type: ignore[override]
        """One picture, ready for the model."""
        picture = load_image(image, timeout=timeout)
        return self.image_processor(images=[picture], return_tensors="pt").to(self.dtype)

    def _forward(  # type: ignore[override]
        self,
        model_inputs: Any,
        labels: tuple[str, ...] = VOCABULARIES["mikels8"],
        prompts: tuple[str, ...] = PROMPTS,
        poles: tuple[tuple[str, ...], tuple[str, ...]] | None = None,
    ) -> dict[str, torch.Tensor]:
        """Probabilities of shape `(batch, labels)` and, if asked for, valence of shape `(batch, 1)`."""
        images = _normalised(self.model.get_image_features(pixel_values=model_inputs["pixel_values"]))
        scale = self.model.logit_scale.exp().float()
        words = self._embed(labels, prompts)
        outputs = {"scores": (scale * images @ words.t()).softmax(dim=-1)}
        if poles is not None:
            means = torch.stack([self._embed(pole, prompts).mean(dim=0) for pole in poles])
            ends = torch.nn.functional.normalize(means, dim=-1)
            outputs["valence"] = (scale * images @ ends.t()).softmax(dim=-1)[:, :1]
        return outputs

    def postprocess(  # type: ignore[override]
        self,
        model_outputs: dict[str, torch.Tensor],
        labels: tuple[str, ...] = VOCABULARIES["mikels8"],
        top_k: int | None = None,
    ) -> Any:
        """Labels and scores of one picture, the best first."""
        scores = zip(labels, model_outputs["scores"][0].tolist(), strict=True)
        ranked = sorted(scores, key=lambda pair: -pair[1])[:top_k]
        emotions = [{"label": label, "score": score} for label, score in ranked]
        if "valence" not in model_outputs:
            return emotions
        return {"valence": model_outputs["valence"].item(), "emotions": emotions}

    def _embed(self, labels: tuple[str, ...], prompts: tuple[str, ...]) -> torch.Tensor:
        """Normalised embeddings of shape `(labels, dim)`, each the mean over the prompts; computed once."""
        key = (labels, prompts, self.model.dtype, self.model.device)
        if key not in self._texts:
            if len(self._texts) >= KEPT:
                self._texts.pop(next(iter(self._texts)))
            texts = [fill_prompt(prompt, label) for prompt in prompts for label in labels]
            tokens = self.tokenizer(texts, return_tensors="pt", truncation=True, **self._padding())
            features = _normalised(self.model.get_text_features(**tokens.to(self.model.device)))
            mean = features.reshape(len(prompts), len(labels), -1).mean(dim=0)
            self._texts[key] = torch.nn.functional.normalize(mean, dim=-1)
        return self._texts[key]

    def _padding(self) -> dict[str, Any]:
        # SigLIP was trained on texts padded to one length and has no attention mask.
        if "siglip" in self.model.config.model_type:
            return {"padding": "max_length", "max_length": 64}
        return {"padding": True}


def _labels(vocabulary: str | None, candidates: Any) -> tuple[str, ...]:
    if candidates is None:
        return emotion_words(str(vocabulary))
    if vocabulary is not None:
        raise ValueError("give either a vocabulary or candidate_labels, and not both")
    labels = tuple(candidates.split(",")) if isinstance(candidates, str) else tuple(candidates)
    labels = tuple(label.strip() for label in labels)
    if not labels or len(set(labels)) < len(labels):
        raise ValueError(f"candidate_labels must be some different words, got {', '.join(labels) or 'none'}")
    return labels


def _poles(valence: Any) -> tuple[tuple[str, ...], tuple[str, ...]] | None:
    if isinstance(valence, bool):
        return POLES if valence else None
    poles = tuple((end,) if isinstance(end, str) else tuple(end) for end in valence)
    if len(poles) != 2 or not all(poles):
        raise ValueError(f"valence must be True, False or a pair: pleasant words and unpleasant words; got {valence}")
    return poles


def _normalised(features: Any) -> torch.Tensor:
    """Unit vectors in float32 from what `get_image_features` or `get_text_features` returns."""
    embeds = features if isinstance(features, torch.Tensor) else features.pooler_output
    return torch.nn.functional.normalize(embeds.float(), dim=-1)


def register_pipeline() -> None:
    """Make `pipeline("zero-shot-emotion", …)` known to transformers."""
    if TASK not in PIPELINE_REGISTRY.get_supported_tasks():
        PIPELINE_REGISTRY.register_pipeline(
            TASK,
            EmotionClassificationPipeline,
            pt_model=AutoModelForZeroShotImageClassification,
            type="multimodal",
        )


__all__ = ["EmotionClassificationPipeline"]
