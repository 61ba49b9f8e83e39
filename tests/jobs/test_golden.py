"""The tables of every job, compared with those kept in `tests/golden`.

One command or two of every job run on made-up speech, and each table they write has to be the one
that is kept: its columns, types, rows, statuses and other words exactly, its numbers as nearly as
each case says. So the code behind the commands can be rewritten without a table changing unseen.
An intended change is kept with

    UPDATE_GOLDEN=1 python -m pytest tests/jobs/test_golden.py

and shows in the commit. Pinned are local folders with broken files, S3 prefixes, tar members,
windows, speech found by voice activity, labels of a corpus, embeddings, the paper's perturbations,
transcripts and word errors, training, fusion, evaluation, speech synthesis, the probe, a search, a
study and a report's figures. Not pinned are the words of error messages, what depends on the clock
or the machine, and sound and pictures themselves.

The audio is made here: buzzing voices of `tests.jobs.voices`, odd files, and synthetic speech. It
lies in one bucket of the S3 test server, because clip ids, and with them all random draws, follow
from a clip's full name. What was trained is compared more loosely: processors add up in other
orders, and every step of a training carries such a difference on.
"""

from __future__ import annotations

import io
import json
import re
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import boto3
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile as sf

from jobs import (
    annotate,
    evaluate,
    fuse,
    index,
    probe,
    report,
    robustness,
    study,
    synthesize,
    train,
    transcribe,
    tune,
)
from tests import s3
from tests.jobs.golden_tables import check, numbers_of_page, reduced
from tests.jobs.voices import read_table, write_table, write_voices
from tests.unit.models.text_folders import write_encoder

pytest.importorskip("espeakng_loader")

PLACE = "s3://golden"
SPLITS = {"ann": "dev", "bea": "train", "cid": "test", "dan": "train"}
SAID = ("this was wonderful", "it was terrible", "a great day", "the time was awful", "you never")
#: Texts to speak, clear enough for a recogniser of any rounding; the last one says nothing.
SPOKEN = (
    ("This is wonderful news.", "positive"),
    ("My brother is very angry with me.", "negative"),
    ("The children are playing in the garden.", "neutral"),
    ("I have 2 brothers.", "neutral"),
    ("...", "neutral"),
)
#: EmoDB's names of four clips: speaker, sentence, emotion, version.
EMODB = ("03a01Fa", "08a02Wb", "11b01Ta", "14b03Na")
#: Studies of the same toy network, which share a cell.
TOY = {
    "models": {"toy": "random:tiny"},
    "train": {"epochs": 2, "batch_size": 7, "lr": 3e-3, "dtype": "fp32"},
}
STUDIES = {
    "seeds": {"factor": "seed", "seeds": [0, 1]},
    "shares": {"factor": "share", "values": {"all": {}, "half": {"train_fraction": 0.5}}},
}


@dataclass(frozen=True, kw_only=True)
class Case:
    """A command, with {} for the place of all inputs and outputs, and the tables it must repeat.

    `after` are the cases whose outputs it reads, `prepare` puts what else it reads into the bucket,
    `needs` are packages. Floats may differ by `atol`. `dropped` are columns that depend on the last
    bit of weights which were drawn or trained here.
    """

    job: Callable[[list[str]], int]
    command: str
    tables: tuple[str, ...]
    after: tuple[str, ...] = ()
    prepare: Callable[[s3.Bucket], None] | None = None
    needs: tuple[str, ...] = ()
    atol: float = 1e-5
    dropped: tuple[str, ...] = ()


def put_talk(bucket: s3.Bucket) -> None:
    """A recording of what was spoken, with a second of silence after each sentence."""
    spoken = [key for key in sorted(bucket.keys()) if key.startswith("synthesize/audio/")]
    parts, rate_hz = [], 0
    for key in spoken:
        sound, rate_hz = sf.read(io.BytesIO(bucket.get(key)), dtype="int16")
        parts += [sound, np.zeros(rate_hz, np.int16)]
    sink = io.BytesIO()
    sf.write(sink, np.concatenate(parts), rate_hz, format="WAV")
    bucket.put("talk/talk.wav", sink.getvalue())


LABELS = "{}/voices/labels.csv"
TRAINING = (
    f"--data {LABELS} --backbone random:tiny --epochs 2 --batch-size 7 --lr 3e-3 --dtype fp32"
)
#: Twenty times what turned up between a processor with AVX2 and one without, or other threads.
TRAINED = 1e-4

QUICK = {
    "synthesize": Case(
        job=synthesize.main,
        command="--texts {}/texts.csv --voice neutral en-us+m3 --rate 160 --max-failed 0.2"
        " --workers 1",
        tables=("manifest",),
    ),
    "index": Case(
        job=index.main,
        command="--input {}/odd {}/odd.tar",
        tables=("manifest",),
    ),
    "index-corpus": Case(
        job=index.main,
        command="--input {}/emodb --corpus emodb --emotion-map russell-mehrabian",
        tables=("manifest",),
    ),
    "index-windows": Case(
        job=index.main,
        command="--input {}/talk --segment window --window-s 2 --hop-s 1",
        tables=("manifest",),
        after=("synthesize",),
        prepare=put_talk,
    ),
    "index-vad": Case(
        job=index.main,
        command="--input {}/talk --segment vad",
        tables=("manifest",),
        after=("synthesize",),
        prepare=put_talk,
        needs=("silero_vad",),
    ),
    "annotate": Case(
        job=annotate.main,
        command="--input {}/voices {}/odd.tar {}/index-windows --max-failed 0.1 --embeddings"
        " --dtype fp32 --workers 1",
        tables=("annotations", "manifest"),
        after=("index-windows",),
    ),
    "robustness": Case(
        job=robustness.main,
        command=f"--input {LABELS} --limit 6 --suite paper --dtype fp32 --workers 1",
        tables=("robustness", "metrics"),
    ),
    "transcribe": Case(
        job=transcribe.main,
        command="--input {}/synthesize --asr moonshine --max-failed 0.2 --workers 1",
        tables=("transcripts", "metrics"),
        after=("synthesize",),
        needs=("moonshine_voice",),
    ),
    "train": Case(
        job=train.main,
        command=f"{TRAINING} --workers 1",
        tables=("predictions", "metrics", "manifest"),
        atol=TRAINED,
        dropped=("model_revision",),
    ),
    "evaluate": Case(
        job=evaluate.main,
        command=f"--predictions {{}}/annotate --labels {LABELS} --by sex split --speaker-samples 3"
        " --bootstrap 100",
        tables=("metrics",),
        after=("annotate",),
    ),
    "evaluate-trained": Case(
        job=evaluate.main,
        command=f"--predictions {{}}/annotate {{}}/train --labels {LABELS} --bootstrap 100",
        tables=("metrics",),
        after=("annotate", "train"),
        atol=TRAINED,
    ),
    "fuse-train": Case(
        job=fuse.main,
        command=f"train --data {LABELS} --text-model {{}}/encoder --asr manifest --epochs 5"
        " --batch-size 7 --bootstrap 100 --dtype fp32 --workers 1",
        tables=("predictions", "metrics", "features/features"),
        atol=TRAINED,
        dropped=("model_revision",),
    ),
    "report": Case(
        job=report.main,
        command="--runs {}/annotate {}/robustness {}/evaluate {}/fuse-train",
        tables=(),
        after=("annotate", "robustness", "evaluate", "fuse-train"),
    ),
}

SLOW = {
    "annotate-windows": Case(
        job=annotate.main,
        command="--input {}/talk --segment window --window-s 2 --hop-s 1 --dtype fp32 --workers 1",
        tables=("annotations",),
        after=("synthesize",),
        prepare=put_talk,
    ),
    "annotate-vad": Case(
        job=annotate.main,
        command="--input {}/talk --segment vad --dtype fp32 --workers 1",
        tables=("annotations",),
        after=("synthesize",),
        prepare=put_talk,
        needs=("silero_vad",),
    ),
    "fuse-predict": Case(
        job=fuse.main,
        command=f"predict --input {LABELS} --fusion {{}}/fuse-train --dtype fp32 --workers 1",
        tables=("annotations",),
        after=("fuse-train",),
        atol=TRAINED,
        dropped=("model_revision",),
    ),
    "probe": Case(
        job=probe.main,
        command="--model emodb-tiny --limit 6 --bootstrap 100 --dtype fp32 --workers 1",
        tables=("sentences", "metrics"),
    ),
    "probe-corpus": Case(
        job=probe.main,
        command="--model emodb-tiny --limit 8 --data {}/index-corpus --least-occurrences 1"
        " --bootstrap 100 --dtype fp32 --workers 1",
        tables=("sentences", "words", "respoken", "metrics"),
        after=("index-corpus",),
        needs=("wordcloud",),
    ),
    "tune": Case(
        job=tune.main,
        command=f"--space {{}}/space.yaml --search grid --max-concurrent 1 {TRAINING}",
        tables=("trials", "curves"),
        atol=TRAINED,
    ),
    "study": Case(
        job=study.main,
        command=f"--study {{}}/seeds.yaml {{}}/shares.yaml --data {LABELS}",
        tables=("cells", "metrics", "curves"),
        atol=TRAINED,
        dropped=("device",),
    ),
}


CASES = QUICK | SLOW


@pytest.fixture(scope="module")
def bucket(ray_session, s3_server, tmp_path_factory) -> Iterator[s3.Bucket]:
    """The bucket with every input, the environment pointing at its server."""
    folder = tmp_path_factory.mktemp("golden")
    write_inputs(folder)
    with pytest.MonkeyPatch.context() as here:
        for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN"):
            here.delenv(name, raising=False)
        for name, value in {**s3.ENVIRONMENT, "AWS_ENDPOINT_URL": s3_server}.items():
            here.setenv(name, value)
        made = s3.Bucket(name=PLACE.removeprefix("s3://"), client=boto3.client("s3"))
        made.client.create_bucket(Bucket=made.name)
        for path in folder.rglob("*"):
            if path.is_file():
                made.put(str(path.relative_to(folder)), path.read_bytes())
        yield made


def write_inputs(folder: Path) -> None:
    """Everything the commands read that no command makes."""
    write_labelled_voices(folder / "voices")
    write_odd_files(folder / "odd")
    sf.write(folder / "odd" / "steady.mp3", tone(16_000), 16_000, bitrate_mode="CONSTANT")
    with tarfile.open(folder / "odd.tar", "w") as tar:
        for name in ("tone.wav", "text.wav"):
            tar.add(folder / "odd" / name, arcname=f"inner/{name}")
    (folder / "emodb" / "wav").mkdir(parents=True)
    for number, name in enumerate(EMODB):
        sf.write(folder / "emodb" / "wav" / f"{name}.wav", tone(8000, 90 + 10 * number), 16_000)
    write_encoder(folder / "encoder")
    lines = ["text,sentiment", *(",".join(row) for row in SPOKEN)]
    (folder / "texts.csv").write_text("\n".join(lines))
    (folder / "space.yaml").write_text("lr: [3e-3, 1e-3]\nfreeze: [none, cnn]\n")
    for name, document in STUDIES.items():
        (folder / f"{name}.yaml").write_text(json.dumps(TOY | document))  # JSON is YAML


def write_labelled_voices(folder: Path) -> None:
    """Voices with a test split, a corpus, transcripts, and valence that is not always the same."""
    rows = read_table(write_voices(folder))
    for number, row in enumerate(rows):
        row["split"] = SPLITS[row["speaker"]]
        row["corpus"] = "voices"
        row["transcript"] = SAID[number % len(SAID)]
        row["valence"] = f"{number % 9 / 10 + 0.1:.1f}" if number % 7 else ""
    write_table(folder / "labels.csv", rows)


def tone(samples: int, period: int = 100) -> np.ndarray:
    """A saw tooth with a break in it, from whole numbers: the same to the last bit anywhere."""
    time = np.arange(samples)
    return (time % period - period / 2) / period * (time % 5000 < 4000)


def write_odd_files(folder: Path) -> None:
    """Sound in several forms, and what else lies in a folder of sound."""
    (folder / "deep er").mkdir(parents=True)
    sound = tone(10_000)
    nan = np.where(np.arange(10_000) == 5000, np.nan, sound)
    for name, samples, rate_hz, subtype in (
        ("tone.wav", sound, 16_000, "PCM_16"),
        ("deep er/ä 50%20#.wav", tone(12_000, 80), 16_000, "PCM_16"),
        ("stereo.flac", np.stack([sound, sound / 2], axis=1), 44_100, "PCM_24"),
        ("telephone.wav", sound, 8000, "ULAW"),
        ("loud.aiff", np.clip(3 * sound, -1, 1), 16_000, "PCM_16"),
        ("silence.wav", 0 * sound, 16_000, "PCM_16"),
        ("short.wav", sound[:160], 16_000, "PCM_16"),
        ("long.wav", tone(40_000), 16_000, "PCM_16"),
        ("nothing.wav", sound[:0], 16_000, "PCM_16"),
        ("nan.wav", nan, 16_000, "FLOAT"),
    ):
        sf.write(folder / name, samples, rate_hz, subtype=subtype)
    whole = (folder / "tone.wav").read_bytes()
    for name, content in (
        ("cut.wav", whole[: len(whole) // 2]),
        ("text.wav", b"not audio at all"),
        ("empty.wav", b""),
        ("pointer.wav", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"),
        ("film.webm", b"\x1a\x45\xdf\xa3" + bytes(500)),
        ("notes.txt", b"no sound and not meant to be"),
    ):
        (folder / name).write_bytes(content)


@pytest.fixture(scope="module")
def finish(bucket) -> Callable[[str], None]:
    """Runs a case, once, after those it reads from."""
    codes: dict[str, int] = {}

    def finish(name: str) -> None:
        if name not in codes:
            case = CASES[name]
            for module in case.needs:
                pytest.importorskip(module)
            for earlier in case.after:
                finish(earlier)
            if case.prepare:
                case.prepare(bucket)
            words = case.command.replace("{}", PLACE).split()
            codes[name] = case.job([*words, "--output", f"{PLACE}/{name}"])
        assert codes[name] == 0, f"{name} ended with exit code {codes[name]}"

    return finish


def tables_of(bucket: s3.Bucket, folder: str) -> list[pa.Table]:
    """Every part of a table in the bucket."""
    keys = sorted(key for key in bucket.keys() if key.startswith(f"{folder}/part-"))  # noqa: SIM118
    return [pq.ParquetFile(pa.BufferReader(bucket.get(key))).read() for key in keys]


@pytest.mark.parametrize(
    ("name", "table"),
    [
        pytest.param(name, table, marks=[pytest.mark.slow] * (name in SLOW), id=f"{name}-{table}")
        for name, case in CASES.items()
        for table in case.tables
    ],
)
def test_the_tables_of_every_job_are_as_they_were(name, table, finish, bucket):
    finish(name)
    case = CASES[name]
    found = reduced(tables_of(bucket, f"{name}/{table}"), case.dropped)
    check(f"{name}-{table.rpartition('/')[2]}", found, case.atol)


def test_a_local_folder_with_broken_files_is_annotated_as_it_was(ray_session, tmp_path):
    """Ids of its clips are of this machine."""
    folder, out = tmp_path / "odd", tmp_path / "out"
    write_odd_files(folder)
    (folder / "gone.wav").symlink_to(folder / "nowhere.wav")
    limits = ("--max-clip-s", "2", "--max-failed", "0.7", "--workers", "1")
    words = ("--input", str(folder), "--output", str(out), "--dtype", "fp32", *limits)
    assert annotate.main([*words]) == 0
    for name in ("annotations", "manifest"):
        tables = [pq.ParquetFile(part).read() for part in sorted((out / name).glob("part-*"))]
        below = [str(Path(f).relative_to(folder)) for t in tables for f in t["file"].to_pylist()]
        table = pa.concat_tables(tables)
        table = table.set_column(table.column_names.index("file"), "file", pa.array(below))
        check(f"annotate-local-{name}", reduced([table], ("clip_id",)), 1e-5)


def test_a_report_shows_the_figures_and_numbers_it_did(finish, bucket):
    """A digit may be another one where a number lies between two."""
    finish("report")
    files = [key for key in bucket.keys() if key.startswith("report/figures/")]  # noqa: SIM118
    check("report-figures", pa.table({"file": sorted(files)}), 0)
    page = bucket.get("report/index.html").decode()
    numbers = numbers_of_page(page, re.compile("figure-|table-|archive-"))
    check("report-numbers", reduced([numbers]), 1.1e-3)
