"""The PACL dual encoder: a vision tower being enhanced beside a frozen text tower, each with one linear projection."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.utils import ModelOutput

from .chunking import encode_in_chunks
from .configuration_pacl import PACLConfig, default_text_pooling
from .pooling import pool_text, pool_vision
from .towers import build_text_tower, build_vision_tower, load_text_tower, load_vision_tower, vision_embed_dim


@dataclass
class PACLOutput(ModelOutput):
    """
    Output of [`PACLModel`].

    Args:
        logits_per_image (`torch.FloatTensor` of shape `(image_batch, text_batch)`):
            Cosine similarity of every picture with every text, divided by the temperature.
        logits_per_text (`torch.FloatTensor` of shape `(text_batch, image_batch)`):
            The transpose of `logits_per_image`.
        image_embeds (`torch.FloatTensor` of shape `(image_batch, projection_dim)`):
            Projected, L2-normalised picture embeddings.
        text_embeds (`torch.FloatTensor` of shape `(text_batch, projection_dim)`):
            Projected, L2-normalised text embeddings.
    """

    logits_per_image: torch.Tensor | None = None
    logits_per_text: torch.Tensor | None = None
    image_embeds: torch.Tensor | None = None
    text_embeds: torch.Tensor | None = None


class PACLModel(PreTrainedModel):
    """
    Dual encoder with the submodule names of `VisionTextDualEncoderModel`.

    z = normalise(h(E(·))), where E is a tower with its pooling and h a linear projection without bias (method.md,
    Notation).

    Args:
        config ([`PACLConfig`]):
            Configuration of both towers and the projections.
        vision_model (`PreTrainedModel`, *optional*):
            The vision tower. Built from `config.vision_config` with random weights when not given.
        text_model (`PreTrainedModel`, *optional*):
            The text tower. Built from `config.text_config` with random weights when not given.
    """

    config_class = PACLConfig
    base_model_prefix = "pacl"
    main_input_name = "pixel_values"
    input_modalities = ["image", "text"]
    accepts_loss_kwargs = False
    _supports_sdpa = True
    _supports_flash_attn = True

    def __init__(
        self,
        config: PACLConfig,
        vision_model: PreTrainedModel | None = None,
        text_model: PreTrainedModel | None = None,
    ):
        super().__init__(config)
        self.vision_model = vision_model if vision_model is not None else build_vision_tower(config.vision_config)
        self.text_model = (
            text_model if text_model is not None else build_text_tower(config.text_config, config.text_pooling)
        )
        # One configuration object for each tower, so that a change in one place is a change in both.
        config.vision_config = self.vision_model.config
        config.text_config = self.text_model.config
        if config.vision_embed_dim is None:
            config.vision_embed_dim = vision_embed_dim(self.vision_model, config.vision_pooling)

        self.visual_projection = nn.Linear(config.vision_embed_dim, config.projection_dim, bias=False)
        self.text_projection = nn.Linear(config.text_config.hidden_size, config.projection_dim, bias=False)
        self.logit_scale = nn.Parameter(torch.tensor(config.logit_scale_init_value), requires_grad=False)

        self.supports_gradient_checkpointing = self.vision_model.supports_gradient_checkpointing
        self._no_split_modules = sorted(
            {*(self.vision_model._no_split_modules or ()), *(self.text_model._no_split_modules or ())}
        )
        self.post_init()
        if config.freeze_text:
            self.text_model.requires_grad_(False).eval()

    def _init_weights(self, module: nn.Module) -> None:
        """Initialise the projections so that they keep lengths; each tower initialises itself."""
        if module is self.visual_projection or module is self.text_projection:
            nn.init.normal_(module.weight, std=module.in_features**-0.5)
        elif module is self:
            nn.init.constant_(self.logit_scale, self.config.logit_scale_init_value)

    def _set_gradient_checkpointing(self, *args: Any, **kwargs: Any) -> None:
        # Only the tower that is trained; the frozen one keeps no activations.
        self.vision_model._set_gradient_checkpointing(*args, **kwargs)

    def get_input_embeddings(self) -> None:  # type: ignore[override]
        """None that both towers share; whoever asks for them has language models in mind."""

    def train(self, mode: bool = True) -> PACLModel:
        """Set training mode; a frozen text tower and frozen batch normalisation stay in evaluation mode."""
        super().train(mode)
        if self.config.freeze_text:
            self.text_model.eval()
        if self.config.freeze_batch_norm:
            for module in self.vision_model.modules():
                if isinstance(module, nn.modules.batchnorm._BatchNorm):
                    module.eval()
        return self

    def encode_image(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """
        E_V(v), the features of the enhanced backbone before the projection.

        Args:
            pixel_values (`torch.Tensor` of shape `(batch, channels, height, width)`).

        Returns:
            `torch.Tensor` of shape `(batch, config.vision_embed_dim)`.
        """
        return pool_vision(self.vision_model(pixel_values=pixel_values, return_dict=True), self.config.vision_pooling)

    def encode_text(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None, **kwargs: Any
    ) -> torch.Tensor:
        """
        E_T(t), the text features before the projection: what the column `text_features` holds.

        Args:
            input_ids (`torch.Tensor` of shape `(batch, tokens)`).
            attention_mask (`torch.Tensor` of shape `(batch, tokens)`, *optional*).
            kwargs (*optional*):
                Further inputs of the text tower, such as `token_type_ids`.

        Returns:
            `torch.Tensor` of shape `(batch, text_width)`.
        """
        outputs = self.text_model(input_ids=input_ids, attention_mask=attention_mask, return_dict=True, **kwargs)
        return pool_text(outputs, attention_mask, self.config.text_pooling)

    def get_image_features(self, pixel_values: torch.Tensor) -> BaseModelOutputWithPooling:
        """Projected picture features, not normalised, in `pooler_output` of shape `(batch, projection_dim)`."""
        outputs = self.vision_model(pixel_values=pixel_values, return_dict=True)
        projected = self.visual_projection(pool_vision(outputs, self.config.vision_pooling))
        return BaseModelOutputWithPooling(last_hidden_state=outputs["last_hidden_state"], pooler_output=projected)

    def get_text_features(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None, **kwargs: Any
    ) -> BaseModelOutputWithPooling:
        """Projected text features, not normalised, in `pooler_output` of shape `(batch, projection_dim)`."""
        outputs = self.text_model(input_ids=input_ids, attention_mask=attention_mask, return_dict=True, **kwargs)
        projected = self.text_projection(pool_text(outputs, attention_mask, self.config.text_pooling))
        return BaseModelOutputWithPooling(last_hidden_state=outputs["last_hidden_state"], pooler_output=projected)

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        pixel_values: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
        text_features: torch.Tensor | None = None,
        chunk_size: int | None = None,
        return_dict: bool | None = None,
    ) -> PACLOutput | tuple[torch.Tensor, ...]:
        r"""
        Compare every picture with every text; there may be more of one than of the other.

        Args:
            input_ids (`torch.LongTensor` of shape `(text_batch, tokens)`, *optional*):
                Token ids. Either these or `text_features`.
            pixel_values (`torch.FloatTensor` of shape `(image_batch, channels, height, width)`).
            attention_mask, position_ids, token_type_ids (*optional*):
                As the text tower takes them.
            text_features (`torch.Tensor` of shape `(text_batch, text_width)`, *optional*):
                What `encode_text` returned earlier. The text tower then does not run.
            chunk_size (`int`, *optional*):
                Gradient caching: pictures, and texts, that go through a tower together. The gradient stays that of the
                whole batch, at the memory of a chunk and the price of a second forward pass.
            return_dict (`bool`, *optional*):
                Whether to return a [`PACLOutput`] or a plain tuple.

        Raises:
            `ValueError`: pictures are missing, or texts are given in no way or in both.
        """
        if pixel_values is None:
            raise ValueError("pixel_values are missing")
        if (input_ids is None) == (text_features is None):
            raise ValueError("give the texts either as input_ids or as text_features, and not as both")
        if text_features is None:
            text_features = encode_in_chunks(
                self.text_model,
                self.encode_text,
                chunk_size,
                input_ids=input_ids,
                attention_mask=attention_mask,
                position_ids=position_ids,
                token_type_ids=token_type_ids,
            )

        features = encode_in_chunks(self.vision_model, self.encode_image, chunk_size, pixel_values=pixel_values)
        image_embeds = self.visual_projection(features)
        text_embeds = self.text_projection(text_features.to(self.text_projection.weight.dtype))
        image_embeds = nn.functional.normalize(image_embeds, dim=-1)
        text_embeds = nn.functional.normalize(text_embeds, dim=-1)
        logits_per_image = image_embeds @ text_embeds.t() * self.logit_scale.exp()

        output = PACLOutput(
            logits_per_image=logits_per_image,
            logits_per_text=logits_per_image.t(),
            image_embeds=image_embeds,
            text_embeds=text_embeds,
        )
        return output if (self.config.return_dict if return_dict is None else return_dict) else output.to_tuple()

    @classmethod
    def from_vision_text_pretrained(
        cls,
        vision: str | PreTrainedModel,
        text: str | PreTrainedModel,
        **config_kwargs: Any,
    ) -> PACLModel:
        """
        Join two pretrained towers; the projections are new and must be trained.

        Args:
            vision (`str` or `PreTrainedModel`):
                Hub id or folder of the vision tower (also `timm/…`, or a dual encoder such as CLIP), or the tower.
            text (`str` or `PreTrainedModel`):
                The same for the text tower.
            config_kwargs (*optional*):
                Fields of [`PACLConfig`], such as `projection_dim` or `text_pooling`.

        Raises:
            `OSError`: a tower cannot be found or read.
            `ValueError`: a tower is not of its kind, or a field has a wrong value.

        Example:

        ```python
        model = PACLModel.from_vision_text_pretrained("timm/resnet50.a1_in1k", "Yaxin/roberta-large-ernie2-skep-en")
        ```
        """
        vision_model = load_vision_tower(vision) if isinstance(vision, str) else vision
        pooling = config_kwargs.get("text_pooling") or "first"
        text_model = load_text_tower(text, pooling) if isinstance(text, str) else text
        config_kwargs.setdefault("text_pooling", default_text_pooling(text_model.config))
        config = cls.config_class.from_vision_text_configs(vision_model.config, text_model.config, **config_kwargs)
        return cls(config, vision_model=vision_model, text_model=text_model)


__all__ = ["PACLModel", "PACLOutput"]
