"""Column `ood` for any model: how far a clip lies from a sample of your own speech.

    raysers annotate sample/ -o sample-scores --model msp-dim --embeddings
    raysers calibrate msp-dim --sample sample-scores -o msp-dim-ood

The sample is ordinary speech of the archive, a few hundred clips of many speakers. Result: OUTPUT,
a model folder with the same scores; `annotate --model OUTPUT` also writes `ood`, 0..1, where .5 is
beyond 99 % of the sample.
"""

from __future__ import annotations

import shutil
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from raysers.annotation import AnnotateTask
from raysers.cli import Output, as_plain, command
from raysers.engine import output
from raysers.errors import ConfigError
from raysers.io import storage
from raysers.models.backbones import TRAINED_FILES, parse_model_name
from raysers.run import Exit, Run, load_record
from raysers.types import Status, seed_of

JOB = "calibrate"
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


def calibrate(flags: CalibrateFlags) -> int:
    """Read the embeddings, fit, write the model folder; returns the exit code."""
    task = AnnotateTask.load(flags.model, dtype="fp32", max_padded_s=0)
    embeddings, folds = read_sample(storage.absolute(flags.sample), task)
    settings = {"model": task.model, "model_revision": task.revision, "sample": flags.sample}
    with Run.open(JOB, flags.output) as run, tempfile.TemporaryDirectory() as folder:
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

    Raises:
        ConfigError: no embeddings there, of another model, or too few.
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
    return embeddings, np.array(folds)


def write_model(
    task: AnnotateTask,
    embeddings: NDArray[np.float32],
    folds: NDArray[np.int64],
    folder: Path,
) -> None:
    """The model with a distance fitted to `embeddings` [clips, size], as a folder."""
    import torch

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
    for kept in ("LICENSE*", TRAINED_FILES) if name.path else ():
        for file in Path(str(name.path)).glob(kept):
            shutil.copy(file, folder)


main = command(CalibrateFlags, calibrate, __doc__ or "", positional="model")
