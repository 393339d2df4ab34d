"""PACL: vision backbones that see how a picture feels. Importing it registers model and pipeline with transformers."""

from transformers import AutoConfig, AutoModel, AutoModelForZeroShotImageClassification, AutoProcessor

from .configuration_pacl import PACLConfig
from .modeling_pacl import PACLModel, PACLOutput
from .pipeline_pacl import EmotionClassificationPipeline, register_pipeline
from .processing_pacl import PACLProcessor

AutoConfig.register(PACLConfig.model_type, PACLConfig, exist_ok=True)
AutoModel.register(PACLConfig, PACLModel, exist_ok=True)
AutoModelForZeroShotImageClassification.register(PACLConfig, PACLModel, exist_ok=True)
AutoProcessor.register(PACLConfig, PACLProcessor, exist_ok=True)
register_pipeline()

__all__ = ["EmotionClassificationPipeline", "PACLConfig", "PACLModel", "PACLOutput", "PACLProcessor"]
