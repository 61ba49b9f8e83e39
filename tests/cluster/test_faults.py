"""Processes and nodes that die in mid-run: nothing lost, nothing doubled, nobody blamed wrongly."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile as sf

from tests.cluster.tasks import POISON

pytestmark = pytest.mark.usefixtures("ray_session")


def test_rows_do_not_depend_on_how_the_work_is_cut(run, rows):
    assert run(out="one", workers=1) == 0
    assert run(out="two", workers=2) == 0
    assert rows("two") == rows("one")
    levels = [((i + 1) / 100) ** 2 for i in range(40)]
    assert [r["arousal"] for r in rows("one")] == pytest.approx(levels, rel=0.01)


def test_a_clip_that_kills_its_worker_is_marked_and_the_job_goes_on(run, rows, clips, tmp_path):
    assert run(out="without") == 0
    poison = clips / "17.wav"
    signal_, rate_hz = sf.read(poison)
    signal_[0] = POISON
    sf.write(poison, signal_, rate_hz)
    assert run() == 0
    by_file = {r["file"]: r for r in rows()}
    assert len(by_file) == 40
    assert by_file[str(poison)]["status"] == "worker_died"
    assert by_file[str(poison)]["arousal"] is None
    for row in rows("without"):
        if row["file"] != str(poison):
            assert by_file[row["file"]]["status"] == "ok"
            assert by_file[row["file"]]["arousal"] == row["arousal"]
    deaths = len(list((tmp_path / "diary-out").iterdir())) - 2
    assert 3 <= deaths <= 6
    assert not (tmp_path / "out" / "_attempts").exists()


def test_killing_a_worker_in_mid_run_changes_no_row(run, rows, tmp_path):
    assert run(out="calm") == 0
    diary = tmp_path / "diary-out"
    killed: list[int] = []

    def kill_one_worker() -> None:
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            at_work = [p for p in diary.glob("*") if len(p.read_text().splitlines()) >= 2]
            if at_work:
                os.kill(int(at_work[0].name), signal.SIGKILL)
                killed.append(int(at_work[0].name))
                return
            time.sleep(0.05)

    killer = threading.Thread(target=kill_one_worker)
    killer.start()
    assert run(pause_s=0.2) == 0
    killer.join()
    assert killed
    assert rows() == rows("calm")


def test_a_full_disk_stops_the_job_loudly_and_loses_nothing(run, rows, tmp_path):
    """A part that cannot be written ends the run; the same command finishes it."""
    from raysers.errors import WriteError

    assert run(out="calm") == 0
    out = tmp_path / "out"
    (out / "annotations").mkdir(parents=True)
    blocker = out / "annotations" / "part-000003.parquet"
    blocker.mkdir()  # a folder where a part must go: no process can replace it by a file
    (blocker / "x").touch()
    with pytest.raises(WriteError, match="part-000003"):
        run()
    (blocker / "x").unlink()
    blocker.rmdir()
    assert run() == 0
    assert rows() == rows("calm")


def test_two_seconds_of_silence_are_not_counted_twice_after_a_lost_summary(run, rows, tmp_path):
    """Working again on a finished shard returns what is there and scores nothing."""
    assert run() == 0
    before = rows()
    scored = sum(len(p.read_text().splitlines()) for p in (tmp_path / "diary-out").iterdir())
    (tmp_path / "out" / "annotations" / "part-000000.parquet").touch()
    assert run() == 0
    assert rows() == before
    after = sum(len(p.read_text().splitlines()) for p in (tmp_path / "diary-out").iterdir())
    assert after == scored


def test_memory_of_a_worker_is_bounded_by_what_is_in_flight(tmp_path):
    """Ten minutes of audio as one clip cost what they are at 16 kHz, not what the file is."""
    import tracemalloc

    from raysers.distributed.feed import decode_run
    from raysers.types import Clip

    path = tmp_path / "wide.wav"
    with sf.SoundFile(path, "w", 96_000, 8, "PCM_16") as file:
        for _ in range(60):
            file.write(np.zeros((96_000, 8), np.int16))
    clip = Clip(clip_id="x", file=str(path), duration_s=60.0)
    tracemalloc.start()
    (decoded,) = decode_run([clip], 600.0)
    peak_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert decoded.duration_s == 60.0
    assert Path(path).stat().st_size > 90e6
    assert peak_bytes < 60e6
