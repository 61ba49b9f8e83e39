"""ONNX Runtime against torch: the same scores, whatever the family, the length and the batch."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from raysers.errors import ConfigError
from raysers.models import onnx as backend
from raysers.models.backbones import Outputs
from raysers.models.cnn14 import Cnn14, Cnn14Config
from raysers.models.loading import LoadedModel
from raysers.models.onnx import ONNX, TORCH, OnnxModel, backend_of, cached_graph
from raysers.models.scorer import Floats, Scorer, Scores
from tests.unit.models.networks import loaded, small_model, speechlike

SIGNALS = [speechlike(n, n) for n in (9_000, 16_000, 40_011, 23_456)]
TRIMMED = {"trim_db": 30.0, "peak_level": 1.0, "final_norm": False}
MODELS = {
    "w2v2-b": lambda: loaded(small_model("w2v2-b")),
    "w2v2-L": lambda: loaded(small_model("w2v2-L")),
    "attentive": lambda: loaded(small_model("hubert-b", pooling_mode="attentive")),
    "wavlm": lambda: loaded(small_model("wavlm-base")),
    "data2vec": lambda: loaded(small_model("data2vec")),
    "mel-front": lambda: loaded(small_model("mel-front")),
    "whisper": lambda: loaded(small_model("whisper-base"), do_normalize=False),
    "trimmed": lambda: loaded(small_model("whisper-base", **TRIMMED), do_normalize=False),
    "cnn14": lambda: loaded(small_cnn14(), do_normalize=False),
}


def small_cnn14() -> Cnn14:
    return Cnn14(Cnn14Config(widths=(8, 8, 16, 16))).eval()


def score(
    model: LoadedModel, signals: Sequence[Floats], dtype: str = "fp32", backend: str = TORCH
) -> Scores:
    return Scorer(model, dtype=dtype, device="cpu", threads=1, backend=backend).score(signals)


def pair(kind: str, dtype: str) -> tuple[Scores, Scores]:
    """Scores by torch and by ONNX Runtime of one set of weights."""
    made = MODELS[kind]()
    run = OnnxModel(made, dtype=dtype, threads=1)
    parts = [run(signal) for signal in SIGNALS]
    scores, embeddings = (np.concatenate(part) for part in zip(*parts, strict=True))
    extras = np.zeros((len(SIGNALS), 0), np.float32)
    return score(made, SIGNALS), Scores(scores=scores, embeddings=embeddings, extras=extras)


@pytest.fixture(autouse=True)
def empty_cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "raysers" / "onnx"


@pytest.mark.parametrize("kind", MODELS)
def test_fp32_scores_are_those_of_torch(kind: str) -> None:
    by_torch, by_onnx = pair(kind, "fp32")
    np.testing.assert_allclose(by_onnx.scores, by_torch.scores, rtol=0, atol=1e-5)
    np.testing.assert_allclose(by_onnx.embeddings, by_torch.embeddings, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", ["w2v2-b", "w2v2-L", "attentive", "wavlm", "trimmed"])
def test_int8_moves_scores_a_little(kind: str) -> None:
    by_torch, by_onnx = pair(kind, "int8")
    moved = np.abs(by_onnx.scores - by_torch.scores)
    assert 0 < moved.max() < 3e-3
    scale = np.abs(by_torch.embeddings).max()
    np.testing.assert_allclose(by_onnx.embeddings, by_torch.embeddings, rtol=0, atol=0.01 * scale)


@pytest.mark.parametrize("dtype", ["fp32", "int8"])
def test_a_clip_scores_the_same_in_any_batch(dtype: str) -> None:
    batch = score(MODELS["w2v2-b"](), SIGNALS, dtype, ONNX)
    alone = [score(MODELS["w2v2-b"](), [signal], dtype, ONNX) for signal in SIGNALS]
    np.testing.assert_array_equal(batch.scores, np.concatenate([one.scores for one in alone]))


def test_extras_and_untrained_dimensions_are_those_of_torch() -> None:
    def made() -> LoadedModel:
        model = MODELS["w2v2-L"]()
        outputs = Outputs(trained=("arousal",), uncertainty_heads=3, ood_rank=2)
        torch.manual_seed(1)
        model.model.attach(outputs)
        return model

    by_torch, by_onnx = score(made(), SIGNALS), score(made(), SIGNALS, backend=ONNX)
    np.testing.assert_array_equal(np.isnan(by_onnx.scores), np.isnan(by_torch.scores))
    assert by_onnx.extras.shape == (len(SIGNALS), 4)
    np.testing.assert_allclose(by_onnx.extras, by_torch.extras, rtol=1e-4, atol=1e-5)


def test_clips_too_long_for_a_frames_by_frames_table_are_left_to_torch() -> None:
    long = speechlike(backend.MAX_SAMPLES + 1, 5)
    both = score(MODELS["mel-front"](), [SIGNALS[0], long], "int8", ONNX).scores
    np.testing.assert_array_equal(both[1], score(MODELS["mel-front"](), [long]).scores[0])
    short = score(MODELS["mel-front"](), SIGNALS[:1], "int8", ONNX).scores[0]
    np.testing.assert_array_equal(both[0], short)


def test_a_model_too_large_for_a_file_is_left_to_torch(monkeypatch) -> None:
    monkeypatch.setattr(backend, "MAX_PARAMETERS", 1000)
    plain = score(MODELS["w2v2-b"](), SIGNALS).scores
    np.testing.assert_array_equal(score(MODELS["w2v2-b"](), SIGNALS, backend=ONNX).scores, plain)
    with pytest.raises(ConfigError, match="more than 1,000 parameters"):
        score(MODELS["w2v2-b"](), SIGNALS, "int8", ONNX)


def test_int8_without_transformer_layers_is_refused() -> None:
    with pytest.raises(ConfigError, match="no transformer layers to quantise; use fp32"):
        score(MODELS["cnn14"](), SIGNALS, "int8", ONNX)


def test_the_cache_is_filled_once_per_model_and_precision(empty_cache, monkeypatch) -> None:
    for _ in range(2):
        for dtype in ("fp32", "int8"):
            score(MODELS["w2v2-b"](), SIGNALS[:1], dtype, ONNX)
    assert len(list(empty_cache.iterdir())) == 2
    monkeypatch.setattr(backend, "write_graph", lambda *_: pytest.fail("exported again"))
    score(MODELS["w2v2-b"](), SIGNALS[:1], "int8", ONNX)
    other = loaded(small_model("w2v2-b"), do_normalize=False)
    with pytest.raises(pytest.fail.Exception):
        score(other, SIGNALS[:1], "int8", ONNX)


def test_processes_that_export_at_once_never_see_half_a_graph(empty_cache, monkeypatch) -> None:
    writing = threading.Barrier(2)

    def slowly(_: LoadedModel, path: Path, dtype: str) -> None:
        with path.open("w") as file:
            file.write("first half, ")
            file.flush()
            writing.wait()
            file.write(dtype)

    monkeypatch.setattr(backend, "write_graph", slowly)
    model, found = MODELS["w2v2-b"](), []

    def export() -> None:
        with cached_graph(model, "fp32") as graph:
            found.append(graph.read_text())

    threads = [threading.Thread(target=export) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == ["first half, fp32"] * 2
    assert len(list(empty_cache.iterdir())) == 1


def test_an_export_that_fails_leaves_nothing(empty_cache, monkeypatch) -> None:
    def fail(_: LoadedModel, path: Path, dtype: str) -> None:
        path.write_text("half")
        raise OSError("disk full")

    monkeypatch.setattr(backend, "write_graph", fail)
    with pytest.raises(OSError, match="disk full"):
        score(MODELS["w2v2-b"](), SIGNALS, backend=ONNX)
    assert list(empty_cache.iterdir()) == []


def test_without_a_cache_folder_graphs_are_temporary(tmp_path, monkeypatch) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "scratch").mkdir()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "scratch"))
    found = score(MODELS["w2v2-b"](), SIGNALS, backend=ONNX).scores
    np.testing.assert_allclose(found, score(MODELS["w2v2-b"](), SIGNALS).scores, atol=1e-5)
    assert list((tmp_path / "scratch").iterdir()) == []


def test_backends_by_precision_and_device() -> None:
    assert [backend_of(dtype, "cpu") for dtype in ("fp32", "int8", "bf16")] == [ONNX, ONNX, TORCH]
    assert [backend_of(dtype, "cuda:1") for dtype in ("fp32", "fp16")] == [TORCH, TORCH]
    with pytest.raises(ConfigError, match="int8 is for CPUs"):
        backend_of("int8", "cuda")


def test_without_onnx_runtime_fp32_is_torch_and_int8_names_the_extra(monkeypatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert backend_of("fp32", "cpu") == TORCH
    with pytest.raises(ConfigError, match=r"pip install 'raysers\[cpu\]'"):
        backend_of("int8", "cpu")
