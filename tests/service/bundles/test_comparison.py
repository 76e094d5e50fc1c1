"""The comparison of two bundles against values computed by hand."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from index.bundle.bundle import Bundle
from index.bundle.manifest import ENCODER_FILE
from index.errors import EncoderError
from index.items.item_table import ItemTable
from service.bundles.comparison import BundleFigures, ComparedBundle, Comparison, ShadowBounds, compare
from service.errors import BundleRefused
from service.recommend.hidden_items import available_rows
from service.recommend.recent_histories import RecentHistories
from service.settings.groups import ComparisonSettings
from tests.support.oracle import Oracle
from tests.support.shops import AS_ADMIN, Shop, eventually, metric, other_bundle, returning, serving, with_blind_encoder

HISTORIES = [("i1", "i2"), ("i10",), ("i4", "i5", "i6", "i8", "i9", "i11")]


@pytest.fixture(scope="module")
def days(day_bundles: list[Path]) -> tuple[Bundle, Bundle]:
    return Bundle.load(day_bundles[0]), Bundle.load(day_bundles[1])


def best(bundle: Bundle, history: tuple[str, ...], without: frozenset[str] = frozenset()) -> list[str]:
    """Top 20 in float64 from the stored vectors."""
    vectors = bundle.vectors(np.arange(len(bundle))).astype(np.float64)
    rows = [bundle.ids.row(item) for item in history]
    query = 1.5 * vectors[rows[-5:]].mean(axis=0) + vectors[rows[-1]]
    order = np.argsort(-(vectors @ query), kind="stable")
    names = [bundle.ids.id(int(row)) for row in order if vectors[row].any()]
    return [name for name in names if name not in {*history, *without}][:20]


def test_the_newest_different_histories_are_kept() -> None:
    recent = RecentHistories(3)
    for history in (["a"], ["b"], [], ["a"], ["c", "d"], ["e"]):
        recent.add(history, 0)
    assert recent.newest() == [("e",), ("c", "d"), ("a",)]
    recent.add([str(number) for number in range(80)], 0)
    assert recent.newest()[0] == tuple(str(number) for number in range(30, 80))
    recent.clear()
    assert (len(recent), recent.newest()) == (0, [])


def test_a_history_read_before_all_were_cleared_is_dropped() -> None:
    recent = RecentHistories(3)
    before = recent.generation
    recent.clear()
    recent.add(["late"], before)
    assert recent.newest() == []
    recent.add(["new"], recent.generation)
    assert recent.newest() == [("new",)]


def test_a_bundle_beside_itself(days: tuple[Bundle, Bundle]) -> None:
    same = ComparedBundle(days[0], None)
    found = compare(same, same, HISTORIES, evaluation_queries=5)
    assert (found.histories, found.source, found.k, found.overlap) == (3, "recent", 20, 1.0)
    assert found.old == found.new
    assert found.slot_shift == 0
    different = {item for history in HISTORIES for item in best(days[0], history)}
    assert found.new.coverage == pytest.approx(len(different) / min(60, days[0].manifest.indexed))
    assert found.new.answered == 1
    assert sum(found.new.slot_shares.values()) == pytest.approx(1)


def test_two_bundles_overlap_as_counted_by_hand(days: tuple[Bundle, Bundle]) -> None:
    old, new = days
    histories = [*HISTORIES, ("gone",), ("i3",)]  # unknown, and without a slot
    found = compare(ComparedBundle(new, None), ComparedBundle(old, None), histories, evaluation_queries=5)
    shares = [len(set(best(old, history)) & set(best(new, history))) / 20 for history in HISTORIES]
    assert 0 < sum(shares) < 3
    assert found.overlap == pytest.approx(sum(shares) / 3)
    assert found.old is not None
    assert (found.old.answered, found.new.answered) == (0.6, 0.6)
    assert (found.old.bundle, found.new.bundle) == (old.id, new.id)


def test_slot_shares_are_the_mean_share_of_positive_contributions(bundle: Bundle, oracle: Oracle) -> None:
    found = compare(ComparedBundle(bundle, None), None, [("i1", "i2")], evaluation_queries=5)
    query = oracle.encoded(["i1", "i2"])
    shares = []
    for item, _ in oracle.best(query, 20, {"i1", "i2"}):
        vector = oracle.vectors[oracle.row(item)]
        parts = np.maximum([vector[part] @ query[part] for part in (slice(0, 6), slice(6, 10), slice(10, 12))], 0)
        shares.append(parts / max(parts.sum(), 1e-9))
    assert list(found.new.slot_shares) == ["text", "image", "behaviour"]
    assert list(found.new.slot_shares.values()) == pytest.approx(np.mean(shares, axis=0), abs=1e-4)
    assert (found.old, found.overlap, found.slot_shift) == (None, None, 0)


def test_hidden_items_are_not_in_either_answer(days: tuple[Bundle, Bundle]) -> None:
    history = HISTORIES[0]
    hidden = frozenset(best(days[0], history)[:10])
    old, new = (ComparedBundle(day, available_rows(day, hidden)) for day in days)
    found = compare(new, old, [history], evaluation_queries=5)
    shared = set(best(days[0], history, hidden)) & set(best(days[1], history, hidden))
    assert found.overlap == pytest.approx(len(shared) / 20)
    old, new = (ComparedBundle(day, available_rows(day, {day.ids.id(row) for row in range(60)})) for day in days)
    assert compare(new, old, [history], evaluation_queries=5).new.answered == 0


@pytest.mark.parametrize("recent", [[], [("gone",), ("i3",)]])
def test_without_usable_traffic_the_evaluation_queries_are_used(
    days: tuple[Bundle, Bundle], recent: list[tuple[str, ...]]
) -> None:
    found = compare(ComparedBundle(days[1], None), ComparedBundle(days[0], None), recent, evaluation_queries=2)
    assert (found.source, found.histories, found.new.answered) == ("probes", 2, 1)
    assert found.overlap is not None


def test_a_bundle_that_answers_nothing_of_the_traffic_is_refused(
    days: tuple[Bundle, Bundle], small_table: ItemTable, tmp_path: Path
) -> None:
    foreign = Bundle.load(other_bundle(small_table, days[0].path / ENCODER_FILE, tmp_path, 9, names="x"))
    with pytest.raises(BundleRefused, match="none of 3 histories") as refused:
        compare(ComparedBundle(foreign, None), ComparedBundle(days[0], None), HISTORIES, evaluation_queries=5)
    assert refused.value.reason == "answers"


def test_only_failures_of_the_new_bundle_count(
    days: tuple[Bundle, Bundle], day_bundles: list[Path], tmp_path: Path
) -> None:
    blind = Bundle.load(with_blind_encoder(day_bundles[0], tmp_path))
    found = compare(ComparedBundle(days[1], None), ComparedBundle(blind, None), HISTORIES, evaluation_queries=5)
    assert found.old is not None
    assert (found.old.answered, found.new.answered, found.overlap) == (0, 1, None)
    with pytest.raises(BundleRefused, match="not finite") as refused:
        compare(ComparedBundle(blind, None), ComparedBundle(days[1], None), HISTORIES, evaluation_queries=5)
    assert refused.value.reason == "answers"


def test_scores_that_are_not_finite_are_refused(days: tuple[Bundle, Bundle], monkeypatch: pytest.MonkeyPatch) -> None:
    search = days[1].search

    def broken(*arguments: Any, **options: Any) -> Any:
        found = search(*arguments, **options)
        found.scores[0, 2] = np.nan
        return found

    monkeypatch.setattr(days[1], "search", broken)
    with pytest.raises(BundleRefused, match="scores must be finite"):
        compare(ComparedBundle(days[1], None), None, HISTORIES, evaluation_queries=5)


def side(bundle: str, answered: float = 1.0, coverage: float = 0.5, **shares: float) -> BundleFigures:
    return BundleFigures(bundle, answered, coverage, shares)


COMPARED = Comparison(
    10, "recent", 20, 0.25, side("old", text=0.5, image=0.5), side("new", 0.9, 0.4, text=0.7, behaviour=0.3)
)


@pytest.mark.parametrize(
    ("bounds", "message"),
    [
        ({"shadow_min_overlap": 0.26}, "overlap 0.2500 is below 0.26"),
        ({"shadow_min_coverage": 0.41}, "coverage 0.4000 is below 0.41"),
        ({"shadow_min_answered": 0.95}, "answered 0.9000 is below 0.95"),
        ({"shadow_max_slot_shift": 0.49}, "slot shares 0.5000 is above 0.49"),
    ],
)
def test_a_bound_that_is_missed_is_named(bounds: dict[str, float], message: str) -> None:
    with pytest.raises(BundleRefused, match=message) as refused:
        ShadowBounds(ComparisonSettings(**bounds)).check(COMPARED)
    assert refused.value.reason == "bound"


def test_bounds_that_hold_and_bounds_without_an_old_bundle() -> None:
    ShadowBounds(ComparisonSettings()).check(COMPARED)
    just_met = ComparisonSettings(
        shadow_min_overlap=0.25, shadow_min_coverage=0.4, shadow_min_answered=0.9, shadow_max_slot_shift=0.5
    )
    ShadowBounds(just_met).check(COMPARED)
    first = Comparison(10, "probes", 20, None, None, side("new"))
    strictest = ComparisonSettings(
        shadow_min_overlap=1.0, shadow_min_coverage=1.0, shadow_min_answered=1.0, shadow_max_slot_shift=0.0
    )
    ShadowBounds(strictest).check(first)


def test_a_bound_of_the_operator_refuses_and_a_pin_overrules_it(open_shop: Any, shop: Shop) -> None:
    with open_shop(shadow_min_overlap=0.99) as client:
        serving(client)
        shop.point(shop.ids[1])
        eventually(lambda: metric(client, "vlm2rec_bundle_refusals_total", reason="bound") == 1)
        answer = client.post("/bundle/reload", headers=AS_ADMIN)
        assert answer.status_code == 409
        assert "is below 0.99" in answer.json()["detail"]
        assert serving(client) == shop.ids[0]
        pinned = client.post("/bundle/rollback", headers=AS_ADMIN, json={"bundle": shop.ids[1]})
        assert pinned.status_code == 200
        assert serving(client) == shop.ids[1]


def test_erasing_a_user_forgets_the_recent_histories_too(open_shop: Any, shop: Shop) -> None:
    with open_shop() as client:
        returning(client)
        assert client.delete("/users/u").status_code == 204
        shop.point(shop.ids[1])
        eventually(lambda: client.get("/bundle").json()["bundle"] == shop.ids[1])
        assert client.get("/bundle").json()["swap"]["comparison"]["source"] == "probes"


def test_an_old_bundle_for_one_thread_is_queried_in_that_thread(days: tuple[Bundle, Bundle]) -> None:
    asked: list[object] = []

    def there(question: Any) -> Any:
        asked.append(question)
        return question()

    found = compare(
        ComparedBundle(days[1], None), ComparedBundle(days[0], None), HISTORIES, evaluation_queries=5, ask_old=there
    )
    assert len(asked) == 3
    assert found == compare(
        ComparedBundle(days[1], None), ComparedBundle(days[0], None), HISTORIES, evaluation_queries=5
    )

    def failing(_question: Any) -> Any:
        raise EncoderError("down")

    found = compare(
        ComparedBundle(days[1], None), ComparedBundle(days[0], None), HISTORIES, evaluation_queries=5, ask_old=failing
    )
    assert found.overlap is None
