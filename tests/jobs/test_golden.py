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

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import boto3
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

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
from tests.jobs.golden_inputs import put_talk, write_inputs, write_odd_files
from tests.jobs.golden_tables import check, differences, numbers_of_page, reduced

pytest.importorskip("espeakng_loader")

PLACE = "s3://golden"


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


def test_a_change_of_a_table_is_seen():
    """A cell, a row, a column, a type; nothing where numbers are as good as the same."""
    table = pa.table(
        {
            "status": ["ok", "ok", "empty"],
            "arousal": pa.array([0.5, 0.25, None], pa.float32()),
            "embedding": [[0.0, 1.0], [0.5, -1.0], None],
        }
    )

    def changed(name: str, values: list, kind: pa.DataType | None = None) -> pa.Table:
        place = table.column_names.index(name)
        return table.set_column(place, name, pa.array(values, kind or table[name].type))

    for other in (
        changed("status", ["ok", "missing", "empty"]),
        changed("arousal", [0.5, 0.2502, None]),
        changed("arousal", [0.5, 0.25, 0.0]),
        changed("arousal", [0.5, 0.25, None], pa.float64()),
        changed("embedding", [[0.0, 1.0], [0.5, 1.0], None]),
        table.slice(0, 2),
        table.drop_columns(["status"]),
    ):
        assert differences(other, table, 1e-4, 0)
    assert not differences(changed("arousal", [0.5, 0.25005, None]), table, 1e-4, 0)
