"""The robustness job end to end: rows, their independence of the cluster, summary, audio."""

from __future__ import annotations

import csv
import io
import itertools
import json
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile as sf
from safetensors.torch import load_file, save_file

from raysers.commands.analyses import robustness as main
from raysers.robustness import perturbations
from raysers.robustness.perturbations import generator
from raysers.robustness.task import SUITES
from tests.jobs.conftest import record_of, rows_of
from tests.places import needs_shared
from tests.published import score_files, write_checkpoint

pytestmark = [needs_shared, pytest.mark.usefixtures("ray_session")]
DIMENSIONS = ("arousal", "dominance", "valence")
NAMES = ("clean", *SUITES["paper"])


def run(*args: object) -> int:
    return main([str(a) for a in args])


def table_of(out) -> list[dict]:
    rows = rows_of(out, "robustness")
    order = {name: i for i, name in enumerate(dict.fromkeys(r["perturbation"] for r in rows))}
    return sorted(rows, key=lambda r: (r["clip_id"], order[r["perturbation"]]))


def metrics_of(out) -> dict[tuple, dict]:
    rows = rows_of(out, "metrics")
    keys = ("model", "dataset", "split", "group", "group_value", "dimension", "metric")
    return {tuple(r[k] for k in keys): r for r in rows}


def assert_same(a: list[dict], b: list[dict]) -> None:
    """The same rows; scores to the rounding of another batch shape."""
    exact = set(a[0]) - {*DIMENSIONS, "run_id", "created_at"}
    assert [{k: r[k] for k in exact} for r in a] == [{k: r[k] for k in exact} for r in b]
    for dimension in DIMENSIONS:
        x, y = ([np.nan if r[dimension] is None else r[dimension] for r in t] for t in (a, b))
        np.testing.assert_allclose(x, y, atol=1e-5, rtol=0)


@pytest.fixture(scope="module")
def few(tmp_path_factory, emodb_files) -> Path:
    """Ten real clips."""
    folder = tmp_path_factory.mktemp("few")
    for file in emodb_files[::3]:
        (folder / Path(file).name).symlink_to(file)
    return folder


@pytest.fixture(scope="module")
def calm(tmp_path_factory, checkpoint, few) -> Path:
    """A run from end to end."""
    out = tmp_path_factory.mktemp("calm") / "out"
    args = ("--input", few, "--output", out, "--model", checkpoint[0], "--dtype", "fp32")
    assert run(*args, *CALM) == 0
    return out


HERE = ("--workers", "local")
CALM = (*HERE, "--shard-s", 10)


def test_every_clip_is_a_row_as_it_is_and_per_perturbation_from_one_decode(calm, few):
    rows = table_of(calm)
    assert [r["perturbation"] for r in rows] == [*NAMES] * 10
    assert {r["file"] for r in rows} == {str(p) for p in few.iterdir()}
    assert {r["status"] for r in rows} == {"ok"}
    outcome = record_of(calm)["outcome"]
    assert (outcome["decoded"], outcome["clips"], outcome["rows"]) == (10, 10, 90)


def test_every_row_is_what_plain_functions_and_a_plain_model_give(calm, checkpoint, tmp_path):
    """The parameters of a row are all one needs to make its audio again."""
    functions = {name: getattr(perturbations, name) for name in SUITES["paper"]}
    for row in table_of(calm)[: 4 * len(NAMES)]:
        x = sf.read(row["file"], dtype="float32")[0]
        parameters = json.loads(row["parameters"])
        if row["perturbation"] == "white_noise":
            rng = generator(0, row["clip_id"], "white_noise")
            rng.integers(3)
            parameters["noise"] = rng.standard_normal(len(x), np.float32)
        if row["perturbation"] != "clean":
            x = functions[row["perturbation"]](x, **parameters)
        sf.write(tmp_path / "x.wav", x, 16_000, subtype="FLOAT")
        (alone,) = score_files(checkpoint[1], [str(tmp_path / "x.wav")]).values()
        np.testing.assert_allclose([row[d] for d in DIMENSIONS], alone[:3], atol=1e-5, rtol=0)
        assert row["duration_s"] == pytest.approx(len(x) / 16_000)
        assert row["rms_db"] == pytest.approx(
            10 * np.log10(np.mean(x.astype(float) ** 2)), abs=1e-3
        )


@pytest.mark.slow
def test_workers_shard_size_and_an_interruption_change_nothing(calm, checkpoint, few, tmp_path):
    args = ("--input", few, "--model", checkpoint[0], "--dtype", "fp32")
    cut, broken = tmp_path / "cut", Path(shutil.copytree(calm, tmp_path / "broken"))
    way = ("--workers", 2, "--shard-s", 4, "--max-padded-s", 20)
    assert run(*args, "--output", cut, *way) == 0
    parts = sorted((broken / "robustness").glob("part-*"))
    assert len(parts) > 2
    for part in parts[::2]:  # as if the run had ended before they were written
        part.unlink()
    for lost in ("metrics/part-00000.parquet", "robustness.png"):
        (broken / lost).unlink()
    assert run(*args, "--output", broken, *CALM) == 0
    theirs = metrics_of(calm)
    for out in (cut, broken):
        assert_same(table_of(out), table_of(calm))
        mine = metrics_of(out)
        assert mine.keys() == theirs.keys()
        for key, row in mine.items():
            for column in ("value", "ci_low", "ci_high", "n", "paper"):
                assert row[column] == pytest.approx(theirs[key][column], abs=1e-5), key


def test_the_summary_says_what_the_rows_say(calm, few):
    rows = table_of(calm)
    clean = {r["clip_id"]: r["arousal"] for r in rows if r["perturbation"] == "clean"}
    card = (Path(calm) / "README.md").read_text()
    assert all(f"{name}/part-*.parquet" in card for name in ("robustness", "metrics", "tests"))
    metrics = metrics_of(calm)
    (model,) = {r["model"] for r in rows}
    for name in SUITES["paper"]:
        changes = np.abs(
            [r["arousal"] - clean[r["clip_id"]] for r in rows if r["perturbation"] == name]
        )
        key = (model, few.name, "all", "", "", "arousal")
        assert metrics[*key, f"robustness_{name}"]["value"] == np.mean(changes < 0.05)
        mean = metrics[*key, f"mean_change_{name}"]["value"]
        assert mean == pytest.approx(changes.mean(), abs=1e-6)
    random = metrics["random-gaussian", few.name, "all", "", "", "mean", "robustness"]
    assert random["value"] == pytest.approx(0.17, abs=0.08)
    assert (calm / "robustness.png").read_bytes().startswith(b"\x89PNG")
    assert (calm / "robustness.svg").exists()


def test_another_threshold_on_a_finished_output_compares_anew_and_scores_nothing(
    calm, checkpoint, few, capsys
):
    before = {p: p.read_bytes() for p in (calm / "robustness").iterdir()}
    old = metrics_of(calm)
    args = ("--input", few, "--output", calm, "--model", checkpoint[0], "--dtype", "fp32", *CALM)
    assert run(*args, "--threshold", 1, "--round-scores") == 0
    assert {p: p.read_bytes() for p in (calm / "robustness").iterdir()} == before
    new, rows = metrics_of(calm), table_of(calm)
    clean = {r["clip_id"]: r for r in rows if r["perturbation"] == "clean"}
    for name, d in itertools.product(SUITES["paper"], DIMENSIONS):
        shifts = [
            abs(round(round(r[d], 2) - round(clean[r["clip_id"]][d], 2), 2))
            for r in rows
            if r["perturbation"] == name
        ]
        key = (rows[0]["model"], few.name, "all", "", "", d, f"robustness_{name}")
        assert new[key]["value"] == np.mean(np.array(shifts) < 1), key
    assert "ser-tests" in capsys.readouterr().out
    assert run(*args) == 0
    again = metrics_of(calm)
    assert {k: r["value"] for k, r in again.items()} == {k: r["value"] for k, r in old.items()}


def test_a_model_that_ignores_its_input_scores_1_everywhere(few, tmp_path):
    write_checkpoint(tmp_path / "deaf")
    weights = load_file(tmp_path / "deaf" / "model.safetensors")
    weights["classifier.out_proj.weight"].zero_()
    save_file(weights, tmp_path / "deaf" / "model.safetensors")
    out = tmp_path / "out"
    args = ("--input", few, "--output", out, "--model", tmp_path / "deaf", "--limit", 3, *HERE)
    assert run(*args, "--suite", "small") == 0
    shares = [
        r["value"]
        for (model, *_, metric), r in metrics_of(out).items()
        if metric.startswith("robustness") and model != "random-gaussian"
    ]
    assert len(shares) == 4 * 11
    assert set(shares) == {1.0}


def test_a_clip_too_short_for_a_perturbation_is_a_row_that_says_so(checkpoint, tmp_path):
    sf.write(tmp_path / "short.wav", np.full(450, 0.1), 16_000)
    (tmp_path / "broken.wav").write_text("not audio")
    out = tmp_path / "out"
    args = ("--input", tmp_path / "short.wav", tmp_path / "broken.wav", "--output", out)
    names = ("gain", "crop_end", "append_zeros")
    code = run(
        *args, "--model", checkpoint[0], "--perturbations", *names, "--repeats", 8,
        "--max-failed", 1, *HERE,
    )  # fmt: skip
    assert code == 0
    rows = table_of(out)
    assert len(rows) == 2 * (1 + 3 * 8)
    for row in rows:
        samples = json.loads(row["parameters"]).get("samples", 0)
        cropped = row["perturbation"].startswith("crop_end")
        if row["file"].endswith("broken.wav"):
            assert row["status"] == "unreadable"
        elif cropped and samples >= 450:
            assert row["status"] == "too_short"
            assert (
                row["error"] == f"crop_end: {samples} samples cannot be cropped from a clip of 450"
            )
        elif cropped:  # 350 samples are left, and the model needs 400
            assert (row["status"], row["arousal"]) == ("too_short", None)
        else:
            assert row["status"] == "ok"
    repeats = [r for r in rows if r["perturbation"].startswith("gain") and r["status"] == "ok"]
    assert {r["perturbation"] for r in repeats} == {"gain", *(f"gain#{i}" for i in range(2, 9))}
    assert len({r["parameters"] for r in repeats}) > 1


@pytest.fixture(scope="module")
def labelled(tmp_path_factory, checkpoint, few) -> Path:
    """A run over labelled clips that saves audio."""
    folder = tmp_path_factory.mktemp("labelled")
    with (folder / "clips.csv").open("w") as file:
        writer = csv.writer(file)
        writer.writerow(["file", "speaker", "sex", "corpus", *DIMENSIONS])
        for i, clip in enumerate(sorted(few.iterdir())):
            sex = ("female", "male")[i % 2]
            writer.writerow([clip, f"s{i % 4}", sex, "emodb", i / 10, (i * 7 % 10) / 10, 0.5])
    args = ("--input", folder / "clips.csv", "--output", folder / "out", "--model", checkpoint[0])
    assert run(*args, "--perturbations", *CHANGES, "--save-audio", 3, *HERE) == 0
    return folder / "out"


CHANGES = ("tilt_up", "gain", "crop_end")


def test_saved_audio_is_what_the_model_heard(labelled):
    saved = sorted((labelled / "audio").iterdir())
    assert len(saved) == 6
    rows = {(Path(r["file"]).stem, r["perturbation"]): r for r in table_of(labelled)}
    for clean, changed in zip(*[iter(saved)] * 2, strict=True):
        x, y = sf.read(clean)[0], sf.read(changed)[0]
        stem = clean.name.removesuffix(".wav_clean.flac")[4:]
        (name,) = [name for name in CHANGES if name in changed.name]
        row = rows[stem, name]
        assert len(y) == round(row["duration_s"] * 16_000)
        if "turned_down" not in changed.name:
            assert 10 * np.log10(np.mean(y**2)) == pytest.approx(row["rms_db"], abs=0.01)
        assert len(x) == round(rows[stem, "clean"]["duration_s"] * 16_000)


def test_the_full_suite_with_a_users_noise_and_rooms(checkpoint, few, tmp_path, capsys):
    rng = np.random.default_rng(0)
    for kind, seconds in [("speech", 12), ("music", 3), ("noise", 1), ("coughing", 0.2)]:
        (tmp_path / "noise" / kind).mkdir(parents=True)
        for i in range(2):
            signal = rng.normal(0, 0.1, int(44_100 * seconds))
            sf.write(tmp_path / "noise" / kind / f"{i}.flac", signal, 44_100)
    for i, name in enumerate(("reference", "left", "right")):
        folder = tmp_path / "rooms" / "room"
        folder.mkdir(parents=True, exist_ok=True)
        response = rng.normal(0, 1, 4000) * np.exp(-np.arange(4000) / (200 * (i + 1)))
        sf.write(folder / f"{name}.wav", response / 10, 16_000)
    speech = tmp_path / "noise" / "speech"
    whole = (speech / "0.flac").read_bytes()
    (speech / "cut.flac").write_bytes(whole[: len(whole) // 3])  # its header is good
    (speech / "text.wav").write_text("not audio")
    (tmp_path / "noise" / "laughter").mkdir()
    (tmp_path / "noise" / "laughter" / "0.flac").write_bytes(whole)
    out = tmp_path / "out"
    args = (
        "--input", few, "--output", out, "--model", checkpoint[0], "--limit", 3, "--suite", "full",
        "--noise-folder", tmp_path / "noise", "--impulse-responses", tmp_path / "rooms", *HERE,
    )  # fmt: skip
    assert run(*args) == 0
    printed = capsys.readouterr().out
    assert "left out" in printed
    assert "2 recordings of speech are left out" in printed
    assert "uses the folders laughter" in printed
    assert "background_sneezing" in printed  # there are no sneezes
    codec = record_of(out)["settings"]["amr"]
    assert ("without the AMR codec" in printed) == (not codec)
    rows = table_of(out)
    assert {r["status"] for r in rows} == {"ok"}
    taken = {r["perturbation"]: json.loads(r["parameters"]).get("recordings", []) for r in rows}
    assert len(taken) == 1 + 10 + 5 + 3 + 2  # clean, small, behind speech, phone and tilts, room
    assert all("/speech/" in file for file in taken["background_babble"])
    assert not any("cut" in file or "text" in file for file in taken["background_babble"])
    assert 4 <= len(taken["background_babble"]) <= 7
    assert taken["room_reference"] == [str(tmp_path / "rooms" / "room" / "reference.wav")]
    assert not any("reference" in file for file in taken["room"])
    assert run(*args) == 0
    sf.write(tmp_path / "noise" / "music" / "2.flac", rng.normal(0, 0.1, 16_000), 16_000)
    assert run(*args) == 2  # other noise would be other rows
    assert "noise was" in capsys.readouterr().err


def test_noise_of_which_nothing_can_be_read_ends_the_job_before_it_begins(
    checkpoint, few, tmp_path, capsys
):
    music = tmp_path / "noise" / "music"
    music.mkdir(parents=True)
    sf.write(music / "a.flac", np.random.default_rng(0).normal(0, 0.1, 64_000), 16_000)
    (music / "a.flac").write_bytes((music / "a.flac").read_bytes()[:20_000])
    args = ("--input", few, "--output", tmp_path / "out", "--model", checkpoint[0])
    names = ("--perturbations", "background_music", "--noise-folder", tmp_path / "noise")
    assert run(*args, *names) == 2
    assert "no recording of music can be read" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (("--perturbations", "gian"), "did you mean gain"),
        (("--perturbations", "background_music"), "--noise-folder"),
        (("--threshold", "0"), "--threshold"),
        (("--repeats", "0"), "--repeats"),
        (("--save-audio", "-1"), "--save-audio"),
        (("--noise-folder", "{tmp}/nowhere", "--suite", "full"), "--noise-folder"),
        (("--noise-folder", "{tmp}/nowhere"), "background_music"),
        (("--impulse-responses", "{tmp}/nowhere"), "position_reference"),
        (("--suite", "small", "--perturbations", "gain"), "--suite small is used by nothing"),
        (("--tone-snr", "rms", "--perturbations", "gain"), "additive_tone"),
    ],
)
def test_bad_flags_end_with_exit_2_and_one_line_and_write_nothing(
    args, words, checkpoint, few, tmp_path, capsys
):
    given = [a.format(tmp=tmp_path) for a in args]
    assert run("--input", few, "--output", tmp_path / "o", "--model", checkpoint[0], *given) == 2
    error = capsys.readouterr().err
    assert words in error
    assert len(error.strip().splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_in_and_out_of_s3_with_noise_in_a_tar(s3, few, checkpoint, capsys):
    for file in sorted(few.iterdir())[:3]:
        s3.put(f"in/{file.name}", file.read_bytes())
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode="w") as tar:
        for file in sorted(few.iterdir())[3:5]:
            tar.add(file.resolve(), arcname=file.name)
    s3.put("noise/music/a b#c.tar", sink.getvalue())
    args = (
        "--input", f"{s3.uri}/in", "--output", f"{s3.uri}/out", "--model", checkpoint[0],
        "--perturbations", "background_music", "gain", "--noise-folder", f"{s3.uri}/noise",
        "--save-audio", 1,
    )  # fmt: skip
    assert run(*args) == 0
    assert "background_music" in capsys.readouterr().out
    keys = [k for k in s3.keys() if k.startswith("out/")]  # noqa: SIM118
    tables = [
        pq.ParquetFile(pa.BufferReader(s3.get(k))).read() for k in keys if "/robustness/" in k
    ]
    rows = pa.concat_tables(tables).to_pylist()
    assert [r["status"] for r in rows] == ["ok"] * 9
    music = [r for r in rows if r["perturbation"] == "background_music"]
    assert all("#" in json.loads(r["parameters"])["recordings"][0] for r in music)
    assert {"out/robustness.png", "out/metrics/part-00000.parquet"} <= set(keys)
    assert len([k for k in keys if k.startswith("out/audio/")]) == 2
