"""Request ids and stage times."""

import re
from time import perf_counter

import pytest

from service.request_trace import Trace, new_request_id, request_id_from


@pytest.mark.parametrize("given", ["a", "order 7/äh".replace("ä", "a"), "x" * 128, "!~"])
def test_a_printable_request_id_is_used(given: str) -> None:
    assert request_id_from(given.encode()) == given


@pytest.mark.parametrize("given", [None, b"", b"x" * 129, b"a\tb", b"a\x00", b"\xe4", b" a", b"a ", b"a\nb", b"\x7f"])
def test_any_other_is_replaced_by_a_new_one(given: bytes | None) -> None:
    made = request_id_from(given)
    assert re.fullmatch("[0-9a-f]{32}", made)
    assert request_id_from(given) != made


def test_new_ids_are_all_different() -> None:
    assert len({new_request_id() for _ in range(10_000)}) == 10_000


def test_laps_share_out_all_time_and_add_up() -> None:
    trace = Trace("r")
    trace.lap("a")
    trace.lap("b")
    trace.lap("a")
    assert list(trace.stages) == ["a", "b"]
    assert 0 <= sum(trace.stages.values()) <= trace.elapsed_ms
    assert re.fullmatch(r"a;dur=\d+\.\d{3}, b;dur=\d+\.\d{3}, total;dur=\d+\.\d{3}", trace.server_timing())


def test_the_total_counts_from_the_first_bytes_and_the_first_stage_from_now() -> None:
    trace = Trace("r", began=perf_counter() - 0.5)
    trace.lap("a")
    assert trace.elapsed_ms >= 500.0
    assert float(trace.server_timing().rpartition("total;dur=")[2]) >= 500.0
    assert 500.0 <= trace.waited_ms <= trace.elapsed_ms - trace.stages["a"]


def test_stages_may_end_while_others_are_read() -> None:
    """An abandoned search goes on and ends its stage while its request is counted."""
    trace = Trace("r")
    trace.lap("encode")
    for _ in trace.stages:
        trace.lap("search")
    assert list(trace.stages) == ["encode", "search"]
