"""Processes that die during a run: no row lost, doubled, or blamed on the wrong clip."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pytest
import soundfile as sf

from raysers.audio.decode import AudioReader
from raysers.engine.feed import decode_run
from raysers.engine.worker import ShardWorker
from raysers.errors import WriteError
from raysers.io import marks
from raysers.types import Clip, Status
from tests.cluster.tasks import POISON, LevelTask, worker_settings

pytestmark = pytest.mark.usefixtures("ray_session")


def test_a_clip_that_kills_its_worker_is_marked_and_the_job_goes_on(run, rows, clips, tmp_path):
    assert run(out="without", workers="local") == 0
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
    assert run(out="calm", workers="local") == 0
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


@pytest.fixture
def small_disk(tmp_path) -> Iterator[Path]:
    """A file system of 64 kB for the output; needs the right to mount one."""
    folder = tmp_path / "out"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "none", str(folder)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("no right to mount a small file system")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_stops_the_job_loudly_and_loses_nothing(run, rows, small_disk):
    assert run(out="calm", workers="local") == 0
    with pytest.raises(WriteError, match=re.escape(str(small_disk))):
        run()
    done = {p: p.read_bytes() for p in small_disk.glob("annotations/part-*")}
    assert 0 < len(done) < 10
    subprocess.run(["mount", "-o", "remount,size=4m", str(small_disk)], check=True)
    assert run(workers="local") == 0
    assert rows() == rows("calm")
    assert {p: p.read_bytes() for p in done} == done


def test_a_finished_shard_is_not_scored_again_when_only_its_summary_was_lost(clips, tmp_path):
    """What Ray does after a worker dies between writing a part and saying so."""
    files = sorted(map(str, clips.iterdir()))[:3]
    block = pa.table({"clip_id": ["a", "b", "c"], "file": files, "shard": [7, 7, 7]})
    settings = worker_settings(tmp_path)
    first = ShardWorker(settings, LevelTask(diary=str(tmp_path)), lambda *_: None).run(block)
    scored = (tmp_path / str(os.getpid())).read_text()
    marks.begin(str(tmp_path), "part-000007.parquet", "run")  # it died before removing its mark
    again = ShardWorker(settings, LevelTask(diary=str(tmp_path)), lambda *_: None).run(block)
    assert (tmp_path / str(os.getpid())).read_text() == scored
    assert (first.statuses, first.audio_s) == (again.statuses, again.audio_s)
    assert again.decoded == 0
    assert not list((tmp_path / "_attempts").iterdir())


def test_an_error_of_the_decoder_is_the_clips_row_and_nobody_elses(clips, tmp_path, monkeypatch):
    """Whatever a library raises on a hostile file, the shard goes on."""
    read = AudioReader.read

    def fragile(self, *args, **kwargs):
        if self.info.frames == 16_000 + 10:
            raise IndexError("a bug in a library")
        return read(self, *args, **kwargs)

    monkeypatch.setattr(AudioReader, "read", fragile)
    made = [Clip(clip_id=p.name, file=str(p), duration_s=1.0) for p in sorted(clips.iterdir())[:3]]
    fates = [decode_run([clip], 60.0)[0].error for clip in made]
    assert [f and (f.status, str(f)) for f in fates] == [
        None,
        (Status.UNREADABLE, "IndexError: a bug in a library"),
        None,
    ]
