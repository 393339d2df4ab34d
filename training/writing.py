"""Writes the texts of the built-in corpus: short posts that name a subject and betray an emotion.

The counterpart of `drawing.py`; `synthetic.py` puts pictures and texts together into posts.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np

from .drawing import EMOTIONS, SUBJECTS

SUBJECT_WORDS: dict[str, tuple[str, ...]] = {
    "boat": ("boat", "ship", "sailboat", "yacht", "ferry", "dinghy"),
    "car": ("car", "taxi", "sedan", "automobile", "cab", "jeep"),
    "cat": ("cat", "kitten", "kitty", "tomcat", "tabby", "pussycat"),
    "fish": ("fish", "goldfish", "trout", "carp", "salmon", "koi"),
    "flower": ("flower", "rose", "tulip", "daisy", "blossom", "poppy"),
    "house": ("house", "cottage", "home", "cabin", "villa", "hut"),
    "mountain": ("mountain", "peak", "summit", "hill", "alp", "cliff"),
    "tree": ("tree", "oak", "pine", "maple", "birch", "willow"),
}
_ANY_SUBJECT = ("photo", "picture", "shot", "moment", "view", "image", "scene", "day")

# The first noun and the first two adjectives are those that zero-shot prompts are usually filled with.
EMOTION_WORDS: dict[str, dict[str, tuple[str, ...]]] = {
    "anger": {
        "noun": ("anger", "rage", "fury", "wrath", "outrage", "disgust", "hate", "annoyance"),
        "adjective": ("angry", "furious", "mad", "raging", "annoyed", "outraged", "fierce", "bitter", "irritated"),
        "exclamation": ("grrr", "argh", "ugh", "damn", "enough", "unacceptable", "shut up"),
        "mark": (">:(", "!!!", "smh", "wtf"),
    },
    "fear": {
        "noun": ("fear", "terror", "horror", "panic", "dread", "nightmare", "anxiety", "danger"),
        "adjective": ("scared", "fearful", "afraid", "terrified", "creepy", "spooky", "haunted", "nervous", "scary"),
        "exclamation": ("eek", "yikes", "help", "oh no", "careful", "run", "what was that"),
        "mark": ("D:", "o_o", "brr", "shiver"),
    },
    "joy": {
        "noun": ("joy", "happiness", "fun", "delight", "cheer", "amusement", "contentment", "excitement"),
        "adjective": ("joyful", "happy", "cheerful", "glad", "merry", "delighted", "sunny", "excited", "amused"),
        "exclamation": ("yay", "hooray", "haha", "woohoo", "yippee", "best day ever", "cheers"),
        "mark": (":)", ":D", "lol", "yeah"),
    },
    "love": {
        "noun": ("love", "affection", "tenderness", "romance", "passion", "devotion", "adoration", "sweetness"),
        "adjective": ("loving", "loved", "lovely", "adorable", "sweet", "beloved", "romantic", "tender", "precious"),
        "exclamation": ("aww", "darling", "sweetheart", "my heart", "so cute", "forever mine", "honey"),
        "mark": ("<3", "xoxo", "hugs", "kisses"),
    },
    "sadness": {
        "noun": ("sadness", "sorrow", "grief", "gloom", "loneliness", "despair", "misery", "heartbreak"),
        "adjective": ("sad", "sorrowful", "lonely", "gloomy", "unhappy", "depressed", "miserable", "blue", "hopeless"),
        "exclamation": ("sigh", "alas", "i miss you", "in tears", "crying again", "goodbye", "rip"),
        "mark": (":(", ":'(", "sob", "tears"),
    },
    "surprise": {
        "noun": ("surprise", "amazement", "shock", "astonishment", "wonder", "disbelief", "awe", "miracle"),
        "adjective": (
            "surprised",
            "surprising",
            "amazed",
            "shocked",
            "stunned",
            "astonished",
            "unexpected",
            "incredible",
            "speechless",
        ),
        "exclamation": ("wow", "omg", "whoa", "no way", "what", "who knew", "unbelievable"),
        "mark": (":O", "?!", "o.O", "gosh"),
    },
}

# What a tagger may say of a picture: two adjectives for each emotion, of which the posts use some themselves.
ANP_ADJECTIVES: dict[str, tuple[str, str]] = {
    "anger": ("angry", "stormy"),
    "fear": ("creepy", "dark"),
    "joy": ("cheerful", "sunny"),
    "love": ("lovely", "romantic"),
    "sadness": ("gloomy", "rainy"),
    "surprise": ("amazing", "explosive"),
}
ANP_NAMES = tuple(
    f"{adjective} {subject}" for e in EMOTIONS for adjective in ANP_ADJECTIVES[e] for subject in SUBJECTS
)

_BOTH = (
    "this {subject} makes me feel so {adjective}",
    "feeling {adjective} about the {subject} {when}",
    "look at that {adjective} {subject}",
    "this {subject} is full of {noun}",
    "{exclamation} , what about that {subject}",
    "nothing but {noun} {when} , and one {subject}",
    "the {subject} {where} , {exclamation}",
    "my {subject} and so much {noun}",
    "{when} i saw the most {adjective} {subject} {where}",
    "so {adjective} {when} because of this {subject}",
    "{exclamation} ! {who} sent me this {subject} {mark}",
    "{noun} is some {subject} {where}",
    "we were all {adjective} when the {subject} came up",
    "is it just me or is this {subject} really {adjective}",
    "{who} got a new {subject} and i feel {adjective}",
    "{exclamation} {mark} the old {subject} again",
)
_FACTS = (
    "one {subject} {where}",
    "the {subject} of {who}",
    "{when} , just another {subject}",
    "here is my {subject}",
    "a picture of the {subject} {where}",
    "found this {subject} {where} {when}",
    "spent some time with the {subject}",
    "does anyone know this {subject} ?",
)
_SLOTS = {
    "when": (
        "today",
        "tonight",
        "this morning",
        "yesterday",
        "last week",
        "right now",
        "on sunday",
        "all day",
        "again",
    ),
    "where": ("by the lake", "in town", "near my street", "at the beach", "in the park", "outside", "on the road"),
    "who": ("my brother", "mom", "a friend", "dad", "our neighbour", "my sister", "someone", "the kids"),
}
_FILLERS = ("ok", "so", "well", "guys", "hey", "just", "and", "honestly", "everyone", "look", "still", "dear diary")
_TAGS = ("#photo", "#picoftheday", "#nofilter", "#weekend", "#life", "#mood", "#travel", "#art", "#nature", "#city")


def write_post(subject: str | None, emotion: str | None, rng: np.random.Generator) -> str:
    """Writes one post.

    Args:
        subject (`str`, *optional*): One of `SUBJECTS`; `None` writes of "this photo" or the like.
        emotion (`str`, *optional*): One of `EMOTIONS`; `None` writes a plain statement.
        rng (`np.random.Generator`): Where all that varies is drawn from.

    Returns:
        `str`: Some 5 to 20 words in lower case, perhaps with hashtags.
    """
    words = {slot: _pick(choices, rng) for slot, choices in _SLOTS.items()}
    words["subject"] = _pick(SUBJECT_WORDS[subject] if subject else _ANY_SUBJECT, rng)
    parts = [_pick(_FILLERS, rng)] if rng.random() < 0.25 else []
    if emotion is None:
        parts.append(_pick(_FACTS, rng).format(**words))
    elif rng.random() < 0.7:
        parts.append(_pick(_BOTH, rng).format(**words, **_emotion_words(emotion, rng)))
    else:  # a fact, and the emotion in a word or two behind it
        parts += [_pick(_FACTS, rng).format(**words), "." if rng.random() < 0.5 else ",", _outcry(emotion, rng)]
    return " ".join([*parts, *_hashtags(words["subject"], emotion, rng)])


def write_tags(emotion: str, subject: str, rng: np.random.Generator, number: int = 3, fidelity: float = 0.75) -> str:
    """Writes adjective-noun pairs as a tagger would name them, the first one true and each other with `fidelity`."""
    pairs = []
    for position in range(number):
        told, seen = (
            truth if position == 0 or rng.random() < fidelity else _pick(others, rng)
            for truth, others in ((emotion, EMOTIONS), (subject, SUBJECTS))
        )
        pairs.append(f"{_pick(ANP_ADJECTIVES[told], rng)} {seen}")
    return ", ".join(pairs)


def vocabulary() -> list[str]:
    """Every word and sign that can occur in a text of the corpus or in a zero-shot prompt, sorted."""
    sources = [*_BOTH, *_FACTS, *_FILLERS, *_TAGS, *_ANY_SUBJECT, *ANP_NAMES, *EMOTIONS, "photo emotion with # . , !"]
    sources += [word for words in (*SUBJECT_WORDS.values(), *_SLOTS.values()) for word in words]
    sources += [word for kinds in EMOTION_WORDS.values() for words in kinds.values() for word in words]
    plain = re.sub(r"\{\w+\}", " ", " ".join(sources)).lower()
    return sorted(set(re.findall(r"[^\W_]+|[^\w\s]|_", plain)))


def _pick(choices: Sequence[str], rng: np.random.Generator) -> str:
    return choices[int(rng.integers(len(choices)))]


def _emotion_words(emotion: str, rng: np.random.Generator) -> dict[str, str]:
    return {kind: _pick(words, rng) for kind, words in EMOTION_WORDS[emotion].items()}


def _outcry(emotion: str, rng: np.random.Generator) -> str:
    words = _emotion_words(emotion, rng)
    forms = (
        "{exclamation}",
        "{mark}",
        "{exclamation} {mark}",
        "so {adjective}",
        "feeling {adjective} {mark}",
        "{noun} !",
    )
    return _pick(forms, rng).format(**words)


def _hashtags(subject: str, emotion: str | None, rng: np.random.Generator) -> list[str]:
    tags = [_pick(_TAGS, rng)] if rng.random() < 0.3 else []
    if rng.random() < 0.2:
        tags.append(f"#{subject}")
    if emotion is not None and rng.random() < 0.25:
        # Sometimes a post mixes its feelings.
        told = emotion if rng.random() < 0.8 else _pick(EMOTIONS, rng)
        tags.append("#" + _pick(EMOTION_WORDS[told]["noun"] + EMOTION_WORDS[told]["adjective"], rng))
    return tags
