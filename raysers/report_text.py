"""Text from strangers as text that every picture and every page can hold.

A control character is no XML and half a surrogate pair no Unicode: one of either in a speaker's
name would cost the whole report. What is replaced is seen, so that two names stay two names.
"""

from __future__ import annotations

import unicodedata

#: Shown for a character that cannot be.
REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
#: Characters that are no text: controls, half characters, and those no document may hold.
_NO_TEXT = frozenset({"Cc", "Cs", "Cn"})


def printable(text: str) -> str:
    r"""The text with a visible mark for every character that is none; line ends and tabs stay.

    >>> printable("s\x1b1"), printable("a\ud800b"), printable("two\nlines")
    ('s�1', 'a�b', 'two\nlines')
    """
    return "".join(
        REPLACEMENT if unicodedata.category(c) in _NO_TEXT and c not in "\n\t" else c for c in text
    )
