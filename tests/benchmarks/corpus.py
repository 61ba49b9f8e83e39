"""Audio and manifests to measure on: EmoDB as it is, in other formats, repeated, and skewed."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import soundfile as sf
import soxr

from raysers.data.manifest import sort_manifest
from raysers.data.segments import Segmenting, probe_batch
from raysers.data.sources import list_inputs
from tests.places import SHARED_DATA

EMODB = SHARED_DATA / "emodb" / "wav"


def emodb(clips: int) -> list[Path]:
    """About `clips` files of EmoDB, spread evenly over its lengths; all when that is fewer."""
    by_length = sorted(EMODB.glob("*.wav"), key=lambda path: (path.stat().st_size, path.name))
    picks = np.linspace(0, len(by_length) - 1, min(clips, len(by_length))).astype(int)
    return [by_length[i] for i in picks]


def seconds(paths: Sequence[Path]) -> float:
    """Audio seconds of the files together."""
    return float(sum(sf.info(path).duration for path in paths))


def flac_16k(path: Path, target: Path) -> None:
    """The clip as it is, in FLAC."""
    signal, rate_hz = sf.read(path, dtype="int16")
    sf.write(target, signal, rate_hz)


def flac_44k_stereo(path: Path, target: Path) -> None:
    """The clip as a music archive would have it: 44.1 kHz, two channels."""
    signal, rate_hz = sf.read(path, dtype="float32")
    signal = soxr.resample(signal, rate_hz, 44_100)
    sf.write(target, np.stack([signal, 0.9 * signal], axis=1), 44_100, subtype="PCM_16")


FORMATS = {"flac-16k": flac_16k, "flac-44k-stereo": flac_44k_stereo}


def many_files(folder: Path, kind: str, files: int) -> list[str]:
    """`files` clips of a format in `folder`; repeats of the corpus are hard links.

    A link is opened and read like a file of its own, but all of them stay in the page cache, so
    that decoding is measured and not the disk.
    """
    folder.mkdir(parents=True)
    originals = emodb(files)
    made: list[str] = []
    for i in range(files):
        repeat, which = divmod(i, len(originals))
        target = folder / f"{repeat:03d}-{originals[which].stem}.flac"
        if repeat:
            os.link(made[which], target)
        else:
            FORMATS[kind](originals[which], target)
        made.append(str(target))
    return made


def skewed_files(folder: Path, files: int) -> list[str]:
    """Silent files with lengths as in call archives: most short, some of minutes (log-normal)."""
    folder.mkdir(parents=True)
    lengths_s = np.clip(np.random.default_rng(0).lognormal(1.0, 1.1, files), 0.3, 300.0)
    names = [str(folder / f"{i:06d}.flac") for i in range(files)]
    for name, length_s in zip(names, lengths_s, strict=True):
        sf.write(name, np.zeros(int(length_s * 16_000), np.int16), 16_000)
    return names


def manifest_of(inputs: Sequence[str], segmenting: Segmenting | None = None) -> pa.Table:
    """What `jobs/index.py` would make of the inputs, without a cluster."""
    how = segmenting or Segmenting()
    return sort_manifest(pa.concat_tables(probe_batch(b, how) for b in list_inputs(inputs)))
