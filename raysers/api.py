"""What `import raysers` offers: score signals, annotate archives, read and evaluate tables.

    import raysers

    table = raysers.annotate("recordings/")
    model = raysers.load_model()
    signal, rate_hz = raysers.decode("recordings/a.flac")
    model.score(signal, rate_hz)["valence"]

Nothing here is imported before it is used, and Ray only by archives of more than an hour.
"""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa

from raysers.annotation import AnnotateTask
from raysers.audio.decode import HIGHEST_RATE_HZ, LOWEST_RATE_HZ, AudioReader
from raysers.audio.samples import converted, converted_length, mono, usable
from raysers.cli import DEFAULT_MODEL, from_values
from raysers.commands.archive import read_rows
from raysers.engine.placement import here
from raysers.engine.worker import score_stream
from raysers.errors import ClipError, ConfigError, StorageError, status_of
from raysers.io import storage
from raysers.run import quiet_environment
from raysers.types import DIMENSIONS, NS_PER_S, SAMPLE_RATE_HZ, Clip, Status

Paths = str | os.PathLike[str] | Sequence[str | os.PathLike[str]]

_MEASURED = ("file", "status", "error", "duration_s", "rms_db", "clipped_ratio")
_LONGEST_S = 600.0
_READERS = 8


class Model:
    """A model on this machine's GPU, or else its CPUs; made by `load_model`.

    `name` is as it was given, `revision` the commit or content hash of its files.
    """

    def __init__(self, task: AnnotateTask) -> None:
        self.name = task.model
        self.revision = task.revision
        self._model = task.open()
        extras = [0.0] * len(task.outputs.columns)
        self._columns = (*_MEASURED, *task.outputs.row([0.0] * len(DIMENSIONS), extras))

    def score(self, signal: npt.ArrayLike, sample_rate_hz: int) -> dict[str, Any]:
        """Scores of one clip, [frames] or [frames, channels], at any sample rate.

        The signal is floats from -1 to 1, or integers of any width. Returns `arousal`, `dominance`,
        `valence` (about 0 to 1), and what else the model predicts: `emotion` and `p_*`
        (probabilities) of categories, `*_sd`, `ood`. Raises ClipError: no samples, NaN or infinite
        ones, or an impossible rate.
        """
        (found,) = self._model.score([_mono_16k(np.asarray(signal), sample_rate_hz)])
        if isinstance(found, ClipError):
            raise found
        return found

    def score_files(self, paths: Paths) -> pd.DataFrame:
        """Scores of whole files, a row each in their order, also of those that cannot be scored.

        The columns are `file`, `status`, `error`, `duration_s`, `rms_db`, `clipped_ratio`, and
        those of `score`.
        """
        files = _absolute(paths)
        clips = [Clip(clip_id=str(number), file=file) for number, file in enumerate(files)]
        rows: dict[str, dict[str, Any]] = {}
        with ThreadPoolExecutor(_READERS) as pool:
            scored = score_stream(self._model, clips, pool, max_clip_s=_LONGEST_S)
            for one, found in scored:
                failure = found if isinstance(found, ClipError) else None
                rows[one.clip.clip_id] = {
                    "file": one.clip.file,
                    "status": str(failure.status if failure else Status.OK),
                    "error": str(failure or ""),
                    "duration_s": None if one.signal is None else one.duration_s,
                    "rms_db": one.rms_db,
                    "clipped_ratio": one.clipped_ratio,
                    **(found if isinstance(found, dict) else {}),
                }
        return pd.DataFrame([rows[clip.clip_id] for clip in clips], columns=self._columns)


def load_model(name: str | os.PathLike[str] = DEFAULT_MODEL, *, dtype: str = "auto") -> Model:
    """Load a model by alias, hub id, folder or s3:// prefix, with an optional @revision.

    `dtype` is `auto` (bf16 where the hardware has it, else fp32), `fp32`, `bf16` or `fp16`. Raises
    ConfigError: unknown model, or one that cannot be trusted to score.
    """
    quiet_environment()
    task = AnnotateTask.load(os.fspath(name), dtype=dtype, max_padded_s=0.0)
    for note in task.notes:
        warnings.warn(note, stacklevel=2)
    return Model(task.placed(here(), None))


def decode(
    path: str | os.PathLike[str],
    *,
    start_s: float = 0.0,
    end_s: float | None = None,
    audio_stream: str | int = 0,
) -> tuple[npt.NDArray[np.float32], int]:
    """Decode a file or URL (from `start_s` to `end_s`) as the models take it.

    `audio_stream` is the number, from 0, language or title of a stream of a container. Returns
    samples [n], float32, the mean of all channels; and their rate, 16,000 Hz. Raises ClipError: the
    audio is missing, damaged or empty; its `status` says which.
    """
    (file,) = _absolute(path)
    end_ns = None if end_s is None else round(end_s * NS_PER_S)
    try:
        with AudioReader(storage.open_source(file), name=file, stream=audio_stream) as reader:
            return reader.read(round(start_s * NS_PER_S), end_ns, max_s=np.inf), SAMPLE_RATE_HZ
    except StorageError as error:
        if failure := status_of(error):
            raise failure from error
        raise


def annotate(
    paths: Paths,
    model: str | os.PathLike[str] = DEFAULT_MODEL,
    *,
    output: str | os.PathLike[str] | None = None,
    **flags: Any,
) -> pd.DataFrame:
    """Score all clips of folders, files or manifests, as the command `raysers annotate` does.

    Up to an hour of audio is scored in this process, more on Ray. Progress goes to stderr.

    Args:
        paths: files, folders, s3:// prefixes, URLs, tar shards or manifests.
        model: as for `load_model`.
        output: folder that keeps the table, and continues it; default: a temporary one.
        **flags: other flags of the command, such as `segment="window"`, `workers=2`.

    Returns one row per clip, whatever happened to it: see its `status` and `error`.

    Raises ConfigError: something the caller must change; TypeError: an unknown flag.
    """
    from raysers.commands.archive import AnnotateFlags
    from raysers.commands.archive import annotate as job

    for name in ("dry_run", "check_dtype"):
        if flags.get(name):
            command = f"raysers annotate --{name.replace('_', '-')}"
            raise ConfigError(f"{name} gives no rows: use the command {command}")
    quiet_environment()
    with contextlib.ExitStack() as stack:
        place = output or stack.enter_context(tempfile.TemporaryDirectory(prefix="raysers-"))
        stack.enter_context(contextlib.redirect_stdout(sys.stderr))
        given = {"input": _absolute(paths), "output": place, "model": model, **flags}
        job.run(from_values(AnnotateFlags, given, "annotate"))
        return read(place, "annotations")


def read(output: str | os.PathLike[str], table: str = "") -> pd.DataFrame:
    """All rows of a table in the output folder of a job (or of a folder of parts itself).

    `table` is its sub-folder; default: the main table of the job. `start_s` and `end_s`, in
    seconds, stand beside `start` and `end`. Raises ConfigError: no such table is there.
    """
    return read_rows(output, table)


def evaluate(
    predictions: pd.DataFrame | Mapping[str, pd.DataFrame],
    labels: pd.DataFrame | Paths,
    **flags: Any,
) -> pd.DataFrame:
    """Compare predictions with labels, as the command `raysers evaluate` does.

    Args:
        predictions: rows of `annotate` or `read`; or a table a model, by its name.
        labels: labelled clips: `file` (and `start`, `end`), any of `arousal`, `dominance`,
            `valence` (0 to 1) and `emotion`, perhaps `speaker`, `sex`, `split`; or a manifest,
            a table or the folder of a corpus.
        **flags: other flags of the command, such as `by=("sex",)`, `bootstrap=0`.

    Returns one value of one metric a row: `model`, `dataset`, `split`, `group`, `group_value`,
    `dimension`, `metric`, `value`, `ci_low`, `ci_high` (95 %), `n`, `paper`.

    Raises ConfigError: predictions and labels do not fit together; TypeError: an unknown flag.
    """
    from raysers.evaluation.evaluate import measure, read_labels
    from raysers.evaluation.flags import EvaluateFlags
    from raysers.evaluation.join import predictions_of
    from raysers.evaluation.rows import to_table

    found = []
    if isinstance(predictions, Mapping):
        for name, frame in predictions.items():
            found.append(replace(predictions_of(_arrow(frame), name), model=name))
    else:
        models = predictions.groupby("model") if "model" in predictions else [("", predictions)]
        found += [predictions_of(_arrow(frame), str(name)) for name, frame in models]
    with _as_places(labels) as places:
        given = {"labels": places, "output": "-", "predictions": "-", **flags}
        made = from_values(EvaluateFlags, given, "evaluate")
        made.check()
        emotions = any(one.has_categories for one in found)
        report = measure(made, read_labels(made, emotions=emotions), found)
    metrics: pd.DataFrame = to_table(report.rows, "").to_pandas()
    return metrics.drop(columns="run_id")


def _arrow(frame: pd.DataFrame) -> pa.Table:
    return pa.Table.from_pandas(frame, preserve_index=False)


def _absolute(paths: Paths) -> list[str]:
    several = [paths] if isinstance(paths, str | os.PathLike) else paths
    return [storage.absolute(os.fspath(path)) for path in several]


@contextlib.contextmanager
def _as_places(labels: pd.DataFrame | Paths) -> Iterator[tuple[str, ...]]:
    """Where the labels are; those of a frame in a temporary table."""
    if not isinstance(labels, pd.DataFrame):
        yield tuple(_absolute(labels))
        return
    if "file" not in labels.columns:
        raise ConfigError(f"labels need a column file; there are {', '.join(labels.columns)}")
    with tempfile.TemporaryDirectory(prefix="raysers-") as folder:
        place = Path(folder, "labels.parquet")
        labels.assign(file=_absolute([*labels["file"]])).to_parquet(place, index=False)
        try:
            yield (str(place),)
        except ConfigError as error:
            raise ConfigError(str(error).replace(str(place), "labels")) from error


def _mono_16k(signal: npt.NDArray[Any], rate_hz: int) -> npt.NDArray[np.float32]:
    """The mean of the channels at 16 kHz, as decoding a file of these samples gives."""
    if np.issubdtype(signal.dtype, np.integer):
        limits = np.iinfo(signal.dtype)
        middle = (int(limits.max) + 1 + int(limits.min)) / 2
        signal = (signal - middle) / (int(limits.max) + 1 - middle)
    if signal.ndim not in (1, 2) or not signal.size:
        raise ClipError(Status.EMPTY, f"a signal of shape {signal.shape}: give [frames]")
    if not LOWEST_RATE_HZ <= rate_hz <= HIGHEST_RATE_HZ:
        raise ClipError(Status.UNSUPPORTED, f"{rate_hz} Hz: give at least {LOWEST_RATE_HZ} Hz")
    samples = np.array(signal, np.float32).reshape(len(signal), -1)
    samples = usable(samples, 0, (0, len(samples)), rate_hz)
    pieces = converted([mono(samples)], rate_hz, len(samples))
    return np.concatenate([*pieces])[: converted_length(len(samples), rate_hz)]
