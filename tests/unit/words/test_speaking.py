"""One shard of texts: the same sounds whenever it is done, nothing done twice, every text a row."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile

from raysers.data.segments import Segmenting, probe_batch
from raysers.data.sources import list_inputs
from raysers.models.tts import NEUTRAL, Engine, Line
from raysers.words.speaking import SPEECH, Speaking, speak_shard
from raysers.words.synthesize import VoiceVariants, shard_blocks, utterances

pytest.importorskip("espeakng_loader")
TEXTS = ['He said "no"', "😀 great", "line one\nline two", "שלום", "<b>x</b>", "...", "   "]
ESPEAK = VoiceVariants(voices=[NEUTRAL], rates=[175], pitches=[50])
#: Speaks the block in a Parquet file, in a process of its own.
ELSEWHERE = (
    "import sys, pyarrow.parquet as pq\n"
    "from raysers.words.speaking import Speaking, speak_shard\n"
    "from raysers.models.tts import Engine\n"
    "output, block = sys.argv[1:]\n"
    "speak_shard(pq.read_table(block), Speaking(engine=Engine(), output=output,\n"
    "    run_id='run', audio_format='wav', redo=frozenset(), resumed=False))\n"
    "assert not {'ray', 'torch'} & set(sys.modules)\n"
)


def speaking(output, **changes) -> Speaking:
    plain = Speaking(
        engine=Engine(),
        output=str(output),
        run_id="run",
        audio_format="wav",
        redo=frozenset(),
        resumed=False,
    )
    return replace(plain, **changes)


def block_of(output, texts, suffix=".wav") -> pa.Table:
    table = pa.table({"text": texts})
    (block,) = shard_blocks(utterances(table, ESPEAK, Engine(), str(output), suffix))
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
    speak_shard(block_of(tmp_path, TEXTS), speaking(tmp_path))
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
    speak_shard(block_of(tmp_path / "a", TEXTS), speaking(tmp_path / "a"))
    backwards = block_of(tmp_path / "b", TEXTS[::-1])
    speak_shard(backwards, speaking(tmp_path / "b"))
    assert elsewhere(tmp_path / "c", block_of(tmp_path / "c", TEXTS)) == 0
    assert sounds(tmp_path / "a") == sounds(tmp_path / "b") == sounds(tmp_path / "c")
    assert len(sounds(tmp_path / "a")) == 5


def test_what_is_there_is_not_spoken_again_and_what_is_broken_is(tmp_path):
    block = block_of(tmp_path, TEXTS)
    speak_shard(block, speaking(tmp_path))
    first = rows_of(tmp_path)
    (tmp_path / "speech" / "part-000000.parquet").unlink()
    broken, lost = Path(first[0]["file"]), Path(first[1]["file"])
    whole = sounds(tmp_path)
    broken.write_bytes(b"RIFF not really")
    lost.unlink()
    before = {f: f.stat().st_mtime_ns for f in (tmp_path / "audio").iterdir()}
    speak_shard(block, speaking(tmp_path, run_id="again", resumed=True))
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
    block = block_of(output, ["hello", "..."], suffix=".flac")
    speak_shard(block, speaking(output, audio_format="flac"))
    keys = s3.keys()
    (sound,) = [key for key in keys if key.endswith(".flac")]
    assert s3.get(sound).startswith(b"fLaC")
    (part,) = [key for key in keys if "/speech/part-" in key]
    rows = pq.ParquetFile(pa.BufferReader(s3.get(part))).read().to_pylist()
    assert [row["status"] for row in rows] == ["ok", "empty"]
    assert rows[0]["etag"]
    assert rows[0]["file"].endswith(sound)
    speak_shard(block, speaking(output, audio_format="flac", resumed=True))


def test_the_plan_has_every_text_in_every_manner_once(tmp_path):
    table = pa.table({"text": ["a", "b", "a"], "language": ["de", None, "de"], "n": [1, 2, 3]})
    how = VoiceVariants(voices=[NEUTRAL, "de", "en-us+f3"], rates=[120, 200], pitches=[50])
    plan = utterances(table, how, Engine(), str(tmp_path), ".wav")
    # in German the neutral voice is "de" itself
    assert [plan["n"].to_pylist().count(n) for n in (1, 2, 3)] == [4, 6, 4]
    assert len(set(plan["file"].to_pylist())) == len(plan)
    first, third = (plan.filter(pa.array([n == k for n in plan["n"].to_pylist()])) for k in (1, 3))
    for one, other in zip(first["file"].to_pylist(), third["file"].to_pylist(), strict=True):
        assert other == one.replace(".wav", "-2.wav")
