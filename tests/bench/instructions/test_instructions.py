"""Instructions are read from callgrind's files as written, and divided by library and answer."""

from collections.abc import Sequence

import pytest

from bench.instructions.callgrind import by_library
from bench.instructions.instructions import answer_cost, counted_contender
from bench.serving.contenders import OURS

# Two functions of the interpreter; the first calls one of FAISS. Names are written once, then numbers stand for them.
COUNTS = """
events: Ir
ob=(1) /opt/python/lib/libpython3.11.so.1.0
fl=(1) ceval.c
fn=(1) _PyEval_EvalFrameDefault
0 100
+3 20
cob=(2) /venv/lib/python3.11/site-packages/faiss/libfaiss.so
cfn=(2) search
calls=2 0
+1 5000
* 7

ob=(2)
fn=(2)
0x1f 4000
0 1000

ob=(1)
fn=(3) PyObject_Malloc
-4 30
ob=(3) /usr/lib/x86_64-linux-gnu/libz.so.1
fn=(4) inflate
0 9
totals: 5166
"""


def test_each_library_has_the_instructions_of_its_own_functions() -> None:
    found = by_library(COUNTS.splitlines())
    assert found == {"interpreter": 100 + 20 + 7 + 30, "FAISS": 4000 + 1000, "other": 9}
    assert sum(found.values()) == 5166


class TwoCounts:
    """Counts of a busy second and of two idle ones, instead of a process."""

    def __init__(self) -> None:
        self.counts = [({"FAISS": 80_000, "interpreter": 45_000}, 1.0), ({"interpreter": 10_000}, 2.0)]

    def start(self) -> None:
        pass

    def stop(self) -> tuple[dict[str, int], float]:
        return self.counts.pop(0)


class NoCallers:
    def ask(self, bodies: Sequence[bytes]) -> None:
        pass


def test_what_runs_without_requests_is_taken_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bench.instructions.instructions._IDLE_S", 0.0)
    cost = answer_cost(TwoCounts(), NoCallers(), [b"{}"] * 10)  # type: ignore[arg-type]
    assert cost == {"all": 12.0, "FAISS": 8.0, "interpreter": 4.0}


def test_the_service_is_run_under_the_program_with_one_worker() -> None:
    service = counted_contender(["valgrind", "--quiet"])
    command = service.command(port=1, registry="/r", redis="unix:///s")
    assert command[:2] == ["valgrind", "--quiet"]
    assert command[2:] == [OURS.command(port=1, registry="", redis="")[0], *command[3:]]
    assert command[3:5] == ["-m", "bench.instructions.counted_service"]
    assert service.environment["VLM2REC_WORKERS"] == "1"
