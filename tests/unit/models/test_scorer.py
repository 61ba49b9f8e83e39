"""Scoring: precisions, padding budgets, and each clip's own fate."""

from __future__ import annotations

import pickle
import platform
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from raysers.errors import ClipError, ConfigError, DeviceLost
from raysers.models.emotion import EmotionModel
from raysers.models.loading import load_emotion_model
from raysers.models.scorer import PRECISIONS, Row, Scorer, dtype_name, score_rows
from raysers.types import Status
from tests.places import SHARED_DATA, needs_shared
from tests.unit.models.networks import PlainModel, loaded, small_model, speechlike


class Moody(EmotionModel):
    """A real network with a memory limit in rows, and clips it cannot stand."""

    most_rows = 10**9
    batches: list[int]
    error: type[BaseException] = torch.OutOfMemoryError
    message = "CUDA out of memory. Tried to allocate 2 GiB"
    bad_length = -1
    bad_error: Exception = RuntimeError("expected scalar type Half but found Float")

    def forward(self, padded: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        self.batches.append(len(padded))
        if len(padded) > self.most_rows:
            raise self.error(self.message)
        if self.bad_length in lengths.tolist():
            raise self.bad_error
        return super().forward(padded, lengths)


def moody(**attributes: object) -> tuple[Moody, Scorer]:
    plain = small_model("w2v2-L")
    model = Moody(plain.config)
    model.load_state_dict(plain.state_dict())
    model.batches = []
    for name, value in attributes.items():
        setattr(model, name, value)
    return model, Scorer(loaded(model.eval()), dtype="fp32", device="cpu", threads=1)


SIGNALS = [speechlike(n, n) for n in (4_000, 9_000, 2_000, 7_000, 5_000)]


def expected_scores() -> list[np.ndarray]:
    plain = PlainModel(small_model("w2v2-L"))
    return [plain(signal)[0] for signal in SIGNALS]


def good(row: Row | ClipError) -> np.ndarray:
    assert isinstance(row, Row), row
    return row.scores


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (torch.OutOfMemoryError, "CUDA out of memory. Tried to allocate 2 GiB"),
        (RuntimeError, "[enforce fail] DefaultCPUAllocator: not enough memory: you tried to ..."),
        (MemoryError, ""),
    ],
)
def test_out_of_memory_halves_the_batch(error: type[BaseException], message: str) -> None:
    model, scorer = moody(most_rows=2, error=error, message=message)
    rows = score_rows(scorer, SIGNALS)
    np.testing.assert_allclose([good(r) for r in rows], expected_scores(), rtol=0, atol=1e-5)
    assert model.batches == [5, 3, 2, 1, 2]


def test_a_single_clip_out_of_memory_is_its_own_fate() -> None:
    _, scorer = moody(most_rows=0)
    rows = score_rows(scorer, SIGNALS[:2])
    assert [getattr(r, "status", None) for r in rows] == [Status.OUT_OF_MEMORY] * 2
    assert "0.6 s clip" in str(rows[1])
    assert pickle.loads(pickle.dumps(rows[0])).status == Status.OUT_OF_MEMORY


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (RuntimeError("expected scalar\n  type Half"), "RuntimeError: expected scalar type Half"),
        (ValueError("bad shape"), "ValueError: bad shape"),
        (ZeroDivisionError("division by zero"), "ZeroDivisionError: division by zero"),
        (IndexError("out of range"), "IndexError: out of range"),
        (NotImplementedError(), "NotImplementedError: "),
    ],
)
def test_one_bad_clip_does_not_take_its_batch_along(error: Exception, message: str) -> None:
    _, scorer = moody(bad_length=2_000, bad_error=error)
    rows = score_rows(scorer, SIGNALS)
    assert isinstance(rows[2], ClipError)
    assert rows[2].status == Status.MODEL_ERROR
    assert str(rows[2]) == f"0.1 s clip: {message}"
    others = [0, 1, 3, 4]
    np.testing.assert_allclose(
        [good(rows[i]) for i in others],
        [expected_scores()[i] for i in others],
        rtol=0,
        atol=1e-5,
    )


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (torch.AcceleratorError, "CUDA error: device-side assert triggered"),
        (RuntimeError, "CUDA error: an illegal memory access was encountered"),
    ],
)
def test_a_lost_accelerator_ends_the_process(error: type[Exception], message: str) -> None:
    model, scorer = moody(most_rows=0, error=error, message=message)
    with pytest.raises(DeviceLost, match=message):
        score_rows(scorer, SIGNALS)
    assert model.batches == [5]  # no second try on a device that is gone


def test_short_and_spoilt_clips_between_good_ones() -> None:
    _, scorer = moody()
    spoilt = np.full(3_000, np.inf, np.float32)
    rows = score_rows(scorer, [SIGNALS[0], speechlike(399, 0), spoilt, SIGNALS[1], SIGNALS[0][:0]])
    statuses = [getattr(r, "status", Status.OK) for r in rows]
    assert statuses == [
        Status.OK,
        Status.TOO_SHORT,
        Status.MODEL_ERROR,
        Status.OK,
        Status.TOO_SHORT,
    ]
    assert "399" in str(rows[1])
    assert "400" in str(rows[1])
    np.testing.assert_allclose(
        [good(rows[0]), good(rows[3])], expected_scores()[:2], rtol=0, atol=1e-5
    )


def test_choice_of_precision() -> None:
    assert PRECISIONS[dtype_name("fp32", "cpu")] is torch.float32
    assert PRECISIONS[dtype_name("bf16", "cpu")] is torch.bfloat16
    assert PRECISIONS[dtype_name("fp16", "cuda:0")] is torch.float16
    assert [dtype_name(name, "cuda") for name in ("fp32", "bf16", "fp16")] == [
        "fp32",
        "bf16",
        "fp16",
    ]
    with pytest.raises(ConfigError, match="needs a GPU"):
        dtype_name("fp16", "cpu")
    with pytest.raises(ConfigError, match="choose from"):
        dtype_name("int8", "cpu")


CPU_FLAGS = Path("/proc/cpuinfo")


@pytest.mark.skipif(
    not CPU_FLAGS.exists() or platform.machine() != "x86_64", reason="reads Linux's x86 flags"
)
def test_auto_is_bf16_where_the_kernel_says_the_cpu_has_it() -> None:
    flags = CPU_FLAGS.read_text().split()
    has = "avx512_bf16" in flags or "amx_tile" in flags
    assert dtype_name("auto", "cpu") == ("bf16" if has else "fp32")
    assert PRECISIONS[dtype_name("auto", "cpu")] is (torch.bfloat16 if has else torch.float32)


def test_exact_convolutions_change_nothing_else() -> None:
    """The library's own context switches it off altogether unless told otherwise."""
    cudnn = torch.backends.cudnn
    seen: list[tuple[bool, ...]] = []
    model = small_model("w2v2-L")
    model.backbone.feature_projection.register_forward_pre_hook(
        lambda *_: seen.append(
            (cudnn.enabled, cudnn.allow_tf32, cudnn.benchmark, cudnn.deterministic)
        )
    )
    scorer = Scorer(loaded(model), dtype="fp32", device="cpu", threads=1)
    with cudnn.flags(enabled=True, benchmark=True, deterministic=True, allow_tf32=True):
        scorer.score(SIGNALS[:1])
        assert cudnn.allow_tf32
    assert seen == [(True, False, True, True)]


@pytest.fixture(scope="module")
def pair() -> tuple[Scorer, Scorer]:
    """A group-norm model of full width in fp32 and bf16."""
    return tuple(
        Scorer(load_emotion_model("random:w2v2-b-2"), dtype=dtype, device="cpu", threads=1)
        for dtype in ("fp32", "bf16")
    )


def speech() -> list[np.ndarray]:
    import soundfile

    files = sorted((SHARED_DATA / "emodb" / "wav").glob("*.wav"))[::180]
    return [soundfile.read(f, dtype="float32")[0][:16_000] for f in files]


def farthest(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.abs(a - b).max())


@needs_shared
def test_bf16_stays_close_on_real_speech(pair: tuple[Scorer, Scorer]) -> None:
    """The documented deviation, on acted German speech; the head and the pooling are fp32."""
    exact, rough = (scorer.score(speech()) for scorer in pair)
    for values in (rough.scores, rough.embeddings):  # finer than bf16 can hold
        assert not torch.equal(torch.tensor(values).bfloat16().float(), torch.tensor(values))
    assert 0 < farthest(exact.scores, rough.scores) < 0.004
    assert 0 < farthest(exact.embeddings, rough.embeddings) < 0.02
    assert np.ptp(exact.scores, axis=0).max() > 0.008  # clips differ by more than the bound


@needs_shared
def test_bf16_stands_a_rumble_far_louder_than_the_speech(pair: tuple[Scorer, Scorer]) -> None:
    """The group norm takes it out again, but only if nothing is rounded before."""
    signals = [
        s + 500 * s.std() * np.sin(2 * np.pi * 2 / 16_000 * np.arange(len(s), dtype=np.float32))
        for s in speech()
    ]
    exact, rough = (scorer.score(signals) for scorer in pair)
    assert farthest(exact.scores, rough.scores) < 0.008
    assert farthest(exact.embeddings, rough.embeddings) < 0.05


PEAK = """
import resource, numpy as np
from raysers.models.loading import build_network
from raysers.models.scorer import Scorer
from tests.unit.models.networks import loaded, small_config
wide_front = {"conv_dim": [512, 32, 32, 32, 32, 32, 32]}
for kind in ("w2v2-b", "w2v2-L"):
    model = build_network(small_config(kind) | wide_front, kind).eval()
    scorer = Scorer(loaded(model), dtype="fp32", device="cpu", threads=1)
    scorer.score([np.ones(16_000, np.float32)])
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    scorer.score([np.random.default_rng(0).normal(size=100 * 16_000).astype(np.float32)])
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


@pytest.mark.slow
def test_memory_of_a_long_clip_is_linear_and_small() -> None:
    """100 s: the first layer in one piece takes 650 MB, a table of frame pairs 400 MB."""
    done = subprocess.run([sys.executable, "-c", PEAK], capture_output=True, text=True, check=True)
    unit = 1 if sys.platform == "darwin" else 1024
    assert [int(kib) * unit < 250e6 for kib in done.stdout.split()] == [True, True], done.stdout
