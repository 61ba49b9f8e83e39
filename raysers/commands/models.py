"""A finished model: with another column, in another format, in another precision."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import yaml
from numpy.typing import NDArray

from raysers.annotation import AnnotateTask
from raysers.cli import DEFAULT_MODEL, Output, as_plain
from raysers.commands import command
from raysers.data.manifest import clips_of
from raysers.engine import output, progress
from raysers.engine.job import ClipJob
from raysers.engine.placement import io_threads
from raysers.engine.worker import score_stream
from raysers.errors import ConfigError
from raysers.io import storage
from raysers.models.backbones import TRAINED_FILES, parse_model_name
from raysers.run import Exit, Run, load_record
from raysers.types import DIMENSIONS, Status, seed_of

Scores = NDArray[np.float64]
#: What is ordinary is measured on a fifth of the sample by a fit on the rest.
_FOLDS = 5
_LEAST_CLIPS, _MOST_DIRECTIONS = 50, 128


@dataclass(frozen=True, kw_only=True)
class CalibrateFlags:
    """Flags of this job."""

    model: str
    """Alias, hub id, folder or s3:// prefix of the model."""
    sample: str
    """Output of `annotate --embeddings` with this model on the sample."""
    output: Output
    """Folder or s3:// prefix for the model folder."""


@command("model")
def calibrate(flags: CalibrateFlags) -> int:
    """Column `ood` for any model: how far a clip lies from a sample of your own speech.

        raysers annotate sample/ -o sample-scores --model msp-dim --embeddings
        raysers calibrate msp-dim --sample sample-scores -o msp-dim-ood

    The sample is ordinary speech of the archive, a few hundred clips of many speakers. Result:
    OUTPUT, a model folder with the same scores; `annotate --model OUTPUT` also writes `ood`,
    0..1, where .5 is beyond 99 % of the sample.
    """
    task = AnnotateTask.load(flags.model, dtype="fp32", max_padded_s=0)
    sample = storage.absolute(flags.sample)
    embeddings, folds = read_sample(sample, task)
    settings = {"model": task.model, "model_revision": task.revision, "sample": sample}
    with Run.open("calibrate", flags.output) as run, tempfile.TemporaryDirectory() as folder:
        run.refuse_other_settings(settings)
        run.begin(as_plain(flags), settings)
        write_model(task, embeddings, folds, Path(folder))
        for file in sorted(Path(folder).iterdir(), key=lambda f: f.suffix == ".json"):
            storage.write_atomic(storage.join(run.output, file.name), file.read_bytes())
        run.finish("done", {"clips": len(embeddings)})
        print(f"{task.model} with ood from {len(embeddings)} clips: {run.output}")
    return Exit.DONE


def read_sample(uri: str, task: AnnotateTask) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Embeddings float32 [clips, size] of the scored clips, and a fold of each by its recording.

    Raises ConfigError: no embeddings there, of another model, too few, or of one recording.
    """
    record = load_record(uri)
    settings = {} if record is None else record.settings
    if not settings.get("embeddings"):
        raise ConfigError(f"--sample {uri} has no embeddings: give an output of annotate with them")
    if settings.get("model_revision") != task.revision:
        raise ConfigError(
            f"--sample {uri} is of {settings.get('model')} {settings.get('model_revision')}, not of"
            f" --model {task.model} {task.revision}"
        )
    parts = [output.read_part(p.uri) for p in storage.list_parts(storage.join(uri, "annotations"))]
    rows = pa.concat_tables(parts) if parts else pa.table({"status": []})
    rows = rows.filter(pc.equal(rows["status"], str(Status.OK)))
    if rows.num_rows < _LEAST_CLIPS:
        raise ConfigError(f"--sample {uri} has {rows.num_rows} clips; {_LEAST_CLIPS} are needed")
    embeddings = rows["embedding"].combine_chunks().flatten().to_numpy().reshape(rows.num_rows, -1)
    folds = [seed_of("calibrate", file) % _FOLDS for file in rows["file"].to_pylist()]
    if len(set(folds)) == 1:
        raise ConfigError(f"--sample {uri} is of one recording, or too few: give clips of many")
    return embeddings, np.array(folds)


def write_model(
    task: AnnotateTask,
    embeddings: NDArray[np.float32],
    folds: NDArray[np.int64],
    folder: Path,
) -> None:
    """The model with a distance fitted to `embeddings` [clips, size], as a folder."""
    import torch

    from raysers.models.checkpoint import open_folder
    from raysers.models.heads import OutOfDistribution, fit_distance
    from raysers.models.loading import load_emotion_model, save_emotion_model

    name = parse_model_name(storage.fetch_folder(task.load_from))
    loaded = load_emotion_model(name)
    rank = min(_MOST_DIRECTIONS, len(embeddings) // 4, embeddings.shape[1])
    found = fit_distance(embeddings, folds, rank)
    model = loaded.model
    model.ood = OutOfDistribution(model.embedding_size, rank)
    model.ood.load_state_dict({name: torch.from_numpy(v).float() for name, v in found.items()})
    model.outputs = replace(model.outputs, ood_rank=rank)
    save_emotion_model(model, folder, do_normalize=loaded.do_normalize)
    if name.random:
        return
    source = open_folder(name).path
    for kept in ("README.md", "LICENSE*", TRAINED_FILES):  # the card names the licence
        for file in source.glob(kept):
            shutil.copy(file, folder)
    with (folder / "README.md").open("a", encoding="utf-8") as card:
        card.write(f"\n`ood` was fitted to {len(embeddings):,} clips by raysers calibrate.\n")


#: Class and version that `audonnx.load` looks for in the first line.
_AUDONNX_MODEL = "$audonnx.core.model.Model==1.0.0"


@dataclass(frozen=True, kw_only=True)
class ExportFlags:
    """Flags of this job."""

    output: Output
    """Folder or s3:// prefix for model.onnx and model.yaml."""
    model: str = DEFAULT_MODEL
    """Alias, hub id, folder or s3:// prefix of a model, with an optional @revision."""
    dtype: Literal["fp32", "int8"] = "fp32"
    """Precision of the linear layers' weights."""


@command("model")
def export(flags: ExportFlags) -> int:
    """A model as an ONNX file with its metadata, for use without raysers.

        raysers export msp-dim -o msp-dim-onnx/

    The graph takes one clip at a time. For CPUs, `--dtype int8` makes a third of the file.

    Result: OUTPUT/model.onnx and OUTPUT/model.yaml, the folder that `audonnx.load` reads: input
    `signal` (16 kHz), outputs `hidden_states` (the embedding) and `logits` (the dimensions).
    """
    from raysers.models.loading import load_emotion_model
    from raysers.models.onnx import LOGITS, write_graph

    task = AnnotateTask.load(flags.model, dtype=flags.dtype, max_padded_s=0)
    if not task.outputs.trained:
        raise ConfigError(f"--model {flags.model} has categories alone: no dimension to export")
    settings = {"model": task.model, "model_revision": task.revision, "dtype": flags.dtype}
    with Run.open("export", flags.output) as run, tempfile.TemporaryDirectory() as folder:
        run.refuse_other_settings(settings)
        graph = Path(folder) / "model.onnx"
        write_graph(load_emotion_model(storage.fetch_folder(task.load_from)), graph, flags.dtype)
        about = {"path": graph.name, "labels": {LOGITS: list(DIMENSIONS)}, "transform": None}
        text = yaml.safe_dump({_AUDONNX_MODEL: about}, sort_keys=False)
        run.begin(as_plain(flags), settings)
        storage.write_atomic(storage.join(run.output, graph.name), graph.read_bytes())
        storage.write_atomic(storage.join(run.output, "model.yaml"), text.encode())
        run.finish("done", {"bytes": graph.stat().st_size})
        print(f"{task.model} in {flags.dtype}: {storage.join(run.output, graph.name)}")
    return Exit.DONE


def check_dtype(job: ClipJob, clips: int) -> Exit:
    """Score clips in --dtype and by torch in fp32 on one worker, print how far the scores part.

    So many clips are spread evenly over the manifest; nothing is written.
    """
    # its pandas and scipy would cost every start half a second
    from raysers.evaluation.scores import dimensions_of

    task, manifest = job.task, job.plan.manifest
    assert isinstance(task, AnnotateTask)
    good = manifest.filter(pc.equal(manifest["status"], str(Status.OK)))
    places = np.linspace(0, max(good.num_rows - 1, 0), clips).round().astype(int)
    sample = good.take(np.unique(places)) if good.num_rows else good
    exact = replace(task, dtype="fp32", backend="torch")
    arguments = (sample, (task, exact), job.flags.max_clip_s, io_threads(sample, job.placement))
    if job.placement.local:
        chosen, reference = score_with(*arguments)
    else:
        from raysers.engine import cluster

        chosen, reference = cluster.call_on_worker(job.placement, score_with, *arguments)
    both = np.isfinite(chosen) & np.isfinite(reference)
    if not both.any():
        raise ConfigError(f"--check-dtype {clips}: no clip could be scored")
    progress.print_line(
        f"{task.dtype} ({task.backend}) against fp32 (torch), {both.any(1).sum()} clips"
        " (nothing was written)"
    )
    for name, line in deviations(chosen, reference, dimensions_of(sample)).items():
        progress.print_line(f"{name:9}  {line}")
    return Exit.DONE


def score_with(
    sample: pa.Table, tasks: tuple[AnnotateTask, ...], max_clip_s: float, threads: int
) -> list[Scores]:
    """Per task the scores [clips, 3] of the sample; NaN where a clip or dimension has none."""
    found = []
    for task in tasks:
        model = task.open()
        rows: dict[str, Mapping[str, float]] = {}
        with ThreadPoolExecutor(threads) as pool:
            clips = clips_of(sample)
            for one, row in score_stream(model, clips, pool, max_clip_s=max_clip_s):
                rows[one.clip.clip_id] = row if isinstance(row, dict) else {}
        ids = sample["clip_id"].to_pylist()
        scores = [[rows.get(i, {}).get(name, np.nan) for name in DIMENSIONS] for i in ids]
        found.append(np.array(scores, np.float64).reshape(-1, len(DIMENSIONS)))
    return found


def deviations(chosen: Scores, reference: Scores, labels: Scores) -> dict[str, str]:
    """A line per dimension on absolute differences, and on CCC where labels allow one.

    Scores in the precision that is checked, those by torch in fp32, and labels, [clips, 3] each;
    NaN where there are none.
    """
    from raysers.evaluation.scores import ccc

    lines = {}
    for place, name in enumerate(DIMENSIONS):
        new, old, truth = chosen[:, place], reference[:, place], labels[:, place]
        there = np.isfinite(new) & np.isfinite(old)
        if not there.any():
            continue
        moved = np.abs(new - old)[there]
        line = f"mean {moved.mean():.5f}, p95 {np.percentile(moved, 95):.5f}, max {moved.max():.5f}"
        there &= np.isfinite(truth)
        before, after = (ccc(truth[there], scores[there]) for scores in (old, new))
        if np.isfinite(before) and np.isfinite(after):
            line += f"; CCC {before:.4f} to {after:.4f} ({after - before:+.4f})"
        lines[name] = line
    return lines
