"""IEMOCAP (Busso et al. 2008): acted dialogs in five sessions, ratings on 1..5.

The letter of a turn's last field is the speaker: in `Ses01F_impro01_M013` the `F` wears the markers
and the `M` speaks. The summary line is valence, arousal, dominance, in that order.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator

from raysers.data import files
from raysers.data.corpora.emotions import common_name
from raysers.display import some
from raysers.errors import ConfigError
from raysers.io import storage

NAME = "iemocap"

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
_EMOTION_OF = {code: common_name(code) for code in _CODES} | {"oth": "other", "xxx": "no_agreement"}
_SEX_OF = {"F": "female", "M": "male"}
#: Means just off the scale are known of; they count as its end.
_LOWEST, _LOW, _HIGH, _HIGHEST = 0.5, 1.0, 5.0, 5.5


def recognise(root: str) -> bool:
    """Whether `root`, or the release folder in it, has a session with its label folder."""
    return _release(root) is not None


def read(root: str) -> tuple[list[files.Row], list[str]]:
    """The turns of every session there is; labels are (y - 1) / 4.

    Raises:
        ConfigError: no session, a summary line that cannot be read, a rating far off the scale, or
            no audio.
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
    if not turn.startswith(dialog + "_") or speaker not in _SEX_OF:
        raise ConfigError(f"{where}: {turn} is no turn of {dialog}")
    if code not in _EMOTION_OF:
        raise ConfigError(f"{where}: {code!r} is none of {', '.join(_EMOTION_OF)}")
    labels: files.Row = {}
    for name in ("arousal", "dominance", "valence"):
        rating = files.number(where, name, found[name], _LOWEST, _HIGHEST)
        if rating is not None:
            off_scale += [] if _LOW <= rating <= _HIGH else [turn]
            labels[name] = (min(max(rating, _LOW), _HIGH) - 1) / 4
    return labels | {
        "turn": turn,
        "speaker": turn[:5] + speaker,
        "sex": _SEX_OF[speaker],
        "language": "en",
        "emotion": _EMOTION_OF[code],
        "corpus": NAME,
        "session": turn[:5],
    }
