"""The list of clips of a run that is resumed, and files that the input has got since.

An extension is a further list behind the first one: its clips are in shards with the numbers that
follow, so nothing that is written changes. It exists once the first of its parts is written, which
is written last; from then on the plain command scores it too.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from raysers.cli import ClipJobFlags
from raysers.data.manifest import Manifest, is_manifest, read_part, whole_parts
from raysers.data.readers import STDIN
from raysers.data.sources import list_inputs
from raysers.engine.plan import listed_tables, segmenting, to_manifest, warn
from raysers.errors import ConfigError, RaysersError
from raysers.io import storage
from raysers.run import Run
from raysers.schemas import CHANNEL


def warn_of_new_files(inputs: Sequence[str], clips: Manifest) -> None:
    """Name files that the inputs have got since the list of clips was made."""
    _, others = _split(inputs)
    if not others:
        return
    is_new, added = _known_files(clips), set[str]()
    with suppress(RaysersError):  # the run goes on with what it has listed
        for batch in list_inputs(others):
            added.update(batch.filter(is_new(batch))["file"].to_pylist())
    if added:
        files = "1 file was" if len(added) == 1 else f"{len(added):,} files were"
        warn(
            f"{files} added since the clips were listed and not scored (the first: {min(added)}): "
            "--extend scores them"
        )


def extended(flags: ClipJobFlags, run: Run, clips: Manifest) -> Manifest:
    """The clips, and those of files that the inputs have got since these were listed.

    Raises:
        ConfigError: as `index`, or the output has channels and the new clips have none.
    """
    finished, others = _split(flags.input)
    is_new = _known_files(clips)
    tables = (read_part(place) for uri in finished for place in whole_parts(uri))
    listed = listed_tables(others) if others else ()
    added = to_manifest(
        (table.filter(is_new(table)) for table in tables),
        (table.filter(is_new(table)) for table in listed),
        segmenting(flags),
        local=True if flags.workers == "local" else None,
    )
    if not added.num_rows:
        return clips
    if len({CHANNEL.name in one.part(0).column_names for one in (clips, added)}) > 1:
        raise ConfigError(
            f"--extend: --output {run.output} has a column channel and the added clips have none, "
            "or the other way round: give another --output"
        )
    clips = clips.extended(added)
    _settle(run, clips)
    return clips


def _split(inputs: Sequence[str]) -> tuple[list[str], list[str]]:
    """The finished manifests among the inputs, and what can be listed again."""
    finished = [uri for uri in inputs if uri != STDIN and is_manifest(uri)]
    return finished, [uri for uri in inputs if uri != STDIN and uri not in finished]


def _known_files(clips: Manifest) -> Callable[[Any], pa.Array]:
    """A mask of the rows of a table whose file is not of these clips."""
    known: set[int] = set()
    for part in clips.parts(["file"]):
        known.update(map(hash, pc.unique(part["file"]).to_pylist()))
    return lambda rows: pa.array([hash(f) not in known for f in rows["file"].to_pylist()])


def _settle(run: Run, clips: Manifest) -> None:
    """Let the record that is resumed name all clips: what was added changes no row before it."""
    assert run.earlier is not None, "nothing is resumed"
    settings = {**run.earlier.settings, "manifest": clips.fingerprint}
    run.earlier = replace(run.earlier, settings=settings)


def stored_manifest(run: Run) -> Manifest:
    """The manifest of the run that is resumed, with extensions that are not in its record yet.

    Raises:
        RaysersError: it is not the one that the run's record names.
    """
    assert run.earlier is not None, "nothing is resumed"
    manifest = Manifest.stored(storage.join(run.output, "manifest"))
    if run.earlier.settings.get("manifest") not in manifest.fingerprints:
        raise RaysersError(
            f"the manifest in {run.output} is not the one its run.json names: it was changed from "
            "outside; start again in another folder"
        )
    _settle(run, manifest)
    return manifest
