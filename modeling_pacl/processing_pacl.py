"""What stands before the model: the vision tower's image processor and the text tower's tokenizer, saved as one."""

from __future__ import annotations

from typing import Any

from transformers import AutoImageProcessor, AutoTokenizer, ProcessorMixin


class PACLProcessor(ProcessorMixin):
    """
    Wraps an image processor and a tokenizer into one processor, as `VisionTextDualEncoderProcessor` does.

    Args:
        image_processor (`BaseImageProcessor`):
            Of the vision tower.
        tokenizer (`PreTrainedTokenizerBase`):
            Of the text tower.
    """

    def __init__(self, image_processor: Any = None, tokenizer: Any = None, **kwargs: Any):
        super().__init__(image_processor, tokenizer, **kwargs)

    @classmethod
    def from_vision_text_pretrained(cls, vision: str, text: str) -> PACLProcessor:
        """Take the image processor of one checkpoint (Hub id or folder) and the tokenizer of another."""
        return cls(AutoImageProcessor.from_pretrained(vision), AutoTokenizer.from_pretrained(text))

    def to_dict(self) -> dict[str, Any]:
        """As in transformers, with what timm's image processor is made from, which it leaves out itself."""
        output = super().to_dict()
        image_processor = output.get("image_processor") or {}
        if "data_config" in image_processor:
            image_processor.setdefault("pretrained_cfg", image_processor["data_config"])
        return output


__all__ = ["PACLProcessor"]
