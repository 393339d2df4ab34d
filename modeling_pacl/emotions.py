"""Words for emotions, by the name of the list they come from, and the sentences that zero-shot use puts them into."""

from __future__ import annotations

PROMPTS = ("A photo with [C] emotion.", "The photo makes me feel so [C]!")
"""The paper's two prompts (Table 3); `[C]` stands for the emotion."""

POLES = (("pleasant", "positive", "happy"), ("unpleasant", "negative", "sad"))
"""Words for the two ends of valence, the pleasant one first. They describe the picture's effect, not a person."""

VOCABULARIES = {
    # Mikels et al. 2005: the classes of FI, EmoSet, IAPSsubset, ArtPhoto and Abstract.
    "mikels8": ("amusement", "anger", "awe", "contentment", "disgust", "excitement", "fear", "sadness"),
    # Ekman 1992, with joy for happiness as in Emotion-6.
    "ekman6": ("anger", "disgust", "fear", "joy", "sadness", "surprise"),
    # Parrott 2001: the primary emotions.
    "parrott6": ("anger", "fear", "joy", "love", "sadness", "surprise"),
    # Parrott's secondary emotions as WebEmo has them: its 25 leaves, in the usual spelling.
    "parrott25": (
        *("affection", "cheerfulness", "confusion", "contentment", "disappointment", "disgust", "enthrallment"),
        *("envy", "exasperation", "gratitude", "horror", "irritability", "lust", "neglect", "nervousness"),
        *("optimism", "pride", "rage", "relief", "sadness", "shame", "suffering", "surprise", "sympathy", "zest"),
    ),
    # Kosti et al. 2017: the categories of Emotic; its "doubt/confusion" is here "confusion".
    "emotic26": (
        *("affection", "anger", "annoyance", "anticipation", "aversion", "confidence", "disapproval"),
        *("disconnection", "disquietment", "confusion", "embarrassment", "engagement", "esteem", "excitement"),
        *("fatigue", "fear", "happiness", "pain", "peace", "pleasure", "sadness", "sensitivity", "suffering"),
        *("surprise", "sympathy", "yearning"),
    ),
}
"""Emotion words by vocabulary, as they stand in a prompt."""


def emotion_words(vocabulary: str) -> tuple[str, ...]:
    """
    The words of a vocabulary.

    Args:
        vocabulary (`str`):
            One of the names in `VOCABULARIES`.

    Raises:
        `ValueError`: there is no vocabulary of that name.

    Example:

    ```python
    emotion_words("ekman6")  # ('anger', 'disgust', 'fear', 'joy', 'sadness', 'surprise')
    ```
    """
    if vocabulary not in VOCABULARIES:
        raise ValueError(
            f"there is no emotion vocabulary {vocabulary!r}; choose from {', '.join(VOCABULARIES)}, or give your own "
            "words as candidate_labels"
        )
    return VOCABULARIES[vocabulary]


def check_prompts(prompts: str | list[str] | tuple[str, ...]) -> tuple[str, ...]:
    """
    Prompts in one form, each with `[C]` where the emotion goes.

    Args:
        prompts (`str` or `list[str]`):
            One or several, with `[C]` or, as in transformers, `{}`.

    Raises:
        `ValueError`: there is none, or one has no place for the emotion.
    """
    given = (prompts,) if isinstance(prompts, str) else tuple(prompts)
    if not given:
        raise ValueError("prompts: at least one is needed")
    for prompt in given:
        if "[C]" not in prompt and "{}" not in prompt:
            raise ValueError(f"prompts: {prompt!r} has no place for the emotion; write [C] or {{}} there")
    return tuple(prompt.replace("{}", "[C]") for prompt in given)


def fill_prompt(prompt: str, word: str) -> str:
    """Put an emotion into a prompt; underscores, which labels of datasets have, become spaces."""
    return prompt.replace("[C]", word.replace("_", " "))
