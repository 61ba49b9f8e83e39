"""What one pass of `fuse predict` costs, against the two it replaces: annotate and transcribe.

All sides are the engine's worker in this process, without Ray, with their models loaded once: the
built-in acoustic model, moonshine, and MiniLM with heads of random weights. Two stages would cost
the sum of the passes, and the text encoder besides.
"""

from __future__ import annotations

import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial

import pyarrow as pa

from raysers.annotation import AnnotateTask
from raysers.cli import DEFAULT_MODEL
from raysers.errors import ConfigError
from raysers.models.fusion import (
    SOUND,
    SOURCES,
    WORDS,
    Fusion,
    FusionConfig,
    FusionHead,
    load_fusion,
    save_fusion,
)
from raysers.words.fusion import FusionTask
from tests.benchmarks import corpus
from tests.benchmarks.engine import WarmWorker, blocks_of
from tests.benchmarks.measure import Line, Scale, fresh, judged

#: The most that the one pass may cost of the other two.
TARGET = 1.05
#: Fewer make shards of a few clips each, unlike those of any archive.
_LEAST_CLIPS = 120


def fuse(scale: Scale) -> Iterator[Line]:
    """Wall time and CPU time of the one pass, by those of the two."""
    yield from fresh(_measured, max(_LEAST_CLIPS, scale.clips), scale.repeats)


def _measured(clips: int, repeats: int) -> list[Line]:
    manifest = corpus.manifest_of([str(path) for path in corpus.emodb(clips)])
    with tempfile.TemporaryDirectory() as folder:
        try:
            fused = _task(folder)
        except ConfigError as error:
            return [{"bench": "fuse", "skipped": str(error)}]
        assert fused.asr is not None
        tasks = {
            "fuse": fused,
            "annotate": replace(fused.sound, embeddings=False),
            "transcribe": fused.asr,
        }
        sides = {name: partial(_run, WarmWorker(task)) for name, task in tasks.items()}
        names, blocks = list(sides), blocks_of(manifest)
        for run in sides.values():
            run(blocks[:1])  # first forward passes are slow
        found: dict[str, Counter[str]] = {name: Counter() for name in names}
        # in turns, shard by shard, so that a slow moment of the machine hits all sides
        for turn, block in enumerate(blocks * repeats):
            for name in names[turn % 3 :] + names[: turn % 3]:
                time.sleep(0.1)  # threads of the side before spin for a while
                found[name].update(sides[name]([block]))
    about = {
        "bench": "fuse",
        "clips": manifest.num_rows,
        "decodes_per_clip": found["fuse"]["decoded"] / manifest.num_rows / repeats,
        "x_real_time": found["fuse"]["audio_s"] / found["fuse"]["wall_s"],
    }
    about |= {f"{name}_{kind}": of[kind] / repeats for name, of in found.items() for kind in _KINDS}
    return [
        judged(
            {**about, "measure": kind.partition("_")[0] + " time"},
            ratio=found["fuse"][kind] / (found["annotate"][kind] + found["transcribe"][kind]),
            target=TARGET,
            lower=True,
        )
        for kind in _KINDS
    ]


_KINDS = ("wall_s", "cpu_s")


def _run(worker: WarmWorker, blocks: Sequence[pa.Table]) -> Line:
    began_s = time.process_time()
    return {**worker.run(blocks), "cpu_s": time.process_time() - began_s}


def _task(folder: str) -> FusionTask:
    """The task of a fusion with new heads, stored in the folder."""
    sound = AnnotateTask.load(DEFAULT_MODEL, dtype="auto", max_padded_s=0, embeddings=True)
    task = FusionTask.load(sound, "minilm", "mean").with_recogniser("moonshine", recognise_all=True)
    sizes = {SOUND: sound.hidden_size, WORDS: task.text_size}
    config = FusionConfig(
        acoustic_model=sound.model,
        acoustic_revision=sound.revision,
        text_model=task.text_model,
        text_revision=task.text_revision,
        text_pooling=task.text_pooling,
        asr="moonshine",
        asr_revision=task.asr.revision if task.asr else "",
        recognise_all=True,
        sound_size=sizes[SOUND],
        words_size=sizes[WORDS],
        dropout=0.0,
    )
    heads = {name: FusionHead(sum(sizes[s] for s in of), 0.0) for name, of in SOURCES.items()}
    save_fusion(Fusion(config=config, heads=heads), folder)
    return replace(task, fusion=folder, fusion_revision=load_fusion(folder).revision)
