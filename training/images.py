"""Turns what a post stores as its picture into RGB pixels, or says in a few words why that cannot be done.

`posts.py` checks every picture's header with it when posts are read; Stage 1 and the collator decode with it.
"""

from __future__ import annotations

import io
import math
import os
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any, TypeAlias

import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError
from PIL.JpegImagePlugin import JpegImageFile

# Loads PIL's plugins now: left to the first use, one thread may find a good image unknown while another loads them.
Image.init()
# What pictures on the web come in. Not all that PIL opens, as it hands EPS, for one, to another program.
_FORMATS = tuple(
    name
    for name in ("JPEG", "PNG", "WEBP", "GIF", "AVIF", "BMP", "TIFF", "JPEG2000", "PPM", "ICO", "TGA")
    if name in Image.OPEN
)

# EXIF orientations that make columns of rows, and those that bring to the left or top what is stored at the end.
_SIDEWAYS = (5, 6, 7, 8)
_END_AT_LEFT = (2, 3, 6, 7)
_END_AT_TOP = (3, 4, 7, 8)

ImageValue: TypeAlias = "str | os.PathLike[str] | Mapping[str, Any] | Image.Image"


class ImageError(ValueError):
    """
    A picture that cannot be used. Its message is a short reason; what stands before a colon is the kind of reason,
    such as `"file not found"` or `"truncated"`, by which [`Rejections`] counts.
    """


def decode_image(value: ImageValue) -> Image.Image:
    """
    Decodes a picture to 8-bit RGB, upright and opaque.

    EXIF orientation is applied, transparency is composited over white (as a web page shows it), 16-bit grey is
    scaled to 8 bits, every other mode (palette, grey, CMYK, ...) is converted, and an animation gives its first frame.

    Args:
        value (`str`, `os.PathLike`, `Mapping` or `PIL.Image.Image`):
            A path, the `{"bytes", "path"}` mapping that `datasets.Image(decode=False)` yields (`bytes`, which may be
            any buffer, win where both are given), or a PIL image, which is left as it was.

    Returns:
        `PIL.Image.Image`: A new image of mode `"RGB"`.

    Raises:
        [`ImageError`]: If there is no such file, it is no image, its pixels are incomplete or damaged, or it has more
            pixels than PIL accepts as safe (twice `PIL.Image.MAX_IMAGE_PIXELS`).
    """
    return StoredImage(value).decode()


class StoredImage:
    """
    A picture of which no more than the header has been read, to be decoded at full size or, if it is a JPEG, smaller.

    Args:
        value (`str`, `os.PathLike`, `Mapping` or `PIL.Image.Image`):
            As for [`decode_image`].

    Attributes:
        is_jpeg (`bool`): Whether it is a JPEG that can be decoded smaller.
        box (`tuple` of 4 `float`, *optional*):
            Where the picture lies in what [`~StoredImage.decode`] has made smaller, as left, top, right and bottom in
            pixels of that; PIL's `resize` takes it. The rest, less than a pixel each way, is padding. `None` where
            the picture is whole.

    Raises:
        [`ImageError`]: If there is no such file, or it is no image.
    """

    def __init__(self, value: ImageValue):
        self._given = isinstance(value, Image.Image)
        self._image = value if isinstance(value, Image.Image) else _open(value)
        self.is_jpeg = not self._given and isinstance(self._image, JpegImageFile)
        self.box: tuple[float, float, float, float] | None = None

    @property
    def size(self) -> tuple[int, int]:
        """Width and height of the upright picture. Formats that may keep the orientation behind the pixels decode."""
        with _decoding_errors():
            if not self.is_jpeg:
                self._image.load()
            width, height = self._image.size
            return (height, width) if self._orientation in _SIDEWAYS else (width, height)

    @property
    def _orientation(self) -> int:
        return self._image.getexif().get(ExifTags.Base.Orientation, 1)

    def read_bytes(self) -> bytes:
        """A JPEG's file as it is, instead of its pixels."""
        jpeg: Any = self._image
        with _decoding_errors(), jpeg:
            jpeg.fp.seek(0)
            return jpeg.fp.read()

    def decode(self, reduce_by: float = 1) -> Image.Image:
        """
        Decode as [`decode_image`] does; once only.

        Args:
            reduce_by (`float`, *optional*, defaults to 1):
                How many times smaller a JPEG's sides may become. The decoder knows 2, 4 and 8, takes the greatest of
                them that is allowed, rounds sides up (see `box`), and saves most of the time.
        """
        with _decoding_errors(), ExitStack() as stack:
            if not self._given:
                stack.enter_context(self._image)  # closes the file and keeps the pixels
            if reduce_by >= 2 and self.is_jpeg:
                scale = 2 ** int(math.log2(min(reduce_by, 8)))
                width, height = self._image.size
                if drafted := self._image.draft(None, (width // scale, height // scale)):
                    self.box = self._upright_box(*drafted[1][2:])
            if self._given:
                return _to_rgb(ImageOps.exif_transpose(self._image))
            ImageOps.exif_transpose(self._image, in_place=True)
            return _to_rgb(self._image)

    def _upright_box(self, width: float, height: float) -> tuple[float, float, float, float]:
        """From the size of a picture as it is stored, with the padding right and below, to its box once upright."""
        if self._orientation in _SIDEWAYS:
            width, height = height, width
        padded_width, padded_height = self.size
        left = padded_width - width if self._orientation in _END_AT_LEFT else 0.0
        top = padded_height - height if self._orientation in _END_AT_TOP else 0.0
        return left, top, left + width, top + height


@contextmanager
def _decoding_errors() -> Iterator[None]:
    """PIL's decoders meet damaged data with nearly every exception there is: OSError, SyntaxError, EOFError, ..."""
    try:
        yield
    except (ImageError, MemoryError):
        raise
    except Exception as error:
        kind = "truncated" if "truncated" in str(error).lower() else "damaged"
        raise ImageError(f"{kind}: {error}") from error


def check_image(value: ImageValue) -> str | None:
    """
    Checks that a picture is there and has an image's header, without decoding a pixel (some 0.1 ms for a local file).

    A file that breaks off behind its header passes; [`decode_image`] finds it.

    Args:
        value (`str`, `os.PathLike`, `Mapping` or `PIL.Image.Image`):
            As for [`decode_image`].

    Returns:
        `str`, *optional*: Why the picture cannot be used; `None` if nothing speaks against it.
    """
    if isinstance(value, Image.Image):
        return None
    try:
        _open(value).close()
    except ImageError as error:
        return str(error)
    return None


def _open(value: str | os.PathLike[str] | Mapping[str, Any]) -> Image.Image:
    """Parses the header; pixels are decoded on first use."""
    source = _source(value)
    try:
        return Image.open(source, formats=_FORMATS)
    except UnidentifiedImageError as error:
        size = source.getbuffer().nbytes if isinstance(source, io.BytesIO) else os.path.getsize(source)
        raise ImageError("not an image" if size else "empty file (0 bytes)") from error
    except FileNotFoundError as error:
        raise ImageError("file not found") from error
    except IsADirectoryError as error:
        raise ImageError("not a file: it is a folder") from error
    except PermissionError as error:
        raise ImageError("not readable: permission denied") from error
    except Image.DecompressionBombError as error:
        raise ImageError(f"too large: {error}") from error
    except MemoryError:
        raise
    except Exception as error:  # for the reason in `_decoding_errors`
        raise ImageError(f"broken header: {error}") from error


def _source(value: str | os.PathLike[str] | Mapping[str, Any]) -> str | os.PathLike[str] | io.BytesIO:
    if isinstance(value, Mapping):
        if (data := value.get("bytes")) is not None:
            return io.BytesIO(data)
        value = value.get("path") or ""
    if not os.fspath(value):
        raise ImageError("no image: neither a path nor bytes are given")
    return value


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):
        # PIL clips 16-bit grey at 255, which turns all but the darkest pixels white.
        pixels = np.asarray(image)
        if pixels.min() < 0 or pixels.max() > 65535:
            raise ImageError(f"unknown range: grey values from {pixels.min()} to {pixels.max()} are no 16-bit image")
        return Image.fromarray((pixels >> 8).astype(np.uint8)).convert("RGB")
    if image.mode == "F":
        raise ImageError("unknown range: floating-point pixels have no set white")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image if image.mode == "RGB" else image.convert("RGB")
