"""DeepSentiBank, the paper's tagger, read from its original Caffe release: one more tagger for `TagJudge`."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from types import ModuleType

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from .features import Encoding, content_key
from .scan import Encoder, PostBatch
from .taggers import read_tags, top_tags


class SentiBankTagger:
    """
    DeepSentiBank (Chen et al. 2014), the paper's tagger: a CaffeNet over 2,089 adjective-noun pairs.

    It reads the files of the original Caffe release with OpenCV 4 (`pip install "pacl[sentibank]"`).

    Args:
        folder (`str` or `os.PathLike`):
            Where the release's files lie: `test.prototxt` (the network), `caffe_sentibank_train_iter_250000` (its
            weights), `classes.json` (the names of its outputs) and, if at hand, `imagenet_mean.binaryproto` (the mean
            picture; its mean colour is used otherwise).

    Raises:
        `ImportError`: OpenCV is not installed, or has no Caffe reader any more (OpenCV 5).
        `FileNotFoundError`: a file is missing.
        `ValueError`: a file is not what it should be.
    """

    def __init__(self, folder: str | os.PathLike[str]):
        paths = [Path(folder, name) for name in ("test.prototxt", "caffe_sentibank_train_iter_250000", "classes.json")]
        if missing := [path.name for path in paths if not path.is_file()]:
            raise FileNotFoundError(f"{folder} lacks {', '.join(missing)} of DeepSentiBank's Caffe release")
        mean = Path(folder, "imagenet_mean.binaryproto")
        self.network = _CaffeNetwork(paths[0], paths[1], mean if mean.is_file() else None)
        self.tags = read_tags(paths[2])

    @cached_property
    def key(self) -> str:
        return content_key("SentiBankTagger", self.network.key, self.tags)

    @property
    def encoders(self) -> tuple[Encoder, ...]:
        return (self.network,)

    def __call__(self, batch: PostBatch, top_k: int) -> list[list[str]]:
        scores = batch.encode_images(self.network).head
        assert scores is not None
        if scores.shape[1] != len(self.tags):
            raise ValueError(
                f"the network has {scores.shape[1]:,} outputs, but there are {len(self.tags):,} class names"
            )
        return top_tags(scores, self.tags, top_k)


class _CaffeNetwork:
    """DeepSentiBank's network and its preprocessing, as a `PictureEncoder`."""

    has_head = True
    _resized, _cropped = 256, 227

    def __init__(self, prototxt: Path, weights: Path, mean: Path | None):
        self.cv2 = _import_opencv()
        try:
            self.network = self.cv2.dnn.readNetFromCaffe(str(prototxt), str(weights))
        except self.cv2.error as error:
            raise ValueError(f"{prototxt} and {weights} cannot be read as a Caffe network: {error}") from error
        # Blue, green, red: the mean of the mean picture, for those who don't have it.
        self.mean = np.array([104.01, 116.67, 122.68], np.float32).reshape(3, 1, 1)
        if mean is not None:
            self.mean = read_binaryproto(mean)
            if self.mean.shape != (3, self._resized, self._resized):
                raise ValueError(f"{mean} has shape {self.mean.shape}, not (3, {self._resized}, {self._resized})")
        self.pixels_key = content_key("DeepSentiBank", self.mean.tobytes())
        self.key = self.backbone_key = content_key(prototxt.read_bytes(), weights.read_bytes(), self.pixels_key)

    def preprocess(self, picture: Image.Image) -> dict[str, Tensor]:
        """Caffe's: resized to 256 × 256 whatever the proportions, BGR from 0 to 255, mean off, the centre cut out."""
        size = (self._resized, self._resized)
        resized = self.cv2.resize(np.asarray(picture), size, interpolation=self.cv2.INTER_LINEAR)
        pixels = resized[..., ::-1].transpose(2, 0, 1).astype(np.float32) - self.mean
        margin = (self._resized - self._cropped) // 2
        inside = slice(margin, margin + self._cropped)
        return {"data": torch.from_numpy(pixels[None, :, inside, inside].copy())}

    def encode(self, pixels: Sequence[Mapping[str, Tensor]]) -> Encoding:
        """The probabilities of the adjective-noun pairs."""
        self.network.setInput(torch.cat([inputs["data"] for inputs in pixels]).numpy())
        return Encoding(None, torch.from_numpy(self.network.forward().reshape(len(pixels), -1).copy()))


def read_binaryproto(path: Path) -> np.ndarray:
    """
    Read Caffe's `BlobProto`, of which OpenCV only reads networks.

    Returns:
        `numpy.ndarray` of shape `(channels, height, width)`, float32.

    Raises:
        `ValueError`: the file is no such blob.
    """
    content, position = path.read_bytes(), 0
    shape: dict[int, int] = {}
    data = b""

    def varint() -> int:
        nonlocal position
        value = shift = 0
        while True:
            byte = content[position]
            position += 1
            value |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return value

    try:
        while position < len(content):
            field, wire = divmod(varint(), 8)
            if wire == 0:  # a number: num, channels, height and width are fields 1 to 4
                shape[field] = varint()
                continue
            length = {1: 8, 5: 4}[wire] if wire != 2 else varint()
            if field == 5:  # the values: packed, or one at a time
                data += content[position : position + length]
            position += length
        return np.frombuffer(data, "<f4").reshape(shape[2], shape[3], shape[4]).astype(np.float32)
    except (IndexError, KeyError, ValueError) as error:
        raise ValueError(f"{path} is no Caffe blob of channels × height × width") from error


def _import_opencv() -> ModuleType:
    try:
        import cv2
    except ImportError as error:
        raise ImportError('DeepSentiBank is read by OpenCV 4: pip install "pacl[sentibank]"') from error
    if not hasattr(cv2.dnn, "readNetFromCaffe"):
        raise ImportError(
            f'OpenCV {cv2.__version__} has no Caffe reader any more: pip install "opencv-python-headless<5"'
        )
    return cv2
