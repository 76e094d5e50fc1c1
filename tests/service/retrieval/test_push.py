"""Pushing bundles into Milvus: what is written, checked, refused, and what an interrupted push leaves."""

import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from typer.testing import CliRunner

from cli.online.index import app as index_commands
from index.bundle.bundle import Bundle
from index.bundle.registry import Registry
from index.items.item_table import ItemTable
from service.errors import PushRefused, RetrieverUnavailable, SettingsError
from service.retrieval.milvus import push as pushing
from service.retrieval.milvus.client import DIGEST, VECTOR, FoundRows, MilvusAddress, MilvusClient
from service.retrieval.milvus.collection_record import CURRENT, RECORDS, CollectionRecord, collection_of
from service.retrieval.milvus.push import BundleRows, Pushed, PushOptions, push
from tests.support.shops import eventually, other_bundle
from tests.support.stores.milvus_server import MilvusServer

if TYPE_CHECKING:
    from collections.abc import Callable


@pytest.fixture(scope="module")
def few(day_bundles: list[Path]) -> Bundle:
    """59 items that can be found."""
    return Bundle.load(day_bundles[0])


@pytest.fixture
def small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pushing, "_MOST_BATCH", 10)


def failing_at(client: MilvusClient, call: str, number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the n-th call of a kind fail, as if the process had ended there."""
    real: Callable[..., Any] = getattr(client, call)
    calls: list[int] = []

    def counted(*arguments: Any, **named: Any) -> Any:
        calls.append(1)
        if len(calls) == number:
            raise RetrieverUnavailable("ended here")
        return real(*arguments, **named)

    monkeypatch.setattr(client, call, counted)


def current(client: MilvusClient) -> str | None:
    return client._current()


def test_a_push_writes_every_row_and_records_it(client: MilvusClient, many: Bundle, small_batches: None) -> None:
    stages: list[tuple[str, float]] = []
    pushed = push(many, client, PushOptions(), lambda *stage: stages.append(stage))
    name = collection_of(many.id)
    assert (pushed.written, pushed.record.rows, client.count(name)) == (1499, 1499, 1499)
    assert (pushed.dropped, pushed.spared, pushed.unchecked) == ((), (), ())
    assert pushed.record.recall >= 0.95
    assert client.record(many.id) == pushed.record
    assert (client.is_loaded(name), current(client)) == (True, name)
    assert set(pushed.record.fields) == {name for name in many.metadata.column_names if name not in {"day", "text"}}
    assert [share for stage, share in stages if stage == "rows"] == pytest.approx(np.arange(150) / 149.9)
    again = push(many, client, PushOptions())
    assert again == replace(pushed, written=0, record=replace(pushed.record, pushed=again.record.pushed))
    assert again.record.pushed > pushed.record.pushed


@pytest.mark.parametrize(
    ("call", "number", "left"),
    [("write", 4, 29), ("flush", 1, 0), ("digests", 3, 0), ("search", 1, 0), ("keep_record", 1, 0)],
)
def test_an_interrupted_push_goes_on(
    client: MilvusClient,
    few: Bundle,
    small_batches: None,
    monkeypatch: pytest.MonkeyPatch,
    call: str,
    number: int,
    left: int,
) -> None:
    with monkeypatch.context() as patched:
        failing_at(client, call, number, patched)
        with pytest.raises(RetrieverUnavailable, match="ended here"):
            push(few, client, PushOptions())
    assert client.record(few.id) is None
    assert current(client) is None
    assert push(few, client, PushOptions()).written == left
    assert current(client) == collection_of(few.id)


_IN_SMALL_BATCHES = """
import sys
from service.retrieval.milvus import push
push._MOST_BATCH = 3
from cli.main import main
sys.argv = ["vlm2rec", "index", "push", "--milvus", *sys.argv[1:]]
main()
"""


def test_a_push_that_was_killed_goes_on(server: MilvusServer, client: MilvusClient, many: Bundle) -> None:
    name = collection_of(many.id)
    command = [sys.executable, "-c", _IN_SMALL_BATCHES, server.address, str(many.path)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        eventually(lambda: process.poll() is not None or (client.has(name) and client.count(name) >= 9))
        process.kill()
    assert process.returncode == -signal.SIGKILL
    there = client.count(name)
    assert client.record(many.id) is None
    assert push(many, client, PushOptions()).written == 1499 - there


def test_rows_that_were_changed_are_written_again(
    client: MilvusClient, few: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        failing_at(client, "flush", 1, patched)
        with pytest.raises(RetrieverUnavailable):
            push(few, client, PushOptions())
    changed = BundleRows(few).of(np.array([7, 8]))
    client.write(collection_of(few.id), [{**row, DIGEST: 1} for row in changed])
    assert push(few, client, PushOptions()).written == 2


@pytest.mark.parametrize("kind", ["digest", "missing"])
def test_a_collection_with_other_rows_is_refused(client: MilvusClient, few: Bundle, kind: str) -> None:
    push(few, client, PushOptions())
    name, row = collection_of(few.id), BundleRows(few).of(np.array([7]))[0]
    if kind == "digest":
        client.write(name, [{**row, DIGEST: 1}])
    else:
        client._call("delete", collection_name=name, ids=[7])
    problem = "holds another row 7 than the bundle" if kind == "digest" else "must hold 59 rows, got 58"
    with pytest.raises(PushRefused, match=f"{problem}; drop it and push again"):
        push(few, client, PushOptions())
    client.drop(name)
    assert push(few, client, PushOptions()).written == 59


def test_other_vectors_than_those_of_the_bundle_are_refused(
    client: MilvusClient, few: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = client.search

    def shifted(*arguments: Any, **named: Any) -> list[FoundRows]:
        found = real(*arguments, **named)
        return [FoundRows(one.rows, None if one.vectors is None else one.vectors + np.float32(0.01)) for one in found]

    monkeypatch.setattr(client, "search", shifted)
    with pytest.raises(PushRefused, match="other vectors"):
        push(few, client, PushOptions())
    assert (client.record(few.id), current(client)) == (None, None)


def test_a_recall_below_the_bound_is_refused_and_the_former_collection_stays(
    client: MilvusClient, day_bundles: list[Path], few: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    former = Bundle.load(day_bundles[1])
    push(former, client, PushOptions())
    real = client.search

    def half(*arguments: Any, **named: Any) -> list[FoundRows]:
        found = real(*arguments, **named)
        return [FoundRows(one.rows[::2], None if one.vectors is None else one.vectors[::2]) for one in found]

    monkeypatch.setattr(client, "search", half)
    with pytest.raises(PushRefused, match=r"recall@20 0\.\d+ of 62 queries is below 0\.95; choose a lower bound"):
        push(few, client, PushOptions())
    assert current(client) == collection_of(former.id)
    assert client.record(few.id) is None
    lower = push(few, client, PushOptions(min_recall=0.3))
    assert 0.3 <= lower.record.recall < 0.95


def test_older_collections_that_nothing_uses_are_deleted(client: MilvusClient, day_bundles: list[Path]) -> None:
    bundles = [Bundle.load(path) for path in day_bundles]
    first, second, third, fourth = (bundle.id for bundle in bundles)
    client.create("vlm2rec_interrupted", 12, [])

    def pushed(bundle: Bundle, *in_use: str, keep: int = 2) -> Pushed:
        return push(bundle, client, PushOptions(keep=keep), in_use=lambda: in_use)

    assert [pushed(bundle).dropped for bundle in bundles[:2]] == [(), ()]
    unknown = push(bundles[2], client, PushOptions())
    assert (unknown.dropped, unknown.spared) == ((), (first,))
    serving = pushed(bundles[2], first)  # the second was refused by the gate, so the first one still serves
    assert (serving.dropped, serving.spared) == ((), (first,))
    assert client.record(first) is not None
    later = pushed(bundles[2], second)
    assert (later.dropped, later.spared, later.unchecked) == ((first,), (), ("vlm2rec_interrupted",))
    assert client.record(first) is None
    assert set(client.collections()) == {collection_of(second), collection_of(third), "vlm2rec_interrupted"}
    back = pushed(bundles[1])
    assert (back.written, back.dropped, current(client)) == (0, (), collection_of(second))
    # The one that was pushed last stays, also where it is older than another.
    assert pushed(bundles[3]).dropped == (third,)
    assert pushed(bundles[3], keep=1).dropped == (second,)
    assert current(client) == collection_of(fourth)


def test_a_collection_of_another_form_is_made_again(client: MilvusClient, few: Bundle) -> None:
    client.create(collection_of(few.id), 3, [])
    assert push(few, client, PushOptions()).written == 59


def test_a_collection_without_its_index_is_made_again(
    client: MilvusClient, few: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    for made in (client.open_records, lambda: client.create(collection_of(few.id), few.layout.dim, [])):
        with monkeypatch.context() as patched:
            patched.setattr(type(client._connected()), "create_index", killed)
            with pytest.raises(KeyboardInterrupt):
                made()
    assert client.has(RECORDS)
    assert client.has(collection_of(few.id))
    assert push(few, client, PushOptions()).written == 59
    assert client.record(few.id) is not None


def test_a_recorded_collection_without_its_index_is_made_again(client: MilvusClient, few: Bundle) -> None:
    push(few, client, PushOptions())
    name = collection_of(few.id)
    client._call("release_collection", collection_name=name)
    client._call("drop_index", collection_name=name, index_name=VECTOR)
    assert not client.has_index(name)
    assert push(few, client, PushOptions()).written == 59
    assert client.is_loaded(name)


def test_collections_that_are_not_loaded_are_loaded(client: MilvusClient, few: Bundle) -> None:
    """As after Milvus was restored from a backup."""
    first = push(few, client, PushOptions())
    for name in (RECORDS, collection_of(few.id)):
        client._call("release_collection", collection_name=name)
        assert not client.is_loaded(name)
    again = push(few, client, PushOptions())
    assert (again.written, again.record.content) == (0, first.record.content)
    assert client.is_loaded(collection_of(few.id))


def test_a_collection_that_belongs_to_another_program_is_not_touched(client: MilvusClient, few: Bundle) -> None:
    client.create("shop", 3, [])
    assert push(few, client, PushOptions(keep=1)).unchecked == ()
    assert client.has("shop")


def test_a_bundle_without_an_item_to_search_is_refused(
    client: MilvusClient, small_table: ItemTable, small_encoder: Path, tmp_path: Path
) -> None:
    bundle = Bundle.load(other_bundle(small_table, small_encoder, tmp_path, 9))
    bundle.manifest = bundle.manifest.model_copy(update={"indexed": 0})
    with pytest.raises(PushRefused, match="must have an item with a slot"):
        push(bundle, client, PushOptions())


def test_the_command(server: MilvusServer, client: MilvusClient, day_bundles: list[Path], small_registry: Path) -> None:
    run = CliRunner().invoke
    first = run(index_commands, ["push", "--milvus", server.address, str(day_bundles[0])])
    assert first.exit_code == 0, first.output
    assert f"pushed: {day_bundles[0].name}, 59 items, 59 written; recall@20 1.0000" in first.stdout
    second = run(index_commands, ["push", "--registry", str(small_registry)], env={"VLM2REC_RETRIEVER": server.address})
    assert second.exit_code == 0, second.output
    assert len(client.records()) == 2
    again = ["push", "--milvus", server.address, "--keep", "1", str(day_bundles[1])]
    alone = run(index_commands, again)
    assert alone.stdout.count("it may serve; name the registry with --registry to delete what does not") == 2
    assert len(client.records()) == 3
    spared = run(index_commands, [*again, "--registry", str(small_registry), "--spare", day_bundles[0].name])
    assert spared.stdout.count("not deleted: ") == 2
    unread = run(index_commands, [*again, "--registry", str(small_registry), "--redis", "redis://127.0.0.1:1/0"])
    assert unread.exit_code == 0, unread.output
    assert unread.stdout.count("it may serve; nothing is deleted as long as pins cannot be read: ") == 2
    named = run(index_commands, [*again, "--registry", str(small_registry)])
    assert f"\ndeleted: {day_bundles[0].name}\n" in named.stdout
    assert f"not deleted: {Registry(small_registry).current()}, it may serve\n" in named.stdout
    assert len(client.records()) == 2
    refused = run(index_commands, ["push", "--milvus", "milvus+http://root:secret@host", str(day_bundles[0])])
    assert isinstance(refused.exception, SettingsError)
    assert "milvus+https://host:port" in str(refused.exception)
    assert "secret" not in str(refused.exception)


def test_an_error_of_milvus_never_shows_the_token(server: MilvusServer, tmp_path: Path) -> None:
    client = MilvusClient(MilvusAddress(server.uri, token="root:a-secret"), 30.0)
    with pytest.raises(RetrieverUnavailable, match="failed at search") as error:
        client.search("a-secret", np.zeros((1, 3), np.float32), 1, "", 8)
    assert "…" in str(error.value)
    assert "a-secret" not in str(error.value)
    assert "a-secret" not in repr(MilvusAddress(server.uri, token="root:a-secret"))
    client.close()


def test_records_of_another_form_are_not_read(client: MilvusClient, few: Bundle) -> None:
    record = push(few, client, PushOptions()).record
    assert CollectionRecord.from_json(record.to_json()) == record
    for text in ("[]", '{"version": 99}', '{"version": 1, "rows": 3}'):
        with pytest.raises(ValueError, match="push the bundle again"):
            CollectionRecord.from_json(text)
    client.write(RECORDS, [{"bundle": few.id, "record": "[]", "vector": [0.0, 0.0]}])
    with pytest.raises(RetrieverUnavailable, match="another form"):
        client.record(few.id)
    assert CURRENT not in client.collections()
