"""Which older collections a push deletes: none that may serve; without Milvus itself."""

from collections.abc import Collection
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, cast

import pytest

from service.retrieval.milvus.collection_record import CollectionRecord, collection_of
from service.retrieval.milvus.push import _tidied

if TYPE_CHECKING:
    from service.retrieval.milvus.client import MilvusClient


def record(bundle: str, pushed: float) -> CollectionRecord:
    return CollectionRecord(bundle, "hash", 1, 1, {}, 64, 1.0, 1.0, pushed)


@dataclass
class Collections:
    """Checked collections, the newest first, and one that was not checked."""

    bundles: list[str]
    unchecked: list[str] = field(default_factory=lambda: ["vlm2rec_interrupted"])

    def records(self) -> list[CollectionRecord]:
        return [record(bundle, -place) for place, bundle in enumerate(self.bundles)]

    def collections(self) -> list[str]:
        return sorted([*map(collection_of, self.bundles), *self.unchecked])

    def drop_record(self, bundle_id: str) -> None:
        self.bundles.remove(bundle_id)

    def drop(self, collection: str) -> None:
        assert collection not in self.collections(), "a record without its collection would be served"


@pytest.mark.parametrize(
    ("keep", "in_use", "dropped", "spared"),
    [
        # B1 serves, B2 was pushed and refused by the gate, B3 is pushed the night after.
        (2, {"b1"}, (), ("b1",)),
        (1, {"b1"}, ("b2",), ("b1",)),
        (1, {"b1", "b2"}, (), ("b2", "b1")),
        (2, {"b3"}, ("b1",), ()),
        (2, set(), ("b1",), ()),
        (3, set(), (), ()),
        (1, None, (), ("b2", "b1")),
    ],
)
def test_a_collection_that_may_serve_is_never_deleted(
    keep: int, in_use: Collection[str] | None, dropped: tuple[str, ...], spared: tuple[str, ...]
) -> None:
    there = Collections(["b3", "b2", "b1"])
    done = _tidied(cast("MilvusClient", there), "b3", keep, lambda: in_use)
    assert done == (dropped, spared, ("vlm2rec_interrupted",))
    assert there.bundles == [bundle for bundle in ("b3", "b2", "b1") if bundle not in dropped]


def test_what_is_in_use_is_not_asked_where_nothing_is_too_old() -> None:
    def fail() -> None:
        raise AssertionError

    assert _tidied(cast("MilvusClient", Collections(["b2", "b1"])), "b2", 2, fail)[:2] == ((), ())
