"""PACL: vision backbones that see how a picture feels. Importing it registers the model with the Auto classes."""

from transformers import AutoConfig, AutoModel, AutoModelForZeroShotImageClassification, AutoProcessor

from .configuration_pacl import PACLConfig
from .modeling_pacl import PACLModel, PACLOutput
from .processing_pacl import PACLProcessor

AutoConfig.register(PACLConfig.model_type, PACLConfig, exist_ok=True)
AutoModel.register(PACLConfig, PACLModel, exist_ok=True)
AutoModelForZeroShotImageClassification.register(PACLConfig, PACLModel, exist_ok=True)
AutoProcessor.register(PACLConfig, PACLProcessor, exist_ok=True)

__all__ = ["PACLConfig", "PACLModel", "PACLOutput", "PACLProcessor"]
