"""MSP-Podcast (Lotfian and Busso 2019), releases 1.6 to 2.0: podcast turns, ratings on 1..7.

The releases spell folders, files and splits differently, and the columns are arousal, valence,
dominance: everything is read by name. Test3 has audio and no labels; speakers marked
`Unknown` are different people, so they are never one group.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from raysers.data import files
from raysers.data.corpora.emotions import common_name, sex_of, speaker_of, split_of
from raysers.display import some
from raysers.errors import ConfigError
from raysers.io import storage
from raysers.io.objects import suffix_of

NAME = "msp-podcast"

_LABEL_FOLDERS = ("Labels", "labels", "label")
#: The misspelt name is that of every release before 1.10.
_LABEL_FILES = tuple(
    f"labels_{word}.{suffix}" for suffix in ("csv", "json") for word in ("consensus", "concensus")
)
_AUDIO_FOLDERS = ("Audios", "Audio")
_PARTITION_FILES = ("Partitions.txt", "Partition.txt")
_COLUMNS = {"arousal": "EmoAct", "dominance": "EmoDom", "valence": "EmoVal"}
_NEEDED = ("FileName", *_COLUMNS.values(), "Split_Set")
_EMOTION_OF = {
    "A": "anger", "S": "sadness", "H": "happiness", "U": "surprise", "F": "fear", "D": "disgust",
    "C": "contempt", "N": "neutral", "O": "other", "X": "no_agreement",
}  # fmt: skip
_LOW, _HIGH = 1.0, 7.0
_READ_THREADS = 32


def recognise(root: str) -> bool:
    """Whether `root` has a label folder with a consensus file in it."""
    return _labels(root) is not None


def read(root: str) -> tuple[list[files.Row], list[str]]:
    """Every wav of a release, with its labels where the consensus file has some; (y - 1) / 6.

    Raises:
        ConfigError: no label folder, consensus file or audio, a missing column, a bad value.
    """
    uri = _labels(root)
    if uri is None:
        raise ConfigError(f"--input {root}: {_no_labels(root)}")
    folder = files.first_of(root, _AUDIO_FOLDERS)
    wavs = [] if folder is None else files.objects_below(folder, {".wav"})
    audio = {files.name_of(info.uri): info for info in wavs}
    if not audio:
        raise ConfigError(f"--input {root}: no wavs in {' or '.join(_AUDIO_FOLDERS)}: unpack them")
    speakers, sexes = _speakers(root)
    rows: list[files.Row] = []
    lost: list[str] = []
    seen: set[str] = set()
    for where, record in _records(uri):
        name, row = record["FileName"], _row(where, record)
        row["speaker"] = row["speaker"] or speakers.get(name)
        row["sex"] = row["sex"] or sexes.get(row["speaker"] or "")
        if name in seen:
            raise ConfigError(f"{where}: {name} a second time")
        seen.add(name)
        if info := audio.pop(name, None):
            rows.append(files.of_file(info) | row)
        else:
            lost.append(name)
    if not rows:
        raise ConfigError(f"--input {root}: {folder} has none of the {len(lost):,} wavs of {uri}")
    # wavs without a row: the partition file is the only one that lists Test3
    partitions = files.first_of(root, _PARTITION_FILES, files.is_file)
    lines = files.lines_of(partitions) if audio and partitions else ()
    split_of_wav = {
        name.strip(): split_of(split)
        for split, mark, name in (line.partition(";") for _, line in lines)
        if mark
    }
    unlabelled = [
        files.of_file(info) | _of_every_wav(name) | {"split": split_of_wav.get(name)}
        for name, info in audio.items()
    ]
    _add_transcripts(root, [*rows, *unlabelled])
    notes = []
    if lost:
        notes.append(f"{root}: rows without a wav, left out (an incomplete copy?): {some(lost)}")
    if unlabelled:
        test3 = sum(row["split"] == "test3" for row in unlabelled)
        about = f"{test3:,} of them Test3, which has no labels"
        notes.append(f"{root}: wavs without a row: {some(audio)}; {about}")
    return [*rows, *unlabelled], notes


def _labels(root: str) -> str | None:
    folders = (storage.join(root, name) for name in _LABEL_FOLDERS)
    found = (files.first_of(folder, _LABEL_FILES, files.is_file) for folder in folders)
    return next((uri for uri in found if uri), None)


def _no_labels(root: str) -> str:
    if folder := files.first_of(root, _LABEL_FOLDERS):
        return f"no {' or '.join(_LABEL_FILES[:2])} (or .json) in {folder}"
    packed = files.first_of(root, [f"{name}.zip" for name in _LABEL_FOLDERS], files.is_file)
    fix = f"unpack {packed}" if packed else "is this the folder of a release?"
    return f"no label folder ({', '.join(_LABEL_FOLDERS)}): {fix}"


def _records(uri: str) -> Iterator[tuple[str, dict[str, str]]]:
    if suffix_of(uri) == ".csv":
        yield from files.csv_records(uri, _NEEDED)
        return
    try:
        document: Any = json.loads(files.text_of(uri))
    except ValueError as error:
        raise ConfigError(f"{uri} is not JSON: {error}") from error
    if not isinstance(document, dict):
        raise ConfigError(f"{uri} is not a JSON object with a record for each file name")
    for name, record in document.items():
        where = f"{uri}, {name}"
        if not isinstance(record, dict):
            raise ConfigError(f"{where}: not a record")
        files.require(where, record, _NEEDED[1:])
        cells = {key: "" if value is None else str(value) for key, value in record.items()}
        yield where, cells | {"FileName": name}


def _speakers(root: str) -> tuple[dict[str, str], dict[str, str]]:
    """Speaker by wav and sex by speaker in `Speaker_ids.txt`, for rows without them."""
    speakers: dict[str, str] = {}
    sexes: dict[str, str] = {}
    uri = storage.join(root, "Speaker_ids.txt")
    for _, line in files.lines_of(uri) if files.is_file(uri) else ():
        first, _, second = (part.strip() for part in line.partition(";"))
        if first.endswith(".wav") and (speaker := speaker_of(second)):
            speakers[first] = speaker
        elif first.startswith("Speaker_") and (sex := sex_of(second)):
            sexes[first.removeprefix("Speaker_")] = sex
    return speakers, sexes


def _row(where: str, record: dict[str, str]) -> files.Row:
    code, split = record.get("EmoClass", ""), split_of(record["Split_Set"])
    if split is None:
        raise ConfigError(f"{where}: Split_Set is {record['Split_Set']!r}, not a known split")
    row: files.Row = {
        "speaker": speaker_of(record.get("SpkrID")),
        "sex": sex_of(record.get("Gender")),
        "split": split,
        "emotion": _EMOTION_OF.get(code) or common_name(code) or None,
    }
    for label, column in _COLUMNS.items():
        rating = files.number(where, column, record[column], _LOW, _HIGH)
        row[label] = None if rating is None else (rating - _LOW) / (_HIGH - _LOW)
    return row | _of_every_wav(record["FileName"])


def _of_every_wav(name: str) -> files.Row:
    """Facts in the name: `MSP-PODCAST_0001_0008.wav` is of podcast 0001."""
    parts = name.split("_")
    podcast = parts[1] if len(parts) > 2 and parts[1].isdigit() else None
    return {"language": "en", "corpus": NAME, "session": podcast}


def _add_transcripts(root: str, rows: list[files.Row]) -> None:
    found = files.objects_below(storage.join(root, "Transcripts"), {".txt"})
    uri_of = {files.stem_of(info.uri): info.uri for info in found}
    spoken = [(row, uri) for row in rows if (uri := uri_of.get(files.stem_of(row["file"])))]
    with ThreadPoolExecutor(_READ_THREADS) as pool:
        texts = pool.map(files.text_of, [uri for _, uri in spoken])
        for (row, _), text in zip(spoken, texts, strict=True):
            row["transcript"] = " ".join(text.split()) or None
