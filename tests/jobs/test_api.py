"""What `import raysers` offers, against models and formulas that are not ours."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import soundfile as sf

import raysers
from raysers.errors import ClipError, ConfigError
from tests.jobs.conftest import rows_of
from tests.places import needs_shared
from tests.published import score_files

pytestmark = [needs_shared, pytest.mark.usefixtures("no_cluster")]
DIMENSIONS = ["arousal", "dominance", "valence"]
FILES = 6


@pytest.fixture(scope="module")
def expected(checkpoint, emodb_files) -> np.ndarray:
    """Scores [files, 3], one file at a time with plain transformers."""
    scored = score_files(checkpoint[1], emodb_files[:FILES])
    return np.array([scored[file][:3] for file in emodb_files[:FILES]])


@pytest.fixture(scope="module")
def model(checkpoint) -> raysers.Model:
    return raysers.load_model(checkpoint[0], dtype="fp32")


@pytest.fixture(scope="module")
def annotated(checkpoint, emodb_files, tmp_path_factory) -> tuple[pd.DataFrame, Path]:
    """The frame of an annotation, and the output it left."""
    out = tmp_path_factory.mktemp("api") / "out"
    frame = raysers.annotate(
        emodb_files[:FILES], checkpoint[0], output=str(out), dtype="fp32", workers="local"
    )
    return frame, out


def test_the_package_is_cheap_and_lists_what_it_offers():
    code = (
        "import sys, raysers; names = set(raysers.__all__) - set(dir(raysers)); "
        "heavy = {'torch', 'ray', 'numpy', 'pandas'} & set(sys.modules); "
        "sys.exit(str(names | heavy) if names | heavy else 0)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    assert {"annotate", "decode", "evaluate", "load_model", "read"} < set(raysers.__all__)
    assert all(getattr(raysers, name).__doc__ for name in raysers.__all__ if name[0] != "_")
    with pytest.raises(AttributeError, match="no attribute 'anotate'"):
        raysers.anotate  # noqa: B018


def test_a_signal_scores_as_with_plain_transformers(model, emodb_files, expected):
    for file, scores in zip(emodb_files[:FILES], expected, strict=True):
        signal, rate_hz = sf.read(file, dtype="float32")
        found = model.score(signal, rate_hz)
        assert [found[name] for name in DIMENSIONS] == pytest.approx(scores, abs=1e-4)


def test_files_are_rows_in_their_order_and_failures_say_why(model, emodb_files, expected, tmp_path):
    broken = tmp_path / "broken.wav"
    broken.write_bytes(b"RIFF no audio")
    files = [emodb_files[1], str(broken), tmp_path / "none.wav", emodb_files[0]]
    frame = model.score_files(files)
    assert list(frame["file"]) == [*map(str, files)]
    assert frame["status"].iloc[[0, 2, 3]].to_list() == ["ok", "missing", "ok"]
    assert frame["status"][1] not in ("ok", "missing")
    assert frame[DIMENSIONS].iloc[[0, 3]].to_numpy() == pytest.approx(expected[[1, 0]], abs=1e-4)
    assert frame[DIMENSIONS].iloc[[1, 2]].isna().all(axis=None)
    assert [bool(text) for text in frame["error"]] == [False, True, True, False]
    for some in ([], [broken]):  # the columns are those of the model
        assert list(model.score_files(some).columns) == list(frame.columns)


@pytest.mark.parametrize("kind", ["int16", "int32", "uint8", "float64"])
def test_any_rate_width_and_number_of_channels_scores_as_its_file(model, tmp_path, kind):
    rng = np.random.default_rng(3)
    signal = rng.uniform(-0.5, 0.5, (30_000, 2))
    subtype = {"int16": "PCM_16", "int32": "PCM_32", "uint8": "PCM_U8", "float64": "DOUBLE"}[kind]
    sf.write(tmp_path / "a.wav", signal, 44_100, subtype=subtype)
    if kind == "uint8":  # soundfile gives no bytes; 8-bit WAV counts from 0 to 255 about 128
        data = (tmp_path / "a.wav").read_bytes()
        raw = np.frombuffer(data[data.index(b"data") + 8 :][: signal.size], np.uint8).reshape(-1, 2)
    else:
        raw = sf.read(tmp_path / "a.wav", dtype=kind)[0]
    (row,) = model.score_files(str(tmp_path / "a.wav")).to_dict("records")
    found = model.score(raw, 44_100)
    assert [found[name] for name in DIMENSIONS] == pytest.approx(
        [row[n] for n in DIMENSIONS], abs=1e-6
    )


def test_an_unusable_signal_is_refused_with_its_status(model):
    for signal, rate_hz, status in (
        (np.zeros(0), 16_000, "empty"),
        (np.array([0.1, np.nan]), 16_000, "not_finite"),
        (np.zeros(100), 0, "unsupported"),
        (np.zeros((2, 2, 2)), 16_000, "empty"),
    ):
        with pytest.raises(ClipError) as refused:
            model.score(signal, rate_hz)
        assert refused.value.status == status


def test_decode_is_mono_at_16_khz_and_a_span_is_a_slice_of_it(tmp_path):
    ramp = np.arange(32_000) / 32_000
    sf.write(tmp_path / "a.wav", np.stack([ramp, -ramp / 2], 1), 16_000, subtype="FLOAT")
    signal, rate_hz = raysers.decode(tmp_path / "a.wav")
    assert (signal.dtype, rate_hz) == (np.float32, 16_000)
    assert signal == pytest.approx(ramp / 4, abs=1e-7)
    part, _ = raysers.decode(str(tmp_path / "a.wav"), start_s=0.5, end_s=1.5)
    assert part == pytest.approx(ramp[8_000:24_000] / 4, abs=1e-7)
    for name in ("none.wav", "t.parquet#00000007", "shard.tar#a.wav"):
        with pytest.raises(ClipError) as refused:
            raysers.decode(tmp_path / name)
        assert refused.value.status == "missing"


def test_decode_of_a_bucket_refuses_as_of_a_folder(s3):
    for uri in (f"{s3.uri}/none.wav", "s3://no-such-bucket-here/a.wav"):
        with pytest.raises(ClipError) as refused:
            raysers.decode(uri)
        assert refused.value.status == "missing"


def test_annotate_gives_the_rows_that_its_output_holds(annotated, emodb_files, expected):
    frame, out = annotated
    by_file = frame.set_index("file")
    assert by_file.loc[emodb_files[:FILES], DIMENSIONS].to_numpy() == pytest.approx(
        expected, abs=1e-4
    )
    assert list(frame["clip_id"]) == [row["clip_id"] for row in rows_of(out)]
    pd.testing.assert_frame_equal(raysers.read(out), frame)


def test_annotate_into_a_temporary_place_says_nothing_on_stdout(
    checkpoint, emodb_files, capsys, tmp_path, monkeypatch
):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    (tmp_path / "none.wav").write_bytes(b"")
    frame = raysers.annotate(
        [emodb_files[0], tmp_path / "none.wav"], checkpoint[0], max_failed=0.1, segment="window",
        window_s=1, hop_s=1,
    )  # fmt: skip
    assert set(frame["status"]) == {"ok", "empty"}
    assert len(frame) > 2
    assert capsys.readouterr().out == ""
    assert [path.name for path in tmp_path.iterdir()] == ["none.wav"]


def test_annotate_refuses_what_the_command_refuses(emodb_files):
    for flags, error, words in (
        ({"window": 3}, TypeError, "window"),
        ({"limit": -1}, ConfigError, "--limit"),
        ({"limit": "three"}, ConfigError, "--limit"),
        ({"workers": "many"}, ConfigError, "--workers"),
        ({"retry": "mising"}, ConfigError, "did you mean 'missing'"),
        ({"extend": "no"}, ConfigError, "--extend takes no value"),
        ({"dry_run": True}, ConfigError, "--dry-run"),
        ({"check_dtype": 2}, ConfigError, "--check-dtype"),
        ({"model": "no/such/folder"}, ConfigError, "no/such/folder"),
    ):
        with pytest.raises(error, match=words):
            raysers.annotate(emodb_files[0], **flags)


def test_values_of_flags_mean_what_they_do_on_the_command_line(checkpoint, tmp_path, emodb_files):
    audio = tmp_path / "a.wav"
    audio.write_bytes(b"")
    given = {"output": tmp_path / "out", "shard_s": "600", "max_failed": 1}
    assert raysers.annotate(audio, checkpoint[0], **given)["status"][0] == "empty"
    audio.write_bytes(Path(emodb_files[0]).read_bytes())
    frame = raysers.annotate(audio, checkpoint[0], **given, retry="empty")
    assert frame["status"][0] == "ok"


def test_read_takes_any_table_of_an_output_here_and_in_a_bucket(annotated, s3):
    frame, out = annotated
    manifest = raysers.read(out, "manifest")
    assert sorted(manifest["file"]) == sorted(frame["file"])
    for part in (out / "annotations").glob("part-*.parquet"):
        s3.put(f"x/annotations/{part.name}", part.read_bytes())
    pd.testing.assert_frame_equal(raysers.read(f"{s3.uri}/x"), frame)
    assert len(raysers.read(out / "annotations")) == pq.read_table(out / "annotations").num_rows
    with pytest.raises(ConfigError, match="trials"):
        raysers.read(out, "trials")


def test_evaluate_gives_the_concordance_of_predictions_and_labels(annotated, emodb_files):
    frame, _ = annotated
    rng = np.random.default_rng(5)
    drawn = {name: rng.uniform(0, 1, len(frame)) for name in DIMENSIONS}
    labels = frame[["file"]].assign(speaker=["a", "b"] * (len(frame) // 2), **drawn)
    metrics = raysers.evaluate({"mine": frame, "same": frame}, labels, bootstrap=0)
    ccc = metrics[(metrics["metric"] == "ccc") & (metrics["model"] == "mine")]
    ccc = ccc[ccc["group"] == ""].set_index("dimension")["value"]
    for name, y in drawn.items():
        x = frame[name].to_numpy(float)
        covariance = np.cov(x, y, ddof=0)
        by_hand = 2 * covariance[0, 1] / (np.trace(covariance) + (x.mean() - y.mean()) ** 2)
        assert ccc[name] == pytest.approx(by_hand, abs=1e-6)
    assert {"mine", "same"} < set(metrics["model"])


def test_evaluate_refuses_tables_that_are_neither(annotated):
    frame, _ = annotated
    with pytest.raises(ConfigError, match="column file"):
        raysers.evaluate(frame, frame.drop(columns="file"))
    with pytest.raises(ConfigError, match=r"^labels, row 1: arousal is 7"):
        raysers.evaluate(frame, frame.assign(arousal=7.0))
    with pytest.raises(ConfigError, match="no column"):
        raysers.evaluate(frame.drop(columns="status"), frame)
    with pytest.raises(TypeError, match="draws"):
        raysers.evaluate(frame, frame, draws=0)
