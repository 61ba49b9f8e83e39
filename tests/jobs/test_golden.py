"""Golden tables: every job must still write the tables kept in `tests/golden`.

A few fixed commands run every job on synthetic audio. Columns, types, rows, statuses and text have
to be exactly those kept, numbers within the tolerance of each case. So the code behind the command
lines can be rewritten, and no table changes unnoticed. After an intended change, rewrite the tables
that differ and commit them with it:

    UPDATE_GOLDEN=1 python -m pytest tests/jobs/test_golden.py

Pinned: a local folder with broken files, S3 prefixes, tar members, windows, voice activity, corpus
labels, embeddings, the paper's perturbations, transcripts and word errors, training, evaluation,
fusion, synthesis, the probe, a search, a study, and the numbers and figure names of a report. Not
pinned: error messages, anything that depends on time or machine, audio and pictures themselves.

The audio is made here: `tests.jobs.voices`, odd files, and speech by the synthesize job. It lies in
one bucket of the S3 test server, because clip ids follow from absolute names, and random draws
from clip ids. Trained models get a wider tolerance: CPUs round differently, and every training step
carries the difference on.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import boto3
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from raysers.commands.analyses import evaluate, probe, report, robustness
from raysers.commands.archive import annotate, index, transcribe
from raysers.commands.fusion import fuse
from raysers.commands.speech import synthesize
from raysers.commands.training import study, train, tune
from raysers.engine.placement import here
from raysers.training import trainer
from raysers.training.trainer import run_training
from tests import s3
from tests.jobs.golden_inputs import put_talk, write_inputs
from tests.jobs.golden_tables import check, differences, movable, numbers_of_page, reduced

pytest.importorskip("espeakng_loader")

PLACE = "s3://golden"


def train_here(args: list[str]) -> int:
    """Train in this process, which gives the same bytes as Ray Train's workers."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainer, "run_training", partial(run_training, placement=here(threads=1)))
        return train(args)


@dataclass(frozen=True, kw_only=True)
class Case:
    """A command and the tables it must reproduce.

    Attributes:
        job: command of the job.
        command: its arguments without --output; {} is the bucket, {inputs} the local folder.
        tables: folders below its output.
        after: cases whose outputs it reads.
        prepare: puts other inputs into the bucket.
        needs: packages without which the case is skipped.
        atol: by how much floats may differ.
        dropped: columns that hash weights trained or drawn here, which differ in their last bits.
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
#: 20 times the largest difference seen between CPUs with and without AVX2, or thread counts.
TRAINED = 1e-4

#: What every test run checks.
QUICK = {
    "synthesize": Case(
        job=synthesize,
        command="--texts {}/texts.csv --voice neutral en-us+m3 --rate 160 --max-failed 0.2"
        " --workers 1",
        tables=("manifest",),
    ),
    "index": Case(
        job=index,
        command="--input {}/odd {}/odd.tar {}/steady.mp3",
        tables=("manifest",),
    ),
    "index-corpus": Case(
        job=index,
        command="--input {}/emodb --corpus emodb --emotion-map russell-mehrabian",
        tables=("manifest",),
    ),
    "index-windows": Case(
        job=index,
        command="--input {}/talk --segment window --window-s 2 --hop-s 1",
        tables=("manifest",),
        after=("synthesize",),
        prepare=put_talk,
    ),
    "index-vad": Case(
        job=index,
        command="--input {}/talk --segment vad",
        tables=("manifest",),
        after=("synthesize",),
        prepare=put_talk,
        needs=("silero_vad",),
    ),
    "annotate": Case(
        job=annotate,
        command="--input {}/voices {inputs}/odd {}/odd.tar {}/index-windows --embeddings"
        " --max-clip-s 2.2 --max-failed 0.2 --dtype fp32 --workers local",
        tables=("annotations", "manifest"),
        after=("index-windows",),
    ),
    "robustness": Case(
        job=robustness,
        command=f"--input {LABELS} --limit 6 --suite paper --dtype fp32 --workers local",
        tables=("robustness", "metrics"),
    ),
    "transcribe": Case(
        job=transcribe,
        command="--input {}/synthesize --asr moonshine --max-failed 0.2 --workers local",
        tables=("transcripts", "metrics"),
        after=("synthesize",),
        needs=("moonshine_voice",),
    ),
    "train": Case(
        job=train_here,
        command=TRAINING,
        tables=("predictions", "metrics", "manifest"),
        atol=TRAINED,
        dropped=("model_revision",),
    ),
    "evaluate": Case(
        job=evaluate,
        command=f"--predictions {{}}/annotate --labels {LABELS} --by sex split --speaker-samples 3"
        " --bootstrap 100",
        tables=("metrics",),
        after=("annotate",),
        atol=1e-4,  # correlations of nearly equal scores magnify the last bits of the backends
    ),
    "evaluate-trained": Case(
        job=evaluate,
        command=f"--predictions {{}}/annotate {{}}/train --labels {LABELS} --bootstrap 100",
        tables=("metrics",),
        after=("annotate", "train"),
        atol=TRAINED,
    ),
    "fuse-train": Case(
        job=fuse,
        command=f"train --data {LABELS} --text-model {{}}/encoder --asr manifest --epochs 5"
        " --batch-size 7 --bootstrap 100 --dtype fp32 --workers 1",
        tables=("predictions", "metrics", "features/features"),
        atol=TRAINED,
        dropped=("model_revision",),
    ),
    "report": Case(
        job=report,
        command="--runs {}/annotate {}/robustness {}/evaluate {}/fuse-train",
        tables=(),
        after=("annotate", "robustness", "evaluate", "fuse-train"),
    ),
}

#: Jobs that start many workers, and other ways to what is checked above: only with SLOW=1.
SLOW = {
    "annotate-windows": Case(
        job=annotate,
        command="--input {}/talk --segment window --window-s 2 --hop-s 1 --dtype fp32 --workers 1",
        tables=("annotations",),
        after=("synthesize",),
        prepare=put_talk,
    ),
    "annotate-vad": Case(
        job=annotate,
        command="--input {}/talk --segment vad --dtype fp32 --workers 1",
        tables=("annotations",),
        after=("synthesize",),
        prepare=put_talk,
        needs=("silero_vad",),
    ),
    "fuse-predict": Case(
        job=fuse,
        command=f"predict --input {LABELS} --fusion {{}}/fuse-train --dtype fp32 --workers 1",
        tables=("annotations",),
        after=("fuse-train",),
        atol=TRAINED,
        dropped=("model_revision",),
    ),
    "probe": Case(
        job=probe,
        command="--model raysers-base --limit 6 --bootstrap 100 --dtype fp32 --workers 1",
        tables=("sentences", "metrics"),
    ),
    "probe-corpus": Case(
        job=probe,
        command="--model raysers-base --limit 8 --data {}/index-corpus --least-occurrences 1"
        " --bootstrap 100 --dtype fp32 --workers 1",
        tables=("sentences", "words", "respoken", "metrics"),
        after=("index-corpus",),
        needs=("wordcloud",),
    ),
    "tune": Case(
        job=tune,
        command=f"--space {{}}/space.yaml --search grid --max-concurrent 1 {TRAINING}",
        tables=("trials", "curves"),
        atol=TRAINED,
    ),
    "study": Case(
        job=study,
        command=f"--study {{}}/seeds.yaml {{}}/shares.yaml --data {LABELS}",
        tables=("cells", "metrics", "curves"),
        atol=TRAINED,
        dropped=("device",),
    ),
}

CASES = QUICK | SLOW


@pytest.fixture(scope="module")
def inputs(tmp_path_factory) -> Path:
    """The local folder with all inputs."""
    folder = tmp_path_factory.mktemp("golden")
    write_inputs(folder)
    return folder


@pytest.fixture(scope="module")
def bucket(inputs, ray_session, s3_server) -> Iterator[s3.Bucket]:
    """The bucket with the same inputs; the environment points at its server."""
    with pytest.MonkeyPatch.context() as here:
        for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN"):
            here.delenv(name, raising=False)
        for name, value in {**s3.ENVIRONMENT, "AWS_ENDPOINT_URL": s3_server}.items():
            here.setenv(name, value)
        made = s3.Bucket(name=PLACE.removeprefix("s3://"), client=boto3.client("s3"))
        made.client.create_bucket(Bucket=made.name)
        for path in inputs.rglob("*"):
            if path.is_file():
                made.put(str(path.relative_to(inputs)), path.read_bytes())
        yield made


@pytest.fixture(scope="module")
def finish(bucket, inputs) -> Callable[[str], None]:
    """Runs a case once, after the cases whose outputs it reads."""
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
            words = [word.format(PLACE, inputs=inputs) for word in case.command.split()]
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
def test_jobs_write_the_golden_tables(name, table, finish, bucket, inputs):
    finish(name)
    case = CASES[name]
    written = [movable(part, str(inputs)) for part in tables_of(bucket, f"{name}/{table}")]
    found = reduced(written, case.dropped)
    check(f"{name}-{table.rpartition('/')[2]}", found, case.atol)


def test_a_report_has_the_golden_figures_and_numbers(finish, bucket):
    """The last digit printed may be rounded the other way."""
    finish("report")
    files = [key for key in bucket.keys() if key.startswith("report/figures/")]  # noqa: SIM118
    check("report-figures", pa.table({"file": sorted(files)}), 0)
    page = bucket.get("report/index.html").decode()
    numbers = numbers_of_page(page, re.compile("figure-|table-|archive-"))
    check("report-numbers", reduced([numbers]), 1.1e-3)


def test_differences_are_found():
    """In a value, a null, a type, the rows and the columns; not within the tolerance."""
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
        table.select(["arousal", "status", "embedding"]),
        changed("embedding", [[0.0], [0.5], None]),
    ):
        assert differences(other, table, 1e-4, 0)
    assert not differences(changed("arousal", [0.5, 0.25005, None]), table, 1e-4, 0)
