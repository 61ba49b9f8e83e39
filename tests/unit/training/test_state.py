"""Checkpoints that are whole or absent, and the decisions a position takes."""

from __future__ import annotations

import json
import math

import pytest

from raysers.training import checkpoint
from raysers.training.position import TrainProgress

FILES = {"weights.safetensors": b"w", "optimizer.safetensors": b"o"}


def test_the_newest_complete_state_is_read_and_older_ones_are_gone(tmp_path):
    out = str(tmp_path)
    assert checkpoint.latest(out) is None
    for step in (3, 12):
        checkpoint.save(out, step, FILES | {"weights.safetensors": b"%d" % step}, {"a": step})
    saved = checkpoint.latest(out)
    assert (saved.step, dict(saved.notes)) == (12, {"a": 12})
    assert saved.read("weights.safetensors") == b"12"
    assert [p.name for p in (tmp_path / "state").iterdir()] == ["00000012"]


def test_a_state_without_its_mark_does_not_count(tmp_path):
    checkpoint.save(str(tmp_path), 3, FILES, {})
    half = tmp_path / "state" / "00000007"
    half.mkdir()
    (half / "weights.safetensors").write_bytes(b"half")
    assert checkpoint.latest(str(tmp_path)).step == 3
    checkpoint.save(str(tmp_path), 9, FILES, {})
    assert [p.name for p in (tmp_path / "state").iterdir()] == ["00000009"]


def test_a_state_is_never_without_a_complete_one_while_it_is_replaced(tmp_path, monkeypatch):
    out, seen = str(tmp_path), []
    checkpoint.save(out, 1, FILES, {})
    write = checkpoint.storage.write_atomic

    def watched(uri, data):
        seen.append(checkpoint.latest(out).step)
        write(uri, data)
        seen.append(checkpoint.latest(out).step)

    monkeypatch.setattr(checkpoint.storage, "write_atomic", watched)
    checkpoint.save(out, 2, FILES, {})
    assert seen == [1, 1, 1, 1, 1, 2]


def test_clearing_takes_everything_of_ours_with_what_a_killed_process_left(tmp_path):
    checkpoint.save(str(tmp_path), 3, FILES, {})
    (tmp_path / "state" / "00000003" / ".part-abc").write_bytes(b"half")
    (tmp_path / "model.safetensors").write_bytes(b"m")
    checkpoint.clear(str(tmp_path))
    assert [p.name for p in tmp_path.iterdir()] == ["model.safetensors"]


def test_a_state_on_s3_is_the_same(s3):
    out = f"{s3.uri}/run"
    checkpoint.save(out, 1, FILES, {"a": math.nan})
    checkpoint.save(out, 2, FILES, {"a": 1})
    assert sorted(s3.keys()) == [
        f"run/state/00000002/{name}" for name in sorted([*FILES, "state.json"])
    ]
    assert checkpoint.latest(out).read("optimizer.safetensors") == b"o"
    checkpoint.clear(out)
    assert s3.keys() == []


@pytest.mark.parametrize(
    ("means", "kept"),
    [
        ([0.1, 0.3, 0.2, 0.3, 0.4], [True, True, False, False, True]),
        ([math.nan, 0.1, math.nan], [True, True, False]),
        ([-0.5, -0.2, -0.3], [True, True, False]),
    ],
)
def test_only_a_strictly_better_epoch_is_kept(means, kept):
    position = TrainProgress()
    found = [
        position.end_epoch({"arousal": m, "valence": math.nan}, lr=0.1, keep_last=False)
        for m in means
    ]
    assert found == kept
    assert position.waited == kept[::-1].index(True)
    json.dumps(position.state_dict(), allow_nan=True)


def test_categories_alone_are_kept_by_their_recall():
    position = TrainProgress()
    found = [
        position.end_epoch(None, uar, lr=0.1, keep_last=False) for uar in (0.3, 0.5, math.nan, 0.4)
    ]
    assert found == [True, True, False, False]
    beside = TrainProgress()
    ccc = [(0.2, 0.9), (0.1, 1.0), (0.3, 0.1)]
    found = [beside.end_epoch({"arousal": c}, u, lr=0.1, keep_last=False) for c, u in ccc]
    assert found == [True, False, True]
    assert [record["dev_uar"] for record in beside.history] == [0.9, 1.0, 0.1]


def test_a_position_survives_json_to_the_last_bit():
    position = TrainProgress(step=5, epoch=2, best=0.1 + 0.2, failed={"c": "gone"})
    position.sums.loss = 1 / 3
    position.sums.steps = 2
    notes = json.loads(json.dumps(position.state_dict()))
    assert TrainProgress.from_state_dict(5, notes) == position
