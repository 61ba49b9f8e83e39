"""The command `raysers` and its subcommands."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from raysers import __version__, commands
from raysers.cli import ClipJobFlags, parse
from raysers.errors import ConfigError
from tests.places import REPO


def python(*args: str, cwd: Path = REPO) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *args], cwd=cwd, capture_output=True, text=True, check=False
    )


def test_every_job_is_a_subcommand_and_a_script():
    modules = {path.stem for path in (REPO / "raysers/commands").glob("[a-z]*.py")}
    scripts = {path.stem for path in (REPO / "jobs").glob("*.py")}
    assert set(commands.COMMANDS) == modules == scripts


def test_help_and_version_import_nothing_heavy():
    code = "from raysers.commands import main; main(['--help']); main(['--version'])"
    done = python("-X", "importtime", "-c", code)
    loaded = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "raysers.commands" in loaded
    assert not loaded & {"torch", "ray", "numpy", "pyarrow", "tyro"}
    assert all(f"  {name} " in done.stdout for name in commands.COMMANDS)
    assert done.stdout.rstrip().endswith(f"raysers {__version__}")


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["anotate", "x"], "did you mean 'annotate'?"),
        (["Evaluate"], "did you mean 'evaluate'?"),
        (["zzz"], "give one of annotate, "),
    ],
)
def test_unknown_commands_exit_2_with_the_nearest_name(argv, said, capsys):
    assert commands.main(argv) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert said in line


def test_help_of_a_job_fits_80_columns_and_keeps_its_examples():
    done = python("-m", "raysers", "annotate", "--help")
    assert done.returncode == 0, done.stderr
    assert "usage: raysers annotate " in done.stdout
    assert "\n    raysers annotate recordings/ -o emotions/\n" in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 80


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


def test_input_with_and_without_its_flag_is_refused():
    with pytest.raises(ConfigError, match="with --input"):
        parse(ClipJobFlags, ["a", "--input", "b"], description="", positional="input")


def test_a_command_line_without_output_is_refused_by_the_scripts(capsys):
    with pytest.raises(SystemExit) as ended:
        parse(ClipJobFlags, ["--input", "a"], description="", positional="input")
    assert ended.value.code == 2


def test_the_output_of_a_config_file_wins_over_the_default(tmp_path):
    config = tmp_path / "config.yaml"
    config.write_text("output: elsewhere")
    flags = parse(
        ClipJobFlags,
        ["a", "--config", str(config)],
        description="",
        positional="input",
        output="emotions",
    )
    assert flags.output == "elsewhere"


def test_a_reader_that_leaves_the_pipe_is_no_bug():
    command = [sys.executable, "-m", "raysers", "annotate", "--help"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.close()
        assert process.stderr is not None
        assert process.stderr.read() == b""
    assert process.returncode == 1
