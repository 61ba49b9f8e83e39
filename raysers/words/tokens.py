"""Words of a transcript, in any language that writes spaces between them.

A word is a run of letters, marks and digits with a letter in it; single apostrophes and hyphens
hold it together (`don't`, `o'clock`, `l'amour`, `geht's`, `E-Mail`) and quotes around it are no
part of it. Emoji, numerals, `[noise]` and `<tag>` are no words. Chinese, Japanese and Thai put no
spaces between words, so a run between two punctuation marks counts as one word there.
"""

from __future__ import annotations

import re
import unicodedata

_APOSTROPHES = "'\u2018\u2019\u02bc\u02b9\uff07\u00b4`"
_HYPHENS = "-\u2010\u2011\uff0d"
_WORD = re.compile(r"[^\s'-]+(?:['-][^\s'-]+)*")
_MARKUP = re.compile(r"<[^<>\s]{0,64}>|\[[^\[\]\s]{0,64}\]")
#: General categories of what a word is made of: letters, marks, decimal digits.
_OF_WORDS = ("L", "M", "Nd")


class _Plain(dict[int, str | None]):
    """What each character becomes: itself, a plain apostrophe or hyphen, nothing, or a space."""

    def __missing__(self, code: int) -> str | None:
        character = chr(code)
        kind = unicodedata.category(character)
        plain: str | None = " "
        if character in _APOSTROPHES:
            plain = "'"
        elif character in _HYPHENS:
            plain = "-"
        elif kind == "Cf":  # soft hyphens, joiners, marks of direction: not seen, not said
            plain = None
        elif kind.startswith(_OF_WORDS):
            plain = character
        self[code] = plain
        return plain


_PLAIN = _Plain()


def tokens(text: str) -> list[str]:
    """The words of a text in their order, lower case, in Unicode's composed form (NFC).

    Words that differ in case only are the same by `folded`, which is for comparing, not for
    showing: it writes the German sharp s as `ss`.

    >>> tokens("“Don’t!”, he said — it’s a well-known Straße.")
    ["don't", 'he', 'said', "it's", 'a', 'well-known', 'straße']
    """
    plain = unicodedata.normalize("NFC", _MARKUP.sub(" ", text)).translate(_PLAIN)
    found = _WORD.findall(plain.lower())
    return [word for word in found if any(map(str.isalpha, word))]


def folded(word: str) -> str:
    """What all spellings of a word share that differ in case or composition only.

    >>> folded("STRASSE") == folded("Straße")
    True
    """
    # folding may take a composed letter apart, and NFC may bring forth what can be folded
    once = unicodedata.normalize("NFC", word).casefold()
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", once).casefold())
