"""The sampler of live answers: figures computed by hand, and the bound on its processor time."""

import asyncio
import gc
import math
import threading
import weakref
from collections.abc import Awaitable, Callable
from pathlib import Path

import numpy as np
import pytest

from index.bundle.bundle import Bundle
from index.items.item_table import ItemTable
from index.search.row_mask import RowMask
from service.recommend import online_recall as sampler_module
from service.recommend.engine import SearchJob, SearchResult
from service.recommend.online_recall import WINDOW, OnlineRecall, balance_of, recall_of
from service.recommend.query import Query, Recommendations
from service.request_trace import Trace
from service.runtime.background_tasks import Background
from service.telemetry.logs import logger
from service.telemetry.metrics import Metrics
from tests.support.exposed import exposed
from tests.support.listed_bundles import bundle_with_new_items
from tests.support.shops import OpenClient, eventually, metric


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class Watched:
    """A sampler with its own clock, which receives answers of known recall."""

    def __init__(self, bundle: Bundle, *, checks_per_s: float = 1.0, cpu_share: float = 1.0) -> None:
        self.bundle, self.clock, self.metrics = bundle, Clock(), Metrics()
        self.active: Bundle | None = None
        self.sampler = OnlineRecall(
            self.metrics.quality,
            logger(),
            checks_per_s=checks_per_s,
            cpu_share=cpu_share,
            thread=Background("recall-check", nice=19),
            clock=self.clock,
            is_active=lambda bundle: self.active is None or bundle is self.active,
        )

    async def show(self, *, missed: int = 0, row: int = 1, k: int = 20, **query: object) -> None:
        """An answer to the vector of a row that misses this many of the best, once the clock says it is time."""
        vector = self.bundle.vectors(np.array([row]))[0]
        best = self.bundle.exact(vector[None], k + missed)
        kept = np.r_[0 : k - missed, k : k + missed]
        found = SearchResult(vector, best.rows[0][kept], best.scores[0][kept])
        answer = Recommendations(found.rows[:k], found.scores[:k], 1, [], strategy="similar")
        asked = SearchJob(None, lambda encoded, _: encoded, k, None, Trace("r"))
        self.sampler(self.bundle, Query(k=k, **query), [(asked, found)], answer)
        while self.sampler._task is not None:
            await asyncio.sleep(0.001)

    def value(self, name: str, **labels: str) -> float | None:
        return exposed(self.metrics, name, **labels)


def run(steps: Callable[[], Awaitable[None]]) -> None:
    asyncio.run(steps())


def test_recall_is_the_share_of_the_best_that_were_found(bundle: Bundle) -> None:
    async def steps() -> None:
        watched = Watched(bundle)
        for missed in (5, 0):
            watched.clock.now += 1.0
            await watched.show(missed=missed)
        assert watched.value("vlm2rec_recall", filtered="no") == pytest.approx((0.75 + 1.0) / 2)
        assert watched.value("vlm2rec_recall_checks_total", filtered="no") == 2
        assert watched.value("vlm2rec_recall", filtered="yes") is None
        watched.clock.now += 1.0
        await watched.show(missed=10, filter={"must": []})
        assert watched.value("vlm2rec_recall", filtered="yes") == 0.5
        assert watched.value("vlm2rec_recall", filtered="no") == pytest.approx(0.875)
        await watched.sampler.close()

    run(steps)


@pytest.mark.parametrize(
    ("scores", "truth", "recall"),
    [([3, 2, 1], [3, 2, 1], 1.0), ([3, 1], [3, 2], 0.5), ([1, 1], [3, 2], 0.0), ([2, 2, 2], [2, 2], 1.0), ([], [1], 0)],
)
def test_an_item_is_right_if_its_score_reaches_the_last_right_one(
    scores: list[float], truth: list[float], recall: float
) -> None:
    assert recall_of(np.array(scores, np.float32), np.array(truth, np.float32)) == recall


def test_checks_keep_to_their_pace_and_to_their_share_of_a_core(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    times = iter(range(1000))
    monkeypatch.setattr(sampler_module, "thread_time", lambda: float(next(times)))  # every check takes a second

    async def steps() -> None:
        watched = Watched(bundle, checks_per_s=0.5, cpu_share=0.1)
        checks = []
        for second in range(40):
            await watched.show()
            if watched.value("vlm2rec_recall_checks_total", filtered="no") != (len(checks) or None):
                checks.append(second)
            watched.clock.now += 1.0
        assert checks == [2, 12, 22, 32]  # two seconds after the start, then ten for a second's work
        assert watched.value("vlm2rec_recall_check_cpu_seconds_total") == 4.0
        await watched.sampler.close()

    run(steps)


def test_no_checks_where_none_are_wanted(bundle: Bundle) -> None:
    async def steps() -> None:
        watched = Watched(bundle, checks_per_s=0)
        for _ in range(3):
            watched.clock.now += 1000.0
            await watched.show()
        assert watched.value("vlm2rec_recall", filtered="no") is None
        assert watched.value("vlm2rec_slot_share", slot="text") is not None
        await watched.sampler.close()

    run(steps)


def by_hand(bundle: Bundle, row: int, k: int) -> np.ndarray:
    """Mean slot shares over the k items nearest to a row's own vector, component by component."""
    query = bundle.vectors(np.array([row]))[0].astype(float)
    shares = []
    for found in bundle.exact(query[None], k).rows[0]:
        item = bundle.vectors(np.array([found]))[0].astype(float)
        parts = [max(0.0, float(query[cut] @ item[cut])) for cut in (slice(0, 6), slice(6, 10), slice(10, 12))]
        shares.append([part / sum(parts) for part in parts])
    return np.mean(shares, axis=0)


def test_slot_shares_are_those_of_the_answered_items(bundle: Bundle) -> None:
    async def steps() -> None:
        watched = Watched(bundle, checks_per_s=0)
        await watched.show(row=1, k=10)
        watched.clock.now += 0.05  # too soon for another
        await watched.show(row=4, k=10)
        watched.clock.now += 0.05
        await watched.show(row=2, k=5)
        watched.clock.now += 1.0
        await watched.show(row=4, k=10, slot_weights={"image": 0.0})  # says nothing about the model
        wanted = (by_hand(bundle, 1, 10) + by_hand(bundle, 2, 5)) / 2
        found = [watched.value("vlm2rec_slot_share", slot=name) for name in ("text", "image", "behaviour")]
        assert found == pytest.approx(wanted, abs=1e-6)
        assert watched.value("vlm2rec_slot_share", slot="imputed") == 0.0
        assert watched.value("vlm2rec_slot_balance") == pytest.approx(wanted.min() / wanted.max(), abs=1e-6)
        await watched.sampler.close()

    run(steps)


def test_imputed_behaviour_is_counted_apart(small_table: ItemTable, small_encoder: Path, tmp_path: Path) -> None:
    new = [row for row in range(60) if row % 2 and row != 3]
    bundle = Bundle.load(bundle_with_new_items(small_table, small_encoder, tmp_path, new, length=0.8))

    async def steps() -> None:
        watched = Watched(bundle, checks_per_s=0)
        await watched.show(row=1, k=10)
        rows, query = bundle.exact(bundle.vectors(np.array([1])), 10).rows[0], bundle.vectors(np.array([1]))[0]
        by_item = []
        for row in rows.tolist():
            item = bundle.vectors(np.array([row]))[0]
            parts = [max(0.0, float(query[cut] @ item[cut])) for cut in (slice(0, 6), slice(6, 10), slice(10, 12))]
            by_item.append(parts[2] / sum(parts))
        imputed = sum(share for row, share in zip(rows.tolist(), by_item, strict=True) if row in new) / 10
        assert 0 < imputed < sum(by_item) / 10
        found = {name: watched.value("vlm2rec_slot_share", slot=name) for name in (*bundle.layout.names, "imputed")}
        assert found["imputed"] == pytest.approx(imputed, abs=1e-6)
        assert found["behaviour"] == pytest.approx(sum(by_item) / 10 - imputed, abs=1e-6)
        assert sum(found.values()) == pytest.approx(1.0, abs=1e-6)
        whole = found | {"behaviour": found["behaviour"] + found.pop("imputed")}
        least, most = min(whole[name] for name in found), max(whole[name] for name in found)
        assert watched.value("vlm2rec_slot_balance") == pytest.approx(least / most, abs=1e-6)
        await watched.sampler.close()

    run(steps)


def test_missed_new_items_lower_the_recall(small_table: ItemTable, small_encoder: Path, tmp_path: Path) -> None:
    bundle = Bundle.load(bundle_with_new_items(small_table, small_encoder, tmp_path, [6, 13, 20, 27], length=0.5))

    async def steps() -> None:
        watched = Watched(bundle)
        vector = bundle.vectors(np.array([1]))
        new = RowMask.of(bundle.popularity == 0, bundle.indexed)
        searches = []
        for k, allowed, kept in ((16, None, slice(0, 16)), (4, new, slice(0, 1))):  # three of four new ones are missed
            best = bundle.exact(vector, k, allowed=allowed)
            job = SearchJob(None, lambda encoded, _: encoded, k, allowed, Trace("r"))
            searches.append((job, SearchResult(vector[0], best.rows[0][kept], best.scores[0][kept])))
        rows = np.concatenate([found.rows for _, found in searches])
        watched.clock.now += 1.0
        watched.sampler(bundle, Query(k=16), searches, Recommendations(rows, rows.astype("f4"), 1, []))
        while watched.sampler._task is not None:
            await asyncio.sleep(0.001)
        assert watched.value("vlm2rec_recall", filtered="no") == pytest.approx(17 / 20)
        await watched.sampler.close()

    run(steps)


@pytest.mark.parametrize(
    ("shares", "in_use", "balance"),
    [
        ([0.4, 0.4, 0.2], [1, 1, 1], 0.5),
        ([0.5, 0.5, 0.0], [1, 1, 1], 0.0),
        ([0.5, 0.5, 0.0], [1, 1, 0], 1.0),
        ([1.0, 0.0, 0.0], [1, 0, 0], math.nan),
        ([0.0, 0.0, 0.0], [1, 1, 1], math.nan),
    ],
)
def test_balance_by_hand(shares: list[float], in_use: list[int], balance: float) -> None:
    assert balance_of(np.array(shares), np.array(in_use, bool)) == pytest.approx(balance, nan_ok=True)


def test_only_the_newest_count(bundle: Bundle) -> None:
    async def steps() -> None:
        watched = Watched(bundle)
        for missed in (20, *[0] * WINDOW):
            watched.clock.now += 1.0
            await watched.show(missed=missed)
            if missed:
                assert watched.value("vlm2rec_recall", filtered="no") == 0.0
        assert watched.value("vlm2rec_recall", filtered="no") == 1.0
        await watched.sampler.close()

    run(steps)


def test_another_bundle_begins_anew(bundle: Bundle, day_bundles: list[Path]) -> None:
    async def steps() -> None:
        watched = Watched(bundle)
        watched.clock.now += 1.0
        await watched.show(missed=10)
        watched.bundle = Bundle.load(day_bundles[0])
        watched.clock.now += 1.0
        await watched.show(missed=0)
        assert watched.value("vlm2rec_recall", filtered="no") == 1.0
        watched.bundle = bundle
        watched.clock.now += 0.5
        await watched.show()  # shares only
        assert watched.value("vlm2rec_recall", filtered="no") is None
        await watched.sampler.close()

    run(steps)


def test_the_other_bundle_of_an_experiment_ends_no_window(bundle: Bundle, day_bundles: list[Path]) -> None:
    async def steps() -> None:
        watched, other = Watched(bundle), Bundle.load(day_bundles[0])
        watched.active = bundle
        for missed in (10, 0):
            watched.bundle = bundle
            watched.clock.now += 1.0
            await watched.show(missed=missed)
            watched.bundle = other
            await watched.show(missed=20)
            watched.clock.now += 1.0
            await watched.show(missed=20)
        assert watched.value("vlm2rec_recall", filtered="no") == pytest.approx(0.75)
        assert watched.value("vlm2rec_recall_checks_total", filtered="no") == 2
        await watched.sampler.close()

    run(steps)


def test_a_failure_is_counted_and_the_next_answer_is_measured(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    async def steps() -> None:
        watched = Watched(bundle)
        watched.clock.now += 1.0
        with monkeypatch.context() as broken:
            broken.setattr(sampler_module, "recall_of", lambda *_: 1 / 0)
            await watched.show()
        assert watched.value("vlm2rec_sample_failures_total") == 1
        watched.clock.now += 1.0
        await watched.show()
        assert watched.value("vlm2rec_recall", filtered="no") == 1.0
        await watched.sampler.close()

    run(steps)


def test_a_check_that_waits_for_a_core_keeps_no_bundle_in_memory(day_bundles: list[Path]) -> None:
    async def steps() -> None:
        watched, waiting = Watched(Bundle.load(day_bundles[0])), threading.Event()
        gone = weakref.ref(watched.bundle)
        busy = asyncio.create_task(watched.sampler._background.run(waiting.wait))
        try:
            await asyncio.sleep(0)
            watched.clock.now += 1.0
            shown = asyncio.create_task(watched.show())
            while watched.sampler._task is None or watched.value("vlm2rec_slot_share", slot="text") is None:
                await asyncio.sleep(0.001)
            del watched.bundle
            shown.cancel()
            await asyncio.gather(shown, return_exceptions=True)
            del shown
            gc.collect()
            assert gone() is None
        finally:
            waiting.set()
            await busy
        while watched.sampler._task is not None:
            await asyncio.sleep(0.001)
        assert watched.value("vlm2rec_recall", filtered="no") is None
        assert watched.value("vlm2rec_sample_failures_total") == 0
        await watched.sampler.close()

    run(steps)


def test_live_answers_are_sampled(open_client: OpenClient) -> None:
    with open_client(recall_checks_per_s=100, recall_check_cpu=1.0) as client:
        # One kind until it was checked, then the other: taken in turns, the second may find a check at work every time.
        def checked(label: str, path: str, body: dict[str, object]) -> bool:
            client.post(path, json=body)
            return bool(metric(client, "vlm2rec_recall_checks_total", filtered=label))

        eventually(lambda: checked("no", "/recommend", {"items": ["i1", "i2"]}))
        cheap = {"item_id": "i5", "filter": {"must": [{"field": "price", "lt": 40}]}}
        eventually(lambda: checked("yes", "/similar", cheap))
        assert metric(client, "vlm2rec_recall", filtered="yes") == metric(client, "vlm2rec_recall", filtered="no") == 1
        names = ("text", "image", "behaviour", "imputed")
        shares = [metric(client, "vlm2rec_slot_share", slot=name) for name in names]
        assert sum(shares) == pytest.approx(1.0)
        assert 0 < metric(client, "vlm2rec_slot_balance") < 1
        assert metric(client, "vlm2rec_sample_failures_total") == 0
