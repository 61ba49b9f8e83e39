"""Commands over archives of audio: index, annotate, transcribe, and read their tables."""

from __future__ import annotations

import math
import os
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, Any, Literal

import pyarrow as pa

from raysers.annotation import AnnotateTask, write_turns
from raysers.cli import DEFAULT_ASR, Flag, Hidden, as_plain
from raysers.commands import command
from raysers.commands.models import check_dtype
from raysers.data.manifest import Manifest
from raysers.engine import listing, progress
from raysers.engine import output as parts
from raysers.engine.job import ClipJob
from raysers.engine.listing import ClipJobFlags, ListingFlags
from raysers.errors import ConfigError
from raysers.io import storage
from raysers.run import Exit, Run

if TYPE_CHECKING:
    import pandas as pd


#: What `--corpus` takes: the readers of `raysers.data.corpora`, and two ways without naming one.
CorpusName = Literal["none", "auto", "audformat", "msp-podcast", "iemocap", "cmu-mosi", "emodb"]


@dataclass(frozen=True, kw_only=True)
class IndexFlags(ListingFlags):
    """Flags of this job."""

    corpus: CorpusName = "none"
    """Which corpus the folders are, for labels; auto recognises them, none takes plain audio."""
    emotion_map: str = ""
    """Map from categories to missing dimensions: russell-mehrabian, or a YAML file."""
    speakers: str = ""
    """CSV with video or speaker, and sex, for corpora without them."""

    def label_settings(self) -> dict[str, str]:
        """Where labels come from; empty without any, so that older outputs stay valid."""
        if self.corpus == "none" and not (self.emotion_map or self.speakers):
            return {}
        is_file = "/" in self.emotion_map or bool(storage.suffix_of(self.emotion_map))
        return {
            "corpus": self.corpus,
            "emotion_map": storage.absolute(self.emotion_map) if is_file else self.emotion_map,
            "speakers": storage.absolute(self.speakers) if self.speakers else "",
        }


@command("input")
def index(flags: IndexFlags) -> int:
    r"""A manifest of clips from audio folders, prefixes, tar shards or tables.

        raysers index s3://bucket/calls -o s3://bucket/calls-manifest \
            --segment window --window-s 10 --hop-s 5
        raysers index emodb -o M --corpus emodb --emotion-map russell-mehrabian

    Reads headers only (all of the audio for --segment vad). The other jobs take OUTPUT as
    --input. With --corpus, each --input is the folder of a corpus; speaker, sex, split,
    transcript and labels go into the manifest.

    Result: OUTPUT/manifest/part-*.parquet, the same bytes for the same input.
    """
    flags = listing.with_absolute_paths(flags)
    labels = flags.label_settings()
    settings = listing.listing_settings(flags) | labels
    with Run.open("index", flags.output) as run:
        run.refuse_other_settings(settings)
        if run.earlier is not None and run.earlier.status == "done":
            print(f"{run.output} holds this manifest already; for new files index elsewhere")
            return Exit.DONE
        if labels:
            segmenting = listing.segmenting(flags)
            table, notes = listing.index_labelled(
                flags.input, **labels, segmenting=segmenting, limit=flags.limit
            )
            manifest = Manifest.of(table)
            listing.refuse_unseen_input(manifest)
        else:
            manifest, notes = listing.list_clips(flags), []
        for note in notes:
            progress.print_warning(note)
        manifest.write(storage.join(run.output, "manifest"))
        about = f"index of {', '.join(flags.input)}"
        parts.write_header(run.output, {"manifest": manifest.part(0).schema}, description=about)
        run.begin(as_plain(flags), settings)
        counts = (progress.count_statuses(part) for part in manifest.parts(["status"]))
        statuses = sum(map(Counter, counts), Counter())
        outcome = {"clips": manifest.num_rows, "statuses": dict(statuses)}
        run.finish("done", outcome)
        progress.print_statuses(statuses)
        progress.print_manifest(manifest.num_rows, manifest.audio_s, run.output)
    return Exit.DONE


@dataclass(frozen=True, kw_only=True)
class AnnotateFlags(ClipJobFlags):
    """Flags of this job."""

    embeddings: bool = False
    """Also write the masked mean of the model's last layer."""
    sample: str = "100%"
    """Score this random share of what is left, such as 1%, and print what the rest will take; the
    same command without it continues."""
    check_dtype: int = 0
    """Score N clips in --dtype and by torch in fp32, print how far the scores part (and CCC where
    there are labels), write nothing."""

    def check(self) -> None:
        """Raises ConfigError naming the first flag with an impossible value."""
        super().check()
        if not 0 < self.share <= 1:
            raise ConfigError(f"--sample is {self.sample}: give a share such as 1%")
        if self.check_dtype < 0:
            raise ConfigError(f"--check-dtype is {self.check_dtype}: give a number of clips")

    @property
    def share(self) -> float:
        """`sample` as a number; nan when it is none."""
        text = self.sample.strip()
        try:
            return float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
        except ValueError:
            return math.nan


@command("input")
def annotate(flags: AnnotateFlags) -> int:
    """Arousal, dominance and valence for every clip of an audio archive.

        raysers annotate recordings/ -o emotions/
        raysers annotate s3://bucket/calls -o s3://bucket/emotions --model msp-dim

    Rerun the command to resume. `--dry-run` estimates time and cost on this cluster, writes
    nothing.

    Result: OUTPUT/annotations/part-*.parquet, one row per clip, whatever happened to the clip.
    """
    flags = replace(flags, dry_run=flags.dry_run or flags.check_dtype > 0)
    with ClipJob.open(flags, "annotate", table=AnnotateTask.table) as job:
        job.prepare(
            AnnotateTask.load(
                flags.model,
                dtype=flags.dtype,
                max_padded_s=flags.max_padded_s,
                embeddings=flags.embeddings,
            )
        )
        if flags.check_dtype:
            return check_dtype(job, flags.check_dtype)
        if flags.dry_run:
            return job.estimate()
        code = job.execute(share=flags.share)
        write_turns(job)
        return code


@dataclass(frozen=True, kw_only=True)
class TranscribeFlags(ClipJobFlags):
    """Flags of this job."""

    model: Hidden = ""
    asr: str = DEFAULT_ASR
    """moonshine (offline), or a hub id, folder or s3:// prefix of any CTC or speech-to-text model
    that transformers loads."""
    language: str = ""
    """Language of all clips (en, de, ...) for a multilingual Whisper, or auto for that of each
    clip; it becomes a column."""
    timestamps: bool = False
    """Also write every word with its start and end (CTC models, Whisper with alignment heads)."""

    def check(self) -> None:
        """Raises ConfigError naming the first flag with an impossible value."""
        super().check()
        if self.model:
            raise ConfigError(f"--model {self.model}: give the recogniser with --asr")


@command("input")
def transcribe(flags: TranscribeFlags) -> int:
    r"""Transcripts of all clips of an audio archive.

        raysers transcribe s3://bucket/calls -o s3://bucket/calls-text \
            --asr facebook/wav2vec2-base-960h

    Without `--asr` it is `moonshine`: English, small, and it needs no download. Rerunning the
    command resumes. Where the manifest has transcripts, the word error rate is printed and
    stored.

    Result: OUTPUT/transcripts/part-*.parquet, one row per clip; clips without speech have empty
    text.
    """
    # its torch would cost every start of the other commands seconds
    from raysers.evaluation.bootstrap import Bootstrap
    from raysers.evaluation.rows import print_notes
    from raysers.words.transcribe import TranscribeTask, print_word_errors, score_words

    with ClipJob.open(flags, "transcribe", table=TranscribeTask.table) as job:
        job.prepare(
            TranscribeTask.load(
                flags.asr,
                dtype=flags.dtype,
                max_padded_s=flags.max_padded_s,
                language=flags.language,
                timestamps=flags.timestamps,
            )
        )
        if flags.dry_run:
            return job.estimate()
        code = job.execute({k: v for k, v in as_plain(job.flags).items() if k != "model"})
        errors = score_words(job, Bootstrap())
        if errors is not None:
            rows, notes = errors
            print_word_errors(rows)
            print_notes(notes)
            print(f"metrics: {storage.join(job.run.output, 'metrics')}")
        return code


#: Tables of outputs; of those in a folder, the first is what its job is about.
TABLES = (
    "annotations", "transcripts", "robustness", "predictions", "metrics", "trials", "cells",
    "manifest",
)  # fmt: skip
#: Columns of little use on a screen.
_LONG = ("clip_id", "model_revision", "run_id", "created_at", "embedding", "etag")
_READERS = 8
#: Rows that a sheet of Excel holds, its heading included.
_SHEET_ROWS = 1_048_576


@dataclass(frozen=True, kw_only=True)
class ReadFlags:
    """What is read, and where it goes."""

    source: Annotated[str, Flag("OUTPUT")]
    """Output of a job, local or s3://."""
    table: str = ""
    """Table to read, a sub-folder; default: the main one of the job."""
    csv: Annotated[str, Flag("FILE")] = ""
    """Write all rows to this file, as CSV."""
    xlsx: Annotated[str, Flag("FILE")] = ""
    """Write all rows to this file, as an Excel sheet."""
    iceberg: Annotated[str, Flag("NAME")] = ""
    """Write all rows to this table, [CATALOG.]NAMESPACE.TABLE, in place of those it has."""
    delta: Annotated[str, Flag("URI")] = ""
    """Write all rows to the Delta table in this folder or prefix, in place of those it has."""
    push_to_hub: Annotated[str, Flag("OWNER/NAME")] = ""
    """Upload card and tables, with names of files, as a private dataset of the Hugging Face hub."""
    rows: int = 10
    """Rows on the screen."""


def _parts(source: str, table: str) -> list[str]:
    """The parts of a table in an output; ConfigError where there are none."""
    place = storage.absolute(source)
    names = (table,) if table else (*TABLES, "")
    folders = (storage.join(place, name) if name else place for name in names)
    found = next(filter(None, map(storage.list_parts, folders)), [])
    if not found:
        expected = table or " or ".join(TABLES)
        raise ConfigError(f"{source} has no {expected} (part-*.parquet): give a job's output")
    return [part.uri for part in found]


def read_rows(output: str | os.PathLike[str], table: str = "") -> pd.DataFrame:
    """See `raysers.read`."""
    with ThreadPoolExecutor(_READERS) as pool:
        tables = list(filter(None, pool.map(parts.read_part, _parts(os.fspath(output), table))))
    frame: pd.DataFrame = pa.concat_tables(tables, promote_options="default").to_pandas()
    for after, name in (("end", "end"), ("end", "start")):
        if name in frame and f"{name}_s" not in frame:
            seconds = frame[name].dt.total_seconds()
            frame.insert(frame.columns.get_loc(after) + 1, f"{name}_s", seconds)
    return frame


@command("source")
def read(flags: ReadFlags) -> int:
    """The rows of an output: the first ones on the screen, or all of them in another format.

        raysers read emotions/
        raysers read s3://bucket/emotions --csv emotions.csv
        raysers read evaluated/ --table metrics --xlsx metrics.xlsx
        raysers read emotions/ --iceberg speech.emotions

    In other programs: pandas.read_parquet("emotions/annotations"), polars.read_parquet, in DuckDB
    SELECT * FROM 'emotions/annotations/*.parquet', datasets.load_dataset("emotions/").
    """
    if flags.rows < 0:
        raise ConfigError(f"--rows is {flags.rows}: give 0 or more")
    if flags.push_to_hub:
        return _push(flags.source, flags.push_to_hub)
    for place, write in ((flags.iceberg, parts.write_iceberg), (flags.delta, parts.write_delta)):
        if place:
            rows = write(place, _parts(flags.source, flags.table))
            print(f"{rows:,} rows in {place}")
    if (flags.iceberg or flags.delta) and not (flags.csv or flags.xlsx):
        return Exit.DONE
    frame = read_rows(flags.source, flags.table)
    # durations mean nothing to spreadsheets, and their times have no zones
    plain = frame.drop(columns=[name for name in ("start", "end") if name in frame])
    for name in plain.select_dtypes("datetimetz"):
        plain[name] = plain[name].dt.strftime("%Y-%m-%dT%H:%M:%SZ")
    for flag, place in (("--csv", flags.csv), ("--xlsx", flags.xlsx)):
        if storage.is_remote(place):
            raise ConfigError(f"{flag} {place}: give a file on this machine")
        try:
            if place and flag == "--csv":
                plain.to_csv(place, index=False)
            elif place:
                _write_sheet(plain, place)
        except (OSError, ValueError) as error:  # a suffix that is none of Excel's is a ValueError
            why = getattr(error, "strerror", None) or error
            raise ConfigError(f"{flag} {place}: {why}") from error
    files = " and ".join(filter(None, (flags.csv, flags.xlsx)))
    if not files and flags.rows:
        shown = [name for name in plain if plain[name].notna().any() and name not in _LONG]
        first = plain[shown].head(flags.rows)
        print(first.to_string(index=False, float_format="{:.3f}".format))
    where = f" in {files}" if files else ""
    print(f"{len(plain):,} rows, {len(plain.columns)} columns{where}")
    return Exit.DONE


def _write_sheet(frame: pd.DataFrame, file: str) -> None:
    if len(frame) >= _SHEET_ROWS:
        raise ConfigError(f"--xlsx: {len(frame):,} rows are more than a sheet holds: give --csv")
    try:
        from openpyxl.cell.cell import ILLEGAL_CHARACTERS_RE as UNFIT
    except ImportError as error:
        raise ConfigError("--xlsx needs openpyxl: pip install 'raysers[tables]'") from error

    def safe(cell: Any) -> Any:
        """Text that a spreadsheet would take for a formula, or cannot hold, as text it can."""
        if not isinstance(cell, str):
            return cell
        return ("'" if cell[:1] == "=" else "") + UNFIT.sub("\N{REPLACEMENT CHARACTER}", cell)

    frame.map(safe).to_excel(file, index=False)


def _push(source: str, name: str) -> int:
    """Upload an output on this machine; runs, claims and audio stay here."""
    from huggingface_hub import HfApi, errors

    place = storage.absolute(source)
    if storage.is_remote(place) or not os.path.isfile(os.path.join(place, "README.md")):
        raise ConfigError(f"{source} has no README.md here: give an output on this machine")
    api = HfApi()
    try:
        api.create_repo(name, repo_type="dataset", private=True, exist_ok=True)
        where = api.upload_folder(
            repo_id=name,
            folder_path=place,
            repo_type="dataset",
            allow_patterns=["README.md", "*/part-*.parquet"],
            ignore_patterns=["db.*"],
        )
    except (errors.HTTPError, OSError, ValueError) as error:  # type: ignore[attr-defined]
        raise ConfigError(f"--push-to-hub {name}: {error}; log in with: hf auth login") from error
    print(f"uploaded: {where.repo_url}")
    return Exit.DONE
