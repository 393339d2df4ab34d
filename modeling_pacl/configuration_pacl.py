"""The configuration of a PACL dual encoder: two towers, their pooling, and the space both are projected into."""

from __future__ import annotations

import math
from typing import Any

from transformers import AutoConfig, PreTrainedConfig
from transformers.configuration_utils import SubConfigSpec

VISION_POOLINGS = ("auto", "first", "mean")
TEXT_POOLINGS = ("first", "mean", "pooler")


class PACLConfig(PreTrainedConfig):
    r"""
    Configuration of a [`PACLModel`]: a vision tower that PACL enhances and a text tower that stays frozen.

    Args:
        vision_config (`dict` or `PreTrainedConfig`, *optional*):
            Configuration of the vision tower, any vision model of transformers or of timm (`timm_wrapper`).
            Defaults to a ViT.
        text_config (`dict` or `PreTrainedConfig`, *optional*):
            Configuration of the text tower, any text encoder of transformers. Defaults to a RoBERTa, which is SKEP's
            architecture.
        projection_dim (`int`, *optional*, defaults to 768):
            Width of the shared space that the linear projections h_V and h_T map into.
        temperature (`float`, *optional*, defaults to 0.07):
            τ of the contrastive loss (paper, Table 5). It is a constant of the method, not a learned parameter;
            `logit_scale` holds log(1/τ).
        vision_pooling (`str`, *optional*, defaults to `"auto"`):
            How a picture becomes one vector (method.md, reading 6). `"auto"` is the tower's own pooled output, or its
            class token where it has none (ViT); `"first"` the first token; `"mean"` the mean over all positions.
        text_pooling (`str`, *optional*):
            How a text becomes one vector: `"first"` token of the last hidden state (the method's choice), `"mean"`
            over tokens, or the tower's own `"pooler"`. By default `"first"`, but `"pooler"` for the text side of
            CLIP-like models, whose first token sees nothing of the text.
        freeze_text (`bool`, *optional*, defaults to `True`):
            Whether the text tower is kept frozen: no gradients, and evaluation mode also while training.
        freeze_batch_norm (`bool`, *optional*, defaults to `False`):
            Whether batch normalisation in the vision tower keeps its running statistics while training; its scale and
            shift are still learned. For checkpoints whose statistics belong to their weights, such as quantised ones,
            and for small batches.
        vision_embed_dim (`int`, *optional*):
            Width of the pooled vision features. Measured on the tower when not given.
    """

    model_type = "pacl"
    sub_configs_defaults = {
        "vision_config": SubConfigSpec(config_class=AutoConfig, model_type="vit"),
        "text_config": SubConfigSpec(config_class=AutoConfig, model_type="roberta"),
    }

    # Given as a dict, a configuration or not at all; always a configuration once this object is made.
    vision_config: PreTrainedConfig = None  # type: ignore[assignment]
    text_config: PreTrainedConfig = None  # type: ignore[assignment]
    projection_dim: int = 768
    temperature: int | float = 0.07
    vision_pooling: str = "auto"
    text_pooling: str = None  # type: ignore[assignment]
    freeze_text: bool = True
    freeze_batch_norm: bool = False
    vision_embed_dim: int | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        if not __name__.startswith("transformers_modules."):
            # Installed, and not run from the Hub: the pipeline is registered, and no code need be trusted for it.
            kwargs.pop("custom_pipelines", None)
        super().__post_init__(**kwargs)
        if self.text_pooling is None:
            self.text_pooling = default_text_pooling(self.text_config)
        require_choice("vision_pooling", self.vision_pooling, VISION_POOLINGS)
        require_choice("text_pooling", self.text_pooling, TEXT_POOLINGS)
        if self.projection_dim < 1:
            raise ValueError(f"projection_dim must be at least 1, got {self.projection_dim}")
        if not self.temperature > 0:
            raise ValueError(f"temperature must be greater than 0, got {self.temperature}")

    @property
    def logit_scale_init_value(self) -> float:
        """log(1/τ), under the name that CLIP and VisionTextDualEncoder give it."""
        return math.log(1.0 / self.temperature)

    @classmethod
    def from_vision_text_configs(
        cls, vision_config: PreTrainedConfig, text_config: PreTrainedConfig, **kwargs: Any
    ) -> PACLConfig:
        """Make a configuration from those of two towers, as `VisionTextDualEncoderConfig` does."""
        configs: dict[str, Any] = {"vision_config": vision_config.to_dict(), "text_config": text_config.to_dict()}
        return cls(**configs, **kwargs)


def default_text_pooling(text_config: PreTrainedConfig) -> str:
    """`"pooler"` for the text side of a CLIP-like model (`clip_text_model`, `siglip_text_model`…), else `"first"`."""
    return "pooler" if text_config.model_type.endswith("_text_model") else "first"


def require_choice(name: str, value: str, choices: tuple[str, ...] | dict[str, Any]) -> None:
    """Raise a `ValueError` that names the field and what it may be, unless the value is one of the choices."""
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(choices)}, got {value!r}")


__all__ = ["PACLConfig"]
