"""Readers of corpora, and their terms for emotion, sex, split and speaker, mapped to ours.

A term that is not in a table means "not known"; nothing is guessed. Emotion maps put categories on
arousal, dominance and valence: one point for a whole category, which says nothing about how
strongly a clip was spoken, so figures against such labels do not compare with those of ratings.

"russell-mehrabian" takes the means that Russell and Mehrabian (1977), "Evidence for a three-factor
theory of emotions", Journal of Research in Personality 11, 273-294, report for seven terms on
pleasure, arousal and dominance from -1 to 1, here as (x + 1) / 2 with valence for pleasure, checked
against several public transcriptions of their table; the paper itself was not at hand. Neutral is
our own addition: the middle of every scale. Contempt is left out, because transcriptions of it
differ.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from raysers.data.files import load_yaml
from raysers.errors import ConfigError
from raysers.types import DIMENSIONS

#: Arousal, dominance, valence, each 0..1, by category.
EmotionMap = Mapping[str, tuple[float, float, float]]

#: (pleasure, arousal, dominance), each -1..1.
_RUSSELL_MEHRABIAN = {
    "anger": (-0.51, 0.59, 0.25),
    "boredom": (-0.65, -0.62, -0.33),
    "disgust": (-0.60, 0.35, 0.11),
    "fear": (-0.64, 0.60, -0.43),
    "happiness": (0.81, 0.51, 0.46),
    "neutral": (0.0, 0.0, 0.0),
    "sadness": (-0.63, -0.27, -0.33),
    "surprise": (0.40, 0.67, -0.13),
}


EMOTION_MAPS: Mapping[str, EmotionMap] = {
    "russell-mehrabian": {
        name: ((arousal + 1) / 2, (dominance + 1) / 2, (pleasure + 1) / 2)
        for name, (pleasure, arousal, dominance) in _RUSSELL_MEHRABIAN.items()
    }
}

#: What else corpora call a category.
_SYNONYMS = {
    "anger": ("ang", "angry"),
    "boredom": ("bored",),
    "contempt": ("contemptuous",),
    "disgust": ("dis", "disgusted"),
    "excitement": ("exc", "excited"),
    "fear": ("afraid", "anxiety", "anxious", "fea", "fearful"),
    "frustration": ("fru", "frustrated"),
    "happiness": ("hap", "happy", "joy", "joyful"),
    "neutral": ("neu", "no emotion"),
    "sadness": ("sad",),
    "surprise": ("sur", "surprised"),
}
_SEXES = {
    "female": ("f", "female", "fem", "woman", "women", "girl", "w", "weiblich"),
    "male": ("m", "male", "man", "men", "boy", "maennlich", "männlich"),
}
_SPLITS = {
    "train": ("train", "training", "trn"),
    "dev": ("dev", "devel", "development", "val", "valid", "validation"),
    "test": ("test", "tst", "testing"),
    **{f"test{n}": (f"test{n}",) for n in (1, 2, 3)},
}
_SEX_OF = {word: sex for sex, words in _SEXES.items() for word in words}
_SPLIT_OF = {word: split for split, words in _SPLITS.items() for word in words}
#: Words in place of a category: the raters' votes were split, or went to none on the list.
_NO_EMOTION = frozenset({"", "no_agreement", "other"})
_NO_SPEAKER = frozenset({"", "unknown", "nan", "none", "null", "na", "n/a", "<na>"})
_COMMON_NAMES = {word: name for name, words in _SYNONYMS.items() for word in words}


def common_name(category: str) -> str:
    """The one name of a category here; an unknown word stays as it is, in lower case.

    >>> common_name("Angry"), common_name("fru"), common_name("wistful")
    ('anger', 'frustration', 'wistful')
    """
    word = category.strip().lower()
    return _COMMON_NAMES.get(word, word)


def category_of(word: str | None) -> str | None:
    """The common name of a label, None where it names no emotion.

    >>> category_of("Angry"), category_of("no_agreement"), category_of(None)
    ('anger', None, None)
    """
    name = common_name(word or "")
    return None if name in _NO_EMOTION else name


def load_emotion_map(name_or_uri: str) -> EmotionMap:
    """A map of `EMOTION_MAPS` by name, or a YAML file of `category: [arousal, dominance, valence]`.

    Raises ConfigError: neither, or a line of the file that is not three numbers from 0 to 1.
    """
    if name_or_uri in EMOTION_MAPS:
        return EMOTION_MAPS[name_or_uri]
    known = ", ".join(EMOTION_MAPS)
    try:
        document = load_yaml(name_or_uri)
    except ConfigError as error:
        raise ConfigError(
            f"--emotion-map {name_or_uri} is no map known here ({known}), nor a YAML file that "
            f"can be read: {error}"
        ) from error
    if not isinstance(document, dict) or not document:
        raise ConfigError(f"--emotion-map {name_or_uri}: write category: [{', '.join(DIMENSIONS)}]")
    found: dict[str, tuple[float, float, float]] = {}
    for category, value in document.items():
        where = f"--emotion-map {name_or_uri}: {category} is {value!r}"
        numbers = value if isinstance(value, list) else []
        if [type(v) in (int, float) for v in numbers] != [True] * len(DIMENSIONS):
            raise ConfigError(f"{where}: write [{', '.join(DIMENSIONS)}]")
        if not all(0 <= v <= 1 for v in numbers):
            raise ConfigError(f"{where}: each number is from 0 to 1")
        arousal, dominance, valence = map(float, numbers)
        found[common_name(str(category))] = arousal, dominance, valence
    return found


def sex_of(word: str | None) -> str | None:
    """`female` or `male`, None for anything else.

    >>> sex_of("Male"), sex_of(" f "), sex_of("Unknown")
    ('male', 'female', None)
    """
    return _SEX_OF.get((word or "").strip().lower())


def split_of(word: str | None) -> str | None:
    """`train`, `dev`, `test`, `test1`, `test2` or `test3`, None for anything else.

    >>> split_of("Development"), split_of("Test1"), split_of("other")
    ('dev', 'test1', None)
    """
    return _SPLIT_OF.get(re.sub(r"[\s_-]", "", word or "").lower())


def speaker_of(word: object) -> str | None:
    """The speaker's name, None where the corpus marks it as unknown.

    >>> speaker_of(" 30 "), speaker_of("Unknown"), speaker_of(7.0), speaker_of("3.0")
    ('30', None, '7', '3')
    """
    if isinstance(word, float) and word.is_integer():
        word = int(word)
    text = "" if word is None else str(word).strip()
    # whole numbers beside gaps are written so by spreadsheets and data frames
    text = re.sub(r"(?<=^)(\d+)\.0+$", r"\1", text)
    return None if text.lower() in _NO_SPEAKER else text
