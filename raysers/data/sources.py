"""What `--input` may name, listed as one stream of audio objects.

Folders and prefixes, tars, single files, patterns and tables of clips mix freely; tables are read
first, so that a file's labels win over the bare file found in a folder.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from typing import Any, Literal

import pyarrow as pa
import pyarrow.compute as pc

from raysers.data import contents
from raysers.data.columnar import path_of
from raysers.data.corpora import audformat
from raysers.data.files import AUDIO_SUFFIXES, is_file, of_file, rows_to_table
from raysers.data.manifest import manifest_parts
from raysers.data.readers import STDIN, format_of
from raysers.data.sorting import ahead
from raysers.data.tables import read_clip_table, refuse_missing
from raysers.errors import (
    ClipError,
    ConfigError,
    ObjectForbidden,
    ObjectMissing,
    ObjectUnreadable,
    StorageError,
)
from raysers.io import storage
from raysers.io.objects import ObjectInfo, suffix_of
from raysers.schemas import MANIFEST, OBJECTS, PARTS_OF_FILE
from raysers.types import Status

#: Schema of every listed batch, before the label columns of tables; status null: not known yet.
LISTING = pa.schema([*OBJECTS, MANIFEST.field("status"), MANIFEST.field("error")])

_BATCH_ROWS = 2000
_THREADS = 16
_TARS_AHEAD = 8
#: Objects listed for the message about a folder without audio.
_LOOKED_AT = 1000
#: For messages; the full list is longer than a line.
_KINDS = ".wav, .flac, .mp3, .ogg, .opus, .aiff, .tar and others"
#: Regular expressions of wildcards; `**/` is any number of folders.
_WILDCARDS = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}
#: Tells an outage of the store from tars that cannot be read.
_BREAKER = storage.Breaker()


@dataclass(frozen=True, slots=True, kw_only=True)
class _Input:
    """One input; a table has `parts`, or is the (root, table) of an audformat `database`."""

    kind: Literal["table", "folder", "tar", "audio"]
    uri: str
    info: ObjectInfo
    parts: tuple[str, ...] = ()
    database: tuple[str, str] | None = None


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

    `uris` are folders, prefixes, tars, audio files, tables, audformat databases, patterns with `*`,
    `?` or `**`, and `-` for a list on standard input; `~` is expanded. Warnings are added to
    `notes`. With `databases` an audformat database gives the clips of its tables, not its files;
    with `files` a table of which no file is there is refused. Raises ConfigError: an input that is
    missing, may not be read, holds no audio, or a bad table; and as the store says.
    """
    if not uris:
        raise ConfigError("--input names nothing: give folders, tars, audio files or tables")
    inputs = _classified(uris, databases=databases)
    for one in inputs if files else ():
        if one.kind == "table" and one.database is None:
            refuse_missing(one.parts[0])
    return _stream(inputs, [] if notes is None else notes)


def listed_segments(uris: Sequence[str]) -> pa.Table:
    """`file`, `start` and `end` of table rows among the inputs that are a part of a file."""
    whole = {".tar", *AUDIO_SUFFIXES}
    others = [uri for uri in uris if suffix_of(uri) not in whole and uri != STDIN]
    inputs = _classified(others, databases=True)
    clips = LISTING.empty_table().select(OBJECTS.names[:3])
    for table in _tables([one for one in inputs if one.kind == "table"], inputs, []):
        clips = pa.concat_tables([clips, table.select(clips.column_names)])
    starts_later = pc.greater(pc.fill_null(clips["start"].cast(pa.int64()), 0), 0)
    return clips.filter(pc.or_(starts_later, pc.is_valid(clips["end"])))


# what each input is


def absolute_input(uri: str) -> str:
    """The one spelling of an input; `-` stays."""
    return uri if uri == STDIN else storage.absolute(uri)


def _classified(uris: Sequence[str], *, databases: bool) -> list[_Input]:
    """What each of `uris` is; ConfigError for one that is not there or nothing that jobs read."""
    names = dict.fromkeys(map(absolute_input, uris))
    with ThreadPoolExecutor(_THREADS) as pool:
        found = list(pool.map(lambda uri: _matches(uri, databases=databases), names))
    return [one for several in found for one in several]


def _matches(uri: str, *, databases: bool) -> list[_Input]:
    """The input itself, or the files that a pattern names."""
    fixed = re.match(r"[^*?]*(?=/)", uri)
    is_pattern = uri != STDIN and fixed is not None and re.search(r"[*?]", uri)
    if not is_pattern or storage.is_folder(uri) or is_file(uri):
        return [_classify(uri, databases=databases)]
    assert fixed is not None
    parts = re.split(r"(\*\*/|\*\*|\*|\?)", uri)
    pattern = "".join(_WILDCARDS.get(part) or re.escape(part) for part in parts)
    try:
        below = sorted(storage.list_objects(fixed[0]), key=lambda info: info.uri)
    except (ObjectMissing, ObjectUnreadable):
        below = []
    except ObjectForbidden as error:
        raise ConfigError(f"--input {uri}: no permission to list {fixed[0]} ({error})") from error
    found = [info for info in below if re.fullmatch(f"{pattern}(?:/.*)?", info.uri)]
    if not found:
        raise ConfigError(f"--input {uri}: nothing there matches the pattern")
    inputs = [one for info in found if (one := _file(info)) is not None]
    if not inputs:
        kinds = kinds_of(Counter(suffix_of(info.uri) for info in found))
        raise ConfigError(f"--input {uri}: no audio and no table matches, but {kinds}")
    return inputs


def _file(info: ObjectInfo) -> _Input | None:
    """A file by its suffix; None when it is nothing that jobs read."""
    uri = info.uri
    if format_of(uri):
        return _Input(kind="table", uri=uri, info=info, parts=(uri,))
    if suffix_of(uri) == ".tar" or contents.is_compressed_tar(uri):
        contents.check_tar_name(uri)
        return _Input(kind="tar", uri=uri, info=info)
    is_audio = suffix_of(uri) in AUDIO_SUFFIXES
    return _Input(kind="audio", uri=uri, info=info) if is_audio else None


def _classify(uri: str, *, databases: bool) -> _Input:
    info = ObjectInfo(uri, 0, "")
    if uri == STDIN:
        return _Input(kind="table", uri=uri, info=info, parts=(uri,))
    try:
        is_folder = storage.is_folder(uri)
        info = info if is_folder else storage.stat(path_of(uri))
        if is_folder and (parts := manifest_parts(uri)):
            return _Input(kind="table", uri=uri, info=info, parts=tuple(parts))
        if databases and (database := audformat.database_of(uri)):
            return _Input(kind="table", uri=uri, info=info, database=database)
        if is_folder or uri.rpartition("/")[2] == contents.INVENTORY:
            return _Input(kind="folder", uri=uri, info=info)
        found = _file(replace(info, uri=uri))
    except ObjectUnreadable as error:
        raise ConfigError(f"--input {error}") from None
    except ObjectMissing:
        raise ConfigError(f"--input {uri}: nothing there; check the spelling") from None
    except ObjectForbidden as error:
        raise ConfigError(f"--input {uri}: no permission to read it ({error})") from error
    if found is None:
        raise ConfigError(
            f"--input {uri}: not a folder, a .tar, a table (.csv, .tsv, .parquet, .jsonl, .txt, "
            ".scp, .rttm, .sqlite, .duckdb) or an audio file"
        )
    return found


def kinds_of(found: Counter[str]) -> str:
    """How many files of which suffix, the most common five first.

    >>> kinds_of(Counter({".dat": 12, "": 3}))
    '12 x .dat, 3 without suffix'
    """
    # by name as well: the order of a listing is not the same twice
    ranked = sorted(found.items(), key=lambda one: (-one[1], one[0]))
    words = [f"{n} x {suffix}" if suffix else f"{n} without suffix" for suffix, n in ranked[:5]]
    others = sum(n for _, n in ranked[5:])
    return ", ".join([*words, f"{others} others"] if others else words)


# what each input holds


def _stream(inputs: Sequence[_Input], notes: list[str]) -> Iterator[pa.RecordBatch]:
    seen_files, seen_clips = set[int](), set[int]()  # hashes: a million take about 60 MB

    def fresh(table: pa.Table, *, is_table: bool) -> pa.Table:
        """Rows not listed before; a table's rows count as clips, everything else as files."""
        files = list(map(hash, table["file"].to_pylist()))
        if not is_table:
            new = [file not in seen_files for file in files]
        else:
            names = ["start", "end", *(field.name for field in PARTS_OF_FILE)]
            names = [name for name in names if name in table.column_names]
            spans = (table[n].cast(pa.int64()).to_pylist() for n in names)
            keys = [hash((f, s or 0, *rest)) for f, s, *rest in zip(files, *spans, strict=True)]
            new = [key not in seen_clips for key in keys]
            seen_clips.update(keys)
        seen_files.update(files)
        return table.filter(pa.array(new, pa.bool_()))

    def of(kind: str) -> list[_Input]:
        return [one for one in inputs if one.kind == kind]

    listings = (
        _tables(of("table"), inputs, notes),  # first, so that labels win
        _folders(of("folder"), notes),
        object_rows(one.info for one in of("audio")),
        _tars(of("tar"), notes),
    )
    for place, listing in enumerate(listings):
        for table in listing:
            rows = fresh(table, is_table=place == 0) if len(inputs) > 1 else table
            yield from rows.combine_chunks().to_batches(max_chunksize=_BATCH_ROWS)


@contextmanager
def _named(uri: str) -> Iterator[None]:
    """Turns what cannot be read below an input into a ConfigError that names the input."""
    try:
        yield
    except (ObjectForbidden, ObjectMissing) as error:
        raise ConfigError(f"--input {uri}: {error}") from error


def _tables(
    tables: Sequence[_Input], inputs: Sequence[_Input], notes: list[str]
) -> Iterator[pa.Table]:
    # the folders among the inputs, for tables that name recordings and not files
    homes = [one.uri for one in inputs if one.kind == "folder"]
    for one in tables:
        with _named(one.uri):
            if one.database is None:
                clips, warnings = read_clip_table(one.parts, homes)
            else:
                rows, warnings = audformat.read(*one.database, labelled=False)
                clips = rows_to_table(rows)
            notes += warnings
            clips = contents.resolve_members(clips, suffixes=AUDIO_SUFFIXES)
        if not len(clips):
            raise ConfigError(f"--input {one.uri}: the table has no rows")
        for start in range(0, len(clips), _BATCH_ROWS):
            yield clips.slice(start, _BATCH_ROWS)


def _folders(folders: Sequence[_Input], notes: list[str]) -> Iterator[pa.Table]:
    for one in folders:
        listed = 0
        with _named(one.uri):
            for table in _folder(one.uri, notes):
                listed += len(table)
                yield table
            if not listed:
                below = islice(storage.list_objects(one.uri), _LOOKED_AT)
                holds = kinds_of(Counter(suffix_of(info.uri) for info in below)) or "nothing"
                raise ConfigError(
                    f"--input {one.uri}: no audio in it (looked for {_KINDS}); it holds {holds}"
                )


def _folder(uri: str, notes: list[str]) -> Iterator[pa.Table]:
    """Plain files as they are found, tars after them."""
    tars: list[ObjectInfo] = []
    skipped: Counter[str] = Counter()
    left_out: list[tuple[str, str]] = []

    def plain() -> Iterator[ObjectInfo]:
        is_inventory = uri.rpartition("/")[2] == contents.INVENTORY and not storage.is_folder(uri)
        of_uri = contents.inventory_objects if is_inventory else storage.list_objects
        for info in of_uri(uri, skipped=lambda *one: left_out.append(one)):
            if suffix_of(info.uri) in AUDIO_SUFFIXES:
                yield info
            elif suffix_of(info.uri) == ".tar" or contents.is_compressed_tar(info.uri):
                tars.append(info)
            else:
                skipped[suffix_of(info.uri)] += 1

    yield from object_rows(plain())
    # by name, so that which of two equal files comes first does not depend on timing
    tars.sort(key=lambda info: info.uri)
    bare = []
    indexed = ahead(partial(_tar, left_out=left_out, in_folder=True), tars, _TARS_AHEAD)
    for info, members in zip(tars, indexed, strict=True):
        bare += [] if len(members) else [info.uri]
        yield members
    if bare:
        first = bare[0][:200]
        notes.append(f"{uri}: {len(bare):,} tars without audio left out (the first: {first!r})")
    if skipped:
        notes.append(f"{uri}: skipped {kinds_of(skipped)}: no suffix of audio")
    _note_left_out(uri, left_out, notes)


def _tars(tars: Sequence[_Input], notes: list[str]) -> Iterator[pa.Table]:
    left_out: list[tuple[str, str]] = []
    infos = [one.info for one in tars]
    yield from ahead(partial(_tar, left_out=left_out, in_folder=False), infos, _TARS_AHEAD)
    _note_left_out("tars", left_out, notes)


def _tar(info: ObjectInfo, *, left_out: list[tuple[str, str]], in_folder: bool) -> pa.Table:
    """Members of a tar; one in a folder that cannot be listed is one row with its status."""
    members = contents.index_tar(
        info, suffixes=AUDIO_SUFFIXES, skipped=lambda *one: left_out.append(one)
    )
    batches, known = [LISTING.empty_table()], dict.fromkeys(("status", "error"))
    try:
        with nullcontext() if in_folder else _named(info.uri):
            for batch in _batched(members):
                rows = (one._asdict() | {"num_bytes": one.byte_size} for one in batch)
                rows = (row | known if row["status"] == Status.OK else row for row in rows)
                batches.append(pa.Table.from_pylist(list(rows), LISTING))
    except ConfigError as error:
        if not in_folder:
            raise
        failure = ClipError(Status.UNSUPPORTED, str(error))
    except StorageError as error:
        if not in_folder:
            raise
        failure = _BREAKER.failed(info.uri, error)
    else:
        if not in_folder and not any(map(len, batches)):
            raise ConfigError(
                f"--input {info.uri}: the tar has no audio in it (looked for {_KINDS})"
            )
        return pa.concat_tables(batches)
    row = of_file(info) | {"status": str(failure.status), "error": failure.message}
    return pa.Table.from_pylist([row], LISTING)


def _note_left_out(uri: str, left_out: Sequence[tuple[str, str]], notes: list[str]) -> None:
    for reason, count in sorted(Counter(reason for reason, _ in left_out).items()):
        path = min(path for other, path in left_out if other == reason)
        notes.append(f"{uri}: {count:,} left out: {reason} (the first: {path[:200]!r})")


def object_rows(infos: Iterable[ObjectInfo]) -> Iterator[pa.Table]:
    """Rows of plain files; a name that Arrow cannot hold is spelled out and refused."""
    for batch in _batched(infos):
        rows = list(map(of_file, batch))
        for row in rows:
            name = row["file"].encode("utf-8", "backslashreplace").decode("utf-8")
            if name != row["file"]:
                error = "the file name is not valid UTF-8: rename it"
                row |= {"file": name, "status": str(Status.UNSUPPORTED), "error": error}
        yield pa.Table.from_pylist(rows, LISTING)


def _batched(items: Iterable[Any]) -> Iterator[list[Any]]:
    iterator = iter(items)
    while batch := list(islice(iterator, _BATCH_ROWS)):
        yield batch
