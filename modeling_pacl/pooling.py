"""One vector per picture and per text: how the towers' outputs are pooled (method.md, reading 6)."""

from __future__ import annotations

import torch
from transformers.utils import ModelOutput

from .configuration_pacl import VISION_POOLINGS, require_choice


def pool_vision(outputs: ModelOutput, pooling: str = "auto") -> torch.Tensor:
    """
    Pool a vision tower's output.

    Args:
        outputs (`ModelOutput`):
            With `last_hidden_state` of shape `(batch, tokens, dim)` or `(batch, dim, height, width)`, and
            `pooler_output` of shape `(batch, dim)` or `(batch, dim, 1, 1)` where the tower pools by itself.
        pooling (`str`, *optional*, defaults to `"auto"`):
            `"auto"`: the tower's own pooled output; where it has none, the class token of a token sequence or the
            global average of a feature map. `"first"`: the first token. `"mean"`: the mean over all positions.

    Returns:
        `torch.Tensor` of shape `(batch, dim)`.
    """
    require_choice("pooling", pooling, VISION_POOLINGS)
    hidden = outputs["last_hidden_state"]
    is_map = hidden.dim() == 4
    if pooling == "auto":
        pooled = outputs.get("pooler_output")
        if pooled is not None:
            return pooled.flatten(1)
        pooling = "mean" if is_map else "first"
    if pooling == "first":
        if is_map:
            raise ValueError('vision_pooling="first" needs a tower that yields tokens; this one yields a feature map')
        return hidden[:, 0]
    return hidden.mean(dim=(2, 3)) if is_map else hidden.mean(dim=1)


def pool_text(outputs: ModelOutput, attention_mask: torch.Tensor | None, pooling: str = "first") -> torch.Tensor:
    """
    Pool a text tower's output.

    Args:
        outputs (`ModelOutput`):
            With `last_hidden_state` of shape `(batch, tokens, dim)`.
        attention_mask (`torch.Tensor` of shape `(batch, tokens)`, *optional*):
            1 for tokens, 0 for padding; needed by `"mean"` wherever texts are padded.
        pooling (`str`, *optional*, defaults to `"first"`):
            `"first"` token, `"mean"` over the tokens that are not padding, or the tower's own `"pooler"`.

    Returns:
        `torch.Tensor` of shape `(batch, dim)`.
    """
    hidden = outputs["last_hidden_state"]
    if pooling == "first":
        return hidden[:, 0]
    if pooling == "pooler":
        pooled = outputs.get("pooler_output")
        if pooled is None:
            raise ValueError('text_pooling="pooler", but this text tower has no pooler; use "first" or "mean"')
        return pooled
    if attention_mask is None:
        return hidden.mean(dim=1)
    weights = attention_mask.unsqueeze(-1).to(hidden.dtype)
    return (hidden * weights).sum(dim=1) / weights.sum(dim=1).clamp(min=1)
