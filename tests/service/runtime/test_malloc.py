"""Settings of glibc's malloc, in a process of its own, because they cannot be undone."""

import platform
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
PROGRAM = """
import ctypes, os, re, sys, tempfile, threading
sys.path.insert(0, {root!r})
from service.runtime import malloc
if {settled}:
    malloc.configure()
libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
libc.malloc.argtypes = [ctypes.c_size_t]
libc.free.argtypes = [ctypes.c_void_p]
libc.fopen.restype = ctypes.c_void_p
libc.malloc_info.argtypes = [ctypes.c_int, ctypes.c_void_p]
libc.fclose.argtypes = [ctypes.c_void_p]
libc.free(libc.malloc(24 << 20))  # without the bound, blocks of 24 MiB come from the heap from now on
gate = threading.Barrier(9)
def work():
    libc.malloc(100)
    gate.wait(20)
    gate.wait(20)
threads = [threading.Thread(target=work) for _ in range(8)]
[thread.start() for thread in threads]
gate.wait(20)
kept = libc.malloc(20 << 20)
with tempfile.TemporaryDirectory() as place:
    path = os.path.join(place, "info").encode()
    out = libc.fopen(path, b"w")
    libc.malloc_info(0, out)
    libc.fclose(out)
    report = open(path).read()
gate.wait(20)
print(len(re.findall("<heap nr=", report)), re.findall(r'type="mmap" count="(\\d+)"', report)[-1])
"""

SEARCHES = """
import ctypes, resource, sys, threading
sys.path.insert(0, {root!r})
from service.runtime import malloc
malloc.configure()
libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
libc.malloc.argtypes = [ctypes.c_size_t]
libc.free.argtypes = [ctypes.c_void_p]
def batches():
    for lap in range(101):
        if lap == 1:
            faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt)
        block = libc.malloc(1 << 20)
        ctypes.memset(block, 1, 1 << 20)
        libc.free(block)
    faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt)
faults = []
thread = threading.Thread(target=batches)
thread.start()
thread.join()
print(faults[1] - faults[0])
"""


def printed(program: str) -> list[int]:
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return [int(word) for word in done.stdout.split()]


def heaps_and_mapped_blocks(*, settled: bool) -> tuple[int, int]:
    heaps, mapped = printed(PROGRAM.format(root=str(ROOT), settled=settled))
    return heaps, mapped


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="options of glibc")
def test_there_are_few_arenas_and_large_blocks_are_mapped() -> None:
    heaps, mapped = heaps_and_mapped_blocks(settled=False)
    few, own = heaps_and_mapped_blocks(settled=True)
    assert heaps > 2
    assert few <= 2
    assert own == mapped + 1


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="options of glibc")
def test_the_arrays_of_a_batch_are_not_faulted_in_again_by_the_next() -> None:
    (faults,) = printed(SEARCHES.format(root=str(ROOT)))
    assert faults < 100  # 100 arrays of 256 pages each
