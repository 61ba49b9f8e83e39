"""EmoDB (Burkhardt et al. 2005): acted German, everything derived from the file names.

In `03a01Fa.wav` the sixth character is the German word's initial, so `A` is Angst (fear), not
anger. There are no ratings: dimensions come from an emotion map. Sexes are those of the corpus'
own page; an early audb release had four of them wrong.
"""

from __future__ import annotations

import re

from raysers.data.files import (
    AUDIO_SUFFIXES,
    Row,
    first_of,
    is_file,
    lines_of,
    name_of,
    objects_below,
    of_file,
)
from raysers.errors import ConfigError, ObjectMissing
from raysers.io import storage
from raysers.io.uris import ObjectInfo, suffix_of
from raysers.text import some

NAME = "emodb"

_SEX_OF = {
    **dict.fromkeys(("03", "10", "11", "12", "15"), "male"),
    **dict.fromkeys(("08", "09", "13", "14", "16"), "female"),
}
_EMOTION_OF = {
    "W": "anger",
    "L": "boredom",
    "E": "disgust",
    "A": "fear",
    "F": "happiness",
    "T": "sadness",
    "N": "neutral",
}
_TEXT_OF = {
    "a01": "Der Lappen liegt auf dem Eisschrank.",
    "a02": "Das will sie am Mittwoch abgeben.",
    "a04": "Heute abend könnte ich es ihm sagen.",
    "a05": "Das schwarze Stück Papier befindet sich da oben neben dem Holzstück.",
    "a07": "In sieben Stunden wird es soweit sein.",
    "b01": "Was sind denn das für Tüten, die da unter dem Tisch stehen.",
    "b02": "Sie haben es gerade hochgetragen und jetzt gehen sie wieder runter.",
    "b03": "An den Wochenenden bin ich jetzt immer nach Hause gefahren und habe Agnes besucht.",
    "b09": "Ich will das eben wegbringen und dann mit Karl was trinken gehen.",
    "b10": "Die wird auf dem Platz sein, wo wir sie immer hinlegen.",
}
_FILE_NAME = re.compile(
    rf"(?P<speaker>{'|'.join(_SEX_OF)})(?P<text>[ab]\d\d)(?P<emotion>[{''.join(_EMOTION_OF)}])"
    r"[a-z]?\.wav"
)
_SUFFIXES = frozenset({".wav"})
#: Clips in the released part of the corpus, which at least this share of listeners recognised.
_CLIPS, _RECOGNISED_PERCENT = 535, 80.0


def recognise(root: str) -> bool:
    """Whether the audio in `root`, or in its `wav` folder, is named as EmoDB's is, all of it.

    The first other name ends the search, so a bucket of anything else is not listed to its end.
    """
    folder, found = storage.absolute(_audio_folder(root)), 0
    try:
        for info in storage.list_objects(folder):
            if suffix_of(info.uri) not in AUDIO_SUFFIXES:
                continue
            if storage.parent(info.uri) != folder or not _FILE_NAME.fullmatch(name_of(info.uri)):
                return False
            found += 1
    except ObjectMissing:
        return False
    return found > 0


def read(root: str) -> tuple[list[Row], list[str]]:
    """The clips below `root`, which is the unpacked archive or its `wav` folder.

    Raises:
        ConfigError: no file is named as EmoDB's are.
    """
    infos = objects_below(_audio_folder(root), _SUFFIXES)
    rows = [row for info in infos if (row := _row(info)) is not None]
    if not rows:
        raise ConfigError(f"--input {root}: no file is named as EmoDB's are, such as 03a01Fa.wav")
    notes = []
    named = {row["file"] for row in rows}
    if other := [name_of(info.uri) for info in infos if info.uri not in named]:
        notes.append(f"{root}: not named as EmoDB's files are, left out: {some(other)}")
    if len(rows) != _CLIPS:
        notes.append(f"{root}: {len(rows)} clips of EmoDB, where the released corpus has {_CLIPS}")
    return rows, [*notes, *_doubtful(root, named)]


def _audio_folder(root: str) -> str:
    return first_of(root, ("wav",)) or root


def _row(info: ObjectInfo) -> Row | None:
    found = _FILE_NAME.fullmatch(name_of(info.uri))
    if found is None:
        return None
    return of_file(info) | {
        "speaker": found["speaker"],
        "sex": _SEX_OF[found["speaker"]],
        "language": "de",
        "transcript": _TEXT_OF.get(found["text"]),
        "emotion": _EMOTION_OF[found["emotion"]],
        "corpus": NAME,
    }


def _doubtful(root: str, files: set[str]) -> list[str]:
    """Clips that listeners often took for another emotion; the released part has none."""
    uri = storage.join(root, "erkennung.txt")
    if not is_file(uri):
        return []
    present = {name_of(file) for file in files}
    doubtful = []
    for line_number, line in lines_of(uri):
        cells = line.split()
        name = next((cell for cell in cells if cell.endswith(".wav")), None)
        if name not in present:
            continue
        try:
            percent = float(cells[cells.index(name) + 1].replace(",", "."))
        except (IndexError, ValueError):
            raise ConfigError(f"{uri}, line {line_number}: no share of listeners") from None
        if percent < _RECOGNISED_PERCENT:
            doubtful.append(name)
    if not doubtful:
        return []
    return [f"{root}: recognised by less than {_RECOGNISED_PERCENT:g} %: {some(doubtful)} clips"]
