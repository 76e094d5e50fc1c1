"""Filtered, hidden, excluded and seen items against brute force, page after page."""

import asyncio
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from starlette.testclient import TestClient

from index.build.build import build_bundle
from index.bundle.bundle import Bundle
from index.bundle.event_types import EventTypes
from index.bundle.index_spec import IndexSpec
from index.bundle.manifest import MANIFEST_FILE, Manifest
from index.items.eval_queries import EvaluationQueries
from index.items.item_ids import ItemIds
from index.items.item_table import ItemTable
from service.app import create_app
from service.bundles.startup import Startup
from service.recommend.engine import InlineEngine
from service.recommend.hidden_items import HiddenItems
from service.recommend.query import Query, Recommendations
from service.recommend.recent_histories import RecentHistories
from service.recommend.recommender import Recommender
from service.recommend.stored_history import ExcludeSeen, weighed
from service.request_trace import Trace
from service.settings.load import load_settings
from service.stores.protocols import Event, HistoryEntry
from tests.support.oracle import Oracle
from tests.support.stores.memory_histories import MemoryHistories

LARGE = 2500
TYPES = EventTypes.of({"ignored": "ignore"})


def ask(bundle: Bundle, stored: list[str], hidden: list[str], **query: Any) -> Recommendations:
    async def run() -> Recommendations:
        histories = MemoryHistories(history_cap=200)
        await histories.append([Event("u", item, place) for place, item in enumerate(stored)])
        recommender = Recommender(histories, InlineEngine(), HiddenItems(hidden), RecentHistories(10))
        return await recommender.recommend(bundle, Query(user_id="u", **query), Trace("r"))

    return asyncio.run(run())


def found(bundle: Bundle, answer: Recommendations) -> list[tuple[str, float]]:
    return [
        (bundle.ids.id(row), score) for row, score in zip(answer.rows.tolist(), answer.scores.tolist(), strict=True)
    ]


def check(
    bundle: Bundle,
    oracle: Oracle,
    *,
    stored: list[str],
    hidden: list[str],
    excluded: list[str],
    category: list[str] | None,
    exclude_seen: bool,
    k: int,
    offset: int,
) -> None:
    """Hold an answer to brute force in float64 over the whole catalogue."""
    condition = None if category is None else {"must": [{"field": "category", "in": category}]}
    answer = ask(
        bundle, stored, hidden, k=k, offset=offset, exclude=excluded, exclude_seen=exclude_seen, filter=condition
    )
    rows = np.arange(len(bundle))
    allowed = np.ones(len(bundle), dtype=bool)
    if category is not None:
        allowed = np.isin(np.array(["shoes", "hats", "bags"])[rows % 3], category)
    kept = stored[-200:]
    without = {item for item in (*hidden, *excluded, *(kept if exclude_seen else ())) if item in bundle.ids}
    usable = [item for item in kept if item in bundle.ids and bundle.indexed[oracle.row(item)]]
    wanted = oracle.best(oracle.encoded(usable), k + offset, without, allowed) if usable else []
    if not wanted:  # nothing that a query could find: what is popular, items without a slot too
        wanted = oracle.popular(k + offset, without, allowed)
    page = wanted[offset : offset + k]
    assert [item for item, _ in found(bundle, answer)] == [item for item, _ in page]
    assert [score for _, score in found(bundle, answer)] == pytest.approx([score for _, score in page], abs=1e-5)


ITEMS = st.sampled_from([*(f"i{row}" for row in range(58)), "ein Tee/grün", "👟", "never heard of"])


@given(
    stored=st.lists(ITEMS, max_size=40),
    hidden=st.lists(ITEMS, max_size=60, unique=True),
    excluded=st.lists(ITEMS, max_size=60),
    category=st.none() | st.lists(st.sampled_from(["shoes", "hats", "bags"]), min_size=1, max_size=3),
    exclude_seen=st.booleans(),
    k=st.integers(1, 70),
    offset=st.integers(0, 70),
)
@settings(max_examples=150, deadline=None)
def test_the_answer_is_that_of_brute_force(small_table: ItemTable, bundle: Bundle, **case: Any) -> None:
    check(bundle, Oracle(small_table), **case)


@pytest.fixture(scope="module")
def large(
    tmp_path_factory: pytest.TempPathFactory, small_table: ItemTable, small_encoder: Path
) -> tuple[Bundle, Oracle]:
    """2,500 items of the small layout, each eleventh without a slot; an exact index."""
    rng = np.random.default_rng(3)
    layout = small_table.layout
    raw = {slot.name: rng.normal(size=(LARGE, slot.dim)).astype(np.float32) for slot in layout.slots}
    for block in raw.values():
        block[::11] = 0
    table = ItemTable(
        layout=layout,
        ids=ItemIds(f"i{row}" for row in range(LARGE)),
        vectors=layout.stack(raw).astype(np.float16),
        popularity=rng.permutation(LARGE),
        metadata=pa.table({"category": [("shoes", "hats", "bags")[row % 3] for row in range(LARGE)]}),
    )
    queries = EvaluationQueries(np.array([[1], [2]]), np.array([3, 4]))
    spec = IndexSpec(kind="flat")
    built = build_bundle(table, small_encoder, queries, tmp_path_factory.mktemp("large"), spec)
    return Bundle.load(built), Oracle(table)


@pytest.mark.parametrize("category", [None, ["hats"]])
@pytest.mark.parametrize("hides", [0, 5, 2000, LARGE])
@pytest.mark.parametrize(("k", "offset"), [(1, 0), (20, 0), (1000, 0), (400, 600)])
def test_long_histories_many_exclusions_and_long_pages(
    large: tuple[Bundle, Oracle], category: list[str] | None, hides: int, k: int, offset: int
) -> None:
    bundle, oracle = large
    rng = np.random.default_rng(hides)
    # the best of all for this history are seen, excluded or hidden, so that none can be left out by a short look
    stored = [f"i{row}" for row in rng.integers(0, LARGE, 250)]
    usable = [item for item in stored[-200:] if bundle.indexed[oracle.row(item)]]
    best = [item for item, _ in oracle.best(oracle.encoded(usable), LARGE, set())]
    excluded = best[:1000]
    hidden = best[1000 : 1000 + hides] if hides < LARGE else [f"i{row}" for row in range(LARGE)]
    for exclude_seen in (True, False):
        check(
            bundle,
            oracle,
            stored=stored,
            hidden=hidden,
            excluded=excluded,
            category=category,
            exclude_seen=exclude_seen,
            k=k,
            offset=offset,
        )


def test_a_page_is_full_as_long_as_anything_is_left(large: tuple[Bundle, Oracle]) -> None:
    bundle, _ = large
    stored = [f"i{row}" for row in range(1, 201)]
    excluded = [f"i{row}" for row in range(201, 1201)]
    left = sum(1 for row in range(1201, LARGE) if row % 11)
    assert left > 1000
    assert len(ask(bundle, stored, [], exclude=excluded, k=1000).rows) == 1000
    hidden = [f"i{row}" for row in range(1500, LARGE)]
    left = sum(1 for row in range(1201, 1500) if row % 11)
    assert len(ask(bundle, stored, hidden, exclude=excluded, k=1000).rows) == left
    assert len(ask(bundle, stored, hidden, exclude=excluded, k=left).rows) == left
    assert len(ask(bundle, stored, hidden, exclude=excluded, k=5, offset=left - 2).rows) == 2


@pytest.fixture
def repeats_allowed(small_bundle: Path, tmp_path: Path, redis_url: str) -> Iterator[TestClient]:
    """The service of the small bundle with `exclude_seen = false` in its manifest."""
    manifest = Manifest.read(small_bundle)
    parts = {name: getattr(manifest, name) for name in Manifest.model_fields} | {"exclude_seen": False}
    sealed = Manifest.seal(**{name: part for name, part in parts.items() if name not in {"format", "id", "content"}})
    copy = tmp_path / sealed.id
    shutil.copytree(small_bundle, copy)
    (copy / MANIFEST_FILE).chmod(0o644)
    (copy / MANIFEST_FILE).write_text(sealed.to_json())
    prefix = f"test-{uuid.uuid4().hex}"
    chosen = load_settings(
        registry="unused", redis_url=redis_url, redis_prefix=prefix, directives_file=str(tmp_path / "d.json")
    )
    with TestClient(create_app(chosen, startup=Startup(Bundle.load(copy)))) as client:
        yield client


@pytest.mark.parametrize(
    ("wanted", "seen"),
    [({}, None), ({"exclude_seen": None}, None), ({"exclude_seen": True}, False), ({"exclude_seen": False}, True)],
)
def test_the_bundle_says_whether_seen_items_are_answered_where_the_request_does_not(
    client: TestClient, repeats_allowed: TestClient, wanted: dict[str, Any], seen: bool | None
) -> None:
    for service, default in ((client, False), (repeats_allowed, True)):
        user = uuid.uuid4().hex
        service.post("/events", json={"user_id": user, "item_id": "i5"}).raise_for_status()
        for asks, had in (({"items": ["i1", "i2"]}, {"i1", "i2"}), ({"user_id": user}, {"i5"})):
            body = asks | wanted | {"k": 60}
            alone = service.post("/recommend", json=body).json()
            (member,) = service.post("/recommend/batch", json={"requests": [body]}).json()["answers"]
            for answer in (alone, member):
                found = {item["item_id"] for item in answer["items"]}
                assert found & had == (had if (default if seen is None else seen) else set())
    assert repeats_allowed.get("/bundle").json()["manifest"]["exclude_seen"] is False


def entry(item: str, seconds: float, kind: str = "view") -> HistoryEntry:
    return HistoryEntry(item, seconds, kind)


@pytest.mark.parametrize("exclude_seen", [False, "positive", frozenset({"purchase"})])
@pytest.mark.parametrize("dislike_first", [True, False])
def test_a_dislike_counts_until_a_later_event_of_either_history(exclude_seen: ExcludeSeen, dislike_first: bool) -> None:
    """The user dislikes an item after the session clicked it, or before."""
    user, session = [entry("a", 10.0, "dislike")], [entry("a", 20.0 if dislike_first else 5.0)]
    for histories in ([user, session], [session, user]):
        found = weighed(histories, TYPES, exclude_seen=exclude_seen).excluded
        assert ("a" in found) is (exclude_seen == "positive" or not dislike_first)


def test_of_equal_times_the_later_history_counts() -> None:
    viewed, disliked = [entry("a", 5.0)], [entry("a", 5.0, "dislike")]
    assert set(weighed([viewed, disliked], TYPES, exclude_seen=False).excluded) == {"a"}
    assert set(weighed([disliked, viewed], TYPES, exclude_seen=False).excluded) == set()


def test_of_one_history_the_last_event_counts_even_if_it_was_late() -> None:
    late = [entry("a", 9.0), entry("a", 3.0, "dislike")]
    assert set(weighed([late], TYPES, exclude_seen=False).excluded) == {"a"}
    assert set(weighed([late, [entry("a", 8.0)]], TYPES, exclude_seen=False).excluded) == set()


def test_an_ignored_event_is_none() -> None:
    histories = [[entry("a", 1.0, "dislike")], [entry("a", 2.0, "ignored")]]
    found = weighed(histories, TYPES, exclude_seen=False)
    assert (set(found.excluded), list(found.item_ids)) == ({"a"}, ["a"])


def test_histories_keep_their_order() -> None:
    found = weighed([[entry("a", 9.0)], [entry("b", 1.0), entry("a", 2.0)]], TYPES)
    assert (list(found.item_ids), set(found.excluded)) == (["a", "b", "a"], {"a", "b"})
