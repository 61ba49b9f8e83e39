"""Acted speech: EmoDB (Burkhardt et al. 2005) and IEMOCAP (Busso et al. 2008).

EmoDB is German, everything derived from the file names. In `03a01Fa.wav` the sixth character is the
German word's initial, so `A` is Angst (fear), not anger. There are no ratings: dimensions come from
an emotion map. Sexes are those of the corpus' own page; an early audb release had four of them
wrong.

IEMOCAP has dialogs in five sessions, ratings on 1..5. The letter of a turn's last field is the
speaker: in `Ses01F_impro01_M013` the `F` wears the markers and the `M` speaks. The summary line is
valence, arousal, dominance, in that order.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator

from raysers.data import files
from raysers.data.corpora import common_name, sex_of
from raysers.display import some
from raysers.errors import ConfigError, ObjectMissing
from raysers.io import storage
from raysers.io.objects import suffix_of

# EmoDB

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
#: Clips in the released part of the corpus.
_CLIPS = 535


def recognise_emodb(root: str) -> bool:
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


def read_emodb(root: str) -> tuple[list[files.Row], list[str]]:
    """The clips below `root`, which is the unpacked archive or its `wav` folder.

    Raises ConfigError: no file is named as EmoDB's are.
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
            "corpus": "emodb",
        }
    if not rows:
        raise ConfigError(f"--input {root}: no file is named as EmoDB's are, such as 03a01Fa.wav")
    notes = []
    if others:
        notes.append(f"{root}: not named as EmoDB's files are, left out: {some(others)}")
    if len(rows) != _CLIPS:
        notes.append(f"{root}: {len(rows)} clips of EmoDB, where the released corpus has {_CLIPS}")
    return list(rows.values()), notes


# IEMOCAP

_SESSIONS = range(1, 6)
#: Turns of the complete corpus.
_TURNS = 10_039
_LABELS = "dialog/EmoEvaluation"
_DIALOG_FILE = re.compile(r"(Ses0[1-5][FM]_\w+)\.txt")
_SUMMARY = re.compile(
    r"\[\s*[\d.]+\s*-\s*[\d.]+\s*\]\s+(?P<turn>\S+)\s+(?P<emotion>\S+)\s+"
    r"\[(?P<valence>[^,\]]+),(?P<arousal>[^,\]]+),(?P<dominance>[^,\]]+)\]\s*"
)
_SPOKEN = re.compile(r"(Ses\w+)\s+\[[\d.]+\s*-\s*[\d.]+\]:\s*(.*)")
_CODES = ("ang", "hap", "sad", "neu", "fru", "exc", "fea", "sur", "dis")
#: Majority votes that name no emotion.
_CATEGORY_OF = {code: common_name(code) for code in _CODES}
_CATEGORY_OF |= {"oth": "other", "xxx": "no_agreement"}
#: Means just off the scale are known of; they count as its end.
_LOWEST, _LOW, _HIGH, _HIGHEST = 0.5, 1.0, 5.0, 5.5


def recognise_iemocap(root: str) -> bool:
    """Whether `root`, or the release folder in it, has a session with its label folder."""
    return _release(root) is not None


def read_iemocap(root: str) -> tuple[list[files.Row], list[str]]:
    """The turns of every session there is; labels are (y - 1) / 4.

    Raises ConfigError: no session, a summary line that cannot be read, a rating far off the scale,
    or no audio.
    """
    release = _release(root)
    if release is None:
        raise ConfigError(f"--input {root}: no Session1 .. Session5 with {_LABELS} in it")
    rows: list[files.Row] = []
    lost: list[str] = []
    extra: list[str] = []
    off_scale: list[str] = []
    for session in _SESSIONS:
        folder = storage.join(release, f"Session{session}")
        wavs = files.objects_below(storage.join(folder, "sentences/wav"), {".wav"})
        audio = {files.stem_of(info.uri): info for info in wavs}
        for labelled in _turns(folder, off_scale):
            if info := audio.pop(labelled["turn"], None):
                rows.append(files.of_file(info) | labelled)
            else:
                lost.append(labelled["turn"])
        extra += audio
    if not rows:
        raise ConfigError(f"--input {root}: none of its {len(lost):,} turns has a sentence wav")
    notes = []
    if len(rows) != _TURNS:
        sessions = Counter(row["session"] for row in rows)
        counts = ", ".join(f"{name} {count:,}" for name, count in sorted(sessions.items()))
        notes.append(f"{root}: {len(rows):,} of the {_TURNS:,} turns of IEMOCAP ({counts})")
    for names, what in (
        (lost, "turns without a wav, left out"),
        (extra, "wavs without a label, left out"),
        (set(off_scale), "ratings off the scale of 1 to 5 count as its end"),
    ):
        notes += [f"{root}: {what}: {some(names)}"] if names else []
    return rows, notes


def _release(root: str) -> str | None:
    """The folder with the sessions: `root`, or the release folder in it."""
    labels = [storage.join(f"Session{n}", _LABELS) for n in _SESSIONS]
    folders = (root, storage.join(root, "IEMOCAP_full_release"))
    return next((folder for folder in folders if files.first_of(folder, labels)), None)


def _turns(session: str, off_scale: list[str]) -> Iterator[files.Row]:
    """Label columns of a session's turns, each with its `turn`."""
    folder = storage.join(session, "dialog/transcriptions")
    spoken = files.objects_below(folder, {".txt"}, direct=True)
    words_in = {files.stem_of(info.uri): info.uri for info in spoken}
    for info in files.objects_below(storage.join(session, _LABELS), {".txt"}, direct=True):
        if (dialog := _DIALOG_FILE.fullmatch(files.name_of(info.uri))) is None:
            continue
        words = files.lines_of(words_in[dialog[1]]) if dialog[1] in words_in else ()
        matches = (_SPOKEN.fullmatch(line.strip()) for _, line in words)
        texts = {match[1]: match[2].strip() for match in matches if match}
        for line_number, line in files.lines_of(info.uri):
            # raters' own lines begin with C- or A-, the header with %
            if line.startswith("["):
                row = _row(f"{info.uri}, line {line_number}", line, dialog[1], off_scale)
                yield row | {"transcript": texts.get(row["turn"])}


def _row(where: str, line: str, dialog: str, off_scale: list[str]) -> files.Row:
    found = _SUMMARY.fullmatch(line)
    if found is None:
        form = "[start - end] turn emotion [valence, arousal, dominance]"
        raise ConfigError(f"{where}: not a summary line: {form}")
    turn, code = found["turn"], found["emotion"]
    speaker = turn.removeprefix(dialog + "_")[:1]
    if not turn.startswith(dialog + "_") or speaker not in ("F", "M"):
        raise ConfigError(f"{where}: {turn} is no turn of {dialog}")
    if code not in _CATEGORY_OF:
        raise ConfigError(f"{where}: {code!r} is none of {', '.join(_CATEGORY_OF)}")
    labels: files.Row = {}
    for name in ("arousal", "dominance", "valence"):
        rating = files.number(where, name, found[name], _LOWEST, _HIGHEST)
        if rating is not None:
            off_scale += [] if _LOW <= rating <= _HIGH else [turn]
            labels[name] = (min(max(rating, _LOW), _HIGH) - 1) / 4
    return labels | {
        "turn": turn,
        "speaker": turn[:5] + speaker,
        "sex": sex_of(speaker),
        "language": "en",
        "emotion": _CATEGORY_OF[code],
        "corpus": "iemocap",
        "session": turn[:5],
    }
