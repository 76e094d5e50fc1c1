"""The batcher returns the same results in any batch, and loses no search."""

import asyncio
import threading
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import numpy as np
import pytest
import structlog

from index.bundle.bundle import Bundle
from index.errors import EncoderError
from index.search.scoring import ScoredRows
from service.errors import NotReady, QueueFull, RetrieverUnavailable
from service.recommend import batching
from service.recommend.batching import THREAD_NAME, MicroBatcher
from service.recommend.engine import SearchJob, SearchResult, run_searches
from service.request_trace import Trace
from service.retrieval.faiss_retriever import FaissRetriever


class Counted:
    """Metrics that remember."""

    def __init__(self) -> None:
        self.sizes: list[int] = []
        self.deaths = 0

    def batch(self, size: int, waited_s: float) -> None:
        assert waited_s >= 0
        self.sizes.append(size)

    def worker_died(self) -> None:
        self.deaths += 1


def job(*history: int, k: int = 5) -> SearchJob:
    return SearchJob(np.array(history, dtype=np.int64), lambda encoded, _: encoded, k, None, Trace("r"))


def histories(count: int) -> list[SearchJob]:
    return [job(number % 50 + 8, (7 * number) % 50 + 8, k=3 + number % 4) for number in range(count)]


def run(
    work: Callable[[MicroBatcher], Awaitable[Any]],
    counted: Counted,
    *,
    bound: int = 500,
    threads: int = 2,
    in_loop: int = 1,
) -> Any:
    async def go() -> Any:
        log = structlog.get_logger()
        batcher = MicroBatcher(bound=bound, threads=threads, in_loop=in_loop, metrics=counted, log=log)
        try:
            return await work(batcher)
        finally:
            batcher.close()

    return asyncio.run(go())


def together(bundle: Bundle, jobs: Sequence[SearchJob]) -> Callable[[MicroBatcher], Awaitable[list[Any]]]:
    async def work(batcher: MicroBatcher) -> list[Any]:
        return await asyncio.gather(*(batcher.search(bundle, one) for one in jobs), return_exceptions=True)

    return work


def same(found: SearchResult, bundle: Bundle, asked: SearchJob) -> None:
    (alone,) = run_searches(bundle, [asked])
    assert found.rows.tolist() == alone.rows.tolist()
    assert found.scores == pytest.approx(alone.scores, abs=1e-5)


@pytest.mark.parametrize("threads", [0, 1, 2, 4])
@pytest.mark.parametrize("count", [1, 2, 17, 100])
def test_in_a_batch_each_search_gets_its_own_result(bundle: Bundle, threads: int, count: int) -> None:
    counted, asked = Counted(), histories(count)
    for found, one in zip(run(together(bundle, asked), counted, threads=threads), asked, strict=True):
        same(found, bundle, one)
        assert found.rows.shape == (one.k,)
    assert sum(counted.sizes) == count
    assert max(counted.sizes) <= 16


def test_one_alone_and_a_few_never_leave_the_event_loop(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []

    def watched(of: Bundle, jobs: Sequence[SearchJob], *_: object) -> list[SearchResult]:
        seen.append(threading.current_thread().name)
        return run_searches(of, jobs)

    monkeypatch.setattr(batching, "run_searches", watched)

    async def one_by_one(batcher: MicroBatcher) -> None:
        for asked in histories(3):
            await batcher.search(bundle, asked)

    run(one_by_one, Counted())
    assert seen == [threading.main_thread().name] * 3
    seen.clear()
    run(together(bundle, histories(32)), Counted())
    assert seen == [THREAD_NAME] * 2
    for count, where in ((4, threading.main_thread().name), (5, THREAD_NAME)):
        seen.clear()
        run(together(bundle, histories(count)), Counted(), threads=1, in_loop=4)
        assert seen == [where], count


def test_the_loop_goes_on_while_workers_search(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    begun, may_end = threading.Event(), threading.Event()

    def slow(of: Bundle, jobs: Sequence[SearchJob], *_: object) -> list[SearchResult]:
        begun.set()
        assert may_end.wait(10)
        return run_searches(of, jobs)

    monkeypatch.setattr(batching, "run_searches", slow)

    async def work(batcher: MicroBatcher) -> list[int]:
        waiting = [asyncio.ensure_future(batcher.search(bundle, asked)) for asked in histories(20)]
        while not begun.is_set():
            await asyncio.sleep(0.001)
        depth = batcher.depth  # one worker has sixteen of them
        may_end.set()
        await asyncio.gather(*waiting)
        return [depth, batcher.depth]

    assert run(work, Counted(), threads=1) == [4, 0]


def test_there_are_never_more_workers_than_asked_for(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker gets ready, and takes from what waits, between the plan to hand it out and that turn of the loop."""
    may_end = threading.Event()

    def slow(of: Bundle, jobs: Sequence[SearchJob], *_: object) -> list[SearchResult]:
        assert may_end.wait(10)
        return run_searches(of, jobs)

    monkeypatch.setattr(batching, "run_searches", slow)
    before = set(threading.enumerate())

    async def work(batcher: MicroBatcher) -> tuple[int, int]:
        waiting = [asyncio.ensure_future(batcher.search(bundle, asked)) for asked in histories(48)]
        await asyncio.sleep(0)  # all of them wait, and a turn is planned
        batcher._finished([], [])
        while batcher.depth > 16:
            await asyncio.sleep(0.001)
        await asyncio.sleep(0.01)  # a third worker would take more now
        workers = [one for one in threading.enumerate() if one.name == THREAD_NAME and one not in before]
        depth = batcher.depth
        may_end.set()
        await asyncio.gather(*waiting)
        return len(workers), depth

    assert run(work, Counted(), threads=2) == (2, 16)


@pytest.mark.parametrize("threads", [0, 2])
def test_one_that_fails_fails_alone(bundle: Bundle, threads: int) -> None:
    def broken(*_: Any) -> Any:
        raise EncoderError("not finite")

    asked = histories(20)
    asked[7] = SearchJob(np.array([9]), broken, 3, None, Trace("r"))
    found = run(together(bundle, asked), Counted(), threads=threads)
    assert isinstance(found[7], EncoderError)
    for place, one in enumerate(asked):
        if place != 7:
            same(found[place], bundle, one)


def test_two_bundles_are_never_in_one_batch(bundle: Bundle, day_bundles: list[Any]) -> None:
    other = Bundle.load(day_bundles[0])
    asked = histories(30)

    async def work(batcher: MicroBatcher) -> list[SearchResult]:
        return await asyncio.gather(
            *(batcher.search(other if number % 3 else bundle, one) for number, one in enumerate(asked))
        )

    for number, (found, one) in enumerate(zip(run(work, Counted()), asked, strict=True)):
        same(found, other if number % 3 else bundle, one)


def test_what_is_beyond_the_bound_is_refused_and_the_rest_answered(bundle: Bundle) -> None:
    found = run(together(bundle, histories(30)), Counted(), bound=20)
    assert [isinstance(answer, QueueFull) for answer in found] == [False] * 20 + [True] * 10


def test_cancelled_searches_are_not_run(bundle: Bundle) -> None:
    counted = Counted()

    async def work(batcher: MicroBatcher) -> list[Any]:
        waiting = [asyncio.ensure_future(batcher.search(bundle, asked)) for asked in histories(10)]
        await asyncio.sleep(0)
        for gone in waiting[::2]:
            gone.cancel()
        return await asyncio.gather(*waiting, return_exceptions=True)

    found = run(work, counted)
    assert [isinstance(answer, asyncio.CancelledError) for answer in found] == [True, False] * 5
    assert counted.sizes == [5]


def test_a_worker_that_dies_loses_nothing_and_is_replaced(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    counted, lives = Counted(), [2]

    def deadly(of: Bundle, jobs: Sequence[SearchJob], *_: object) -> list[SearchResult]:
        if threading.current_thread().name == THREAD_NAME and lives[0]:
            lives[0] -= 1
            raise SystemExit
        return run_searches(of, jobs)

    monkeypatch.setattr(batching, "run_searches", deadly)
    asked = histories(100)

    async def work(batcher: MicroBatcher) -> tuple[list[Any], bool]:
        return await asyncio.gather(*(batcher.search(bundle, one) for one in asked)), batcher.alive

    found, alive = run(work, counted)
    for answer, one in zip(found, asked, strict=True):
        same(answer, bundle, one)
    assert (counted.deaths, alive) == (2, True)


def test_workers_that_keep_dying_are_given_up(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    def deadly(of: Bundle, jobs: Sequence[SearchJob], *_: object) -> list[SearchResult]:
        if threading.current_thread().name == THREAD_NAME:
            raise SystemExit
        return run_searches(of, jobs)

    monkeypatch.setattr(batching, "run_searches", deadly)
    counted, asked = Counted(), histories(300)

    async def work(batcher: MicroBatcher) -> tuple[list[Any], bool]:
        return await asyncio.gather(*(batcher.search(bundle, one) for one in asked)), batcher.alive

    found, alive = run(work, counted)
    for answer, one in zip(found, asked, strict=True):
        same(answer, bundle, one)
    assert alive is False
    assert 5 <= counted.deaths <= 6  # a second worker may be dying at that moment


@pytest.mark.parametrize("threads", [0, 2])
def test_a_closed_batcher_refuses(bundle: Bundle, threads: int) -> None:
    async def go() -> None:
        batcher = MicroBatcher(bound=500, threads=threads, metrics=Counted(), log=structlog.get_logger())
        await together(bundle, histories(20))(batcher)
        batcher.close()
        for found in await together(bundle, histories(20))(batcher):
            assert isinstance(found, NotReady)
            assert "ask another replica" in str(found)
        assert batcher.depth == 0

    asyncio.run(asyncio.wait_for(go(), 20))


def test_what_only_waits_is_refused_at_the_end_and_what_was_begun_is_answered(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, may_end = threading.Event(), threading.Event()

    def slow(of: Bundle, jobs: Sequence[SearchJob], *_: object) -> list[SearchResult]:
        begun.set()
        assert may_end.wait(10)
        return run_searches(of, jobs)

    monkeypatch.setattr(batching, "run_searches", slow)

    async def go() -> None:
        batcher = MicroBatcher(bound=500, threads=1, metrics=Counted(), log=structlog.get_logger())
        waiting = [asyncio.ensure_future(batcher.search(bundle, asked)) for asked in histories(20)]
        while not begun.is_set():
            await asyncio.sleep(0.001)
        batcher.close()
        may_end.set()
        found = await asyncio.gather(*waiting, return_exceptions=True)
        assert [type(one) for one in found] == [SearchResult] * 16 + [NotReady] * 4

    asyncio.run(asyncio.wait_for(go(), 20))


def test_a_worker_that_dies_after_the_end_leaves_no_search_waiting(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, may_end = threading.Event(), threading.Event()

    def deadly(_: Bundle, __: Sequence[SearchJob], ___: object) -> list[SearchResult]:
        begun.set()
        assert may_end.wait(10)
        raise SystemExit

    monkeypatch.setattr(batching, "run_searches", deadly)

    async def go() -> None:
        batcher = MicroBatcher(bound=500, threads=1, metrics=Counted(), log=structlog.get_logger())
        waiting = [asyncio.ensure_future(batcher.search(bundle, asked)) for asked in histories(2)]
        while not begun.is_set():
            await asyncio.sleep(0.001)
        batcher.close()
        may_end.set()
        found = await asyncio.gather(*waiting, return_exceptions=True)
        assert [type(one) for one in found] == [NotReady] * 2

    asyncio.run(asyncio.wait_for(go(), 20))


class Waiting(FaissRetriever):
    """Waits for another process, which does not answer while ``down``; records the threads that search."""

    waits = True

    def __init__(self) -> None:
        self.down = False
        self.threads: list[str] = []

    def search(self, bundle: Bundle, queries: Any, k: int, *, allowed: Any = None, histories: Any = None) -> ScoredRows:
        self.threads.append(threading.current_thread().name)
        if self.down:
            raise RetrieverUnavailable("down")
        return super().search(bundle, queries, k, allowed=allowed, histories=histories)


def test_a_search_that_waits_never_runs_in_the_event_loop(bundle: Bundle) -> None:
    retriever = Waiting()

    async def work() -> list[SearchResult]:
        batcher = MicroBatcher(bound=10, threads=2, metrics=Counted(), log=structlog.get_logger(), retriever=retriever)
        found = [await batcher.search(bundle, asked) for asked in histories(3)]
        batcher.close()
        return found

    found = asyncio.run(work())
    assert [result.rows.tolist() for result in found] == [
        run_searches(bundle, [asked])[0].rows.tolist() for asked in histories(3)
    ]
    assert retriever.threads == [THREAD_NAME] * 3


def test_a_store_that_is_down_is_asked_once_for_a_batch(bundle: Bundle) -> None:
    retriever = Waiting()
    retriever.down = True

    async def work() -> list[Any]:
        batcher = MicroBatcher(bound=10, threads=1, metrics=Counted(), log=structlog.get_logger(), retriever=retriever)
        found = await asyncio.gather(*(batcher.search(bundle, one) for one in histories(4)), return_exceptions=True)
        batcher.close()
        return found

    assert [type(error) for error in asyncio.run(work())] == [RetrieverUnavailable] * 4
    assert retriever.threads == [THREAD_NAME]
