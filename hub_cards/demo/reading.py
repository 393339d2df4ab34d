"""Reads a picture: the emotions that a dual encoder names in it, and where in it the first of them is seen."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import transformers
from PIL import Image
from torch import Tensor

# Registers the pipeline, and with it the model.
from pacl.emotions import POLES
from pacl.pipeline_pacl import TASK, EmotionClassificationPipeline, register_pipeline

from .attention import look, overlay, shown_pixels
from .sources import DemoError


@dataclass(frozen=True)
class Reading:
    """
    What was read in a picture.

    Args:
        scores (`dict[str, float]`): Every word's share, the best first; they add up to 1.
        valence (`float`, *optional*): How pleasant, from 0 to 1; None where the model knows no words for it.
        shown (`PIL.Image.Image`): The picture as the model got it.
        where (`PIL.Image.Image`, *optional*): The map of the first word over it; None where no region speaks for it
            or the tower keeps no places apart.
        unknown (`tuple[str, ...]`): Words that the model's text side does not know.
    """

    scores: dict[str, float]
    valence: float | None
    shown: Image.Image
    where: Image.Image | None
    unknown: tuple[str, ...]


class Reader:
    """
    A dual encoder that reads pictures.

    Args:
        name_or_path (`str`): Folder or Hub id of a dual encoder.

    Raises:
        DemoError: if there is no such model, or it is no dual encoder.
    """

    def __init__(self, name_or_path: str):
        register_pipeline()
        try:
            # Not left to the pipeline: a timm tower's image processor is only found through the whole processor.
            processor = transformers.AutoProcessor.from_pretrained(name_or_path)
            self.pipe: EmotionClassificationPipeline = transformers.pipeline(  # type: ignore[call-overload]
                TASK,
                model=name_or_path,
                image_processor=getattr(processor, "image_processor", None),
                tokenizer=getattr(processor, "tokenizer", None),
                dtype=torch.float32,
            )
        except (OSError, ValueError, KeyError, TypeError) as error:
            reason = next(iter(str(error).splitlines()), type(error).__name__)
            raise DemoError(f"the model {name_or_path} cannot be used: {reason}") from error
        self.model = self.pipe.model

    def read(self, picture: Image.Image, words: Sequence[str], prompts: Sequence[str]) -> Reading:
        """
        Name the emotions of a picture and find where the first one is seen.

        Args:
            picture (`PIL.Image.Image`): Of any mode and size.
            words (`Sequence[str]`): Two or more different words.
            prompts (`Sequence[str]`): Sentences with `[C]` or `{}` where the word goes.

        Raises:
            ValueError: if there are fewer than two words, or a prompt has no place for the word.
        """
        if len(words) < 2:
            raise ValueError("Scores compare words with each other: give at least two, with commas between them.")
        picture = picture.convert("RGB")
        unknown = self.unknown([*words, *POLES[0], *POLES[1]])
        poles = tuple([word for word in pole if word not in unknown] for pole in POLES)
        asked = {"candidate_labels": list(words), "prompts": list(prompts)}
        found = self.pipe(picture, **asked, valence=poles if all(poles) else False)
        emotions = found["emotions"] if all(poles) else found
        scores = {entry["label"]: entry["score"] for entry in emotions}
        pixels = self.pipe.preprocess(picture)["pixel_values"].to(self.model.device)
        heat = self.look(pixels, words, prompts, top=max(scores, key=lambda word: scores[word]))
        shown = shown_pixels(pixels, self.pipe.image_processor)
        where = overlay(shown, heat) if heat is not None and heat.any() else None
        valence = found["valence"] if all(poles) else None
        return Reading(scores, valence, shown, where, tuple(word for word in words if word in unknown))

    def look(self, pixels: Tensor, words: Sequence[str], prompts: Sequence[str], top: str) -> np.ndarray | None:
        """
        Where one word's score comes from, against the mean of the others' (on the scale of logarithms, where a score
        near 1 still has a gradient).

        Args:
            pixels (`torch.Tensor` of shape `(1, channels, height, width)`): From the pipeline's `preprocess`.
            words, prompts: as in [`Reader.read`].
            top (`str`): One of the words.

        Returns:
            As [`look`].
        """
        labels, sentences = tuple(words), tuple(prompt.replace("{}", "[C]") for prompt in prompts)
        index = labels.index(top)

        def score(pixel_values: Tensor) -> Tensor:
            outputs = self.pipe._forward({"pixel_values": pixel_values}, labels=labels, prompts=sentences)
            logs = outputs["scores"][0].clamp(min=torch.finfo(torch.float32).tiny).log()
            return (logs[index] * len(labels) - logs.sum()) / (len(labels) - 1)

        return look(self.model, pixels, score)

    def unknown(self, words: Sequence[str]) -> tuple[str, ...]:
        """The words that the tokenizer has no token for: they all look alike to the model."""
        tokenizer = self.pipe.tokenizer
        unknown_id = getattr(tokenizer, "unk_token_id", None)
        if tokenizer is None or unknown_id is None:
            return ()
        return tuple(
            word
            for word in words
            if unknown_id in tokenizer(word.replace("_", " "), add_special_tokens=False)["input_ids"]
        )
