"""One shard of texts: the same sounds whenever it is done, nothing done twice, every text a row."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile

from raysers.data.segments import Segmenting, probe_batch
from raysers.data.sources import list_inputs
from raysers.models.tts import Engine, Line
from raysers.words.synthesize import (
    SPEECH,
    ShardSpeaker,
    SynthesizeFlags,
    shard_blocks,
    utterances,
)

pytest.importorskip("espeakng_loader")
TEXTS = ['He said "no"', "😀 great", "line one\nline two", "שלום", "<b>x</b>", "...", "   "]
#: Speaks the block in a Parquet file, in a process of its own.
ELSEWHERE = (
    "import sys, pyarrow.parquet as pq\n"
    "from raysers.words.synthesize import ShardSpeaker\n"
    "from raysers.models.tts import Engine\n"
    "output, block = sys.argv[1:]\n"
    "ShardSpeaker(Engine(), output, 'run')(pq.read_table(block))\n"
    "assert not {'ray', 'torch'} & set(sys.modules)\n"
)


def speak_shard(output: object, block: pa.Table, run_id: str = "run", **how: object) -> None:
    ShardSpeaker(Engine(), str(output), run_id, **how)(block)


def block_of(output, texts, audio_format="wav") -> pa.Table:
    flags = SynthesizeFlags(output=str(output), audio_format=audio_format)
    (block,) = shard_blocks(utterances(pa.table({"text": texts}), flags, str(output)))
    return block


def rows_of(output: Path) -> list[dict]:
    (part,) = sorted((output / "speech").glob("part-*.parquet"))
    table = pq.ParquetFile(part).read()
    assert table.schema == SPEECH
    return table.to_pylist()


def elsewhere(output: Path, block: pa.Table) -> int:
    """Speak the block in a process of its own; its exit code."""
    output.mkdir(exist_ok=True)
    pq.write_table(block, output / "block.parquet")
    arguments = [output, output / "block.parquet"]
    return subprocess.run([sys.executable, "-c", ELSEWHERE, *arguments], check=False).returncode


def sounds(output: Path) -> dict[str, str]:
    files = sorted((output / "audio").iterdir())
    return {f.name: hashlib.sha256(f.read_bytes()).hexdigest() for f in files}


def test_every_text_is_a_row_and_only_what_was_spoken_is_a_file(tmp_path):
    speak_shard(tmp_path, block_of(tmp_path, TEXTS))
    rows = rows_of(tmp_path)
    assert [row["text"] for row in rows] == TEXTS
    assert [row["status"] for row in rows] == ["ok"] * 5 + ["empty"] * 2
    assert {row["file"] for row in rows[:5]} == {
        str(tmp_path / "audio" / n) for n in sounds(tmp_path)
    }
    assert all(row["error"] for row in rows[5:])
    listed = pa.Table.from_batches(list_inputs([str(tmp_path / "audio")]))
    found = {row["file"]: row for row in probe_batch(listed, Segmenting()).to_pylist()}
    for row in rows[:5]:
        assert found[row["file"]] == {name: row[name] for name in found[row["file"]]}
        stored, rate_hz = soundfile.read(row["file"], dtype="int16")
        spoken, spoken_hz = Engine().speak(Line(text=row["text"], voice=row["voice"]))
        assert rate_hz == spoken_hz
        assert stored.tolist() == (spoken * 32768).tolist()


def test_the_same_sounds_in_another_order_another_folder_and_another_process(tmp_path):
    speak_shard(tmp_path / "a", block_of(tmp_path / "a", TEXTS))
    speak_shard(tmp_path / "b", block_of(tmp_path / "b", TEXTS[::-1]))
    assert elsewhere(tmp_path / "c", block_of(tmp_path / "c", TEXTS)) == 0
    assert sounds(tmp_path / "a") == sounds(tmp_path / "b") == sounds(tmp_path / "c")
    assert len(sounds(tmp_path / "a")) == 5


def test_what_is_there_is_not_spoken_again_and_what_is_broken_is(tmp_path):
    block = block_of(tmp_path, TEXTS)
    speak_shard(tmp_path, block)
    first = rows_of(tmp_path)
    (tmp_path / "speech" / "part-000000.parquet").unlink()
    broken, lost = Path(first[0]["file"]), Path(first[1]["file"])
    whole = sounds(tmp_path)
    broken.write_bytes(b"RIFF not really")
    lost.unlink()
    before = {f: f.stat().st_mtime_ns for f in (tmp_path / "audio").iterdir()}
    speak_shard(tmp_path, block, "again", resumed=True)
    assert sounds(tmp_path) == whole
    after = {f: f.stat().st_mtime_ns for f in (tmp_path / "audio").iterdir()}
    assert {f for f in after if after[f] != before.get(f)} == {broken, lost}
    changing = ("run_id", "created_at", "etag")
    again = rows_of(tmp_path)
    for old, new in zip(first, again, strict=True):
        assert {k: v for k, v in old.items() if k not in changing} == {
            k: v for k, v in new.items() if k not in changing
        }


def test_speech_goes_to_object_storage(s3):
    output = f"{s3.uri}/spoken out"
    block = block_of(output, ["hello", "..."], "flac")
    speak_shard(output, block, audio_format="flac")
    (sound,) = [key for key in s3.keys() if key.endswith(".flac")]  # noqa: SIM118
    assert s3.get(sound).startswith(b"fLaC")
    (part,) = [key for key in s3.keys() if "/speech/part-" in key]  # noqa: SIM118
    rows = pq.ParquetFile(pa.BufferReader(s3.get(part))).read().to_pylist()
    assert [row["status"] for row in rows] == ["ok", "empty"]
    assert rows[0]["etag"]
    assert rows[0]["file"].endswith(sound)


def test_the_plan_has_every_text_in_every_manner_once(tmp_path):
    table = pa.table({"text": ["a", "b", "a"], "language": ["de", None, "de"], "n": [1, 2, 3]})
    flags = SynthesizeFlags(output="", voice=("neutral", "de", "en-us+f3"), rate=(120, 200))
    plan = utterances(table, flags, str(tmp_path))
    # in German the neutral voice is "de" itself
    assert [plan["n"].to_pylist().count(n) for n in (1, 2, 3)] == [4, 6, 4]
    assert len(set(plan["file"].to_pylist())) == len(plan)
    first, third = (plan.filter(pa.array([n == k for n in plan["n"].to_pylist()])) for k in (1, 3))
    for one, other in zip(first["file"].to_pylist(), third["file"].to_pylist(), strict=True):
        assert other == one.replace(".wav", "-2.wav")
