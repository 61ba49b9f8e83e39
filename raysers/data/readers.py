"""Tables by format: column names, and the rows as Arrow columns.

CSV and TSV, Parquet (also of Hugging Face, with the audio inside), JSON Lines (NeMo, Hugging Face,
lhotse), Kaldi's `wav.scp`, RTTM, plain lists, SQLite and DuckDB; text formats also with gzip. All
but Parquet give columns of text. Which column means what is decided in `tables`.
"""

from __future__ import annotations

import functools
import json
import sys
import zlib
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from typing import Any, TextIO

import pyarrow as pa

from raysers.data import columnar, files
from raysers.errors import ConfigError
from raysers.io import storage
from raysers.io.objects import parent, suffix_of

#: The list of files on standard input.
STDIN = "-"
#: Compressed, a few kilobytes may hold the same megabyte a million times.
_MAX_TABLE_BYTES = 2 * 2**30
_BATCH_ROWS = 2**16
_SHOWN = 5
_TRANSCRIPTS = ("text", "transcription", "sentence")
#: Kinds of cuts in lhotse that are no stretch of one recording.
_MIXED_CUTS = ("MixedCut", "MultiCut", "PaddingCut")
#: Our columns of a lhotse cut by those of its supervisions.
_SUPERVISED = {
    "speaker": "speaker", "sex": "gender", "language": "language", "transcript": "text",
}  # fmt: skip


def format_of(uri: str) -> str:
    """The suffix that decides how a table is read; empty if it is not a table.

    >>> format_of("s3://b/cuts.jsonl.gz"), format_of("labels.db#clips"), format_of("a.wav")
    ('.jsonl', '.db', '')
    """
    if uri == STDIN:
        return ".txt"
    suffix = suffix_of(columnar.path_of(uri))
    if suffix == ".gz":
        suffix = suffix_of(uri[:-3])
        return suffix if suffix in _GZIPPED else ""
    return suffix if suffix in _OPENERS else ""


def open_table(uri: str, notes: list[str], homes: Sequence[str] = ()) -> columnar.Source:
    """Opens a table of a known format, see `format_of`.

    Messages for the user are added to `notes`. The recordings of an RTTM are looked for in its own
    folder and in `homes`. Raises ConfigError: it cannot be read as its name says; with the line or
    row. StorageError: it could not be fetched.
    """
    kind = format_of(uri)
    if kind == ".rttm":
        return columnar.of_records(_turns(uri, homes, notes))
    return _OPENERS[kind](uri, notes)


def _data(uri: str) -> bytes:
    """The bytes of a text table, unpacked."""
    if uri == STDIN:
        return _stdin(sys.stdin)
    data = storage.read_bytes(uri, max_bytes=_MAX_TABLE_BYTES)
    if not uri.endswith(".gz"):
        return data
    unpack = zlib.decompressobj(wbits=zlib.MAX_WBITS | 16)
    try:
        data = unpack.decompress(data, _MAX_TABLE_BYTES)
    except zlib.error as error:
        raise ConfigError(f"{uri} is damaged ({error}): copy it again") from error
    if unpack.unconsumed_tail or not unpack.eof:
        fault = "unpacks to more than 2 GiB: split it" if unpack.unconsumed_tail else "is cut"
        raise ConfigError(f"{uri} {fault}")
    return data


@functools.cache
def _stdin(stream: TextIO) -> bytes:
    return stream.buffer.read(_MAX_TABLE_BYTES)


def _lines(uri: str) -> Iterator[tuple[int, str]]:
    for number, line in enumerate(files.text_of(uri, data=_data(uri)).splitlines(), start=1):
        if line.strip():
            yield number, line


# CSV and lists


def _open_delimited(uri: str, notes: list[str]) -> columnar.Source:
    names, rows = files.delimited(uri, columnar.FILE_COLUMNS, notes, data=_data(uri))

    def read(wanted: Sequence[str], most: int) -> pa.Table:
        places, batches = [names.index(name) for name in wanted], []
        left = islice(rows, most) if most else rows
        while batch := [
            [cells[place] or None for place in places] for _, cells in islice(left, _BATCH_ROWS)
        ]:
            arrays = [pa.array(column, pa.string()) for column in zip(*batch, strict=True)]
            batches.append(pa.record_batch(arrays, names=list(wanted)))
        schema = pa.schema([(name, pa.string()) for name in wanted])
        return pa.Table.from_batches(batches, schema)

    return columnar.Source(names, read)


def _open_list(uri: str, notes: list[str]) -> columnar.Source:
    """One file a line; what begins like a table is read as one."""
    lines = [line.strip(" \t\ufeff") for _, line in _lines(uri)]
    if lines and lines[0].startswith("{"):
        return _open_json(uri, notes)
    first = lines[0].replace(";", ",").replace("\t", ",") if lines else ""
    head = {cell.strip(' "').lower() for cell in first.split(",")}
    if "file" in head or (len(head) > 1 and head & set(columnar.FILE_COLUMNS)):
        return _open_delimited(uri, notes)
    playlist = ".m3u" in suffix_of(uri)
    return columnar.of_records(
        {"file": line} for line in lines if not (playlist and line[0] == "#")
    )


# JSON


def _open_json(uri: str, notes: list[str]) -> columnar.Source:
    """Objects of a JSON Lines file, or of one array."""
    text = files.text_of(uri, data=_data(uri))
    where = uri
    try:
        if text.lstrip("\ufeff \r\n\t").startswith("["):
            values: Iterable[Any] = enumerate(json.loads(text), start=1)
            return columnar.of_records([_record(f"{uri}, entry {n}", value) for n, value in values])
        records = []
        for number, line in enumerate(text.splitlines(), start=1):
            where = f"{uri}, line {number}"
            records += [_record(where, json.loads(line))] if line.strip() else []
        return columnar.of_records(records)
    except (ValueError, RecursionError) as error:
        fault = str(error) or "nested too deeply"
        if where == uri:
            raise ConfigError(f"{uri} is not JSON: {fault}") from None
        raise ConfigError(f"{where}: {fault}: one JSON object a line") from None


def _record(where: str, value: Any) -> columnar.Record:
    """One object as a row: of NeMo, Hugging Face (`metadata.jsonl`), or a cut of lhotse."""
    if not isinstance(value, dict):
        raise ConfigError(f"{where}: {str(value)[:40]!r} is not an object with names and values")
    if value.get("type") in _MIXED_CUTS:
        fix = "save the cuts it is made of, or its audio"
        raise ConfigError(f"{where}: a {value['type']} is no stretch of one recording: {fix}")
    recording = value.get("recording", value)
    if isinstance(recording, dict) and isinstance(recording.get("sources"), list):
        return _cut(where, value, recording)
    row = dict(value)
    if isinstance(row.get("audio"), dict):
        row["audio"] = row["audio"].get("path")
    for name in _TRANSCRIPTS:
        if name in row and "transcript" not in row:
            row["transcript"] = row.pop(name)
    return row


def _cut(where: str, cut: columnar.Record, recording: columnar.Record) -> columnar.Record:
    """A cut (or recording) of lhotse: a stretch of one file and channel."""
    sources = recording["sources"]
    kind, name = (sources[0].get(key) for key in ("type", "source")) if sources else (None, None)
    if len(sources) != 1 or kind not in ("file", "url", None) or not isinstance(name, str):
        raise ConfigError(
            f"{where}: a recording of {len(sources)} sources of type {kind!r}: give one file each"
        )
    row: dict[str, Any] = {"file": name}
    start_s, length_s, total_s = cut.get("start"), cut.get("duration"), recording.get("duration")
    whole = not start_s and (total_s is None or length_s is None or total_s - length_s < 1e-3)
    if recording is not cut and not whole:
        row |= {"start": start_s, "duration": length_s}
    channels = sources[0].get("channels") or [0]
    if recording is not cut and len(channels) > 1 and isinstance(cut.get("channel"), int):
        row["channel"] = cut["channel"] + 1
    said = [one for one in cut.get("supervisions") or () if isinstance(one, dict)]
    for ours, theirs in _SUPERVISED.items():
        values = {one.get(theirs) for one in said}
        if len(values) == 1:
            row[ours] = values.pop()
    return row


# Kaldi and RTTM


def _fields(uri: str, number: int, line: str, least: int, form: str) -> list[str]:
    cells = line.split()
    if len(cells) < least:
        raise ConfigError(f"{uri}, line {number}: {line.strip()[:80]!r} is not {form!r}")
    return cells


def _open_kaldi(uri: str, notes: list[str]) -> columnar.Source:
    """`wav.scp`, cut by the file `segments` beside it, with the speakers of `utt2spk`."""
    file_of: dict[str, str] = {}
    for number, line in _lines(uri):
        name, _, file = line.strip().partition(" ")
        if file.rstrip().endswith("|"):
            fix = "commands are not run: write its audio to a file"
            raise ConfigError(f"{uri}, line {number}: a command in place of a file; {fix}")
        file_of[name] = file.strip() or name
    folder = parent(uri)
    speakers, segments = (
        files.first_of(folder, [n], files.is_file) for n in ("utt2spk", "segments")
    )
    pairs = (line.split() for _, line in _lines(speakers)) if speakers else ()
    speaker_of = {pair[0]: pair[1] for pair in pairs if len(pair) == 2}
    if segments is None:
        return columnar.of_records(
            {"file": file, "speaker": speaker_of.get(name)} for name, file in file_of.items()
        )
    rows, others = [], 0
    for number, line in _lines(segments):
        cells = _fields(segments, number, line, 4, "id recording start end")
        name, recording, start, end = cells[:4]
        others += recording not in file_of
        if recording in file_of:
            times = {"start": start, "end": None if end == "-1" else end}
            rows.append({"file": file_of[recording], **times, "speaker": speaker_of.get(name)})
    if others:
        notes.append(f"{segments}: segments of recordings that {uri} does not have: {others:,}")
    return columnar.of_records(rows)


def _turns(uri: str, homes: Sequence[str], notes: list[str]) -> Iterator[columnar.Record]:
    """Speaker turns of an RTTM; its recordings are the files of these names below the folders."""
    found: dict[str, dict[str, None]] = defaultdict(dict)
    for home in (parent(uri), *homes):
        for info in files.objects_below(home, files.AUDIO_SUFFIXES):
            found[files.stem_of(info.uri)][info.uri] = None
    others: Counter[str] = Counter()
    form = "SPEAKER recording channel start duration <NA> <NA> speaker"
    for number, line in _lines(uri):
        if line.lstrip().startswith((";", "#")):
            continue
        cells = _fields(uri, number, line, 1, form)
        if cells[0] != "SPEAKER":
            others[cells[0]] += 1
            continue
        _, recording, _, start, length, _, _, speaker = _fields(uri, number, line, 8, form)[:8]
        named = list(found.get(recording, ()))
        if len(named) != 1:
            looked = ", ".join((parent(uri), *homes))
            fault = f"several files: {', '.join(named[:_SHOWN])}" if named else "no audio file"
            raise ConfigError(
                f"{uri}, line {number}: {recording!r} is {fault} below {looked}: give the folder "
                "of its recordings as --input too"
            )
        yield {"file": named[0], "start": start, "duration": length, "speaker": speaker}
    if others:
        counts = ", ".join(f"{n:,} x {name[:40]}" for name, n in others.most_common(_SHOWN))
        notes.append(f"{uri}: lines that are no turns: {counts}")


_GZIPPED = (".csv", ".tsv", ".jsonl", ".json", ".txt")
_OPENERS: dict[str, Callable[[str, list[str]], columnar.Source]] = {
    **dict.fromkeys((".csv", ".tsv"), _open_delimited),
    **dict.fromkeys(columnar.PARQUET_SUFFIXES, columnar.open_parquet),
    **dict.fromkeys((".jsonl", ".ndjson", ".json"), _open_json),
    **dict.fromkeys((".txt", ".lst", ".list", ".m3u", ".m3u8"), _open_list),
    **dict.fromkeys(columnar.DATABASE_SUFFIXES, columnar.open_database),
    ".scp": _open_kaldi,
    ".rttm": lambda uri, notes: columnar.of_records(_turns(uri, (), notes)),
}
