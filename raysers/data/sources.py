"""What `--input` may name, listed as one stream of audio objects.

Folders and prefixes, tars, single files and tables of clips mix freely; tables are read first, so
that a file's labels win over the bare file found in a folder.
"""

from __future__ import annotations

import dataclasses
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any, Literal, TypeVar, cast

import pyarrow as pa
import pyarrow.compute as pc

from raysers.data.corpora import audformat
from raysers.data.files import Row, of_file, rows_to_table
from raysers.data.manifest import manifest_parts
from raysers.data.tables import TABLE_SUFFIXES, read_clip_table
from raysers.data.tar import (
    TarMember,
    check_tar_name,
    index_tar,
    is_compressed_tar,
    resolve_members,
)
from raysers.errors import (
    ClipError,
    ConfigError,
    ObjectForbidden,
    ObjectMissing,
    ObjectUnreadable,
    StorageError,
    status_of,
)
from raysers.io import storage
from raysers.io.uris import ObjectInfo, suffix_of
from raysers.schemas import MANIFEST, OBJECTS
from raysers.types import Status

#: Schema of every listed batch, before the label columns of tables; status null: not known yet.
LISTING = pa.schema([*OBJECTS, MANIFEST.field("status"), MANIFEST.field("error")])

_READABLE = (
    "wav wave wavex bwf rf64 w64 flac ogg oga opus mp3 mp2 aiff aif aifc au snd caf sph nist "
    "voc avr paf pvf svx 8svx wve sds htk sf ircam"
)
#: Audio that libsndfile cannot read: listed all the same, to be `unsupported` rows and not lost.
_UNREADABLE = "m4a m4b aac wma amr 3gp webm mka mkv mp4 mov avi raw pcm ac3 ape wv spx gsm vox"
AUDIO_SUFFIXES = frozenset(f".{name}" for name in f"{_READABLE} {_UNREADABLE}".split())

_BATCH_ROWS = 2000
_THREADS = 16
_TARS_AHEAD = 8
#: Objects listed to say what a folder without audio holds instead.
_LOOKED_AT = 1000

#: For messages; the full list is longer than a line.
_KINDS = ".wav, .flac, .mp3, .ogg, .opus, .aiff, .tar and others"

#: Tells an outage of the store from tars that cannot be read.
_BREAKER = storage.Breaker()

Item = TypeVar("Item")
Kind = Literal["table", "folder", "tar", "audio"]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Input:
    kind: Kind
    uri: str
    info: ObjectInfo | None = None
    parts: tuple[str, ...] = ()
    database: tuple[str, str] | None = None


def list_inputs(
    uris: Sequence[str], *, notes: list[str] | None = None, databases: bool = True
) -> Iterator[pa.RecordBatch]:
    """Audio objects and table rows of all inputs, streamed in batches of up to 2,000.

    Every input is checked before this returns, so a misspelt one costs no listing. Batches have the
    schema `LISTING`, those of tables their label columns too. `status` is set where it is known
    already: tar members that cannot be used. A file that several inputs name comes once.

    Args:
        uris: folders, prefixes, tars, audio files, tables, audformat databases; `~` is expanded.
        notes: warnings are added to it.
        databases: whether an audformat database gives the clips of its tables, not its files.

    Raises:
        ConfigError: an input that is missing, may not be read, holds no audio, or a bad table.
        CredentialsError, TransientStorageError: as the store says.
    """
    if not uris:
        raise ConfigError("--input names nothing: give folders, tars, audio files or tables")
    return _stream(_classified(uris, databases), [] if notes is None else notes)


def listed_segments(uris: Sequence[str]) -> pa.Table:
    """Columns `file`, `start` and `end` of table rows among the inputs that are a part of a file.

    Raises:
        ConfigError: as `list_inputs`.
    """
    others = [uri for uri in uris if suffix_of(uri) not in {".tar", *AUDIO_SUFFIXES}]
    tables = [one for one in _classified(others, databases=True) if one.kind == "table"]
    rows = [LISTING.empty_table(), *_tables(tables, [])]
    clips = pa.concat_tables([table.select(OBJECTS.names[:3]) for table in rows])
    starts_later = pc.greater(pc.fill_null(clips["start"].cast(pa.int64()), 0), 0)
    return clips.filter(pc.or_(starts_later, pc.is_valid(clips["end"])))


def _classified(uris: Sequence[str], databases: bool) -> list[_Input]:
    names = list(dict.fromkeys(map(storage.absolute, uris)))
    with ThreadPoolExecutor(_THREADS) as pool:
        return list(pool.map(partial(_classify, databases=databases), names))


def _classify(uri: str, *, databases: bool) -> _Input:
    try:
        is_folder = storage.is_folder(uri)
        info = ObjectInfo(uri, 0, "") if is_folder else storage.stat(uri)
        if is_folder and (parts := manifest_parts(uri)):
            return _Input(kind="table", uri=uri, parts=tuple(parts))
        if databases and (database := audformat.database_of(uri)):
            return _Input(kind="table", uri=uri, database=database)
        if is_folder:
            return _Input(kind="folder", uri=uri)
    except ObjectUnreadable as error:
        raise ConfigError(f"--input {error}") from None
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


def _stream(inputs: Sequence[_Input], notes: list[str]) -> Iterator[pa.RecordBatch]:
    seen = _Seen() if len(inputs) > 1 else None
    for kind, listing in _LISTINGS.items():
        for table in listing([one for one in inputs if one.kind == kind], notes):
            fresh = table if seen is None else seen.new_rows(table, kind == "table")
            yield from fresh.combine_chunks().to_batches(max_chunksize=_BATCH_ROWS)


@contextmanager
def _named(one: _Input) -> Iterator[None]:
    """Turns what cannot be read below an input into a ConfigError that names the input."""
    try:
        yield
    except (ObjectForbidden, ObjectMissing) as error:
        raise ConfigError(f"--input {one.uri}: {error}") from error


def _tables(inputs: Sequence[_Input], notes: list[str]) -> Iterator[pa.Table]:
    for one in inputs:
        with _named(one):
            if one.database is None:
                clips, warnings = read_clip_table(one.parts)
            else:
                rows, warnings = audformat.read(*one.database, labelled=False)
                clips = rows_to_table(rows)
            notes += warnings
            clips = resolve_members(clips, suffixes=AUDIO_SUFFIXES)
        if not len(clips):
            raise ConfigError(f"--input {one.uri}: the table has no rows")
        for start in range(0, len(clips), _BATCH_ROWS):
            yield clips.slice(start, _BATCH_ROWS)


def _folders(inputs: Sequence[_Input], notes: list[str]) -> Iterator[pa.Table]:
    for one in inputs:
        listed = 0
        with _named(one):
            for table in _folder(one.uri, notes):
                listed += len(table)
                yield table
            if not listed:
                raise ConfigError(_no_audio(one.uri))


def _folder(uri: str, notes: list[str]) -> Iterator[pa.Table]:
    """Plain files as they are found, tars after them."""
    tars: list[ObjectInfo] = []
    skipped: Counter[str] = Counter()
    left_out: list[tuple[str, str]] = []

    def plain() -> Iterator[ObjectInfo]:
        for info in storage.list_objects(uri, skipped=lambda *one: left_out.append(one)):
            if suffix_of(info.uri) in AUDIO_SUFFIXES:
                yield info
            elif suffix_of(info.uri) == ".tar" or is_compressed_tar(info.uri):
                tars.append(info)
            else:
                skipped[suffix_of(info.uri)] += 1

    for infos in _batched(plain(), _BATCH_ROWS):
        yield object_rows(infos)
    # by name, so that which of two equal files comes first does not depend on timing
    tars.sort(key=lambda info: info.uri)
    bare = []
    for info, members in zip(tars, _in_order(_found_tar, tars), strict=True):
        bare += [] if len(members) else [info.uri]
        yield members
    if bare:
        notes.append(
            f"{uri}: {len(bare):,} tars without audio left out (the first: {bare[0][:200]!r})"
        )
    if skipped:
        notes.append(f"{uri}: skipped {_kinds(skipped)}: no suffix of audio")
    for reason, count in sorted(Counter(reason for reason, _ in left_out).items()):
        path = min(path for other, path in left_out if other == reason)
        notes.append(f"{uri}: {count} folders left out: {reason} (the first: {path[:200]!r})")


def _files(inputs: Sequence[_Input], notes: list[str]) -> Iterator[pa.Table]:
    for batch in _batched(inputs, _BATCH_ROWS):
        yield object_rows(cast(ObjectInfo, one.info) for one in batch)


def _tars(inputs: Sequence[_Input], notes: list[str]) -> Iterator[pa.Table]:
    return _in_order(_named_tar, inputs)


_LISTINGS: dict[Kind, Callable[[Sequence[_Input], list[str]], Iterator[pa.Table]]] = {
    # first, so that labels win
    "table": _tables,
    "folder": _folders,
    "audio": _files,
    "tar": _tars,
}


def _named_tar(one: _Input) -> pa.Table:
    with _named(one):
        members = member_rows(index_tar(cast(ObjectInfo, one.info), suffixes=AUDIO_SUFFIXES))
    if not len(members):
        raise ConfigError(f"--input {one.uri}: the tar has no audio in it (looked for {_KINDS})")
    return members


def _found_tar(info: ObjectInfo) -> pa.Table:
    """Members of a tar inside a folder; a tar that cannot be listed is one row with its status."""
    try:
        return member_rows(index_tar(info, suffixes=AUDIO_SUFFIXES))
    except ConfigError as error:
        failure = ClipError(Status.UNSUPPORTED, str(error))
    except StorageError as error:
        if (found := status_of(error)) is None:
            raise
        _BREAKER.failed(info.uri, error)
        failure = found
    row = of_file(info) | {"status": str(failure.status), "error": failure.message}
    return pa.Table.from_pylist([row], LISTING)


def object_rows(infos: Iterable[ObjectInfo]) -> pa.Table:
    """Rows of plain files; a name that Arrow cannot hold is spelled out and refused."""
    rows = []
    for info in infos:
        rows.append(row := of_file(info))
        row["file"] = info.uri.encode("utf-8", "backslashreplace").decode("utf-8")
        if row["file"] != info.uri:
            row["status"] = str(Status.UNSUPPORTED)
            row["error"] = "the file name is not valid UTF-8: rename it"
    return pa.Table.from_pylist(rows, LISTING)


def member_rows(members: Iterable[TarMember]) -> pa.Table:
    """Rows of tar members, made in batches: a tar may have millions."""
    batches = (map(_of_member, batch) for batch in _batched(members, _BATCH_ROWS))
    tables = [pa.Table.from_pylist(list(rows), LISTING) for rows in batches]
    return pa.concat_tables([LISTING.empty_table(), *tables])


def _of_member(member: TarMember) -> Row:
    row = dataclasses.asdict(member) | {"num_bytes": member.byte_size}
    return row | (dict.fromkeys(("status", "error")) if member.status == Status.OK else {})


def _batched(items: Iterable[Any], size: int) -> Iterator[list[Any]]:
    iterator = iter(items)
    while batch := list(islice(iterator, size)):
        yield batch


def _in_order(work: Callable[[Item], pa.Table], items: Iterable[Item]) -> Iterator[pa.Table]:
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


def _no_audio(uri: str) -> str:
    found = Counter(suffix_of(info.uri) for info in islice(storage.list_objects(uri), _LOOKED_AT))
    holds = _kinds(found) or "nothing"
    return f"--input {uri}: no audio in it (looked for {_KINDS}); it holds {holds}"


def _kinds(found: Counter[str]) -> str:
    """How many files of which suffix, the most common five first.

    >>> _kinds(Counter({".dat": 12, "": 3}))
    '12 x .dat, 3 without suffix'
    """
    # by name as well: the order of a listing is not the same twice
    ranked = sorted(found.items(), key=lambda one: (-one[1], one[0]))
    words = [f"{n} x {suffix}" if suffix else f"{n} without suffix" for suffix, n in ranked[:5]]
    others = sum(n for _, n in ranked[5:])
    return ", ".join([*words, f"{others} others"] if others else words)
