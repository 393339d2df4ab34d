"""What comes out of a run, for others: exports, model and dataset cards, pushes to the Hub, and a demo."""

from .cards import write_backbone_card, write_classifier_card, write_dual_encoder_card
from .classifier import export_classifier
from .dataset_card import write_dataset_card
from .export_base import Export, ExportError
from .export_vision_text import export_vision_text_dual_encoder
from .exports import export_backbone, export_dual_encoder
from .onnx import export_onnx
from .push import PushError, PushPlan, plan_push, push

__all__ = [
    "Export",
    "ExportError",
    "PushError",
    "PushPlan",
    "export_backbone",
    "export_classifier",
    "export_dual_encoder",
    "export_onnx",
    "export_vision_text_dual_encoder",
    "plan_push",
    "push",
    "write_backbone_card",
    "write_classifier_card",
    "write_dataset_card",
    "write_dual_encoder_card",
]
