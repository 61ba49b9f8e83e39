"""What each `--input` is: a folder, a tar, a table, an audio file, or a pattern of these."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

from raysers.data.columnar import path_of
from raysers.data.corpora import audformat
from raysers.data.files import AUDIO_SUFFIXES, is_file
from raysers.data.manifest import manifest_parts
from raysers.data.readers import STDIN, format_of
from raysers.data.tables import refuse_missing
from raysers.data.tar import check_tar_name, is_compressed_tar
from raysers.errors import ConfigError, ObjectForbidden, ObjectMissing, ObjectUnreadable
from raysers.io import storage
from raysers.io.uris import ObjectInfo, suffix_of

_THREADS = 16
#: Regular expressions of what stands in patterns; `**/` is any folders or none.
_WILDCARDS = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}

Kind = Literal["table", "folder", "tar", "audio"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Input:
    """One input, or one of the files that a pattern names."""

    kind: Kind
    uri: str
    info: ObjectInfo | None = None
    parts: tuple[str, ...] = ()
    database: tuple[str, str] | None = None
    #: Folders among the inputs, for tables that name recordings and not files.
    homes: tuple[str, ...] = ()


def absolute_input(uri: str) -> str:
    """The one spelling of an input; `-` stays."""
    return uri if uri == STDIN else storage.absolute(uri)


def classified(uris: Sequence[str], *, databases: bool, files: bool = True) -> list[Input]:
    """What each of `uris` is; see `sources.list_inputs`.

    Raises:
        ConfigError: one that is not there or nothing that jobs read.
    """
    names = list(dict.fromkeys(map(absolute_input, uris)))
    with ThreadPoolExecutor(_THREADS) as pool:
        found = list(pool.map(partial(_matches, databases=databases), names))
    inputs = [one for several in found for one in several]
    for one in inputs if files else ():
        if one.kind == "table" and one.database is None:
            refuse_missing(one.parts[0])
    homes = tuple(one.uri for one in inputs if one.kind == "folder")
    return [replace(one, homes=homes) if format_of(one.uri) == ".rttm" else one for one in inputs]


def _matches(uri: str, *, databases: bool) -> list[Input]:
    """The input itself, or the files that a pattern names."""
    fixed = re.match(r"[^*?]*(?=/)", uri)
    if uri == STDIN or fixed is None or not re.search(r"[*?]", uri) or _exists(uri):
        return [_classify(uri, databases=databases)]
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


def _exists(uri: str) -> bool:
    return storage.is_folder(uri) or is_file(uri)


def _file(info: ObjectInfo) -> Input | None:
    """A file by its suffix; None when it is nothing that jobs read."""
    uri = info.uri
    if format_of(uri):
        return Input(kind="table", uri=uri, parts=(uri,))
    if suffix_of(uri) == ".tar" or is_compressed_tar(uri):
        check_tar_name(uri)
        return Input(kind="tar", uri=uri, info=info)
    if suffix_of(uri) in AUDIO_SUFFIXES:
        return Input(kind="audio", uri=uri, info=info)
    return None


def _classify(uri: str, *, databases: bool) -> Input:
    if uri == STDIN:
        return Input(kind="table", uri=uri, parts=(uri,))
    try:
        is_folder = storage.is_folder(uri)
        info = ObjectInfo(uri, 0, "") if is_folder else storage.stat(path_of(uri))
        if is_folder and (parts := manifest_parts(uri)):
            return Input(kind="table", uri=uri, parts=tuple(parts))
        if databases and (database := audformat.database_of(uri)):
            return Input(kind="table", uri=uri, database=database)
        if is_folder:
            return Input(kind="folder", uri=uri)
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
