"""A model as an ONNX file with its metadata, for use without raysers.

    raysers export msp-dim -o msp-dim-onnx/

The graph takes one clip at a time. For CPUs, `--dtype int8` makes a third of the file.

Result: OUTPUT/model.onnx and OUTPUT/model.yaml, the folder that `audonnx.load` reads: input
`signal` (16 kHz), outputs `hidden_states` (the embedding) and `logits` (the dimensions).
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import yaml

from raysers.annotation import AnnotateTask
from raysers.cli import DEFAULT_MODEL, Output, as_plain, command
from raysers.errors import ConfigError
from raysers.io import storage
from raysers.run import Exit, Run
from raysers.types import DIMENSIONS

JOB = "export"
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


def export(flags: ExportFlags) -> int:
    """Load, export, write; returns the exit code."""
    from raysers.models.loading import load_emotion_model
    from raysers.models.onnx import LOGITS, write_graph

    task = AnnotateTask.load(flags.model, dtype=flags.dtype, max_padded_s=0)
    if not task.outputs.trained:
        raise ConfigError(f"--model {flags.model} has categories alone: no dimension to export")
    settings = {"model": task.model, "model_revision": task.revision, "dtype": flags.dtype}
    with Run.open(JOB, flags.output) as run, tempfile.TemporaryDirectory() as folder:
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


main = command(ExportFlags, export, __doc__ or "", positional="model")
