"""Synthetic speech: the command that makes it, and the demo that annotates some, offline."""

from __future__ import annotations

import hashlib
import io
import sys
import time
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import soundfile
import soxr

from raysers.cli import Output, as_plain
from raysers.commands import command
from raysers.commands.archive import annotate
from raysers.data.manifest import Manifest, is_whole, manifest_parts, read_manifest
from raysers.engine import output as parts
from raysers.engine import progress
from raysers.errors import ConfigError, RaysersError, WriteError
from raysers.io import marks, storage
from raysers.models.tts import Engine, Line
from raysers.run import Exit, Run, with_absolute_paths
from raysers.schemas import LABEL_FIELDS, MANIFEST
from raysers.types import DIMENSIONS, Status
from raysers.words import synthesize as synthesis
from raysers.words.synthesize import JOB, MANNER_FIELDS, SPEECH, TABLE, SynthesizeFlags, check

_MEANINGS = {
    "sentiment": "sentiment of what is said",
    "template": "pattern the text was made from",
    "word": "word in it that carries the sentiment",
    "slot": "what else fills the template",
    "source_clip_id": "clip the text was taken from",
    "source_file": "file the text was taken from",
}


@command("texts")
def synthesize(flags: SynthesizeFlags) -> int:
    r"""Speech from texts, as clips with a manifest that every other job takes.

        raysers synthesize --templates this-is -o spoken
        raysers synthesize sentences.csv --voice random -o s3://bucket/spoken
        raysers synthesize sentences.csv -o spoken --tts-command \
            'piper --model en.onnx --input-file {text_file} --output-file {output}'

    A short sentence takes espeak-ng about 8 ms of CPU. Rerunning the command resumes.

    Result: OUTPUT/audio/*.wav and OUTPUT/manifest, one row per text, voice, rate and pitch,
    with the text as `transcript` and every other column of the texts beside it.
    """
    flags = with_absolute_paths(flags, "texts")
    with Run.open(JOB, flags.output, table=TABLE, dry_run=flags.dry_run) as run:
        table, notes = check(flags, run)
        pool = synthesis.worker_pool(flags.workers)
        plan = synthesis.utterances(table, flags, run.output)
        blocks = synthesis.shard_blocks(plan)
        again = frozenset(map(str, flags.retry))
        left = synthesis.shards_left(run.output, blocks, again)
        for note in notes:
            progress.print_warning(note)
        line = f"{JOB}: {len(table):,} texts, {len(plan):,} sound files, {len(blocks)} shards"
        todo = sum(map(len, left))
        print(line if todo == len(plan) else f"{line}; {todo:,} left", flush=True)
        if flags.dry_run:
            return Exit.DONE
        started_s = time.perf_counter()
        about = f"speech made from {flags.texts or ', '.join(flags.templates)}"
        schemas = {"manifest": manifest_schema(plan), TABLE: SPEECH}
        parts.write_header(run.output, schemas, description=about)
        run.begin(as_plain(flags), flags.settings(table))
        speaker = {
            "engine": flags.engine,
            "output": run.output,
            "run_id": run.run_id,
            "audio_format": flags.audio_format,
            "redo": again,
            "resumed": run.earlier is not None,
        }
        synthesis.run_shards(left, speaker, pool)
        wall_s = time.perf_counter() - started_s
        return conclude(run, plan, len(blocks), wall_s=wall_s, max_failed=flags.max_failed)


def manifest_schema(plan: pa.Table) -> pa.Schema:
    """Columns of the manifest: those of all manifests, then what was carried from the texts."""
    labels = {field.name: field for field in LABEL_FIELDS}
    carried = {"transcript": labels["transcript"]}
    for field in plan.schema:
        name = "transcript" if field.name == "text" else field.name
        if name not in MANIFEST.names:
            meaning = {"meaning": _MEANINGS.get(name, name)}
            carried[name] = labels.get(name) or field.with_metadata(field.metadata or meaning)
    return pa.schema([*MANIFEST, *(carried | {f.name: f for f in MANNER_FIELDS}).values()])


def conclude(run: Run, plan: pa.Table, shards: int, *, wall_s: float, max_failed: float) -> Exit:
    """Check that every text is one row, write the manifest and how it ended, print it.

    Raises RaysersError: rows are missing or too many.
    """
    output = run.output
    speech = parts.read_all(output, TABLE, shards, MANIFEST.names)
    if speech["file"].to_pylist() != plan["file"].to_pylist():
        raise RaysersError(
            f"{output} does not match its texts: {len(plan):,} sounds but {len(speech):,} rows. "
            f"Its parts were changed from outside: delete the folder {TABLE} and run the same "
            "command"
        )
    schema = manifest_schema(plan)
    known = {name: plan[name] for name in plan.column_names} | {"transcript": plan["text"]}
    known |= {name: speech[name] for name in MANIFEST.names}
    columns = [known[field.name].cast(field.type) for field in schema]
    table = pa.table(columns, schema=schema)
    manifest = Manifest.of(table)
    written = is_whole(manifest_parts(output))
    if not written or read_manifest(output, schema.names) != manifest.table(schema.names):
        manifest.write(storage.join(output, "manifest"))
    marks.tidy(output)
    statuses = progress.count_statuses(table)
    failed = 1 - statuses.get(Status.OK, 0) / len(table)
    audio_s = round(manifest.audio_s, 3)
    outcome = {
        "clips": len(table),
        "statuses": statuses,
        "failed_share": round(failed, 6),
        "audio_s": audio_s,
        "wall_s": round(wall_s, 3),
    }
    good = failed <= max_failed
    run.finish("done" if good else "done_with_failures", outcome)
    progress.print_statuses(statuses)
    progress.print_manifest(len(table), audio_s, output)
    if not good:
        progress.print_warning(
            f"{failed:.1%} of the texts were not spoken, more than --max-failed {max_failed:g} "
            "allows: see the columns status and error; --retry STATUS speaks such texts again"
        )
    return Exit.DONE if good else Exit.TOO_MANY_FAILED


# the demo: its samples are the same on every machine; the bytes of a compressed file may not be

#: By emotion: rates in words per minute, pitches and gain of espeak-ng.
DELIVERIES = {
    "happy": ((185, 200, 215), (62, 72, 80), 0.9),
    "angry": ((190, 210, 230), (40, 50, 58), 1.4),
    "sad": ((110, 120, 130), (20, 28, 36), 0.4),
    "neutral": ((155, 165), (45, 50), 0.7),
}
#: Each emotion is spoken by all of them.
SPEAKERS = (
    "en-us", "en-us+f3", "en-gb+m3", "en-gb-scotland+f2", "en-us+m7", "en-029+f5", "en-gb+klatt2",
)  # fmt: skip
#: Suffix, sampling rate and channels of the files; WAV is 16-bit.
FORMATS = (
    ("wav", 16_000, 1), ("flac", 22_050, 1), ("wav", 44_100, 2), ("ogg", 16_000, 1),
    ("wav", 22_050, 1), ("mp3", 44_100, 2),
)  # fmt: skip
_POINTER = b"""version https://git-lfs.github.com/spec/v1
oid sha256:4d7a214614ab2935c943f9e0ff69d22eadbb8f32b1258daaa5e2ca24d17e2393
size 84012
"""


@dataclass(frozen=True, kw_only=True)
class Demo:
    """What to annotate and where to put it."""

    audio: str = ""
    """Folder or s3:// prefix of recordings; empty makes about 60 spoken clips."""
    output: Output = "demo-out"
    """Folder for the tables, and for the clips when they are made."""


@command("audio")
def demo(flags: Demo) -> int:
    """The whole pipeline on synthetic speech, offline.

        raysers demo               about 60 clips and six broken files; 2 minutes
        raysers demo recordings/   your own recordings instead

    Clips are made once and kept, so running the demo again shows how a finished folder resumes.
    """
    audio, more, name = flags.audio, [], "synthetic-speech"
    if audio:  # a name that is unique for every input and starts with its last part
        place = audio if "://" in audio else str(Path(audio).resolve())
        mark = hashlib.sha256(place.encode("utf-8", "surrogateescape")).hexdigest()[:6]
        name = f"{place.rstrip('/').rsplit('/', 1)[-1] or 'root'}-{mark}"
    folder = Path(flags.output, name)
    if not audio:
        audio = str(folder / "audio")
        clips, broken = make_audio(Path(audio))
        print(f"demo: {clips} spoken clips and {broken} broken files in {audio}", flush=True)
        # the broken files alone are more than a healthy archive should have
        more = ["--max-failed", "0.2"]
    tables = folder / "tables"
    code = annotate(["--input", audio, "--output", str(tables), *more])
    table = tables / "annotations"
    if not flags.audio and code in (Exit.DONE, Exit.TOO_MANY_FAILED):
        print_emotions(table)
    if table.is_dir():
        print(f"demo: the table is in {table}; to read it:")
        # make does not put raysers on the path
        print(f"  {sys.executable} -m raysers read {tables}")
    return code


def make_audio(folder: Path) -> tuple[int, int]:
    """Write the spoken clips and the broken files that `folder` lacks; how many there are of each.

    Raises ConfigError: espeak-ng is not installed, or `folder` cannot be written.
    """
    table = resources.files("raysers").joinpath("assets", "demo_sentences.txt").read_text("utf-8")
    lines = [line.split("\t") for line in table.splitlines() if not line.startswith("#")]
    broken = _broken_files()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for number, (emotion, words) in enumerate(lines):
            voice = SPEAKERS[number % len(SPEAKERS)]
            suffix = FORMATS[number % len(FORMATS)][0]
            path = folder / f"{emotion}-{number:02d}-{voice}.{suffix}".replace("+", "-")
            if not path.exists():
                storage.write_atomic(str(path), _spoken(number, emotion, words, voice))
        for name, content in broken.items():
            path = folder / f"broken-{name}.wav"
            if not path.exists():
                storage.write_atomic(str(path), content)
    except (OSError, WriteError) as error:
        message = f"cannot write the demo's clips ({error}): choose another --output"
        raise ConfigError(message) from None
    return len(lines), len(broken)


def _spoken(number: int, emotion: str, words: str, voice: str) -> bytes:
    """A sound file; delivery, speaker and format cycle independently."""
    rates_wpm, pitches, gain = DELIVERIES[emotion]
    suffix, rate_hz, channels = FORMATS[number % len(FORMATS)]
    rate_wpm, pitch = rates_wpm[number % len(rates_wpm)], pitches[number // 2 % len(pitches)]
    line = Line(text=words, voice=voice, rate_wpm=rate_wpm, pitch=pitch)
    samples, spoken_hz = Engine().speak(line)
    mono = np.clip(gain * soxr.resample(samples, spoken_hz, rate_hz), -1, 1)
    # the right channel is softer: a mean of channels must not hide behind equal ones
    stereo = np.stack([mono, 0.5 * mono][:channels], axis=1)
    return _encoded(stereo, rate_hz, suffix, "PCM_16" if suffix == "wav" else None)


def _encoded(
    samples: npt.NDArray[np.float32], rate_hz: int, suffix: str = "wav", subtype: str | None = None
) -> bytes:
    """A sound file of samples, shape (frames, channels)."""
    file = io.BytesIO()
    soundfile.write(file, samples, rate_hz, format=suffix.upper(), subtype=subtype)
    return file.getvalue()


def _broken_files() -> dict[str, bytes]:
    """By name, the bytes of files that cannot be scored."""
    second = np.float32(0.1) * np.sin(np.arange(16_000, dtype=np.float32) / 20)[:, np.newaxis]
    with_nan = second.copy()
    with_nan[8_000] = np.nan
    return {
        "zero-bytes": b"",
        "only-text": b"These are words about sound, not sound.\n" * 20,
        "cut-in-the-middle": _encoded(second, 16_000, subtype="PCM_16")[:20_001],
        "ten-milliseconds": _encoded(second[:160], 16_000, subtype="PCM_16"),
        "not-a-number": _encoded(with_nan, 16_000, subtype="FLOAT"),
        "git-lfs-pointer": _POINTER,
    }


def print_emotions(table: Path) -> None:
    """Print the mean scores of the synthetic clips by emotion."""
    import pandas as pd  # takes long to load

    rows = pd.read_parquet(table, columns=["file", *DIMENSIONS])
    emotion = rows["file"].str.extract(r"([a-z]+)-[^/]*$")[0]
    means = rows.groupby(emotion)[list(DIMENSIONS)].mean().sort_values("arousal", ascending=False)
    print("demo: mean scores by the emotion espeak-ng speaks in")
    print("  emotion  " + "".join(f"{name:>11}" for name in DIMENSIONS))
    for name, scores in means[means.index.isin(list(DELIVERIES))].iterrows():
        print(f"  {name:<9}" + "".join(f"{scores[d]:11.2f}" for d in DIMENSIONS))
