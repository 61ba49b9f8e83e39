"""The words corpora use for sex and split, and the ones used here.

A word that is not in a table means "not known", never a guess.
"""

from __future__ import annotations

import re

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
_NO_SPEAKER = frozenset({"", "unknown", "nan", "none", "null", "na", "n/a", "<na>"})


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
    """The speaker's name, None where a corpus says that it does not know it.

    >>> speaker_of(" 30 "), speaker_of("Unknown"), speaker_of(7.0), speaker_of("3.0")
    ('30', None, '7', '3')
    """
    if isinstance(word, float) and word.is_integer():
        word = int(word)
    text = "" if word is None else str(word).strip()
    # whole numbers beside gaps are written so by spreadsheets and data frames
    text = re.sub(r"(?<=^)(\d+)\.0+$", r"\1", text)
    return None if text.lower() in _NO_SPEAKER else text
