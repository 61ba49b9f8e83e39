"""States that are whole or absent, continue bit for bit, and decide which model is kept."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load_file, save_file

from raysers.errors import CheckpointError
from raysers.training import checkpoint
from raysers.training.checkpoint import DevScores, TrainProgress
from raysers.training.learner import Learner
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
    advance(through, run, 0, 2)
    state = saved(through, str(tmp_path / "middle"))
    advance(through, run, 2, 4)
    resumed = new_learner(run, model_seed=99)
    advance(resumed, run, 3, 4)  # whatever was there is replaced
    state.restore(resumed)
    assert resumed.steps == 2
    advance(resumed, run, 2, 4)
    ends = []
    for name, learner in (("through", through), ("resumed", resumed)):
        saved(learner, str(tmp_path / name), 4)
        folder = tmp_path / name / "state" / "00000004"
        ends.append({file.name: file.read_bytes() for file in folder.iterdir()})
    assert ends[0] == ends[1]
    signals = data_of(run.clips)[0][:4]
    assert np.array_equal(through.predict(signals), resumed.predict(signals))


def test_a_restored_training_needs_no_more_memory_than_before(tmp_path: Path) -> None:
    run = FULL.but(pieces=2, max_padded_s=100.0)
    through, resumed = new_learner(run), new_learner(run)
    through.halvings = 1
    through.checkpoint_gradients()
    advance(through, run, 0, 1)
    saved(through, str(tmp_path)).restore(resumed)
    assert (resumed.halvings, resumed.checkpointing) == (1, True)


def test_states_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    learner = new_learner(FULL)
    advance(learner, FULL, 0, 1)
    state = saved(learner, str(tmp_path))
    for changes in ({"kind": "w2v2-b"}, {"category_weight": 0.0}, {"ema": 0.0}):
        with pytest.raises(CheckpointError, match="does not fit"):
            state.restore(new_learner(FULL.but(**changes)))
    weights, moments = (Path(state.uri, f"{n}.safetensors") for n in ("weights", "optimizer"))
    tensors = load_file(moments)
    tensors = {k: v.clone() for k, v in tensors.items()}
    del tensors[next(key for key in tensors if key.startswith("exp_avg:"))]
    save_file(tensors, moments)
    with pytest.raises(CheckpointError, match="moments are missing"):
        state.restore(learner)
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
    assert seen == [1, 1, 1, 1, 1, 2]


def test_a_state_on_s3_is_the_same(s3, tiny: Learner) -> None:
    out = f"{s3.uri}/run"
    for step in (1, 2):
        saved(tiny, out, step).restore(tiny)
    keys = s3.keys()
    assert {key.rpartition("/")[0] for key in keys} == {"run/state/00000002"}
    checkpoint.clear(out)
    assert s3.keys() == []


def scores(mean: float | None, uar: float | None = None) -> DevScores:
    ccc = None if mean is None else {"arousal": mean, "valence": math.nan}
    return DevScores(ccc=ccc, uar=uar)


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
def test_only_a_strictly_better_epoch_is_kept(found: list[DevScores], kept: list[bool]) -> None:
    progress = TrainProgress()
    assert [progress.end_epoch(one, lr=0.1, keep_last=False) for one in found] == kept
    assert progress.waited == kept[::-1].index(True)
    json.dumps(progress.state_dict(), allow_nan=True)


def test_a_step_within_an_epoch_is_kept_when_that_was_asked_for() -> None:
    for may_keep in (True, False):
        progress = TrainProgress()
        progress.end_epoch(scores(0.3), lr=0.1, keep_last=False)
        assert progress.end_evaluation(scores(0.5), may_keep=may_keep) is may_keep
        assert progress.end_epoch(scores(0.4), lr=0.1, keep_last=False) is not may_keep
        assert progress.history[-1]["kept"]
        assert progress.waited == 0
        assert progress.evaluations == [
            {"epoch": 2, "step": 0, "dev_ccc": {"arousal": 0.5, "valence": None}}
            | {"dev_ccc_mean": 0.5, "kept": may_keep}
        ]


def test_progress_survives_json_to_the_last_bit() -> None:
    progress = TrainProgress(step=5, epoch=2, best=0.1 + 0.2, failed={"c": "gone"})
    progress.end_step(1 / 3, 2.0, 0.1)
    assert TrainProgress.from_state_dict(json.loads(json.dumps(progress.state_dict()))) == progress
