"""Several rows per clip through the engine: one decode, nothing lost, nothing doubled."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import pytest

from raysers.engine import progress
from raysers.engine.feed import Decoded
from raysers.engine.job import ClipJob
from raysers.engine.listing import ClipJobFlags
from raysers.engine.worker import ShardWorker
from raysers.errors import ClipError, RaysersError
from raysers.io import marks
from raysers.run import load_record
from raysers.schemas import ROBUSTNESS
from raysers.types import Status
from tests.cluster.tasks import LevelModel, LevelTask, worker_settings

pytestmark = pytest.mark.usefixtures("ray_session")

NAMES = ("clean", "half", "none")


@dataclass(frozen=True, slots=True, kw_only=True)
class HalvesTask(LevelTask):
    """A clip, its first half, and a variant that no clip has."""

    table: ClassVar[str] = "robustness"

    @property
    def schema(self) -> pa.Schema:
        return ROBUSTNESS

    @property
    def variant_names(self) -> tuple[str, ...]:
        return NAMES

    def variants(self, decoded: Decoded) -> list[Decoded]:
        if decoded.signal is None:
            return [_named(decoded, name) for name in NAMES]
        half = replace(decoded, signal=decoded.signal[: len(decoded.signal) // 2])
        error = ClipError(Status.TOO_SHORT, "none: cannot be applied")
        none = Decoded(clip=decoded.clip, error=error)
        return [_named(decoded, "clean"), _named(half, "half"), _named(none, "none")]

    def open(self) -> LevelModel:
        return HalvesModel(self)


def _named(one: Decoded, name: str) -> Decoded:
    return replace(one, variant=name, columns={"perturbation": name, "parameters": "{}"})


class HalvesModel(LevelModel):
    def score(
        self, signals: Sequence[np.ndarray], transcripts: Sequence[str | None]
    ) -> list[dict[str, Any] | ClipError]:
        rows = super().score(signals, transcripts)
        return [{**row, "valence": 0.0} for row in rows]  # not the size of the batch


@pytest.fixture
def job(run, tmp_path):
    def run_job(**changes: Any) -> int:
        task = HalvesTask(diary=str(tmp_path))
        return run(task=task, **{"workers": "local", "max_failed": 1, **changes})

    return run_job


@pytest.fixture
def rows(rows):
    return partial(rows, table="robustness")


def test_every_clip_has_all_its_variants_from_one_decode_wherever_the_work_is_cut(
    job, rows, tmp_path
):
    assert job(out="one") == 0
    assert job(out="two", workers=2) == 0
    assert job(out="cut", shard_s=15.0) == 0
    assert rows("one") == rows("two") == rows("cut")
    assert [r["perturbation"] for r in rows("one")] == [*NAMES] * 40
    levels = [(i / 100) ** 2 for i in range(1, 41)]
    assert [r["arousal"] for r in rows("one")[::3]] == pytest.approx(levels, rel=0.01)
    assert [r["status"] for r in rows("one")] == ["ok", "ok", "too_short"] * 40
    lengths = [r["duration_s"] for r in rows("one")]
    assert lengths[1::3] == pytest.approx([x / 2 for x in lengths[::3]], abs=1e-4)
    outcome = load_record(str(tmp_path / "one")).outcome
    assert (outcome["decoded"], outcome["clips"], outcome["rows"]) == (40, 40, 120)


def test_lost_parts_are_made_again_and_strange_rows_are_noticed(job, rows, tmp_path):
    assert job() == 0
    before, parts = rows(), sorted((tmp_path / "out" / "robustness").iterdir())
    parts[0].unlink()
    parts[3].unlink()
    assert job() == 0
    assert rows() == before
    doubled = pa.parquet.ParquetFile(parts[1]).read()
    pa.parquet.write_table(pa.concat_tables([doubled, doubled.slice(0, 1)]), parts[1])
    with pytest.raises(RaysersError, match="does not match its manifest"):
        job()
    place = doubled.schema.get_field_index("perturbation")
    odd = doubled.set_column(place, "perturbation", pa.array(["half"] * len(doubled)))
    pa.parquet.write_table(odd, parts[1])
    with pytest.raises(RaysersError, match="does not match its manifest"):
        job()


def test_retry_makes_all_rows_of_a_mended_clip_again_and_no_others(job, rows, clips, tmp_path):
    healthy = (clips / "05.wav").read_bytes()
    (clips / "05.wav").write_text("not audio")
    assert job() == 0
    before = rows()
    broken = [r for r in before if r["file"].endswith("05.wav")]
    assert [(r["perturbation"], r["status"]) for r in broken] == [(n, "unreadable") for n in NAMES]
    (clips / "05.wav").write_bytes(healthy)
    assert job(retry=(Status.UNREADABLE,)) == 0
    after = rows()
    mended = [r for r in after if r["file"].endswith("05.wav")]
    assert [r["status"] for r in mended] == ["ok", "ok", "too_short"]
    assert [r for r in after if r not in mended] == [r for r in before if r not in broken]


def test_a_given_up_clip_is_so_in_all_its_variants(clips, tmp_path):
    files = sorted(map(str, clips.iterdir()))[:2]
    block = pa.table({"clip_id": ["a", "b"], "file": files, "shard": [0, 0]})
    attempt = marks.begin(str(tmp_path), "part-000000.parquet", "run")
    attempt.alone, attempt.deaths_alone = ["a"], {"a": marks.MAX_DEATHS}
    attempt.enter([])
    settings = worker_settings(tmp_path)
    ShardWorker(settings, HalvesTask(diary=str(tmp_path)), lambda *_: None).run(block)
    table = pa.parquet.ParquetFile(tmp_path / "robustness" / "part-000000.parquet").read()
    found = [(r["clip_id"], r["perturbation"], r["status"]) for r in table.to_pylist()]
    assert found == [
        ("a", "clean", "worker_died"), ("a", "half", "worker_died"), ("a", "none", "worker_died"),
        ("b", "clean", "ok"), ("b", "half", "ok"), ("b", "none", "too_short"),
    ]  # fmt: skip


def test_the_estimate_counts_every_variant(clips, tmp_path):
    flags = ClipJobFlags(input=(str(clips),), output=str(tmp_path / "out"), workers=1, dry_run=True)
    with ClipJob.open(flags, "variants", table="robustness") as job:
        job.prepare(HalvesTask(diary=str(tmp_path)))
        guess = progress.estimate(job.plan, job.task, job.placement, 60.0)
    assert guess.audio_s == pytest.approx(3 * job.plan.todo_s())
    assert guess.speed > 0
    assert not (tmp_path / "out").exists()
