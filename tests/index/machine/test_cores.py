"""Cores by affinity and by the quotas of control groups, laid out as in containers."""

import os
from pathlib import Path

import pytest

from index.machine import cores
from index.machine.cores import available_cores

V2 = "30 23 0:26 {root} /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate\n"
V1 = "33 31 0:30 {root} /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n"
CPUSET = "35 31 0:32 / /sys/fs/cgroup/cpuset rw - cgroup cgroup rw,cpuset\n"


@pytest.fixture(autouse=True)
def sixteen_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(16)))
    monkeypatch.setattr(os, "cpu_count", lambda: 64)


def machine(root: Path, mounts: str, groups: str, files: dict[str, str]) -> Path:
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/self/mountinfo").write_text("22 1 8:1 / / rw - ext4 /dev/vda rw\n" + mounts)
    (root / "proc/self/cgroup").write_text(groups)
    for name, content in files.items():
        path = root / "sys/fs/cgroup" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    return root


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("max 100000\n", 16),
        ("200000 100000\n", 2),
        ("150000 100000\n", 1),
        ("50000 100000\n", 1),
        ("3200000 100000", 16),
        ("", 16),
        ("nonsense", 16),
        ("100000 0\n", 16),
    ],
)
def test_version_2_in_a_container(tmp_path: Path, content: str, expected: int) -> None:
    root = machine(tmp_path, V2.format(root="/"), "0::/\n", {"cpu.max": content})
    assert available_cores(root) == expected


def test_version_2_the_smallest_quota_of_all_parents_applies(tmp_path: Path) -> None:
    files = {"a/cpu.max": "300000 100000", "a/b/cpu.max": "800000 100000", "a/b/c/cpu.max": "max 100000"}
    root = machine(tmp_path, V2.format(root="/"), "0::/a/b/c\n", files)
    assert available_cores(root) == 3


@pytest.mark.parametrize(("quota", "expected"), [("-1\n", 16), ("400000\n", 4), ("20000\n", 1)])
@pytest.mark.parametrize(
    ("mounted", "path", "where"),
    [("/", "/docker/abc", "docker/abc"), ("/docker/abc", "/docker/abc", "."), ("/", "/docker/abc", ".")],
)
def test_version_1_at_any_mount_point(
    tmp_path: Path, quota: str, expected: int, mounted: str, path: str, where: str
) -> None:
    files = {
        f"cpu,cpuacct/{where}/cpu.cfs_quota_us": quota,
        f"cpu,cpuacct/{where}/cpu.cfs_period_us": "100000\n",
        "cpuset/cpuset.cpus": "0",
    }
    groups = f"9:cpuset:{path}\n4:cpu,cpuacct:{path}\n0::/\n"
    assert available_cores(machine(tmp_path, CPUSET + V1.format(root=mounted), groups, files)) == expected


def test_affinity_applies_with_and_without_control_groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert available_cores(tmp_path) == 16
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {3})
    root = machine(tmp_path, V2.format(root="/"), "0::/\n", {"cpu.max": "400000 100000"})
    assert available_cores(root) == 1


def test_nothing_else_counts_the_cores_of_the_host() -> None:
    sources = Path(cores.__file__).parents[2]
    counting = [
        str(path.relative_to(sources))
        for package in ("index", "service", "training", "cli", "demo")
        for path in (sources / package).rglob("*.py")
        if "cpu_count" in path.read_text() and path.name != "cores.py"
    ]
    assert counting == []
