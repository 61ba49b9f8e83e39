"""What `--input` may name, listed as one stream of audio objects.

Folders and prefixes, tars, single files, patterns and tables of clips mix freely; tables are read
first, so that a file's labels win over the bare file found in a folder.
"""

from __future__ import annotations

import dataclasses
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from itertools import islice
from typing import Any, TypeVar, cast

import pyarrow as pa
import pyarrow.compute as pc

from raysers.data.corpora import audformat
from raysers.data.files import AUDIO_SUFFIXES, Row, of_file, rows_to_table
from raysers.data.inputs import Input, Kind, classified, kinds_of
from raysers.data.readers import STDIN
from raysers.data.tables import read_clip_table
from raysers.data.tar import (
    TarMember,
    index_tar,
    is_compressed_tar,
    resolve_members,
)
from raysers.errors import (
    ClipError,
    ConfigError,
    ObjectForbidden,
    ObjectMissing,
    StorageError,
    status_of,
)
from raysers.io import storage
from raysers.io.uris import ObjectInfo, suffix_of
from raysers.schemas import CHANNEL, MANIFEST, OBJECTS
from raysers.types import Status

#: Schema of every listed batch, before the label columns of tables; status null: not known yet.
LISTING = pa.schema([*OBJECTS, MANIFEST.field("status"), MANIFEST.field("error")])

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


def list_inputs(
    uris: Sequence[str],
    *,
    notes: list[str] | None = None,
    databases: bool = True,
    files: bool = True,
) -> Iterator[pa.RecordBatch]:
    """Audio objects and table rows of all inputs, streamed in batches of up to 2,000.

    Every input is checked before this returns, so a misspelt one costs no listing. Batches have the
    schema `LISTING`, those of tables their label columns too. `status` is set where it is known
    already: tar members that cannot be used. A file that several inputs name comes once.

    Args:
        uris: folders, prefixes, tars, audio files, tables, audformat databases, patterns with `*`,
            `?` or `**`, and `-` for a list on standard input; `~` is expanded.
        notes: warnings are added to it.
        databases: whether an audformat database gives the clips of its tables, not its files.
        files: whether a table of which no file is there is refused.

    Raises:
        ConfigError: an input that is missing, may not be read, holds no audio, or a bad table.
        CredentialsError, TransientStorageError: as the store says.
    """
    if not uris:
        raise ConfigError("--input names nothing: give folders, tars, audio files or tables")
    return _stream(
        classified(uris, databases=databases, files=files), [] if notes is None else notes
    )


def listed_segments(uris: Sequence[str]) -> pa.Table:
    """Columns `file`, `start` and `end` of table rows among the inputs that are a part of a file.

    Raises:
        ConfigError: as `list_inputs`.
    """
    whole = {".tar", *AUDIO_SUFFIXES}
    others = [uri for uri in uris if suffix_of(uri) not in whole and uri != STDIN]
    tables = [one for one in classified(others, databases=True, files=False) if one.kind == "table"]
    rows = [LISTING.empty_table(), *_tables(tables, [])]
    clips = pa.concat_tables([table.select(OBJECTS.names[:3]) for table in rows])
    starts_later = pc.greater(pc.fill_null(clips["start"].cast(pa.int64()), 0), 0)
    return clips.filter(pc.or_(starts_later, pc.is_valid(clips["end"])))


def _stream(inputs: Sequence[Input], notes: list[str]) -> Iterator[pa.RecordBatch]:
    seen = _Seen() if len(inputs) > 1 else None
    for kind, listing in _LISTINGS.items():
        for table in listing([one for one in inputs if one.kind == kind], notes):
            fresh = table if seen is None else seen.new_rows(table, kind == "table")
            yield from fresh.combine_chunks().to_batches(max_chunksize=_BATCH_ROWS)


@contextmanager
def _named(one: Input) -> Iterator[None]:
    """Turns what cannot be read below an input into a ConfigError that names the input."""
    try:
        yield
    except (ObjectForbidden, ObjectMissing) as error:
        raise ConfigError(f"--input {one.uri}: {error}") from error


def _tables(inputs: Sequence[Input], notes: list[str]) -> Iterator[pa.Table]:
    for one in inputs:
        with _named(one):
            if one.database is None:
                clips, warnings = read_clip_table(one.parts, one.homes)
            else:
                rows, warnings = audformat.read(*one.database, labelled=False)
                clips = rows_to_table(rows)
            notes += warnings
            clips = resolve_members(clips, suffixes=AUDIO_SUFFIXES)
        if not len(clips):
            raise ConfigError(f"--input {one.uri}: the table has no rows")
        for start in range(0, len(clips), _BATCH_ROWS):
            yield clips.slice(start, _BATCH_ROWS)


def _folders(inputs: Sequence[Input], notes: list[str]) -> Iterator[pa.Table]:
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
    found = partial(_found_tar, left_out=left_out)
    for info, members in zip(tars, _in_order(found, tars), strict=True):
        bare += [] if len(members) else [info.uri]
        yield members
    if bare:
        notes.append(
            f"{uri}: {len(bare):,} tars without audio left out (the first: {bare[0][:200]!r})"
        )
    if skipped:
        notes.append(f"{uri}: skipped {kinds_of(skipped)}: no suffix of audio")
    _note_left_out(uri, left_out, notes)


def _note_left_out(uri: str, left_out: Sequence[tuple[str, str]], notes: list[str]) -> None:
    for reason, count in sorted(Counter(reason for reason, _ in left_out).items()):
        path = min(path for other, path in left_out if other == reason)
        notes.append(f"{uri}: {count:,} left out: {reason} (the first: {path[:200]!r})")


def _files(inputs: Sequence[Input], notes: list[str]) -> Iterator[pa.Table]:
    for batch in _batched(inputs, _BATCH_ROWS):
        yield object_rows(cast(ObjectInfo, one.info) for one in batch)


def _tars(inputs: Sequence[Input], notes: list[str]) -> Iterator[pa.Table]:
    left_out: list[tuple[str, str]] = []
    yield from _in_order(partial(_named_tar, left_out=left_out), inputs)
    if left_out:
        _note_left_out("tars", left_out, notes)


_LISTINGS: dict[Kind, Callable[[Sequence[Input], list[str]], Iterator[pa.Table]]] = {
    # first, so that labels win
    "table": _tables,
    "folder": _folders,
    "audio": _files,
    "tar": _tars,
}


def _named_tar(one: Input, left_out: list[tuple[str, str]]) -> pa.Table:
    with _named(one):
        members = _members(cast(ObjectInfo, one.info), left_out)
    if not len(members):
        raise ConfigError(f"--input {one.uri}: the tar has no audio in it (looked for {_KINDS})")
    return members


def _members(info: ObjectInfo, left_out: list[tuple[str, str]]) -> pa.Table:
    def skip(reason: str, path: str) -> None:
        left_out.append((reason, path))

    return member_rows(index_tar(info, suffixes=AUDIO_SUFFIXES, skipped=skip))


def _found_tar(info: ObjectInfo, left_out: list[tuple[str, str]]) -> pa.Table:
    """Members of a tar inside a folder; a tar that cannot be listed is one row with its status."""
    try:
        return _members(info, left_out)
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
            names = [n for n in ("start", "end", CHANNEL.name) if n in table.column_names]
            spans = (table[n].cast(pa.int64()).to_pylist() for n in names)
            keys = [hash((f, s or 0, *rest)) for f, s, *rest in zip(files, *spans, strict=True)]
            fresh = [key not in self._clips for key in keys]
            self._clips.update(keys)
        else:
            fresh = [hash(file) not in self._files for file in files]
        self._files.update(map(hash, files))
        return table.filter(pa.array(fresh, pa.bool_()))


def _no_audio(uri: str) -> str:
    found = Counter(suffix_of(info.uri) for info in islice(storage.list_objects(uri), _LOOKED_AT))
    holds = kinds_of(found) or "nothing"
    return f"--input {uri}: no audio in it (looked for {_KINDS}); it holds {holds}"
