"""Draws the pictures of the built-in corpus: a subject, seen through an emotion that only its light and weather tell.

The first thing on the way through the house when no posts are at hand; `synthetic.py` turns the drawings into posts.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

SUBJECTS = ("boat", "car", "cat", "fish", "flower", "house", "mountain", "tree")
EMOTIONS = ("anger", "fear", "joy", "love", "sadness", "surprise")
IMAGE_SIZE = 64

# Shapes are drawn at twice the size and averaged down, which is what smooths their edges.
_CANVAS = 2 * IMAGE_SIZE

# Each of the three cues (palette, light, weather) follows the picture's emotion this often and any of the six
# otherwise, so no single cue settles the matter and even a perfect eye is sometimes wrong.
CUE_FIDELITY = 0.8

Points = np.ndarray
Shape = tuple[Points, str]  # a polygon in the unit square [-1, 1]² with y downwards, and the role of its colour


class Palette(NamedTuple):
    """Hue (turns of the colour circle), saturation and value of the sky, each as (mean, spread)."""

    hue: tuple[float, float]
    saturation: tuple[float, float]
    value: tuple[float, float]


class Light(NamedTuple):
    """What the light does to the finished drawing; 0 is none, and 1 leaves contrast and colour as they are."""

    brightness: float
    contrast: float
    colour: float
    vignette: float
    glow: float


_PALETTES = {
    "anger": Palette((0.01, 0.05), (0.75, 0.15), (0.55, 0.20)),
    "fear": Palette((0.75, 0.12), (0.45, 0.18), (0.32, 0.15)),
    "joy": Palette((0.15, 0.08), (0.55, 0.18), (0.90, 0.10)),
    "love": Palette((0.93, 0.06), (0.40, 0.15), (0.88, 0.10)),
    "sadness": Palette((0.60, 0.06), (0.28, 0.14), (0.55, 0.14)),
    "surprise": Palette((0.48, 0.16), (0.75, 0.16), (0.82, 0.14)),
}

_LIGHTS = {
    "anger": Light(-0.05, 1.35, 1.25, 0.30, 0.0),
    "fear": Light(-0.14, 0.95, 0.70, 0.85, 0.0),
    "joy": Light(0.10, 1.10, 1.20, 0.0, 0.10),
    "love": Light(0.06, 0.85, 1.00, 0.05, 0.60),
    "sadness": Light(-0.06, 0.70, 0.50, 0.20, 0.15),
    "surprise": Light(0.04, 1.30, 1.35, -0.45, 0.0),
}


def draw_picture(subject: str, emotion: str, rng: np.random.Generator) -> Image.Image:
    """Draws one picture.

    Args:
        subject (`str`): One of `SUBJECTS`; it decides the shapes in front.
        emotion (`str`): One of `EMOTIONS`; it decides palette, light and weather, each most of the time.
        rng (`np.random.Generator`): Where all that varies is drawn from; the same state gives the same picture.

    Returns:
        `PIL.Image.Image`: RGB, 64 × 64 pixels.
    """
    palette, light, weather = (_cue(emotion, rng) for _ in range(3))
    sky = _colour(_PALETTES[palette], rng)
    canvas = _background(sky, _colour(_PALETTES[palette], rng), rng)
    draw = ImageDraw.Draw(canvas)
    _draw_clutter(draw, rng)
    if behind := rng.random() < 0.5:
        _WEATHER[weather](draw, rng)
    _draw_subject(draw, subject, sky, rng)
    if not behind:
        _WEATHER[weather](draw, rng)
    return _shine(canvas, _LIGHTS[light], rng)


def _cue(emotion: str, rng: np.random.Generator) -> str:
    return emotion if rng.random() < CUE_FIDELITY else EMOTIONS[rng.integers(len(EMOTIONS))]


def _colour(palette: Palette, rng: np.random.Generator) -> np.ndarray:
    hue, saturation, value = (rng.normal(*spread) for spread in palette)
    return _hsv(hue, float(np.clip(saturation, 0, 1)), float(np.clip(value, 0.05, 1)))


def _hsv(hue: float, saturation: float, value: float) -> np.ndarray:
    """RGB in 0…255 as floats, shape (3,)."""
    sixths = (np.array([5.0, 3.0, 1.0]) + hue * 6) % 6
    return 255 * value * (1 - saturation * np.clip(np.minimum(sixths, 4 - sixths), 0, 1))


def _ink(colour: np.ndarray) -> tuple[int, int, int]:
    red, green, blue = np.clip(colour, 0, 255).astype(int).tolist()
    return red, green, blue


# Background


def _background(sky: np.ndarray, ground: np.ndarray, rng: np.random.Generator) -> Image.Image:
    """A gradient of the sky, lighter or darker towards the horizon, above a ground of the same palette."""
    height = np.linspace(0, 1, _CANVAS)[:, None]
    column = sky * (1 + rng.uniform(-0.35, 0.35) * (height - 0.5))
    column = np.where(height > rng.uniform(0.55, 0.85), ground * rng.uniform(0.55, 0.95), column)
    pixels = np.clip(column, 0, 255).astype(np.uint8)[:, None, :]
    return Image.fromarray(pixels).resize((_CANVAS, _CANVAS), Image.Resampling.NEAREST)


def _draw_clutter(draw: ImageDraw.ImageDraw, rng: np.random.Generator) -> None:
    """Stones, bushes or birds of any colour that belong to no subject and no emotion."""
    for _ in range(rng.integers(2, 7)):
        corners = int(rng.integers(3, 9))
        centre, radius = rng.uniform(0, _CANVAS, 2), rng.uniform(4, 14)
        shape = _ring(corners, rng.uniform(0.5, 1, corners)) * radius + centre
        draw.polygon(_flat(shape), fill=_ink(_hsv(rng.random(), rng.uniform(0.1, 0.7), rng.uniform(0.2, 0.95))))


# Subjects: each returns its polygons from back to front


def _ring(corners: int, radius: float | np.ndarray = 1.0, turn: float = 0.0) -> Points:
    angle = np.linspace(0, 2 * np.pi, corners, endpoint=False) + turn
    return np.stack([np.cos(angle), np.sin(angle)], axis=1) * np.reshape(radius, (-1, 1))


def _oval(x: float, y: float, width: float, height: float | None = None) -> Points:
    return _ring(20) * (width, width if height is None else height) + (x, y)


def _box(left: float, top: float, right: float, bottom: float) -> Points:
    return np.array([[left, top], [right, top], [right, bottom], [left, bottom]])


def _poly(*corners: tuple[float, float]) -> Points:
    return np.array(corners)


def _boat(rng: np.random.Generator) -> list[Shape]:
    mast, bow = rng.uniform(-0.15, 0.15), rng.uniform(0.7, 1.0)
    shapes = [
        (_box(mast - 0.04, -0.95, mast + 0.04, 0.4), "dark"),
        (_poly((mast + 0.08, -0.9), (mast + 0.08, 0.25), (mast + rng.uniform(0.5, 0.8), 0.25)), "light"),
        (_poly((-bow, 0.35), (bow, 0.35), (bow - 0.3, 0.9), (0.35 - bow, 0.9)), "main"),
        (_box(-bow, 0.35, bow, 0.47), "second"),
    ]
    if rng.random() < 0.6:
        shapes.insert(1, (_poly((mast - 0.08, -0.75), (mast - 0.08, 0.25), (mast - 0.6, 0.25)), "second"))
    return shapes


def _car(rng: np.random.Generator) -> list[Shape]:
    roof, wheel = rng.uniform(-0.55, -0.35), rng.uniform(0.2, 0.27)
    shapes = [
        (_poly((-0.65, 0.05), (-0.4, roof), (0.3, roof), (0.6, 0.05)), "main"),
        (_poly((-0.5, 0.02), (-0.32, roof + 0.1), (-0.08, roof + 0.1), (-0.08, 0.02)), "light"),
        (_poly((0.02, 0.02), (0.02, roof + 0.1), (0.24, roof + 0.1), (0.45, 0.02)), "light"),
        (_poly((-1.0, 0.05), (0.9, 0.05), (1.0, 0.2), (1.0, 0.45), (-1.0, 0.45)), "main"),
    ]
    for x in (-0.55, 0.55):
        shapes += [(_oval(x, 0.45, wheel), "dark"), (_oval(x, 0.45, wheel * 0.45), "second")]
    return shapes


def _cat(rng: np.random.Generator) -> list[Shape]:
    ear, eye = rng.uniform(0.85, 1.05), rng.uniform(0.12, 0.18)
    shapes: list[Shape] = [
        (_poly((side * 0.75, -0.1), (side * 0.65, -ear), (side * 0.1, -0.6)), "main") for side in (-1, 1)
    ]
    shapes.append((_oval(0, 0.1, 0.8, 0.72), "main"))
    for side in (-1, 1):
        shapes += [(_oval(side * 0.32, 0, eye, eye * 1.2), "light"), (_oval(side * 0.32, 0, eye * 0.4, eye), "dark")]
        for slope in (0.0, 0.14):
            tip = side * 1.05
            shapes.append((_poly((side * 0.25, 0.36), (tip, 0.26 + slope), (tip, 0.31 + slope)), "dark"))
    return [*shapes, (_poly((-0.12, 0.25), (0.12, 0.25), (0, 0.4)), "second")]


def _fish(rng: np.random.Generator) -> list[Shape]:
    girth, tail = rng.uniform(0.38, 0.52), rng.uniform(0.4, 0.55)
    return [
        (_poly((0.4, 0), (1.0, -tail), (0.85, 0), (1.0, tail)), "second"),
        (_poly((-0.3, -girth * 0.8), (0.1, -girth - 0.3), (0.35, -girth * 0.5)), "second"),
        (_oval(-0.2, 0, 0.75, girth), "main"),
        (_poly((-0.1, 0.02), (0.25, 0.12), (0.0, 0.28)), "second"),
        (_oval(-0.62, -0.1, 0.12), "light"),
        (_oval(-0.64, -0.1, 0.06), "dark"),
    ]


def _flower(rng: np.random.Generator) -> list[Shape]:
    petals, turn = int(rng.integers(5, 9)), rng.uniform(0, 1)
    shapes: list[Shape] = [
        (_box(-0.05, -0.2, 0.05, 1.0), "green"),
        (_poly((0, 0.75), (0.45, 0.4), (0.3, 0.75)), "green"),
        (_poly((0, 0.85), (-0.45, 0.5), (-0.3, 0.85)), "green"),
    ]
    shapes += [(_oval(x, y - 0.35, 0.24), "main") for x, y in _ring(petals, 0.38, turn)]
    return [*shapes, (_oval(0, -0.35, 0.24), "second")]


def _house(rng: np.random.Generator) -> list[Shape]:
    width, eaves, door = rng.uniform(0.6, 0.8), rng.uniform(-0.25, 0.0), rng.uniform(-0.3, 0.3)
    shapes = [
        (_box(-width, eaves, width, 0.9), "main"),
        (_poly((-width - 0.15, eaves), (0, -0.95), (width + 0.15, eaves)), "second"),
        (_box(door - 0.14, 0.35, door + 0.14, 0.9), "dark"),
    ]
    windows = [x for x in (-0.4, 0.4) if abs(x - door) > 0.3]
    shapes += [(_box(x - 0.13, eaves + 0.2, x + 0.13, eaves + 0.48), "light") for x in windows]
    if rng.random() < 0.5:
        shapes.insert(0, (_box(0.3, -0.95, 0.5, -0.2), "dark"))
    return shapes


def _mountain(rng: np.random.Generator) -> list[Shape]:
    shapes: list[Shape] = []
    for x, height, role in ((rng.uniform(0.3, 0.6), rng.uniform(0.9, 1.2), "second"), (-0.25, 1.7, "main")):
        top, foot = 0.8 - height, height * 0.55
        shapes.append((_poly((x - foot, 0.8), (x, top), (x + foot, 0.8)), role))
        cap = height * 0.3
        zigzag = (x + cap * 0.2, top + cap * 0.75), (x, top + cap), (x - cap * 0.25, top + cap * 0.75)
        shapes.append((_poly((x, top), (x + cap * 0.55, top + cap), *zigzag, (x - cap * 0.55, top + cap)), "light"))
    return shapes


def _tree(rng: np.random.Generator) -> list[Shape]:
    trunk = rng.uniform(0.09, 0.15)
    shapes: list[Shape] = [(_box(-trunk, 0.1, trunk, 1.0), "brown")]
    if rng.random() < 0.5:
        shapes += [
            (_poly((-w, y + 0.65), (0, y), (w, y + 0.65)), "leaf") for w, y in ((0.7, 0.0), (0.58, -0.5), (0.42, -1.0))
        ]
    else:
        shapes += [(_oval(x, y - 0.35, 0.42), "leaf") for x, y in _ring(5, 0.36, rng.uniform(0, 1))]
    return shapes


_SUBJECTS: dict[str, Callable[[np.random.Generator], list[Shape]]] = {
    "boat": _boat,
    "car": _car,
    "cat": _cat,
    "fish": _fish,
    "flower": _flower,
    "house": _house,
    "mountain": _mountain,
    "tree": _tree,
}


def _subject_inks(sky: np.ndarray, rng: np.random.Generator) -> dict[str, tuple[int, int, int]]:
    """Any paint on any subject; a share of the sky's colour, which stands for the light they are all under."""
    paints = {
        "main": _hsv(rng.random(), rng.uniform(0.2, 0.9), rng.uniform(0.45, 0.95)),
        "second": _hsv(rng.random(), rng.uniform(0.2, 0.9), rng.uniform(0.35, 0.9)),
        "dark": _hsv(rng.random(), 0.4, rng.uniform(0.05, 0.25)),
        "light": _hsv(rng.random(), 0.1, rng.uniform(0.85, 1.0)),
        "green": _hsv(rng.normal(0.33, 0.05), 0.6, rng.uniform(0.35, 0.7)),
        "brown": _hsv(rng.normal(0.07, 0.02), 0.6, rng.uniform(0.25, 0.5)),
        "leaf": _hsv(rng.choice([0.33, 0.25, 0.1, 0.0]) + rng.normal(0, 0.04), 0.6, rng.uniform(0.35, 0.85)),
    }
    share = rng.uniform(0.1, 0.4)
    return {role: _ink((1 - share) * paint + share * sky) for role, paint in paints.items()}


def _draw_subject(draw: ImageDraw.ImageDraw, subject: str, sky: np.ndarray, rng: np.random.Generator) -> None:
    inks = _subject_inks(sky, rng)
    angle, size = rng.normal(0, 0.15), rng.uniform(0.30, 0.46) * _CANVAS
    turn = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    stretch = np.array([rng.choice([-1, 1]) * rng.uniform(0.85, 1.15), rng.uniform(0.85, 1.15)])
    centre = _CANVAS / 2 + rng.uniform(-0.12, 0.12, 2) * _CANVAS
    for points, role in _SUBJECTS[subject](rng):
        draw.polygon(_flat((points * stretch) @ turn * size + centre), fill=inks[role])


def _flat(points: Points) -> list[float]:
    return points.ravel().tolist()


# Weather: what fills the air


def _draw_bolts(draw: ImageDraw.ImageDraw, rng: np.random.Generator) -> None:
    """Anger: lightning and scratches."""
    for _ in range(rng.integers(2, 5)):
        steps = int(rng.integers(4, 7))
        start, heading = rng.uniform(0, _CANVAS, 2) * (1, 0.5), rng.uniform(-0.6, 0.6)
        fall = np.linspace(0, rng.uniform(40, 80), steps)
        zigzag = np.stack([heading * fall + rng.uniform(5, 10) * (-1.0) ** np.arange(steps), fall], axis=1) + start
        ink = _hsv(rng.normal(0.06, 0.05), rng.uniform(0.4, 1), rng.uniform(0.6, 1))
        draw.line(_flat(zigzag), fill=_ink(ink), width=int(rng.integers(2, 5)))


def _draw_branches(draw: ImageDraw.ImageDraw, rng: np.random.Generator) -> None:
    """Fear: bare branches that reach in from a side, and eyes in the dark."""
    for _ in range(rng.integers(2, 4)):
        side = rng.choice([-1, 1])
        reach = np.cumsum(rng.uniform(5, 16, 5)) * -side + (_CANVAS if side > 0 else 0)
        branch = np.stack([reach, rng.uniform(0, _CANVAS) + np.cumsum(rng.normal(0, 8, 5))], axis=1)
        ink = _ink(np.full(3, rng.uniform(5, 60)))
        draw.line(_flat(branch), fill=ink, width=int(rng.integers(3, 6)))
        for joint in branch[1:-1]:
            draw.line(_flat(np.array([joint, joint + rng.normal(0, 11, 2)])), fill=ink, width=2)
    for x, y in rng.uniform(0.1, 0.9, (int(rng.integers(0, 3)), 2)) * _CANVAS:
        for shift in (-5, 5):
            draw.ellipse((x + shift - 3, y - 2, x + shift + 3, y + 2), fill=_ink(_hsv(0.17, 0.7, 0.95)))


def _draw_sun(draw: ImageDraw.ImageDraw, rng: np.random.Generator) -> None:
    """Joy: a sun with its rays, and confetti."""
    centre, radius = rng.uniform(0, 1, 2) * (_CANVAS, 0.4 * _CANVAS), rng.uniform(9, 17)
    ink = _ink(_hsv(rng.normal(0.14, 0.03), rng.uniform(0.3, 0.9), rng.uniform(0.9, 1)))
    for spoke in _ring(int(rng.integers(7, 13)), 1.0, rng.uniform(0, 1)):
        draw.line(_flat(np.array([centre + spoke * radius * 1.3, centre + spoke * radius * 2.1])), fill=ink, width=3)
    draw.polygon(_flat(_ring(20) * radius + centre), fill=ink)
    for x, y in rng.uniform(0, _CANVAS, (int(rng.integers(4, 14)), 2)):
        size, confetti = rng.uniform(1.5, 3.5), _hsv(rng.random(), 0.8, 1)
        draw.rectangle((x - size, y - size, x + size, y + size), fill=_ink(confetti))


def _draw_hearts(draw: ImageDraw.ImageDraw, rng: np.random.Generator) -> None:
    """Love: hearts."""
    turn = np.linspace(0, 2 * np.pi, 24)
    outline = np.stack(
        [
            np.sin(turn) ** 3,
            -(13 * np.cos(turn) - 5 * np.cos(2 * turn) - 2 * np.cos(3 * turn) - np.cos(4 * turn)) / 16,
        ],
        axis=1,
    )
    for _ in range(rng.integers(3, 8)):
        ink = _hsv(rng.normal(0.95, 0.05), rng.uniform(0.3, 0.9), rng.uniform(0.7, 1))
        draw.polygon(_flat(outline * rng.uniform(4, 11) + rng.uniform(0, _CANVAS, 2)), fill=_ink(ink))


def _draw_rain(draw: ImageDraw.ImageDraw, rng: np.random.Generator) -> None:
    """Sadness: rain, all drops along the same wind."""
    streak = np.array([rng.normal(0, 4), rng.uniform(7, 16)])
    ink = _ink(_hsv(rng.normal(0.58, 0.05), rng.uniform(0.1, 0.4), rng.uniform(0.5, 0.95)))
    for drop in rng.uniform(-8, _CANVAS, (int(rng.integers(16, 42)), 2)):
        draw.line(_flat(np.array([drop, drop + streak * rng.uniform(0.7, 1.3)])), fill=ink, width=2)


def _draw_bursts(draw: ImageDraw.ImageDraw, rng: np.random.Generator) -> None:
    """Surprise: star-shaped bursts, as in a comic."""
    for _ in range(rng.integers(2, 5)):
        spikes = int(rng.integers(7, 12))
        star = _ring(2 * spikes, np.tile([1.0, rng.uniform(0.35, 0.6)], spikes), rng.uniform(0, 1))
        ink = _hsv(rng.random(), rng.uniform(0.1, 0.9), rng.uniform(0.85, 1))
        draw.polygon(_flat(star * rng.uniform(7, 17) + rng.uniform(0, _CANVAS, 2)), fill=_ink(ink))


_WEATHER: dict[str, Callable[[ImageDraw.ImageDraw, np.random.Generator], None]] = {
    "anger": _draw_bolts,
    "fear": _draw_branches,
    "joy": _draw_sun,
    "love": _draw_hearts,
    "sadness": _draw_rain,
    "surprise": _draw_bursts,
}


# Light


def _shine(canvas: Image.Image, light: Light, rng: np.random.Generator) -> Image.Image:
    """Brings the canvas to its final size and puts it under the light, with the noise of a cheap camera."""
    picture = canvas.reduce(_CANVAS // IMAGE_SIZE)
    pixels = np.asarray(picture, dtype=np.float32) / 255
    if light.glow:
        soft = np.asarray(picture.filter(ImageFilter.GaussianBlur(3)), dtype=np.float32) / 255
        pixels += light.glow * rng.uniform(0.5, 1) * (soft - pixels)
    grey = pixels.mean(axis=2, keepdims=True)
    pixels = grey + (light.colour + rng.normal(0, 0.15)) * (pixels - grey)
    pixels = 0.5 + (light.contrast + rng.normal(0, 0.12)) * (pixels - 0.5) + light.brightness + rng.normal(0, 0.06)
    y, x = np.mgrid[-1 : 1 : IMAGE_SIZE * 1j, -1 : 1 : IMAGE_SIZE * 1j].astype(np.float32)
    centre = rng.uniform(-0.3, 0.3, 2)
    distance = (x - centre[0]) ** 2 + (y - centre[1]) ** 2
    pixels *= 1 - 0.5 * (light.vignette + rng.normal(0, 0.1)) * np.minimum(distance, 1.5)[..., None]
    pixels += rng.normal(0, rng.uniform(0.005, 0.03), pixels.shape).astype(np.float32)
    return Image.fromarray((np.clip(pixels, 0, 1) * 255).astype(np.uint8))
