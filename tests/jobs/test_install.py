"""The wheel in an environment of its own: the command, and the functions of the package."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from tests.places import REPO, needs_shared

pytestmark = [needs_shared, pytest.mark.slow]
MOST_BYTES = 30_000_000


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """Built from a copy, so that nothing is left in the sources."""
    source = tmp_path_factory.mktemp("source") / "raysers"
    names = ("raysers", "pyproject.toml", "README.md", "LICENSE")
    for name in names:
        copy = shutil.copytree if (REPO / name).is_dir() else shutil.copy
        source.mkdir(exist_ok=True)
        copy(REPO / name, source / name)
    out = source.parent / "dist"
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "wheel", "-q", "--no-deps"]
    subprocess.run([*pip, "-w", str(out), str(source)], check=True)
    (found,) = out.glob("raysers-*.whl")
    return found


@pytest.fixture(scope="module")
def scripts(wheel, tmp_path_factory) -> Path:
    """Where a fresh environment has its programs; it sees the dependencies installed here.

    Installing them again would take minutes and gigabytes; raysers itself is only the wheel's.
    """
    home = tmp_path_factory.mktemp("venv") / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(home)], check=True)
    (packages,) = home.glob("lib/python*/site-packages")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(packages)
    installed = Path(pytest.__file__).parents[1]
    (packages / "dependencies.pth").write_text(f"{installed}\n")
    script = home / "bin" / "raysers"  # what an installer makes of the entry point
    script.write_text(
        f"#!{home}/bin/python\nimport sys\nfrom raysers.commands import main\nsys.exit(main())\n"
    )
    script.chmod(0o755)
    return home / "bin"


def run(program: Path, *args: object, cwd: Path) -> str:
    environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "RAY_ADDRESS")}
    done = subprocess.run(
        [str(program), *map(str, args)], cwd=cwd, env=environment, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_wheel_is_small_and_holds_the_assets(wheel):
    with zipfile.ZipFile(wheel) as archive:
        held = {name for name in archive.namelist() if name.startswith("raysers/assets/")}
        (entry,) = (n for n in archive.namelist() if n.endswith("entry_points.txt"))
        assert "raysers = raysers.commands:main" in archive.read(entry).decode()
    there = [path for path in (REPO / "raysers/assets").rglob("*") if path.is_file()]
    assert {str(path.relative_to(REPO)) for path in there} == held
    assert any(name.endswith("/model.safetensors") for name in held)
    assert wheel.stat().st_size < MOST_BYTES


def test_the_installed_command_annotates_a_folder(scripts, clips_folder, emodb_files, tmp_path):
    out = run(scripts / "raysers", "annotate", clips_folder, "--workers", "local", cwd=tmp_path)
    assert out.startswith("output: ./emotions")
    rows = pq.read_table(tmp_path / "emotions" / "annotations").to_pylist()
    assert len(rows) == len(emodb_files)
    assert {row["status"] for row in rows} == {"ok"}
    assert "emotions" in (tmp_path / "emotions" / "run.json").read_text()


def test_the_installed_package_annotates_a_folder(scripts, clips_folder, tmp_path):
    code = "import raysers; print(raysers.__file__); print(raysers.annotate('audio').valence.size)"
    place, size = run(scripts / "python", "-c", code, cwd=clips_folder.parent).split()
    assert str(scripts.parent) in place
    assert int(size) == len(list(clips_folder.rglob("*.wav")))
