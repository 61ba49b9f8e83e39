"""EmoDB from files to scores: our job against three ways people do it today, in the same precision.

The hand-written loops are timed without loading the model, so they are compared with our steady
time; the textbook pipeline is compared both ways.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial

from tests.benchmarks import corpus, loops, textbook
from tests.benchmarks.engine import run_model
from tests.benchmarks.measure import Line, Scale, alternate, device_name, fresh, judged

MODELS = ("random:w2v2-b", "random:w2v2-L-robust-12")
#: Ways to be faster than, and by how much.
TARGETS = {"best hand-written loop": 0.85, "one file at a time": 1.8, "textbook pipeline": 1.5}
_BEST, _SINGLE, _TEXTBOOK = TARGETS
#: Clips to choose the hand-written loop's batch size with.
_TRIED_CLIPS = 40
_BATCH_SIZES = {"cpu": (2, 4, 8), "cuda": (16, 32, 64)}


def end_to_end(scale: Scale) -> Iterator[Line]:
    """Per model one line for our side, and one per rival."""
    files = [str(path) for path in corpus.emodb(scale.clips)]
    for model in MODELS:
        yield from _compare(model, files, scale)


def _compare(model: str, files: Sequence[str], scale: Scale) -> Iterator[Line]:
    tried = [str(path) for path in corpus.emodb(min(_TRIED_CLIPS, len(files)))]
    speeds = fresh(loops.try_batch_sizes, model, tried, _BATCH_SIZES[device_name()])
    batch_size = max(speeds, key=lambda size: speeds[size])
    manifest = corpus.manifest_of(files)
    sides = {
        "ours": partial(fresh, run_model, manifest, model),
        _BEST: partial(fresh, loops.best_loop, model, files, batch_size),
        _SINGLE: partial(fresh, loops.one_by_one, model, files),
        _TEXTBOOK: partial(fresh, textbook.pipeline, model, files),
    }
    slow = dict.fromkeys((_SINGLE, _TEXTBOOK), scale.slow_repeats)
    found = alternate(sides, dict.fromkeys(sides, scale.repeats) | slow)
    ours = found.pop("ours")
    about = {"bench": "end_to_end", "model": model, "clips": len(files)}
    yield {**about, "side": "ours", **ours, "x_real_time": ours["audio_s"] / ours["steady_s"]}
    details = {_BEST: {"batch_size": batch_size, "x_real_time_by_batch_size": speeds}}
    for rival, theirs in found.items():
        if theirs["rows"] != len(files):
            raise RuntimeError(f"{rival}: {theirs['rows']} of {len(files)} clips were scored")
        line = {**about, "against": rival, **details.get(rival, {}), **_figures(ours, theirs)}
        ratio = theirs["steady_s"] / ours["steady_s"]
        yield judged(line, ratio=ratio, target=TARGETS[rival])


def _figures(ours: Line, theirs: Line) -> Line:
    figures = {
        "ours_steady_s": ours["steady_s"],
        "theirs_steady_s": theirs["steady_s"],
        "ours_x_real_time": ours["audio_s"] / ours["steady_s"],
        "theirs_x_real_time": ours["audio_s"] / theirs["steady_s"],
    }
    if "wall_s" in theirs:
        figures["ours_with_actors_s"] = ours["wall_s"]
        figures["theirs_with_actors_s"] = theirs["wall_s"]
        figures["ratio_with_actors"] = theirs["wall_s"] / ours["wall_s"]
    return figures
