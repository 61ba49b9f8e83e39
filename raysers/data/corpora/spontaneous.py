"""Spontaneous speech: MSP-Podcast (Lotfian and Busso 2019) and CMU-MOSI (Zadeh et al. 2016).

MSP-Podcast, releases 1.6 to 2.0: podcast turns, ratings on 1..7. The releases spell folders, files
and splits differently, and the columns are arousal, valence, dominance: everything is read by name.
Test3 has audio and no labels; speakers marked `Unknown` are different people, so they are never one
group.

CMU-MOSI: opinions in 93 videos, one sentiment per segment on -3..3, read as valence, (y + 3) / 6;
there is no arousal, dominance or category. Segments count from 1 here and from 0 in the SDK. The
corpus names no speakers: the video stands for its one speaker, though 89 people made the 93 videos;
a table given with --speakers is more exact.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from raysers.data import files
from raysers.data.corpora import common_name, sex_of, speaker_of, split_of
from raysers.display import some
from raysers.errors import ConfigError
from raysers.io import storage
from raysers.io.objects import ObjectInfo, suffix_of

# MSP-Podcast

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
_READ_THREADS = 32


def recognise_podcast(root: str) -> bool:
    """Whether `root` has a label folder with a consensus file in it."""
    return _labels(root) is not None


def read_podcast(root: str) -> tuple[list[files.Row], list[str]]:
    """Every wav of a release, with its labels where the consensus file has some; (y - 1) / 6.

    Raises ConfigError: no label folder, consensus file or audio, a missing column, a bad value.
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
        name, row = record["FileName"], _podcast_row(where, record)
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


def _podcast_row(where: str, record: dict[str, str]) -> files.Row:
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
        rating = files.number(where, column, record[column], 1.0, 7.0)
        row[label] = None if rating is None else (rating - 1) / 6
    return row | _of_every_wav(record["FileName"])


def _of_every_wav(name: str) -> files.Row:
    """Facts in the name: `MSP-PODCAST_0001_0008.wav` is of podcast 0001."""
    parts = name.split("_")
    podcast = parts[1] if len(parts) > 2 and parts[1].isdigit() else None
    return {"language": "en", "corpus": "msp-podcast", "session": podcast}


def _add_transcripts(root: str, rows: list[files.Row]) -> None:
    found = files.objects_below(storage.join(root, "Transcripts"), {".txt"})
    uri_of = {files.stem_of(info.uri): info.uri for info in found}
    spoken = [(row, uri) for row in rows if (uri := uri_of.get(files.stem_of(row["file"])))]
    with ThreadPoolExecutor(_READ_THREADS) as pool:
        texts = pool.map(files.text_of, [uri for _, uri in spoken])
        for (row, _), text in zip(spoken, texts, strict=True):
            row["transcript"] = " ".join(text.split()) or None


# CMU-MOSI

_OPINIONS = tuple(
    prefix + "OpinionLevelSentiment.csv" for prefix in ("Labels/", "Raw/Labels/", "Raw/", "")
)
_LABEL_CSV = "label.csv"
_LABEL_COLUMNS = ("video_id", "clip_id", "label")
_DECODABLE = (".wav", ".flac", ".mp3", ".ogg")
_SPOKEN = re.compile(r"\s*(\d+)_DELIM_(.*)")
#: Segments of the complete corpus.
_SEGMENTS = 2199
_TRAIN = """
2iD-tVS8NPw 8d-gEyoeBzc Qr1Ca94K55A Ci-AH39fi3Y 8qrpnFRGt2A Bfr499ggo-0 QN9ZIUWUXsY 9T9Hf74oK10
7JsX8y1ysxY 1iG0909rllw Oz06ZWiO20M BioHAh1qJAQ 9c67fiY0wGQ Iu2PFX3z_1s Nzq88NnDkEk Clx4VXItLTE
9J25DZhivz8 Af8D0E4ZXaw TvyZBvOMOTc W8NXH0Djyww 8OtFthrtaJM 0h-zjBukYpk Vj1wYRQjB-o GWuJjcEuzt8
BI97DNYfe5I PZ-lDQFboO8 1DmNV9C1hbY OQvJTdtJ2H4 I5y0__X72p0 9qR7uwkblbs G6GlGvlkxAQ 6_0THN4chvY
Njd1F0vZSm4 BvYR0L6f2Ig 03bSnISJMiM Dg_0XKD0Mf4 5W7Z1C_fDaE VbQk4H8hgr0 G-xst2euQUc MLal-t_vJPM
BXuRRbG0Ugk LSi-o-IrDMs Jkswaaud0hk 2WGyTLYerpo 6Egk_28TtTM Sqr0AcuoNnk POKffnXeBds 73jzhE8R1TQ
OtBXNcAL_lE HEsqda8_d0Q VCslbP0mgZI IumbAb8q2dM
"""
_DEV = """
WKA5OygbEKI c5xsKMxpXnc atnd_PF-Lbs bvLlb-M3UXU bOL9jKpeJRs _dI--eQ6qVU ZAIRrfG22O0 X3j2zQgwYgE
aiEXnCPZubE ZUXBRvtny7o
"""
_TEST = """
tmZoasNr4rU zhpQhgha_KU lXPQBPVc5Cw iiK8YX8oH1E tStelxIAHjw nzpVDcQ0ywM etzxEpPuc6I cW1FSBF59ik
d6hH302o4v8 k5Y_838nuGo pLTX3ipuDJI jUzDDGyPkXU f_pcplsH_V0 yvsjCA6Y5Fc nbWiPyCm4g0 rnaNMUZpvvg
wMbj6ajWbic cM3Yna7AavY yDtzw_Y-7RU vyB00TXsimI dq3Nf_lMPnE phBUpBr1hSo d3_k5Xpfmik v0zCBqDeKcE
tIrG4oNLFzE fvVhgmXxadc ob23OKe5a9Q cXypl4FnoZo vvZ4IcEtiZc f9O3YtZ2VfI c7UH_rxdZv4
"""

#: The standard split of the 93 videos, by video, as the CMU-MultimodalSDK publishes it.
SPLIT_OF = {
    video: split
    for split, videos in (("train", _TRAIN), ("dev", _DEV), ("test", _TEST))
    for video in videos.split()
}
#: Enough of a table for its header and first row.
_HEAD_BYTES = 2**14


#: A segment: its video, and its number from 1 without leading zeros.
_Key = tuple[str, str]


def recognise_mosi(root: str) -> bool:
    """Whether `root` has `OpinionLevelSentiment.csv`, or a `label.csv` of MOSI's own videos.

    MOSEI and CH-SIMS come with a table of the same form, but other videos and another scale.
    """
    if files.first_of(root, _OPINIONS, files.is_file) is not None:
        return True
    uri = storage.join(root, _LABEL_CSV)
    if not files.is_file(uri):
        return False
    head = storage.read_range(uri, 0, _HEAD_BYTES).decode("utf-8-sig", "replace")
    header, *rows = csv.reader(io.StringIO(head, newline=""))
    names = [name.strip() for name in header]
    if not {*_LABEL_COLUMNS, "mode"} <= set(names) or not rows:
        return False
    place = names.index("video_id")
    return len(rows[0]) > place and rows[0][place].strip() in SPLIT_OF


def read_mosi(root: str) -> tuple[list[files.Row], list[str]]:
    """The labelled segments below `root` that have audio.

    Raises ConfigError: no label table, a bad value or numbering, or no audio that can be decoded.
    """
    table = storage.join(root, _LABEL_CSV)
    opinions = files.first_of(root, _OPINIONS, files.is_file)
    if opinions is None and not files.is_file(table):
        raise ConfigError(f"--input {root}: no {_OPINIONS[0]} and no {_LABEL_CSV} in it")
    labels: dict[_Key, files.Row] = {}
    records = files.csv_records(table, _LABEL_COLUMNS) if opinions is None else _opinions(opinions)
    for where, record in records:
        row = _mosi_row(where, record)
        key = _key(where, record["video_id"], record["clip_id"])
        if key in labels:
            raise ConfigError(f"{where}: segment {key[1]} of {key[0]} a second time")
        labels[key] = row
    videos = {video for video, _ in labels}
    unknown = sorted(videos - SPLIT_OF.keys())
    if 2 * len(unknown) > len(videos):
        raise ConfigError(
            f"--input {root}: {len(unknown)} of its {len(videos)} videos are not of CMU-MOSI (first"
            f" {unknown[0]}): give other corpora as a table with --corpus none"
        )
    audio, spoken = _audio(root), _transcripts(root)
    rows = [
        files.of_file(audio[key]) | {"transcript": spoken.get(key)} | labelled
        for key, labelled in labels.items()
        if key in audio
    ]
    lost = ["_".join(key) for key in labels if key not in audio]
    if not rows:
        fault = f"no wav of its {len(lost):,} segments, such as <video>_<segment>.wav"
        if files.objects_below(root, {".mp4"}):
            fault = "its clips are .mp4: extract a .wav of the same name beside each"
        raise ConfigError(f"--input {root}: {fault}")
    notes = []
    if len(labels) < _SEGMENTS:
        share = f"{len(labels):,} of the {_SEGMENTS:,} segments of CMU-MOSI"
        notes.append(f"{root}: {share} are labelled")
    if lost:
        notes.append(f"{root}: segments without audio, left out: {some(lost)}")
    if strange := {row["session"] for row in rows if row["split"] is None}:
        notes.append(f"{root}: videos of no standard split: {some(strange)}")
    return rows, notes


def _opinions(uri: str) -> Iterator[tuple[str, Mapping[str, str]]]:
    """The table without a header: start, end, video, segment, sentiment."""
    reader = csv.reader(io.StringIO(files.text_of(uri), newline=""))
    for cells in reader:
        where = f"{uri}, line {reader.line_num}"
        if not cells or (reader.line_num == 1 and "video_id" in cells):
            continue
        if len(cells) < 5:
            raise ConfigError(f"{where}: write start, end, video, segment, sentiment")
        yield where, dict(zip(_LABEL_COLUMNS, map(str.strip, cells[2:5]), strict=True))


def _key(where: str, video: str, segment: str) -> _Key:
    if not segment.isdigit():
        raise ConfigError(f"{where}: segment is {segment!r}, not a number")
    if int(segment) == 0:
        raise ConfigError(
            f"{where}: segment 0 of {video}: these numbers count from 0 as the SDK's do, the wavs "
            "from 1; add 1 to each"
        )
    return video, str(int(segment))


def _mosi_row(where: str, record: Mapping[str, str]) -> files.Row:
    """The columns of one segment; the `mode` of MMSA's table wins over the standard split."""
    video, mode = record["video_id"], record.get("mode", "")
    split = split_of(mode) if mode else SPLIT_OF.get(video)
    if mode and split is None:
        raise ConfigError(f"{where}: mode is {mode!r}, not train, valid or test")
    value = files.number(where, "sentiment", record["label"], -3.0, 3.0)
    if value is None:
        raise ConfigError(f"{where}: no sentiment")
    row: files.Row = {
        "valence": (value + 3) / 6,
        "speaker": video,
        "language": "en",
        "split": split,
        "corpus": "cmu-mosi",
        "session": video,
    }
    return row | ({"transcript": record["text"]} if record.get("text") else {})


def _audio(root: str) -> dict[_Key, ObjectInfo]:
    """Segments' audio: `<video>_<n>.wav` in `Segmented`, or `<video>/<n>.wav`; wav over mp3."""
    audio: dict[_Key, ObjectInfo] = {}
    found = files.objects_below(root, _DECODABLE)
    for info in sorted(found, key=lambda one: _DECODABLE.index(suffix_of(one.uri))):
        folder, stem = storage.parent(info.uri).rpartition("/")[2], files.stem_of(info.uri)
        video, _, segment = (folder, "", stem) if stem.isdigit() else stem.rpartition("_")
        if folder != "Full" and segment.isdigit():
            audio.setdefault((video, str(int(segment))), info)
    return audio


def _transcripts(root: str) -> dict[_Key, str]:
    folder = files.first_of(root, ("Raw/Transcript/Segmented", "Transcript/Segmented"))
    spoken: dict[_Key, str] = {}
    for info in files.objects_below(folder, {".annotprocessed"}) if folder else ():
        for _, line in files.lines_of(info.uri):
            if found := _SPOKEN.fullmatch(line):
                spoken[files.stem_of(info.uri), str(int(found[1]))] = found[2].strip()
    return spoken
