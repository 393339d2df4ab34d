"""The tab that names the emotions of a picture, shows where they are seen, and compares before with after PACL."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import gradio as gr
from PIL import Image

from pacl.emotions import PROMPTS, VOCABULARIES, check_prompts

from .comparison import Comparison, Side, View
from .markup import bars, columns, figure, note, shortened
from .reading import Reader, Reading

OWN = "own"
VOCABULARY_TITLES = {
    "mikels8": "Mikels, 8 emotions",
    "ekman6": "Ekman, 6 emotions",
    "parrott6": "Parrott, 6 primary emotions",
    "parrott25": "Parrott, 25 secondary emotions",
    "emotic26": "Emotic, 26 categories",
}
BOTH = "both"
NO_PICTURE = "Give a picture or take an example."
MAP_SIZE = 320
QUIET: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
LIMITS = (
    "**What this says, and what not.** It guesses how a picture may feel to those who look at it. It does not say "
    "what a person in it feels, and must not be used to judge people. The scores only compare the listed words with "
    "each other: they add up to 100 % also where no word fits. They carry the habits of the posts that the model "
    "learnt from."
)
COMPARED = (
    "Before PACL the backbone has no way to name an emotion: the projection to words was only learnt with PACL. So "
    "compared is what both can do: where their features come from, which pictures are nearest by these features"
)


@dataclass(frozen=True)
class Unreadable:
    """A file that is no picture."""

    name: str

    def __str__(self) -> str:
        return f"{self.name} cannot be opened as a picture. Choose a JPEG, PNG, WebP or GIF file that is whole."


def picture_input(**options: Any) -> gr.Image:
    """Gradio's picture input; a file that is no picture becomes an [`Unreadable`], to be said where results are."""
    # PNG, because what the examples show is read again from here, and must not lose anything on the way.
    made = gr.Image(type="pil", format="png", sources=["upload", "clipboard"], **options)
    decode = made.preprocess

    def preprocess(payload: Any) -> Any:
        try:
            picture = decode(payload)
            if isinstance(picture, Image.Image):
                picture.load()
        except (gr.Error, OSError, ValueError, SyntaxError, Image.DecompressionBombError):
            return Unreadable(getattr(payload, "orig_name", None) or "This file")
        return picture

    # On the object, not in a subclass: Gradio takes a subclass for a new kind of component.
    made.preprocess = preprocess  # type: ignore[method-assign]
    return made


def emotions_tab(
    reader: Reader, comparison: Comparison | None, examples: Mapping[str, str], *, vocabulary: str, figures: str = ""
) -> None:
    """
    Lay the tab out, inside an open `gr.Blocks`.

    Args:
        reader ([`Reader`]): The dual encoder.
        comparison ([`Comparison`], *optional*): The backbone before and after.
        examples (`Mapping[str, str]`): Files of example pictures by name.
        vocabulary (`str`): The vocabulary to start with.
        figures (`str`, *optional*): What the run's own report measured before and after.
    """
    with gr.Row():
        with gr.Column(min_width=300):
            picture = picture_input(label="Picture", height=280, elem_id="picture")
            if examples:
                with gr.Row(elem_id="examples", elem_classes="examples"):
                    for name, path in examples.items():
                        example = gr.Button(name, icon=path, size="sm", min_width=60)
                        example.click(partial(Image.open, path), None, picture, **QUIET)
            words = gr.Dropdown(_vocabularies(), value=vocabulary, label="Words to choose from", elem_id="vocabulary")
            own_words = gr.Textbox(
                label="Your own words, with commas between", value="calm, lonely, festive", visible=False
            )
            prompt = gr.Dropdown(_prompts(), value=BOTH, label="Sentence they are put into", elem_id="prompt")
            own_prompt = gr.Textbox(
                label="Your own sentence, with [C] for the word", value="This place feels [C].", visible=False
            )
            again = gr.Button("Name the emotions", variant="primary", elem_id="read")
        with gr.Column(min_width=300):
            result = gr.HTML(note(NO_PICTURE), elem_id="emotions", padding=False)
    gr.Markdown(LIMITS, elem_id="limits")
    inputs = [picture, words, own_words, prompt, own_prompt]
    words.change(lambda chosen: gr.update(visible=chosen == OWN), words, own_words, **QUIET)
    prompt.change(lambda chosen: gr.update(visible=chosen == OWN), prompt, own_prompt, **QUIET)
    # One picture at a time: the maps hang hooks into the model.
    one: dict[str, Any] = {"concurrency_limit": 1, "concurrency_id": "model", "api_visibility": "private"}
    gr.on(
        [picture.change, words.change, prompt.change, own_words.submit, own_prompt.submit, again.click],
        partial(read, reader),
        inputs,
        result,
        trigger_mode="always_last",
        **one,
    )
    if comparison is not None:
        _comparison_part(comparison, picture, figures, one)


def _comparison_part(comparison: Comparison, picture: gr.Image, figures: str, options: dict[str, Any]) -> None:
    classifier = ""
    if comparison.labelled is not None:
        classifier = (
            ", and what a linear classifier reads out of them, fitted alike on "
            f"{len(comparison.labelled)} generated pictures whose emotion is known"
        )
    gr.Markdown(f"## Before and after PACL\n{COMPARED}{classifier}. {figures}")
    beside = gr.HTML(note(NO_PICTURE), elem_id="comparison", padding=False)
    picture.change(partial(compare, comparison), picture, beside, trigger_mode="always_last", **options)


def _vocabularies() -> list[tuple[str, str]]:
    return [(VOCABULARY_TITLES.get(name, name), name) for name in VOCABULARIES] + [("My own words", OWN)]


def _prompts() -> list[tuple[str, str]]:
    return [("Both sentences of the paper", BOTH)] + [(prompt, prompt) for prompt in PROMPTS] + [("My own", OWN)]


def chosen_words(vocabulary: str, own: str) -> list[str]:
    """The words of a vocabulary, or one's own, each once."""
    if vocabulary != OWN:
        return list(VOCABULARIES[vocabulary])
    return list(dict.fromkeys(word.strip() for word in own.replace("\n", ",").split(",") if word.strip()))


def chosen_prompts(prompt: str, own: str) -> list[str]:
    """The sentences to put words into."""
    return list(check_prompts(own.strip() if prompt == OWN else PROMPTS if prompt == BOTH else prompt))


def read(
    reader: Reader,
    picture: Image.Image | Unreadable | None,
    vocabulary: str,
    own_words: str,
    prompt: str,
    own_prompt: str,
) -> str:
    """What the tab shows for a picture and what is chosen beside it."""
    if not isinstance(picture, Image.Image):
        return note(NO_PICTURE if picture is None else str(picture))
    words = chosen_words(vocabulary, own_words)
    if len(words) < 2:
        return note("Scores compare words with each other: give at least two, with commas between them.")
    if prompt == OWN and "[C]" not in own_prompt and "{}" not in own_prompt:
        return note("Your own sentence needs [C] in the place where the word goes.")
    return show(reader.read(picture, words, chosen_prompts(prompt, own_prompt)))


def show(reading: Reading) -> str:
    """A reading as HTML: bars and valence, then the picture and the map."""
    top = next(iter(reading.scores))
    valence = ""
    if reading.valence is not None:
        valence = (
            f"<p>Pleasant rather than unpleasant: <strong>{reading.valence:.0%}</strong> "
            '<span class="quiet">(50 % is undecided)</span></p>'
        )
    unknown = ""
    if reading.unknown:
        unknown = note(
            f"This model's text side does not know {', '.join(reading.unknown)}; what it scores them says nothing."
        )
    seen = figure(reading.shown, "The picture as the model sees it", "as the model sees it", smallest=MAP_SIZE)
    if reading.where is None:
        where = note(f"No region of the picture speaks for “{top}” more than for the other words.")
    else:
        alt = f"Map over the picture; the lightest regions speak most for {top}"
        caption = f"light: speaks for “{top}” against the other words (Grad-CAM)"
        where = figure(reading.where, alt, caption, smallest=MAP_SIZE)
    return (
        f'<div role="status"><h2>{top}</h2></div>{bars(reading.scores)}{unknown}{valence}'
        f'<h3>Where the model looks</h3><div class="pair">{seen}{where}</div>'
    )


def compare(comparison: Comparison, picture: Image.Image | Unreadable | None) -> str:
    """Both backbones' views of a picture side by side."""
    if not isinstance(picture, Image.Image):
        return note(NO_PICTURE if picture is None else str(picture))
    return columns(
        [
            show_view(title, side, side.view(picture))
            for title, side in (("Before PACL", comparison.before), ("After PACL", comparison.after))
        ]
    )


def show_view(title: str, side: Side, view: View) -> str:
    """One backbone's view as HTML."""
    parts = [f"<h3>{title}</h3>"]
    if view.probe:
        parts.append(f"<h4>A linear classifier on its features</h4>{bars(view.probe, top=6)}")
    parts.append("<h4>Where its features come from</h4>")
    if view.where is None:
        parts.append(note("This backbone keeps no places apart that could be shown."))
    else:
        alt = f"Map over the picture; the features {title} come most from the lightest regions"
        parts.append(figure(view.where, alt, smallest=MAP_SIZE))
    rows = [int(row) for row in view.nearest]
    near = "".join(
        "<li>" + figure(post["image"], _near_alt(post, place), f"likeness {likeness:.3f}", smallest=96) + "</li>"
        for place, (post, likeness) in enumerate(
            zip(side.pictures.select(rows), view.similarity, strict=True), start=1
        )
    )
    parts.append(f'<h4>Nearest of {len(side.pictures)} pictures</h4><ul class="near">{near}</ul>')
    return "".join(parts)


def _near_alt(post: Mapping[str, Any], place: int) -> str:
    text = shortened(str(post.get("text") or ""), 100)
    return f"Near picture {place}" + (f", with the text: {text}" if text else "")
