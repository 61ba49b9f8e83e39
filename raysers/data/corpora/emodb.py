"""EmoDB (Burkhardt et al. 2005): acted German, everything derived from the file names.

In `03a01Fa.wav` the sixth character is the German word's initial, so `A` is Angst (fear), not
anger. There are no ratings: dimensions come from an emotion map. Sexes are those of the corpus'
own page; an early audb release had four of them wrong.
"""

from __future__ import annotations

import re

from raysers.data import files
from raysers.display import some
from raysers.errors import ConfigError, ObjectMissing
from raysers.io import storage
from raysers.io.objects import suffix_of

NAME = "emodb"

_SEX_OF = {
    **dict.fromkeys(("03", "10", "11", "12", "15"), "male"),
    **dict.fromkeys(("08", "09", "13", "14", "16"), "female"),
}
_EMOTION_OF = {
    "W": "anger", "L": "boredom", "E": "disgust", "A": "fear", "F": "happiness", "T": "sadness",
    "N": "neutral",
}  # fmt: skip
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
#: Clips in the released part of the corpus, which at least this share of listeners recognised.
_CLIPS, _RECOGNISED_PERCENT = 535, 80.0


def recognise(root: str) -> bool:
    """Whether the audio in `root`, or in its `wav` folder, is named as EmoDB's is, all of it.

    The first other name ends the search, so a bucket of anything else is not listed to its end.
    """
    folder, found = storage.absolute(files.first_of(root, ("wav",)) or root), 0
    try:
        for info in storage.list_objects(folder):
            if suffix_of(info.uri) not in files.AUDIO_SUFFIXES:
                continue
            is_named = _FILE_NAME.fullmatch(files.name_of(info.uri))
            if storage.parent(info.uri) != folder or not is_named:
                return False
            found += 1
    except ObjectMissing:
        return False
    return found > 0


def read(root: str) -> tuple[list[files.Row], list[str]]:
    """The clips below `root`, which is the unpacked archive or its `wav` folder.

    Raises:
        ConfigError: no file is named as EmoDB's are.
    """
    rows: dict[str, files.Row] = {}
    others: list[str] = []
    for info in files.objects_below(files.first_of(root, ("wav",)) or root, {".wav"}):
        if (found := _FILE_NAME.fullmatch(files.name_of(info.uri))) is None:
            others.append(files.name_of(info.uri))
            continue
        rows[files.name_of(info.uri)] = files.of_file(info) | {
            "speaker": found["speaker"],
            "sex": _SEX_OF[found["speaker"]],
            "language": "de",
            "transcript": _TEXT_OF.get(found["text"]),
            "emotion": _EMOTION_OF[found["emotion"]],
            "corpus": NAME,
        }
    if not rows:
        raise ConfigError(f"--input {root}: no file is named as EmoDB's are, such as 03a01Fa.wav")
    notes = []
    if others:
        notes.append(f"{root}: not named as EmoDB's files are, left out: {some(others)}")
    if len(rows) != _CLIPS:
        notes.append(f"{root}: {len(rows)} clips of EmoDB, where the released corpus has {_CLIPS}")
    if doubtful := _doubtful(storage.join(root, "erkennung.txt"), rows):
        share = f"{_RECOGNISED_PERCENT:g} %"
        notes.append(f"{root}: recognised by less than {share}: {some(doubtful)} clips")
    return list(rows.values()), notes


def _doubtful(uri: str, rows: dict[str, files.Row]) -> list[str]:
    """Clips that listeners often took for another emotion; the released part has none."""
    doubtful = []
    for line_number, line in files.lines_of(uri) if files.is_file(uri) else ():
        cells = line.split()
        if (name := next((cell for cell in cells if cell in rows), None)) is None:
            continue
        try:
            percent = float(cells[cells.index(name) + 1].replace(",", "."))
        except (IndexError, ValueError):
            raise ConfigError(f"{uri}, line {line_number}: no share of listeners") from None
        doubtful += [name] if percent < _RECOGNISED_PERCENT else []
    return doubtful
