"""CMU-MOSI (Zadeh et al. 2016): opinions in 93 videos, one sentiment per segment on -3..3.

Sentiment is read as valence, (y + 3) / 6; there is no arousal, dominance or category. Segments
count from 1 here and from 0 in the SDK. The corpus names no speakers: the video stands for its one
speaker, though 89 people made the 93 videos; a table given with --speakers is more exact.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator, Mapping

from raysers.data import files
from raysers.data.corpora.emotions import split_of
from raysers.display import some
from raysers.errors import ConfigError
from raysers.io import storage
from raysers.io.objects import ObjectInfo, suffix_of

NAME = "cmu-mosi"

_OPINIONS = tuple(
    prefix + "OpinionLevelSentiment.csv" for prefix in ("Labels/", "Raw/Labels/", "Raw/", "")
)
_LABEL_CSV = "label.csv"
_LABEL_COLUMNS = ("video_id", "clip_id", "label")
_DECODABLE = (".wav", ".flac", ".mp3", ".ogg")
_SPOKEN = re.compile(r"\s*(\d+)_DELIM_(.*)")
#: Segments of the complete corpus.
_SEGMENTS = 2199
_LOW, _HIGH = -3.0, 3.0
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


def recognise(root: str) -> bool:
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


def read(root: str) -> tuple[list[files.Row], list[str]]:
    """The labelled segments below `root` that have audio.

    Raises:
        ConfigError: no label table, a bad value or numbering, or no audio that can be decoded.
    """
    table = storage.join(root, _LABEL_CSV)
    opinions = files.first_of(root, _OPINIONS, files.is_file)
    if opinions is None and not files.is_file(table):
        raise ConfigError(f"--input {root}: no {_OPINIONS[0]} and no {_LABEL_CSV} in it")
    labels: dict[_Key, files.Row] = {}
    records = files.csv_records(table, _LABEL_COLUMNS) if opinions is None else _opinions(opinions)
    for where, record in records:
        row = _row(where, record)
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


def _row(where: str, record: Mapping[str, str]) -> files.Row:
    """The columns of one segment; the `mode` of MMSA's table wins over the standard split."""
    video, mode = record["video_id"], record.get("mode", "")
    split = split_of(mode) if mode else SPLIT_OF.get(video)
    if mode and split is None:
        raise ConfigError(f"{where}: mode is {mode!r}, not train, valid or test")
    value = files.number(where, "sentiment", record["label"], _LOW, _HIGH)
    if value is None:
        raise ConfigError(f"{where}: no sentiment")
    row: files.Row = {
        "valence": (value - _LOW) / (_HIGH - _LOW),
        "speaker": video,
        "language": "en",
        "split": split,
        "corpus": NAME,
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
