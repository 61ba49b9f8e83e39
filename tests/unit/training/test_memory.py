"""Memory limits are those of the container, whichever version of control groups set them."""

from __future__ import annotations

from pathlib import Path

import psutil
import pytest

from raysers.training.feed import available_bytes

MIB = 1 << 20


def cgroup(folder: Path, version: int, limit: str, used: int = 0, cache: int = 0) -> None:
    """A memory control group with `cache` bytes of its usage that can be given back."""
    folder.mkdir(parents=True, exist_ok=True)
    names = {
        2: ("memory.max", "memory.current", "inactive_file"),
        1: ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    }
    limit_file, used_file, cache_key = names[version]
    (folder / limit_file).write_text(f"{limit}\n")
    (folder / used_file).write_text(f"{used}\n")
    (folder / "memory.stat").write_text(f"anon 1\n{cache_key} {cache}\n")


@pytest.fixture
def membership(tmp_path: Path) -> Path:
    return tmp_path / "cgroup"


def test_the_container_of_version_2(tmp_path: Path, membership: Path) -> None:
    membership.write_text("0::/\n")
    cgroup(tmp_path, 2, str(64 * MIB), used=40 * MIB, cache=8 * MIB)
    assert available_bytes(tmp_path, membership) == 32 * MIB


def test_the_container_of_version_1(tmp_path: Path, membership: Path) -> None:
    membership.write_text("7:cpu,cpuacct:/job\n6:rdma,memory:/docker/abc\n0::/\n")
    cgroup(tmp_path / "memory", 1, str(2**63 - 4096))
    cgroup(tmp_path / "memory/docker/abc", 1, str(32 * MIB), used=8 * MIB, cache=MIB)
    assert available_bytes(tmp_path, membership) == 25 * MIB


def test_the_narrowest_of_nested_groups_counts(tmp_path: Path, membership: Path) -> None:
    membership.write_text("0::/slice/job\n")
    cgroup(tmp_path / "slice/job", 2, "max", used=4 * MIB)
    cgroup(tmp_path / "slice", 2, str(16 * MIB), used=12 * MIB)
    assert available_bytes(tmp_path, membership) == 4 * MIB
    cgroup(tmp_path / "slice/job", 2, str(3 * MIB), used=4 * MIB)
    assert available_bytes(tmp_path, membership) == 0


@pytest.mark.parametrize("lines", ["0::/\n", ""])
def test_without_a_limit_it_is_the_machine(lines: str, tmp_path: Path, membership: Path) -> None:
    membership.write_text(lines)
    total = psutil.virtual_memory().total
    assert 0 < available_bytes(tmp_path, membership) <= total
    cgroup(tmp_path, 2, "max")
    assert 0 < available_bytes(tmp_path, membership) <= total
    assert 0 < available_bytes(tmp_path, tmp_path / "absent") <= total
