"""EmoDB on CPUs in fp32 and int8: our job against ONNX Runtime by hand, one file at a time.

By hand means what its users write: a stock backbone exported by torch, every MatMul quantised
dynamically with default settings, a loop over files. Both sides are timed with the model loaded.
"""

from __future__ import annotations

import tempfile
import time
import warnings
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import soundfile as sf

from tests.benchmarks import corpus
from tests.benchmarks.end_to_end import MODELS
from tests.benchmarks.engine import run_model
from tests.benchmarks.loops import normalised, plain_model
from tests.benchmarks.measure import Line, Scale, alternate, cores, fresh, judged

_DTYPES = ("fp32", "int8")
#: Ours by theirs, in both precisions.
TARGET = 1.0
#: Speed in int8, x real time.
INT8_X_REAL_TIME = {"random:w2v2-b": 20.0}


def onnx_runtime(scale: Scale) -> Iterator[Line]:
    """Per model and precision one line; one more for the speed that int8 has to reach."""
    files = [str(path) for path in corpus.emodb(scale.clips)]
    manifest = corpus.manifest_of(files)
    for model in MODELS:
        with tempfile.TemporaryDirectory() as folder:
            fresh(_export, model, folder)
            sides = {}
            for dtype in _DTYPES:
                sides[f"ours {dtype}"] = partial(
                    fresh, run_model, manifest, model, workers="local", dtype=dtype
                )
                sides[f"by hand {dtype}"] = partial(fresh, _one_by_one, folder, dtype, files)
            fresh(run_model, manifest.slice(0, 1), model, workers="local", dtype="int8")
            fresh(run_model, manifest.slice(0, 1), model, workers="local", dtype="fp32")
            found = alternate(sides, dict.fromkeys(sides, scale.repeats))
        for dtype in _DTYPES:
            ours, theirs = found[f"ours {dtype}"], found[f"by hand {dtype}"]
            line = {
                "bench": "onnx_runtime",
                "model": model,
                "against": f"by hand, {dtype}",
                "clips": len(files),
                "ours_x_real_time": ours["audio_s"] / ours["steady_s"],
                "theirs_x_real_time": ours["audio_s"] / theirs["steady_s"],
            }
            yield judged(line, ratio=theirs["steady_s"] / ours["steady_s"], target=TARGET)
            if dtype == "int8" and model in INT8_X_REAL_TIME:
                least = INT8_X_REAL_TIME[model]
                line["against"] = f"{least:g} x real time, int8"
                yield judged(line, ratio=line["ours_x_real_time"] / least, target=TARGET)


def _export(model: str, folder: str) -> None:
    import torch
    from onnxruntime.quantization import QuantType, quantize_dynamic

    plain = plain_model(model)[0].float()
    fp32, int8 = (Path(folder) / f"{dtype}.onnx" for dtype in _DTYPES)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            plain,
            (torch.randn(1, 32_000), None),
            fp32,
            input_names=["signal"],
            dynamic_axes={"signal": {1: "samples"}},
            opset_version=17,
            dynamo=False,
        )
    quantize_dynamic(fp32, int8, weight_type=QuantType.QInt8, op_types_to_quantize=["MatMul"])


def _one_by_one(folder: str, dtype: str, files: Sequence[str]) -> Line:
    """Read a file, score it, next. To be called in a fresh process."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = cores()
    session = onnxruntime.InferenceSession(Path(folder) / f"{dtype}.onnx", options)

    def score(file: str) -> None:
        signal, _ = sf.read(file, dtype="float32")
        session.run(None, {"signal": normalised(signal)[None]})

    score(files[0])
    began = time.perf_counter()
    for file in files:
        score(file)
    return {"steady_s": time.perf_counter() - began}
