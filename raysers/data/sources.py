"""What `--input` may name, listed as one stream of audio objects.

Folders and prefixes, tars, single files and tables of clips mix freely; tables are read first, so
that a file's labels win over the bare file found in a folder.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, Literal

import pyarrow as pa

from raysers.data import storage
from raysers.data.manifest import manifest_parts
from raysers.data.members import resolve_members
from raysers.data.tables import TABLE_SUFFIXES, read_clip_table
from raysers.data.tar import check_tar_name, index_tar, is_compressed_tar
from raysers.data.uris import ObjectInfo, suffix_of
from raysers.errors import ConfigError, ObjectForbidden, ObjectMissing
from raysers.schemas import MANIFEST, OBJECTS
from raysers.types import Status

_READABLE = (
    "wav wave wavex bwf rf64 w64 flac ogg oga opus mp3 mp2 aiff aif aifc au snd caf sph nist"
)
#: Audio that libsndfile cannot read: listed all the same, to be `unsupported` rows and not lost.
_UNREADABLE = "m4a m4b aac wma amr 3gp webm mka mkv mp4 mov avi raw pcm ac3 ape wv spx gsm vox"
AUDIO_SUFFIXES = frozenset(f".{name}" for name in f"{_READABLE} {_UNREADABLE}".split())

_TAR_SUFFIXES = frozenset({".tar", ".tgz", ".tbz2", ".txz", ".gz", ".bz2", ".xz", ".zst", ".lz4"})
_BATCH_ROWS = 2000
_THREADS = 16
_TARS_AHEAD = 8
#: Objects looked at to say what a folder without audio holds instead.
_LOOKED_AT = 1000

#: Schema of every listed batch, before the label columns of tables; status null: not known yet.
LISTING = pa.schema([*OBJECTS, MANIFEST.field("status"), MANIFEST.field("error")])

Kind = Literal["table", "folder", "tar", "audio"]


@dataclass(slots=True, kw_only=True)
class ListingNotes:
    """What the user should hear about the inputs; filled while they are listed."""

    warnings: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Input:
    kind: Kind
    uri: str
    info: ObjectInfo | None = None
    parts: tuple[str, ...] = ()


def list_inputs(
    uris: Sequence[str], *, notes: ListingNotes | None = None
) -> Iterator[pa.RecordBatch]:
    """Audio objects and table rows of all inputs, streamed in batches of up to 2,000.

    Every input is looked at before this returns, so a misspelt one costs no listing. Batches have
    the schema `LISTING`, those of tables their label columns too. `status` is set where the fate is
    known already: tar members that cannot be used. A file that several inputs name comes once.

    Args:
        uris: folders, prefixes, tars, audio files, tables; `~` is expanded.
        notes: collects warnings.

    Raises:
        ConfigError: an input that is missing, may not be read, holds no audio, or a bad table.
        CredentialsError, TransientStorageError: as the store says.
    """
    if not uris:
        raise ConfigError("--input names nothing: give folders, tars, audio files or tables")
    names = list(dict.fromkeys(map(storage.absolute, uris)))
    with ThreadPoolExecutor(_THREADS) as pool:
        inputs = list(pool.map(_classify, names))
    inputs.sort(key=lambda one: one.kind != "table")
    return _stream(inputs, notes or ListingNotes())


def _classify(uri: str) -> _Input:
    try:
        if storage.is_folder(uri):
            parts = manifest_parts(uri)
            return _Input(kind="table" if parts else "folder", uri=uri, parts=tuple(parts))
        info = storage.stat(uri)
    except ObjectMissing:
        raise ConfigError(f"--input {uri}: nothing there; check the spelling") from None
    except ObjectForbidden as error:
        raise ConfigError(f"--input {uri}: no permission to read it ({error})") from error
    if suffix_of(uri) in TABLE_SUFFIXES:
        return _Input(kind="table", uri=uri, parts=(uri,))
    if suffix_of(uri) == ".tar" or is_compressed_tar(uri):
        check_tar_name(uri)
        return _Input(kind="tar", uri=uri, info=info)
    if suffix_of(uri) in AUDIO_SUFFIXES:
        return _Input(kind="audio", uri=uri, info=info)
    raise ConfigError(
        f"--input {uri}: not a folder, a .tar, a table (.csv, .tsv, .parquet) or an audio file"
    )


def _stream(inputs: Sequence[_Input], notes: ListingNotes) -> Iterator[pa.RecordBatch]:
    seen = _Seen() if len(inputs) > 1 else None
    for one in inputs:
        listed = 0
        try:
            for table in _TABLES_OF[one.kind](one, notes):
                listed += len(table)
                fresh = table if seen is None else seen.new_rows(table, one.kind == "table")
                yield from fresh.combine_chunks().to_batches(max_chunksize=_BATCH_ROWS)
        except (ObjectForbidden, ObjectMissing) as error:
            raise ConfigError(f"--input {one.uri}: {error}") from error
        if not listed:
            raise ConfigError(_no_audio(one))


def _from_table(one: _Input, notes: ListingNotes) -> Iterator[pa.Table]:
    clips, warnings = read_clip_table(one.parts)
    notes.warnings += warnings
    clips = resolve_members(clips, suffixes=AUDIO_SUFFIXES)
    for start in range(0, len(clips), _BATCH_ROWS):
        yield clips.slice(start, _BATCH_ROWS)


def _from_folder(one: _Input, notes: ListingNotes) -> Iterator[pa.Table]:
    """Plain files as they are found, tars after them."""
    tars: list[ObjectInfo] = []

    def plain() -> Iterator[ObjectInfo]:
        for info in storage.list_objects(one.uri, suffixes=AUDIO_SUFFIXES | _TAR_SUFFIXES):
            if suffix_of(info.uri) in AUDIO_SUFFIXES:
                yield info
            elif suffix_of(info.uri) == ".tar" or is_compressed_tar(info.uri):
                tars.append(info)

    for infos in _batched(plain(), _BATCH_ROWS):
        yield _objects(infos)
    # by name, so that which of two equal files comes first does not depend on timing
    yield from _in_order(_from_found_tar, sorted(tars, key=lambda info: info.uri))


def _from_tar(one: _Input, notes: ListingNotes) -> Iterator[pa.Table]:
    assert one.info is not None
    return _members(one.info)


def _from_audio(one: _Input, notes: ListingNotes) -> Iterator[pa.Table]:
    assert one.info is not None
    yield _objects([one.info])


_TABLES_OF: dict[Kind, Callable[[_Input, ListingNotes], Iterator[pa.Table]]] = {
    "table": _from_table,
    "folder": _from_folder,
    "tar": _from_tar,
    "audio": _from_audio,
}


def _objects(infos: Sequence[ObjectInfo]) -> pa.Table:
    """Rows of plain files; a name that Arrow cannot hold is spelled out and refused."""
    names = [info.uri.encode("utf-8", "backslashreplace").decode("utf-8") for info in infos]
    odd = [name != info.uri for name, info in zip(names, infos, strict=True)]
    return _rows(
        file=names,
        num_bytes=[info.num_bytes for info in infos],
        etag=[info.etag for info in infos],
        status=[str(Status.UNSUPPORTED) if bad else None for bad in odd],
        error=["the file name is not valid UTF-8: rename it" if bad else None for bad in odd],
    )


def _members(info: ObjectInfo) -> Iterator[pa.Table]:
    for members in _batched(index_tar(info, suffixes=AUDIO_SUFFIXES), _BATCH_ROWS):
        bad = [member.status != Status.OK for member in members]
        yield _rows(
            file=[member.file for member in members],
            num_bytes=[member.byte_size for member in members],
            etag=[member.etag for member in members],
            byte_offset=[member.byte_offset for member in members],
            byte_size=[member.byte_size for member in members],
            status=[str(m.status) if b else None for m, b in zip(members, bad, strict=True)],
            error=[m.error if b else None for m, b in zip(members, bad, strict=True)],
        )


def _from_found_tar(info: ObjectInfo) -> pa.Table:
    """Members of a tar inside a folder; a tar that is none becomes one row, as a bad file does."""
    try:
        tables = list(_members(info))
    except ConfigError as error:
        return _refused_tar(info, Status.UNSUPPORTED, str(error))
    except ObjectMissing as error:
        return _refused_tar(info, Status.MISSING, str(error))
    except ObjectForbidden as error:
        return _refused_tar(info, Status.FORBIDDEN, str(error))
    return pa.concat_tables(tables) if tables else LISTING.empty_table()


def _refused_tar(info: ObjectInfo, status: Status, error: str) -> pa.Table:
    return _rows(
        file=[info.uri],
        num_bytes=[info.num_bytes],
        etag=[info.etag],
        status=[str(status)],
        error=[error],
    )


def _rows(**columns: Sequence[Any]) -> pa.Table:
    length = len(columns["file"])
    arrays = [pa.array(columns.get(f.name, [None] * length), f.type) for f in LISTING]
    return pa.table(arrays, schema=LISTING)


def _batched(items: Iterable[Any], size: int) -> Iterator[list[Any]]:
    iterator = iter(items)
    while batch := list(islice(iterator, size)):
        yield batch


def _in_order(
    work: Callable[[ObjectInfo], pa.Table], items: Iterable[ObjectInfo]
) -> Iterator[pa.Table]:
    """`work` over items in threads, a few ahead of the consumer."""
    waiting: deque[Future[pa.Table]] = deque()
    with ThreadPoolExecutor(_TARS_AHEAD) as pool:
        for item in items:
            waiting.append(pool.submit(work, item))
            if len(waiting) >= _TARS_AHEAD:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


class _Seen:
    """Files and clips listed so far, as hashes: a million take about 60 MB."""

    def __init__(self) -> None:
        self._files: set[int] = set()
        self._clips: set[int] = set()

    def new_rows(self, table: pa.Table, is_table: bool) -> pa.Table:
        """Rows not listed before; a table's rows count as clips, everything else as files."""
        files = table["file"].to_pylist()
        if is_table:
            spans = (table[n].cast(pa.int64()).to_pylist() for n in ("start", "end"))
            keys = [hash((f, s or 0, e)) for f, s, e in zip(files, *spans, strict=True)]
            fresh = [key not in self._clips for key in keys]
            self._clips.update(keys)
        else:
            fresh = [hash(file) not in self._files for file in files]
        self._files.update(map(hash, files))
        return table.filter(pa.array(fresh, pa.bool_()))


def _no_audio(one: _Input) -> str:
    if one.kind == "table":
        return f"--input {one.uri}: the table has no rows"
    kinds = ".wav, .flac, .mp3, .ogg, .opus, .aiff, .tar and others"
    if one.kind == "tar":
        return f"--input {one.uri}: the tar has no audio in it (looked for {kinds})"
    found = Counter(
        suffix_of(info.uri) or "no suffix"
        for info in islice(storage.list_objects(one.uri), _LOOKED_AT)
    )
    holds = ", ".join(f"{count} x {suffix}" for suffix, count in found.most_common(5))
    return f"--input {one.uri}: no audio in it (looked for {kinds}); it holds {holds or 'nothing'}"
