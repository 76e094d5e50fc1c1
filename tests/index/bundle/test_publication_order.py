"""Bundles are ordered by publication, whatever the clock of their build."""

import json
import shutil

import pytest

from index.bundle.pointer import Pointer
from index.bundle.registry import Registry
from index.errors import RegistryError

A, B, C, D = (f"2026112{day}T000000Z-00000{day}" for day in range(1, 5))
FUTURE = "20310101T000000Z-000009"


@pytest.fixture
def wrong_clock(registry: Registry, bundles) -> list[str]:
    """The bundle of the greatest name was published first, then two built at the right time; the last one serves."""
    for bundle in (bundles[2], bundles[0], bundles[1]):
        registry.publish(bundle)
    return [bundles[2].name, bundles[0].name, bundles[1].name]


def test_prune_deletes_the_first_published(registry: Registry, wrong_clock: list[str]) -> None:
    future, predecessor, current = wrong_clock
    assert registry.prune(1) == [future]
    assert registry.current() == current
    assert registry.rollback() == predecessor


def test_rollback_and_list_go_by_publication(registry: Registry, wrong_clock: list[str]) -> None:
    future, predecessor, current = wrong_clock
    assert [info.id for info in registry.list()] == wrong_clock
    assert registry.earlier(current) == [predecessor, future]
    assert registry.earlier(future) == []
    assert registry.rollback() == predecessor
    assert [info.id for info in registry.list()] == wrong_clock  # going back publishes nothing
    assert registry.earlier(predecessor) == [future]


def test_publishing_again_makes_it_the_last(registry: Registry, wrong_clock: list[str], bundles) -> None:
    future, first, second = wrong_clock
    registry.publish(bundles[2])
    assert [info.id for info in registry.list()] == [first, second, future]
    registry.rollback(first)
    registry.publish(bundles[0])  # it is current already, and now on purpose
    assert [info.id for info in registry.list()] == [second, future, first]


def test_prune_keeps_the_current_the_previous_and_the_spared(registry: Registry, bundles) -> None:
    for bundle in bundles:
        registry.publish(bundle)
    first, second, third = (bundle.name for bundle in bundles)
    registry.rollback(first)  # the others were published later
    registry.publish(bundles[2])
    assert registry.earlier(third) == [first, second]  # the second was left by an operator
    assert registry.prune(1, spare=[second]) == []
    assert registry.prune(1) == [second]
    assert registry.prune(1) == []
    assert registry.rollback() == first


def test_a_bundle_that_was_never_published_is_the_oldest_of_all(registry: Registry, wrong_clock, bundles, make_bundle):
    """A publish that was killed between its rename and the pointer leaves such a one."""
    never = make_bundle(registry.root, items=40, seed=9).name
    listed = registry.list()
    assert [info.id for info in listed] == [never, *wrong_clock]
    assert [info.published for info in listed] == [False, True, True, True]
    assert never not in registry.earlier(wrong_clock[2])
    assert registry.prune(3) == [never]
    shutil.copytree(bundles[0], registry.root / never)
    assert registry.rollback(wrong_clock[1])
    assert [info.published for info in registry.list()] == [False, True, True, True]


def test_rolling_back_to_a_never_published_bundle_publishes_it(registry: Registry, bundles, make_bundle) -> None:
    registry.publish(bundles[2])
    never = make_bundle(registry.root, items=40, seed=9).name
    assert registry.rollback(never) == never
    assert [info.id for info in registry.list()] == [bundles[2].name, never]
    assert all(info.published for info in registry.list())


# Registries of earlier versions have no recorded order.


def legacy(registry: Registry, current: str, *previous: str) -> None:
    registry.pointer.write_text(json.dumps({"format": 1, "current": current, "previous": list(previous)}))


def test_without_a_recorded_order_the_history_of_the_pointer_counts(registry: Registry, wrong_clock: list[str]) -> None:
    future, predecessor, current = wrong_clock
    legacy(registry, current, future, predecessor)
    assert [info.id for info in registry.list()] == wrong_clock
    assert all(info.published for info in registry.list())
    assert registry.prune(1) == [future]
    assert registry.rollback() == predecessor
    raw = json.loads(registry.pointer.read_text())
    assert raw["published"] == [predecessor, current]  # recorded from now on


def test_without_a_recorded_order_other_bundles_are_placed_by_name() -> None:
    """C and D were rolled back from: the old pointer had forgotten them."""
    assert Pointer(B, (FUTURE, A)).order([A, B, C, D, FUTURE]) == (C, D, FUTURE, A, B)
    assert Pointer(B, (A,)).order([A, B, C, D]) == (A, B, C, D)
    assert Pointer(C, ()).order([A, B, C, D]) == (A, B, C, D)
    assert Pointer(C, ()).before(C, [A, B, C, D]) == [B, A]


def test_a_deleted_bundle_is_placed_by_its_name() -> None:
    assert Pointer(D, (FUTURE, A), (FUTURE, A, D)).before(C, [A, D, FUTURE]) == [A]


def test_an_earlier_version_can_read_the_pointer(registry: Registry, wrong_clock: list[str]) -> None:
    raw = json.loads(registry.pointer.read_text())
    assert (raw["format"], raw["current"], raw["previous"]) == (1, wrong_clock[2], wrong_clock[:2])


def test_the_order_of_publication_is_longer_than_the_rollback_history() -> None:
    ids = [f"2026{number:04d}T000000Z-000000" for number in range(150)]
    pointer = Pointer()
    for count, bundle_id in enumerate(reversed(ids), 1):
        pointer = pointer.publish(bundle_id, ids[-count:])
    assert len(pointer.previous) == 100
    assert pointer.order(ids) == tuple(reversed(ids))


def test_a_pointer_of_another_form_is_named(registry: Registry, wrong_clock: list[str]) -> None:
    registry.pointer.write_text(json.dumps({"format": 1, "current": A, "previous": [], "published": "x"}))
    with pytest.raises(RegistryError, match="must name bundles"):
        registry.current()
