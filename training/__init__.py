"""PACL's three stages, from image-text posts to a trained model: partition, cluster, train."""

from .arguments import RecipeError, Settings, parse_settings
from .cluster import cluster_dataset
from .collator import PACLCollator
from .evaluators import DualEncoderJudge, Judge, TagJudge
from .features import ImageEncoder, TextEncoder, TowerEncoders
from .losses import PACLLossOutput, pacl_loss
from .partition import Partition, partition_dataset, partition_shares, partition_table
from .posts import read_posts
from .rejections import Rejections
from .sampler import PartitionBatchSampler
from .schedule import PhaseSchedule
from .sentibank import SentiBankTagger
from .streaming import StreamedPairs
from .taggers import ClassifierTagger, NeighbourTagger, ZeroShotTagger, load_vocabulary
from .trainer import PACLTrainer
from .training_arguments import PACLTrainingArguments

__all__ = [
    "ClassifierTagger",
    "DualEncoderJudge",
    "ImageEncoder",
    "Judge",
    "NeighbourTagger",
    "PACLCollator",
    "PACLLossOutput",
    "PACLTrainer",
    "PACLTrainingArguments",
    "Partition",
    "PartitionBatchSampler",
    "PhaseSchedule",
    "RecipeError",
    "Rejections",
    "SentiBankTagger",
    "Settings",
    "StreamedPairs",
    "TagJudge",
    "TextEncoder",
    "TowerEncoders",
    "ZeroShotTagger",
    "cluster_dataset",
    "load_vocabulary",
    "pacl_loss",
    "parse_settings",
    "partition_dataset",
    "partition_shares",
    "partition_table",
    "read_posts",
]
