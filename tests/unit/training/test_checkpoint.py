"""States that are whole or absent, continue bit for bit, and decide which model is kept."""

from __future__ import annotations

import json
import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

import audmetric
import numpy as np
import pytest

from raysers.errors import CheckpointError
from raysers.training import checkpoint
from raysers.training.checkpoint import TrainProgress, dev_ccc, dev_record, dev_uar
from raysers.training.learner import Learner
from raysers.types import DIMENSIONS
from tests.unit.models.train_runs import Run, batch_of, batches_of, data_of, new_learner

FULL = Run(kind="w2v2-L", dropout=True, steps=4).but(
    ema=0.9, lr=1e-3, schedule="cosine", warmup=0.25
)


def advance(learner: Learner, run: Run, first: int, last: int) -> None:
    for rows in batches_of(run)[first:last]:
        learner.step(batch_of(run, rows))


def saved(learner: Learner, output: str, step: int = 2) -> checkpoint.Saved:
    checkpoint.save(output, TrainProgress(step=step), learner)
    found = checkpoint.latest(output)
    assert found is not None
    return found


@pytest.mark.parametrize(
    "run",
    [
        FULL,
        FULL.but(optimiser="adamw", weight_decay=0.1, ema=0.0),
        FULL.but(kind="cnn14", optimiser="sgd", lr=0.01),
    ],
)
def test_a_restored_training_continues_bit_for_bit(run: Run, tmp_path: Path) -> None:
    through = new_learner(run)
    through.halvings = 1
    through.checkpoint_gradients()  # a restored training needs no more memory than before
    advance(through, run, 0, 2)
    state = saved(through, str(tmp_path / "middle"))
    advance(through, run, 2, 4)
    resumed = new_learner(run, model_seed=99)
    advance(resumed, run, 3, 4)  # whatever was there is replaced
    state.restore(resumed)
    assert (resumed.steps, resumed.halvings, resumed.checkpointing) == (2, 1, True)
    advance(resumed, run, 2, 4)
    ends = []
    for name, learner in (("through", through), ("resumed", resumed)):
        saved(learner, str(tmp_path / name), 4)
        folder = tmp_path / name / "state" / "00000004"
        ends.append({file.name: file.read_bytes() for file in folder.iterdir()})
    assert ends[0] == ends[1]
    signals = data_of(run.clips)[0][:4]
    assert np.array_equal(through.predict(signals), resumed.predict(signals))


def test_states_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    learner = new_learner(FULL)
    advance(learner, FULL, 0, 1)
    state = saved(learner, str(tmp_path))
    for changes in ({"kind": "w2v2-b"}, {"category_weight": 0.0}):
        with pytest.raises(CheckpointError, match="does not fit"):
            state.restore(new_learner(FULL.but(**changes)))
    weights = Path(state.uri, "weights.safetensors")
    weights.write_bytes(weights.read_bytes()[:-9])
    with pytest.raises(CheckpointError, match="damaged"):
        state.restore(learner)


@pytest.fixture(scope="module")
def tiny() -> Learner:
    return new_learner(Run())


def test_the_newest_complete_state_counts_and_older_ones_go(tmp_path: Path, tiny: Learner) -> None:
    assert checkpoint.latest(str(tmp_path)) is None
    for step in (3, 12):
        assert saved(tiny, str(tmp_path), step).progress.step == step
    half = tmp_path / "state" / "00000017"
    half.mkdir()
    (half / "weights.safetensors").write_bytes(b"half")
    (tmp_path / "state" / "progress.json").write_text("{}")
    assert checkpoint.latest(str(tmp_path)).progress.step == 12
    saved(tiny, str(tmp_path), 19)
    assert {p.name for p in (tmp_path / "state").iterdir()} == {"00000019", "progress.json"}
    (tmp_path / "state" / "00000019" / ".part-abc").write_bytes(b"half")
    (tmp_path / "model.safetensors").write_bytes(b"m")
    checkpoint.clear(str(tmp_path))
    assert [p.name for p in tmp_path.iterdir()] == ["model.safetensors"]


def test_a_complete_state_is_there_while_another_is_written(
    tmp_path: Path, tiny: Learner, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []
    saved(tiny, str(tmp_path), 1)
    write = checkpoint.storage.write_atomic

    def watched(uri: str, data: bytes) -> None:
        seen.append(checkpoint.latest(str(tmp_path)).progress.step)
        write(uri, data)
        seen.append(checkpoint.latest(str(tmp_path)).progress.step)

    monkeypatch.setattr(checkpoint.storage, "write_atomic", watched)
    saved(tiny, str(tmp_path), 2)
    assert seen == [1] * 7 + [2]


def scores(mean: float | None, uar: float | None = None) -> dict[str, Any]:
    return dev_record(None if mean is None else {"arousal": mean, "valence": math.nan}, uar)


@pytest.mark.parametrize(
    ("found", "kept"),
    [
        ([scores(m) for m in (0.1, 0.3, 0.2, 0.3, 0.4)], [True, True, False, False, True]),
        ([scores(m) for m in (math.nan, 0.1, math.nan)], [True, True, False]),
        ([scores(m) for m in (-0.5, -0.2, -0.3)], [True, True, False]),
        ([scores(None, u) for u in (0.3, 0.5, math.nan, 0.4)], [True, True, False, False]),
        ([scores(0.2, 0.9), scores(0.1, 1.0), scores(0.3, 0.1)], [True, False, True]),
    ],
)
def test_only_a_strictly_better_epoch_is_kept(found: list[Any], kept: list[bool]) -> None:
    progress = TrainProgress()
    assert [progress.end_epoch(one, lr=0.1, keep_last=False) for one in found] == kept
    assert progress.waited == kept[::-1].index(True)


def test_a_step_within_an_epoch_is_kept_when_that_was_asked_for() -> None:
    for may_keep in (True, False):
        progress = TrainProgress()
        progress.end_step(0.5, 2.0, 0.1)
        progress.end_epoch(scores(0.3), lr=0.1, keep_last=False)
        progress.end_step(1 / 3, 2.0, 0.1)
        assert progress.end_evaluation(scores(0.5), may_keep=may_keep) is may_keep
        # survives JSON to the last bit
        assert TrainProgress.from_dict(json.loads(json.dumps(asdict(progress)))) == progress
        assert progress.end_epoch(scores(0.4), lr=0.1, keep_last=False) is not may_keep
        assert (progress.history[-1]["kept"], progress.waited) == (True, 0)
        assert progress.evaluations == [
            {"epoch": 2, "step": 2, "dev_ccc": {"arousal": 0.5, "valence": None}}
            | {"dev_ccc_mean": 0.5, "kept": may_keep}
        ]


def test_dev_scores_leave_out_clips_without_a_label_or_a_signal_and_no_others() -> None:
    rng = np.random.default_rng(0)
    labels = rng.random((60, 3)).astype(np.float32)
    predictions = labels + rng.normal(0, 0.1, labels.shape)
    labels[:5, 0] = predictions[50:] = np.nan
    classes, probabilities = rng.integers(0, 3, 60), rng.dirichlet((1, 1, 1), 60)
    classes[:10], probabilities[50:] = -1, np.nan
    found = dev_ccc(labels, predictions)
    for column, name in enumerate(DIMENSIONS):
        pair = (part[5 if name == "arousal" else 0 : 50, column] for part in (labels, predictions))
        assert found[name] == pytest.approx(audmetric.concordance_cc(*pair), abs=1e-6)
    recall = audmetric.unweighted_average_recall(classes[10:50], probabilities[10:50].argmax(1))
    assert dev_uar(classes, probabilities) == pytest.approx(recall)
    assert math.isnan(dev_uar(np.full(60, -1), probabilities))
    # a network that fails on a clip is not judged by the others
    predictions[20, 1] = probabilities[20] = np.inf
    assert all(math.isnan(value) for value in dev_ccc(labels, predictions).values())
    assert math.isnan(dev_uar(classes, probabilities))
