"""Memory by the machine and by the limits of control groups, laid out as in containers."""

from pathlib import Path

import pytest

from index.machine.memory import memory_limit
from tests.index.machine.test_cores import V2, machine

V1 = "34 31 0:31 {root} /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n"
MACHINE = 8 << 30


def with_memory(root: Path) -> Path:
    (root / "proc").mkdir(parents=True, exist_ok=True)
    (root / "proc/meminfo").write_text(f"MemTotal:       {MACHINE >> 10} kB\nMemFree:         1 kB\n")
    return root


@pytest.mark.parametrize(
    ("content", "expected"), [("max\n", MACHINE), ("536870912\n", 512 << 20), (f"{64 << 30}\n", MACHINE), ("", MACHINE)]
)
def test_version_2_in_a_container(tmp_path: Path, content: str, expected: int) -> None:
    root = machine(with_memory(tmp_path), V2.format(root="/"), "0::/\n", {"memory.max": content})
    assert memory_limit(root) == expected


def test_the_smallest_limit_of_all_parents_applies(tmp_path: Path) -> None:
    files = {"a/memory.max": "300000000", "a/b/memory.max": "800000000", "a/b/c/memory.max": "max"}
    root = machine(with_memory(tmp_path), V2.format(root="/"), "0::/a/b/c\n", files)
    assert memory_limit(root) == 300_000_000


@pytest.mark.parametrize(("limit", "expected"), [("9223372036854771712\n", MACHINE), ("268435456\n", 256 << 20)])
def test_version_1(tmp_path: Path, limit: str, expected: int) -> None:
    files = {"memory/docker/abc/memory.limit_in_bytes": limit}
    root = machine(with_memory(tmp_path), V1.format(root="/"), "5:memory:/docker/abc\n0::/\n", files)
    assert memory_limit(root) == expected


def test_without_proc_it_is_not_known(tmp_path: Path) -> None:
    assert memory_limit(tmp_path) is None
