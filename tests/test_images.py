"""Decoding pictures: what comes out is upright opaque RGB, and what cannot be decoded says why."""

from __future__ import annotations

import io

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from pacl.training.images import ImageError, StoredImage, check_image, decode_image

HALVES = np.zeros((16, 24, 3), dtype=np.uint8)  # left half red, right half blue
HALVES[:, :12] = (255, 0, 0)
HALVES[:, 12:] = (0, 0, 255)


def encode(image: Image.Image, format: str, **options: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, format, **options)
    return stream.getvalue()


def decode(data: bytes) -> np.ndarray:
    image = decode_image({"bytes": data, "path": None})
    assert image.mode == "RGB"
    return np.asarray(image)


@pytest.fixture
def noise() -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (96, 96, 3), dtype=np.uint8))


@pytest.mark.parametrize(
    "kind", ["path", "string", "mapping of a path", "mapping of bytes", "mapping of a buffer", "PIL"]
)
def test_every_way_to_give_an_image_decodes_to_the_same_pixels(tmp_path, kind):
    path = tmp_path / "a.png"
    data = encode(Image.fromarray(HALVES), "PNG")
    path.write_bytes(data)
    value = {
        "path": path,
        "string": str(path),
        "mapping of a path": {"bytes": None, "path": str(path)},
        "mapping of bytes": {"bytes": data, "path": "elsewhere.png"},
        "mapping of a buffer": {"bytes": pa.py_buffer(data), "path": None},
        "PIL": Image.fromarray(HALVES),
    }[kind]
    assert check_image(value) is None
    assert np.array_equal(decode_image(value), HALVES)


def test_exif_orientation_is_applied():
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise: what was left comes up
    upright = decode(encode(Image.fromarray(HALVES), "PNG", exif=exif))
    assert np.array_equal(upright, np.rot90(HALVES, k=-1))


def test_broken_exif_does_not_cost_the_picture(recwarn):
    assert decode(encode(Image.fromarray(HALVES), "PNG", exif=b"Exif\0\0MM\0*garbage")).shape == HALVES.shape


def test_a_given_pil_image_is_left_as_it_was():
    image = Image.fromarray(HALVES)
    image.getexif()[0x0112] = 6
    assert decode_image(image).size == (16, 24)
    assert image.size == (24, 16)


def test_alpha_is_composited_over_white():
    pixels = np.array([[[10, 20, 30, 255], [10, 20, 30, 0], [0, 0, 0, 51]]], dtype=np.uint8)
    assert decode(encode(Image.fromarray(pixels), "PNG")).tolist() == [
        [[10, 20, 30], [255, 255, 255], [204, 204, 204]]
    ]


def test_transparent_palette_entry_becomes_white():
    image = Image.new("P", (2, 1))
    image.putpalette([0, 0, 0, 200, 10, 10])
    image.putdata([0, 1])
    data = encode(image, "PNG", transparency=0)
    assert Image.open(io.BytesIO(data)).mode == "P"
    assert decode(data).tolist() == [[[255, 255, 255], [200, 10, 10]]]


def test_transparent_grey_becomes_white():
    pixels = np.array([[[100, 255], [100, 0]]], dtype=np.uint8)
    assert decode(encode(Image.fromarray(pixels, "LA"), "PNG")).tolist() == [[[100] * 3, [255] * 3]]


def test_cmyk_jpeg_keeps_its_colours():
    decoded = decode(encode(Image.fromarray(HALVES).convert("CMYK"), "JPEG", quality=95)).astype(int)
    assert np.abs(decoded[:, :8] - HALVES[:, :8].astype(int)).max() < 40
    assert np.abs(decoded[:, 16:] - HALVES[:, 16:].astype(int)).max() < 40


@pytest.mark.parametrize("format", ["PNG", "TIFF", "PGM"])
def test_16_bit_grey_is_scaled_and_not_clipped(format):
    grey = np.array([[0, 1000, 32768, 65535]], dtype=np.uint16)
    data = (
        b"P5 4 1 65535\n" + grey.astype(">u2").tobytes() if format == "PGM" else encode(Image.fromarray(grey), format)
    )
    assert decode(data)[0, :, 0].tolist() == [0, 3, 128, 255]


def test_pixels_of_unknown_range_are_refused_and_not_guessed():
    for pixels in (np.full((2, 2), 1e6, dtype=np.int32), np.full((2, 2), 0.5, dtype=np.float32)):
        with pytest.raises(ImageError, match="^unknown range: "):
            decode(encode(Image.fromarray(pixels), "TIFF"))


def test_animation_gives_its_first_frame():
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue")]
    assert decode(encode(frames[0], "GIF", save_all=True, append_images=frames[1:]))[0, 0].tolist() == [255, 0, 0]


@pytest.mark.parametrize("format", ["JPEG", "PNG", "GIF", "BMP", "WEBP", "TIFF"])
@pytest.mark.parametrize("share", [0.5, 0.95])
def test_truncated_file_is_an_error_and_no_grey_filler(noise, format, share):
    data = encode(noise, format)
    with pytest.raises(ImageError):
        decode(data[: int(len(data) * share)])


def test_truncated_jpeg_passes_the_header_check_and_fails_decoding_with_the_reason(noise):
    value = {"bytes": encode(noise, "JPEG")[:3000], "path": None}
    assert check_image(value) is None
    with pytest.raises(ImageError, match="^truncated: "):
        decode_image(value)


def test_damaged_pixels_are_an_image_error_whatever_the_decoder_raises(noise):
    data = bytearray(encode(noise, "PNG"))
    data[500:600] = bytes(100)
    with pytest.raises(ImageError):
        decode(bytes(data))


def test_decompression_bomb_is_refused_before_a_pixel_is_decoded(monkeypatch, noise):
    value = {"bytes": encode(noise, "PNG"), "path": None}
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    assert check_image(value).startswith("too large: ")
    with pytest.raises(ImageError, match="^too large: "):
        decode_image(value)


def test_unusable_files_have_a_reason_each(tmp_path):
    (tmp_path / "empty.jpg").touch()
    (tmp_path / "page.jpg").write_text("<html>404</html>")
    (tmp_path / "folder.jpg").mkdir()
    cases = {
        str(tmp_path / "missing.jpg"): "file not found",
        str(tmp_path / "empty.jpg"): "empty file (0 bytes)",
        str(tmp_path / "page.jpg"): "not an image",
        str(tmp_path / "folder.jpg"): "not a file: it is a folder",
        "": "no image: neither a path nor bytes are given",
    }
    for path, reason in cases.items():
        for value in (path, {"bytes": None, "path": path}):
            assert check_image(value) == reason
            with pytest.raises(ImageError) as caught:
                decode_image(value)
            assert str(caught.value) == reason
    assert check_image({"bytes": b"", "path": "a.jpg"}) == "empty file (0 bytes)"
    assert check_image({"bytes": b"<html>404</html>", "path": None}) == "not an image"
    assert check_image({"bytes": None, "path": None}) == "no image: neither a path nor bytes are given"


def test_postscript_is_no_picture_to_us_though_pil_would_run_it(noise):
    assert check_image({"bytes": encode(noise, "EPS"), "path": None}) == "not an image"


def test_header_that_breaks_off_has_a_reason():
    data = encode(Image.fromarray(HALVES), "JPEG")
    assert check_image({"bytes": data[:40], "path": None}).startswith("broken header")


def stored_jpeg(width: int = 100, height: int = 60, orientation: int = 1, **options: object) -> StoredImage:
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = Image.fromarray(HALVES).resize((width, height), Image.Resampling.NEAREST)
    return StoredImage({"bytes": encode(image, "JPEG", exif=exif, **options), "path": None})


@pytest.mark.parametrize(
    ("reduce_by", "size"), [(0.3, (100, 60)), (1.99, (100, 60)), (2, (50, 30)), (7, (25, 15)), (80, (13, 8))]
)
def test_a_jpeg_is_reduced_by_the_greatest_power_of_two_that_is_allowed(reduce_by, size):
    assert stored_jpeg().size == (100, 60)
    assert stored_jpeg().decode(reduce_by).size == size


@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_size_is_known_before_a_pixel_is_decoded_and_is_upright(orientation):
    picture = stored_jpeg(orientation=orientation)
    assert picture.size == (stored := stored_jpeg(orientation=orientation).decode()).size
    reduced = np.asarray(picture.decode(2).resize(stored.size), dtype=int)
    assert np.abs(reduced - np.asarray(stored)).mean() < 5


@pytest.mark.parametrize(
    ("orientation", "left", "top"),
    [(1, 0, 0), (2, 3, 0), (3, 3, 7), (4, 0, 7), (5, 0, 0), (6, 7, 0), (7, 7, 3), (8, 0, 3)],
)
def test_the_box_leaves_out_the_padding_of_a_reduced_jpeg(orientation, left, top):
    picture = stored_jpeg(101, 65, orientation)  # 3 columns short of 104, 7 rows short of 72
    width, height = picture.size
    assert picture.decode(8).size == (-(-width // 8), -(-height // 8))
    assert picture.box == (left / 8, top / 8, (left + width) / 8, (top + height) / 8)


def test_a_whole_picture_has_no_box():
    picture = stored_jpeg(orientation=6)
    picture.decode()
    assert picture.box is None


def test_a_reduced_cmyk_or_grey_jpeg_keeps_its_colours():
    for mode in ("CMYK", "L"):
        data = encode(Image.fromarray(HALVES).resize((96, 64)).convert(mode), "JPEG", quality=95)
        whole, half = (StoredImage({"bytes": data, "path": None}).decode(by) for by in (1, 2))
        assert half.size == (48, 32)
        assert np.abs(np.asarray(half.resize((96, 64)), int) - np.asarray(whole)).mean() < 6


def test_a_jpeg_with_a_second_picture_is_reduced_as_any(noise):
    data = encode(noise, "MPO", save_all=True, append_images=[noise.rotate(90)])
    picture = StoredImage({"bytes": data, "path": None})
    assert picture.is_jpeg
    assert picture.decode(4).size == (24, 24)


@pytest.mark.parametrize("format", ["PNG", "GIF", "BMP", "WEBP", "TIFF"])
def test_other_formats_and_given_images_are_not_reduced(noise, format):
    value = {"bytes": encode(noise, format), "path": None}
    assert StoredImage(value).size == noise.size
    assert np.array_equal(StoredImage(value).decode(4), decode_image(value))
    given = Image.open(io.BytesIO(encode(noise, "JPEG")))
    assert StoredImage(given).decode(4).size == noise.size


def test_a_truncated_jpeg_is_an_error_when_reduced_too(noise):
    data = encode(noise, "JPEG")
    with pytest.raises(ImageError, match="^truncated: "):
        StoredImage({"bytes": data[: len(data) // 2], "path": None}).decode(2)


def test_the_stored_bytes_of_a_jpeg_are_its_file(tmp_path, noise):
    noise.save(tmp_path / "a.jpg")
    picture = StoredImage(tmp_path / "a.jpg")
    assert picture.size == (96, 96)
    assert picture.read_bytes() == (tmp_path / "a.jpg").read_bytes()


@pytest.mark.filterwarnings("error::ResourceWarning")
@pytest.mark.parametrize("format", ["JPEG", "TIFF", "GIF", "PNG"])
def test_no_file_stays_open(tmp_path, noise, format):
    noise.save(tmp_path / "a", format)
    image = decode_image(tmp_path / "a")
    assert image.fp is None if hasattr(image, "fp") else True
    assert np.asarray(image).shape == (96, 96, 3)
