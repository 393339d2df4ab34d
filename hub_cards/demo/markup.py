"""The demo's results as HTML: bars, pictures with captions, shares; all of it readable without seeing colours."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

from PIL import Image

PARTITION_TITLES = {
    "strong": "strong: picture and text agree in fact and in emotion",
    "partial_emotional": "partial, emotional: they agree in emotion only",
    "partial_factual": "partial, factual: they agree in fact only",
    "weak": "weak: they agree in neither",
}
SIDE_TITLES = {"factual": "fact", "emotional": "emotion"}
THUMBNAIL = 256
TEXT_LENGTH = 220


def bars(scores: Mapping[str, float], top: int = 8) -> str:
    """
    Scores as a list of bars, in the order given.

    Args:
        scores (`Mapping[str, float]`): From 0 to 1.
        top (`int`, *optional*, defaults to 8): How many to show; the others are summed up in the last line.
    """
    shown = list(scores.items())[:top]
    rows = "".join(
        f'<li><span class="bar-name">{escape(name)}</span>'
        f'<span class="bar" aria-hidden="true"><span style="width:{_percent(score)}"></span></span>'
        f'<span class="bar-value">{score:.0%}</span></li>'
        for name, score in shown
    )
    rest = len(scores) - len(shown)
    left = sum(scores.values()) - sum(score for _, score in shown)
    more = f'<p class="quiet">{rest} more together: {max(left, 0.0):.0%}</p>' if rest else ""
    return f'<ol class="bars">{rows}</ol>{more}'


def figure(picture: Image.Image, alt: str, caption: str = "", *, smallest: int = 0) -> str:
    """
    A picture with its description for those who do not see it, and a caption.

    Args:
        picture (`PIL.Image.Image`): Scaled down to [`THUMBNAIL`] unless `smallest` is greater.
        alt (`str`): The description.
        caption (`str`, *optional*): HTML.
        smallest (`int`, *optional*): Scale the picture up to this size where it is smaller.
    """
    text = f"<figcaption>{caption}</figcaption>" if caption else ""
    return f'<figure><img src="{data_uri(picture, smallest)}" alt="{escape(alt)}">{text}</figure>'


def data_uri(picture: Image.Image, smallest: int = 0) -> str:
    """A picture inside an address, so that the page asks nobody for it."""
    largest = max(smallest, THUMBNAIL)
    picture = picture.convert("RGB")
    picture.thumbnail((largest, largest))
    if max(picture.size) < smallest:
        scale = smallest / max(picture.size)
        size = (max(round(picture.width * scale), 1), max(round(picture.height * scale), 1))
        picture = picture.resize(size, Image.Resampling.BICUBIC)
    buffer = io.BytesIO()
    picture.save(buffer, format="JPEG", quality=85)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()


def gallery(posts: Iterable[Mapping[str, Any]]) -> str:
    """
    Posts as cards.

    Args:
        posts (`Iterable[Mapping]`): With `row`, `image`, `text` and `scores`, as `PartitionedPosts.page` gives them.
    """
    cards = []
    for post in posts:
        scores = ", ".join(f"{SIDE_TITLES[side]} {value:.2f}" for side, value in post["scores"].items())
        caption = f'{escape(shortened(post["text"]))}<span class="quiet">{scores}</span>'
        alt = f"Picture of post {post['row']}"
        cards.append(f"<li>{figure(post['image'], alt, caption, smallest=160)}</li>")
    if not cards:
        return '<p role="status">No post is in this partition at these thresholds.</p>'
    return f'<ul class="gallery">{"".join(cards)}</ul>'


def shares_table(shares: Mapping[str, float], posts: int, saved: Mapping[str, float]) -> str:
    """
    The partitions' shares as one stacked bar and as a table.

    Args:
        shares (`Mapping[str, float]`): By partition name, at the thresholds chosen.
        posts (`int`): How many posts there are.
        saved (`Mapping[str, float]`): The shares as the dataset was saved.
    """
    stacked = "".join(
        f'<span class="{name}" style="width:{_percent(share)}">{f"{share:.0%}" if share > 0.08 else ""}</span>'
        for name, share in shares.items()
    )
    rows = "".join(
        f'<tr data-partition="{name}"><th scope="row"><span class="swatch {name}" aria-hidden="true"></span>'
        f"{escape(PARTITION_TITLES[name])}</th><td>{share:.1%}</td><td>{round(share * posts):,}</td>"
        f"<td>{saved[name]:.1%}</td></tr>"
        for name, share in shares.items()
    )
    head = '<th scope="col">partition</th><th scope="col">share</th><th scope="col">posts</th>'
    return (
        f'<div role="status"><div class="stacked" aria-hidden="true">{stacked}</div>'
        f'<table class="shares"><caption>Partitions of {posts:,} posts at these thresholds</caption>'
        f'<thead><tr>{head}<th scope="col">as saved</th></tr></thead><tbody>{rows}</tbody></table></div>'
    )


def columns(parts: Sequence[str]) -> str:
    """Parts side by side, one below the other where there is no room."""
    return f'<div class="columns">{"".join(f"<section>{part}</section>" for part in parts)}</div>'


def note(text: str) -> str:
    """A message in the place of a result."""
    return f'<p role="status" class="note">{escape(text)}</p>'


def shortened(text: str, length: int = TEXT_LENGTH) -> str:
    """A text cut at a word's end where it is too long for a card."""
    text = " ".join(text.split())
    return text if len(text) <= length else text[:length].rsplit(" ", 1)[0] + " …"


def _percent(share: float) -> str:
    return f"{100 * min(max(share, 0.0), 1.0):.2f}%"
