"""The command `raysers` and its subcommands."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from raysers import __version__, commands
from raysers.cli import parse
from raysers.commands.models import deviations
from raysers.engine.listing import ClipJobFlags, with_absolute_paths
from raysers.errors import ConfigError
from raysers.robustness.task import RobustnessFlags
from raysers.words.flags import FusePredictFlags
from tests.places import REPO


def python(*args: str, cwd: Path = REPO) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *args], cwd=cwd, capture_output=True, text=True, check=False
    )


def test_every_job_is_a_subcommand_and_a_script():
    assert all(callable(commands.find(name)) for name in commands.COMMANDS)
    assert set(commands.COMMANDS) == {path.stem for path in (REPO / "jobs").glob("*.py")}
    made = re.compile(r"^@command\(.*\)\ndef (\w+)", re.MULTILINE)
    files = (REPO / "raysers/commands").glob("*.py")
    names = {name for file in files for name in made.findall(file.read_text())}
    assert names - {"fuse_train", "fuse_predict"} | {"fuse"} == set(commands.COMMANDS)


def test_help_and_version_import_nothing_heavy():
    code = "from raysers.commands import main; main(['--help']); main(['--version'])"
    done = python("-X", "importtime", "-c", code)
    loaded = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "raysers.commands" in loaded
    assert not loaded & {"torch", "ray", "numpy", "pyarrow", "tyro"}
    assert all(f"  {name} " in done.stdout for name in commands.COMMANDS)
    assert done.stdout.rstrip().endswith(f"raysers {__version__}")


JOBS = [[name] for name in commands.COMMANDS if name != "fuse"]
JOBS += [["fuse", "train"], ["fuse", "predict"]]


@pytest.mark.parametrize("job", JOBS, ids=" ".join)
def test_help_fits_80_columns_and_first_one_screen(job, capsys):
    shown = {}
    for flag in ("--help", "--help-all"):
        assert commands.main([*job, flag]) == 0
        shown[flag] = capsys.readouterr().out
        assert shown[flag].startswith(f"usage: raysers {' '.join(job)} ")
        assert max(map(len, shown[flag].splitlines())) <= 80
        assert f"    raysers {job[0]}" in shown[flag]
    assert len(shown["--help"].splitlines()) <= 45


@pytest.mark.parametrize("job", JOBS, ids=" ".join)
def test_help_of_a_job_is_quick_and_small(job):
    code = (
        "import sys, time; begun = time.process_time()\n"
        f"from raysers.commands import main; main([*{job}, '--help'])\n"
        "print(time.process_time() - begun, file=sys.stderr)\n"
        "status = dict(line.split(':', 1) for line in open('/proc/self/status'))\n"
        "print(status['VmHWM'].split()[0], file=sys.stderr)"
    )
    done = python("-c", code)
    cpu_s, peak_kb = map(float, done.stderr.split())
    assert cpu_s < 3  # about .6 on a quiet machine
    assert peak_kb < 120_000


@pytest.mark.parametrize(
    ("argv", "inputs", "output"),
    [
        (["a", "b", "-o", "out"], ("a", "b"), "out"),
        (["-o", "out", "a"], ("a",), "out"),
        (["--limit", "3", "a", "--dry-run", "b", "--output=out"], ("a", "b"), "out"),
        (["a", "--retry", "missing", "empty"], ("a",), "emotions"),
        (["--input", "a", "b"], ("a", "b"), "emotions"),
    ],
)
def test_words_without_a_flag_are_the_input(argv, inputs, output, capsys):
    flags = parse(ClipJobFlags, argv, description="", positional="input", output="emotions")
    assert (flags.input, flags.output) == (inputs, output)
    assert ("output: ./emotions" in capsys.readouterr().out) == (output == "emotions")


@pytest.mark.parametrize(
    ("kind", "places"),
    [
        (FusePredictFlags, {"fusion": "f"}),
        (RobustnessFlags, {"suite": "full", "noise_folder": "n", "impulse_responses": "r"}),
    ],
)
def test_a_run_is_repeated_from_any_folder(kind, places):
    found = with_absolute_paths(kind(input=("in",), output="out", **places))
    assert all(getattr(found, name) == str(Path.cwd() / places[name]) for name in kind.places)


def test_a_command_line_without_output_is_refused_by_the_scripts():
    with pytest.raises(ConfigError, match="needs --output URI"):
        parse(ClipJobFlags, ["--input", "a"], description="", positional="input")


def test_a_python_without_the_dependencies_says_so_in_one_line():
    done = python("-S", "jobs/annotate.py", "recordings")
    (line,) = done.stderr.splitlines()
    assert done.returncode == 2
    assert line.startswith(f"error: {sys.executable} has no package ")
    assert ".venv/bin/python" in line


def test_only_a_package_that_is_named_is_called_missing():
    def broken(flags: ClipJobFlags) -> int:
        raise ModuleNotFoundError("operator torchvision::nms does not exist")  # as lazy imports do

    job = commands.Command(broken, "input")
    assert job(["a", "-o", "b"]) == 1


@pytest.mark.parametrize(
    ("package", "job"),
    [
        ("torch", "annotate"),
        ("torch", "train"),
        ("torch", "probe"),
        ("transformers", "probe"),
        ("matplotlib", "probe"),
        ("espeakng_loader", "probe"),
        ("espeakng_loader", "synthesize"),
    ],
)
def test_a_python_without_a_package_says_so_before_anything_is_written(package, job, tmp_path):
    (tmp_path / "a.wav").touch()
    given = {"probe": ["raysers-base"], "synthesize": ["--templates", "this-is"]}
    code = (
        f"import sys; sys.modules['{package}'] = None\n"
        "from raysers.commands import main; sys.exit(main(sys.argv[1:]))"
    )
    inputs = given.get(job, [str(tmp_path)])
    done = python("-c", code, job, *inputs, "-o", str(tmp_path / "out"))
    assert done.returncode == 2
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert ("[speech]" if package == "espeakng_loader" else f"has no package {package}") in line
    assert not (tmp_path / "out").exists()


def test_an_old_python_says_so_in_one_line(monkeypatch, capsys):
    monkeypatch.setattr(commands.sys, "version_info", (3, 9, 2))
    assert commands.main(["annotate", "recordings"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "Python 3.11 or newer" in line
    assert " is 3.9: " in line


def test_a_reader_that_leaves_the_pipe_is_no_bug():
    command = [sys.executable, "-m", "raysers", "annotate", "--help"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.close()
        assert process.stderr is not None
        assert process.stderr.read() == b""
    assert process.returncode == 1


def test_deviations_of_a_precision_by_hand():
    nan = float("nan")
    reference = np.array([[0.0, 0.5, nan], [1.0, 0.5, nan], [2.0, nan, nan]])
    chosen = np.array([[0.0, 0.7, nan], [1.0, 0.4, nan], [1.0, 0.5, nan]])
    labels = np.array([[0.0, nan, 1.0], [1.0, nan, 1.0], [2.0, nan, 1.0]])
    assert deviations(chosen, reference, labels) == {
        # 2 x 1 / (2 + 2/3 + 3 x (1/3)^2) = 2/3
        "arousal": "mean 0.33333, p95 0.90000, max 1.00000; CCC 1.0000 to 0.6667 (-0.3333)",
        "dominance": "mean 0.15000, p95 0.19500, max 0.20000",
    }
