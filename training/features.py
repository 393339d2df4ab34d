"""Frozen encoders of pictures and texts for Stages 1 and 2, each with a key made of its content.

Judges and towers name the encoders they want; `scan.py` runs every distinct one once over each batch of posts.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import torch
from PIL import Image
from torch import Tensor, nn
from transformers import (
    AutoImageProcessor,
    AutoModel,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    TimmWrapperForImageClassification,
)

from pacl import PACLModel, PACLProcessor
from pacl.configuration_pacl import default_text_pooling
from pacl.pooling import pool_text, pool_vision
from pacl.towers import load_text_tower, load_vision_tower

# What every configuration has says where a model comes from and how it is called, not what it computes.
_BOOKKEEPING = {*PreTrainedConfig().to_dict(), "num_classes", "label_names"} - {"model_type"}
# Pictures to a forward pass on a CPU: with more, activations are so large that malloc maps and unmaps them each time.
# CPU time of 32 against 8 (224 pixels, one core): MobileNetV2 2.1 times, ResNet-50 1.3 times, ViT-B/32 the same.
_CPU_PICTURES = 8
_PROCESSOR_BOOKKEEPING = {"processor_class", "auto_map", "name_or_path"}


class Encoding(NamedTuple):
    """
    What one forward pass gave for a batch, as float32 on the CPU.

    Args:
        features (`torch.Tensor` of shape `(batch, dim)`, *optional*):
            The backbone's pooled features, before any projection; `None` where a model has no separable backbone.
        head (`torch.Tensor` of shape `(batch, width)`, *optional*):
            What stands on the backbone: a classifier's logits, or a dual encoder's embedding in the shared space.
            `None` for a bare tower.
    """

    features: Tensor | None
    head: Tensor | None


class _Encoder:
    """The part that picture and text encoders share: one forward pass for backbone and head, and the keys."""

    side: str  # the name of this side's tower in a dual encoder
    dual_method: str  # the method that embeds this side in a dual encoder's shared space

    def __init__(self, model: PreTrainedModel, pooling: str, device: torch.device | str | None):
        self.model = model.eval()
        self.model.to(device or default_device())  # type: ignore[arg-type]
        self.pooling = pooling
        self.is_dual = hasattr(model, self.dual_method)
        self.has_head = self.is_dual or "ForImageClassification" in type(model).__name__

    @cached_property
    def key(self) -> str:
        """Hash of everything the output depends on: weights, configuration, pooling and preprocessing."""
        if not self.has_head or self._backbone is None:
            return self.backbone_key
        weights = [tensor for name, tensor in self.model.state_dict().items() if not self._in_backbone(name)]
        return content_key(self.backbone_key, type(self.model).__name__, _facts(self.model.config), *weights)

    @cached_property
    def backbone_key(self) -> str:
        """The same for the features alone: equal for a bare tower and for one that bears a head."""
        config = getattr(self._backbone, "config", self.model.config)
        weights = [tensor for name, tensor in self.model.state_dict().items() if self._in_backbone(name)]
        return content_key(_facts(config), self.pooling, self._input_key(), *weights)

    @cached_property
    def _backbone(self) -> nn.Module | None:
        """The module whose output is pooled; of a timm classifier, which is one module, the layer behind that."""
        if self.is_dual:
            return getattr(self.model, self.side, None)
        if not self.has_head:
            return self.model
        if isinstance(self.model, TimmWrapperForImageClassification):
            classifier = self.model.timm_model.get_classifier()
            return classifier if isinstance(classifier, nn.Linear) and self.pooling == "auto" else None
        return self.model.base_model if self.model.base_model is not self.model else None

    def _in_backbone(self, parameter: str) -> bool:
        if self._backbone is None or self._backbone is self.model:
            return True
        prefix = next(name for name, module in self.model.named_modules() if module is self._backbone) + "."
        return parameter.startswith(prefix) != isinstance(self._backbone, nn.Linear)

    def _input_key(self) -> str:
        raise NotImplementedError

    def _pool(self, outputs: Any, inputs: Mapping[str, Tensor]) -> Tensor:
        raise NotImplementedError

    def _run(self, inputs: Mapping[str, Tensor]) -> Encoding:
        """One forward pass; what the backbone says is caught on its way to the head."""
        inputs = {
            name: value.to(self.model.device, self.model.dtype if value.is_floating_point() else None)
            for name, value in inputs.items()
        }
        # Not inference_mode: what a model caches in it could not be used when the same tower is trained afterwards.
        with torch.no_grad(), self._caught_features(inputs) as caught:
            if self.is_dual:
                output = getattr(self.model, self.dual_method)(**inputs)
                head = output if isinstance(output, Tensor) else output.pooler_output
            else:
                output = self.model(**inputs, return_dict=True)
                head = output.logits if self.has_head else None
        features = caught[0].float().cpu() if caught else None
        return Encoding(features, None if head is None else head.float().cpu())

    @contextmanager
    def _caught_features(self, inputs: Mapping[str, Tensor]) -> Iterator[list[Tensor]]:
        caught: list[Tensor] = []
        if self._backbone is None:
            yield caught
            return
        if isinstance(self._backbone, nn.Linear):
            hook = self._backbone.register_forward_pre_hook(lambda _, args: caught.append(args[0].flatten(1)))
        else:
            hook = self._backbone.register_forward_hook(lambda _, __, out: caught.append(self._pool(out, inputs)))
        try:
            yield caught
        finally:
            hook.remove()


class ImageEncoder(_Encoder):
    """
    A frozen vision model with its image processor.

    The model is put in evaluation mode and on the accelerator, if there is one, and must not change afterwards.

    Args:
        model (`PreTrainedModel`):
            A vision tower of transformers or timm, an image classifier, or a CLIP-like dual encoder.
        image_processor (`BaseImageProcessor`):
            Its preprocessing.
        pooling (`str`, *optional*):
            As `PACLConfig.vision_pooling`. By default what a [`PACLModel`] is configured for, else `"auto"`.
        device (`torch.device` or `str`, *optional*):
            Where to run; by default the accelerator, else the CPU.
    """

    side = "vision_model"
    dual_method = "get_image_features"

    def __init__(
        self,
        model: PreTrainedModel,
        image_processor: Any,
        *,
        pooling: str | None = None,
        device: torch.device | str | None = None,
    ):
        super().__init__(model, pooling or str(getattr(model.config, "vision_pooling", "auto")), device)
        self.image_processor = image_processor

    @classmethod
    def from_pretrained(
        cls,
        name_or_path: str,
        *,
        pooling: str = "auto",
        device: torch.device | str | None = None,
    ) -> ImageEncoder:
        """
        Load a vision tower (Hub id or folder; also `timm/…`, or CLIP's vision side) in float32 with its processor.

        Raises:
            `OSError`: there is no such model, or it has no image processor.
            `ValueError`: it is no vision model.
        """
        model = load_vision_tower(name_or_path, dtype=torch.float32)
        return cls(model, AutoImageProcessor.from_pretrained(name_or_path), pooling=pooling, device=device)

    @cached_property
    def pixels_key(self) -> str:
        """Hash of the preprocessing; encoders that share it share the tensors."""
        facts = {k: v for k, v in self.image_processor.to_dict().items() if k not in _PROCESSOR_BOOKKEEPING}
        return content_key(facts)

    def preprocess(self, picture: Image.Image) -> dict[str, Tensor]:
        """The model's inputs for one RGB picture, each of shape `(1, …)`. Runs in threads."""
        return dict(self.image_processor(images=picture, return_tensors="pt"))

    def encode(self, pixels: Sequence[Mapping[str, Tensor]]) -> Encoding:
        """Run the model once over pictures that `preprocess` has made ready."""
        step = _CPU_PICTURES if self.model.device.type == "cpu" else len(pixels)
        return _joined([self._run(_stacked(pixels[start : start + step])) for start in range(0, len(pixels), step)])

    def _input_key(self) -> str:
        return self.pixels_key

    def _pool(self, outputs: Any, inputs: Mapping[str, Tensor]) -> Tensor:
        return pool_vision(outputs, self.pooling)


class TextEncoder(_Encoder):
    """
    A frozen text model with its tokenizer.

    The model is put in evaluation mode and on the accelerator, if there is one, and must not change afterwards.

    Args:
        model (`PreTrainedModel`):
            A text tower of transformers, or a CLIP-like dual encoder.
        tokenizer (`PreTrainedTokenizerBase`):
            Its tokenizer. Texts are cut at what it or the model's position embeddings can hold, whichever is less.
        pooling (`str`, *optional*):
            `"first"`, `"mean"` or `"pooler"`. By default what a [`PACLModel`] is configured for, else as in
            `PACLConfig.text_pooling`.
        device (`torch.device` or `str`, *optional*):
            Where to run; by default the accelerator, else the CPU.
    """

    side = "text_model"
    dual_method = "get_text_features"

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: Any,
        *,
        pooling: str | None = None,
        device: torch.device | str | None = None,
    ):
        tower = getattr(model, "text_model", model)
        pooling = pooling or getattr(model.config, "text_pooling", None) or default_text_pooling(tower.config)
        super().__init__(model, pooling, device)
        self.tokenizer = tokenizer
        self.max_length = min(tokenizer.model_max_length, _position_limit(tower))
        # SigLIP has learnt from texts padded to full length only, and sees the padding.
        self._padding = "max_length" if "siglip" in model.config.model_type else "longest"

    @classmethod
    def from_pretrained(
        cls,
        name_or_path: str,
        *,
        pooling: str | None = None,
        device: torch.device | str | None = None,
    ) -> TextEncoder:
        """
        Load a text tower (Hub id or folder; also CLIP's text side) in float32 with its tokenizer.

        Raises:
            `OSError`: there is no such model, or it has no tokenizer.
            `ValueError`: it is no text encoder.
        """
        model = load_text_tower(name_or_path, pooling or "first", dtype=torch.float32)
        return cls(model, AutoTokenizer.from_pretrained(name_or_path), pooling=pooling, device=device)

    def encode(self, texts: Sequence[str], batch_size: int = 32) -> Encoding:
        """Run the model over texts, similar lengths together, so that little of the work is padding."""
        tokens = self.tokenizer(list(texts), truncation=True, max_length=self.max_length, padding=False)
        order = sorted(range(len(texts)), key=lambda i: len(tokens["input_ids"][i]))
        parts = []
        for start in range(0, len(order), batch_size):
            rows = {name: [values[i] for i in order[start : start + batch_size]] for name, values in tokens.items()}
            length = self.max_length if self._padding == "max_length" else None
            parts.append(self._run(self.tokenizer.pad(rows, self._padding, max_length=length, return_tensors="pt")))
        return _joined(parts, torch.tensor(order).argsort())

    def _input_key(self) -> str:
        backend = getattr(self.tokenizer, "backend_tokenizer", None)
        tokenizer = self.tokenizer.get_vocab() if backend is None else json.loads(backend.to_str())
        # These two are left over from the last call.
        state = {name: value for name, value in tokenizer.items() if name not in ("truncation", "padding")}
        return content_key(type(self.tokenizer).__name__, state, self.max_length, self._padding)

    def _pool(self, outputs: Any, inputs: Mapping[str, Tensor]) -> Tensor:
        return pool_text(outputs, inputs.get("attention_mask"), self.pooling)


@dataclass(frozen=True)
class TowerEncoders:
    """
    The two towers of a PACL model as Stage 2 runs them: E_V before PACL and the frozen E_T, both un-projected.

    Args:
        image ([`ImageEncoder`]): The vision tower.
        text ([`TextEncoder`]): The text tower.
    """

    image: ImageEncoder
    text: TextEncoder

    @classmethod
    def from_model(
        cls, model: PACLModel, processor: PACLProcessor, *, device: torch.device | str | None = None
    ) -> TowerEncoders:
        """
        Take the towers of a model, with its poolings.

        They are the model's own modules, moved to `device` and set to evaluation mode; a Trainer sets both anew.
        """
        return cls(
            ImageEncoder(
                model.vision_model, processor.image_processor, pooling=model.config.vision_pooling, device=device
            ),
            TextEncoder(model.text_model, processor.tokenizer, pooling=model.config.text_pooling, device=device),
        )


def load_dual_encoder(
    name_or_path: str, *, device: torch.device | str | None = None
) -> tuple[ImageEncoder, TextEncoder]:
    """
    Load any CLIP-like model of transformers (Hub id or folder) in float32, as its two sides.

    Raises:
        `OSError`: there is no such model, or its image processor or tokenizer is missing.
        `ValueError`: it does not embed pictures and texts in one space.
    """
    model = AutoModel.from_pretrained(name_or_path, dtype=torch.float32)
    require_dual(model)
    return (
        ImageEncoder(model, AutoImageProcessor.from_pretrained(name_or_path), device=device),
        TextEncoder(model, AutoTokenizer.from_pretrained(name_or_path), device=device),
    )


def require_dual(*models: PreTrainedModel) -> None:
    """Refuse models that do not embed pictures and texts in one space."""
    for model in models:
        if not (hasattr(model, ImageEncoder.dual_method) and hasattr(model, TextEncoder.dual_method)):
            raise ValueError(
                f"{type(model).__name__} is no CLIP-like model: it lacks get_image_features or get_text_features"
            )


def default_device() -> torch.device:
    """This process's accelerator, or the CPU."""
    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return accelerator or torch.device("cpu")


def content_key(*parts: Any) -> str:
    """Hash of tensors, bytes and whatever JSON can hold: 32 hexadecimal digits, the same in every process."""
    digest = hashlib.blake2b(digest_size=16)
    for part in parts:
        if isinstance(part, Tensor):
            digest.update(f"{part.dtype} {tuple(part.shape)}".encode())
            digest.update(part.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
        else:
            digest.update(part if isinstance(part, bytes) else json.dumps(part, sort_keys=True, default=str).encode())
        digest.update(b"\0")
    return digest.hexdigest()


def _stacked(pixels: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """One batch of single pictures, channels last: the layout in which convolutions are fastest."""
    stacked = {name: torch.cat([picture[name] for picture in pixels]) for name in pixels[0]}
    return {
        name: values.contiguous(memory_format=torch.channels_last) if values.dim() == 4 else values
        for name, values in stacked.items()
    }


def _joined(parts: Sequence[Encoding], order: Tensor | slice = slice(None)) -> Encoding:
    features, head = (None if values[0] is None else torch.cat(values)[order] for values in zip(*parts, strict=True))
    return Encoding(features, head)


def _facts(config: PreTrainedConfig | dict[str, Any]) -> dict[str, Any]:
    """What a configuration says about the computation; sub-configurations likewise."""
    fields = config if isinstance(config, dict) else config.to_dict()
    return {
        name: _facts(value) if isinstance(value, dict) else value
        for name, value in fields.items()
        if name not in _BOOKKEEPING
    }


def _position_limit(tower: PreTrainedModel) -> int:
    """How many tokens the position embeddings can hold. RoBERTa's start behind the padding index."""
    for name, module in tower.named_modules():
        if name.endswith(("position_embeddings", "position_embedding")) and isinstance(module, nn.Embedding):
            first = 0 if module.padding_idx is None else module.padding_idx + 1
            return module.num_embeddings - first
    return int(1e30)
