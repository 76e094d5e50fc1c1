"""Reading an export as interactions: each row counts once, or is counted as left out."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from index.event_export.compaction import compact
from index.event_export.directory import ExportDirectory
from index.event_export.erasures import user_hash
from index.event_export.stream_ids import StreamId
from tests.support.stores.stream_entries import stream_entry
from training.errors import DatasetError
from training.events.export_reader import read_export

ARRIVAL = 1_790_000_000  # seconds; each row arrives a second after the one before


@pytest.fixture
def directory(tmp_path: Path) -> ExportDirectory:
    return ExportDirectory.open_or_create(tmp_path / "export")


def export(directory: ExportDirectory, *rows: Mapping[str, str], bucket: int = 0, start: int = 0) -> list[StreamId]:
    entries = [stream_entry((ARRIVAL + start + n) * 1000, 0, row) for n, row in enumerate(rows)]
    directory.commit([directory.write_entries(bucket, entries)])
    return [StreamId.parse(entry_id.decode()) for entry_id, _ in entries]


def row(user: str, item: str, at: float, **more: str) -> dict[str, str]:
    return {"user_id": user, "item_id": item, "timestamp": str(ARRIVAL + at) if at else "", **more}


def items(directory: ExportDirectory) -> list[str]:
    found: Sequence[str] = read_export(directory.root).interactions["item_id"].to_list()
    return list(found)


def test_an_empty_export_has_no_events(directory: ExportDirectory) -> None:
    read = read_export(directory.root)
    assert (read.interactions.height, read.counts.rows, read.until) == (0, 0, "")


def test_rows_are_in_the_order_of_their_times_and_each_is_counted(directory: ExportDirectory) -> None:
    day = 86_400
    export(
        directory,
        row("anna", "b", 2, event_id="1", type="view"),
        row("anna", "a", 1, event_id="2", type="purchase", value="9.5"),  # out of order
        row("anna", "b", 2, event_id="1"),  # a retry that the service did not know any more
        row("bob", "c", 2, event_id="1"),  # of another user
        row("bob", "old", -2 * day),  # late, and out of order
        row("bob", "", 5),
        row("bob", "x", 0),
        row("bob", "future", 2 * day),
        row("bob", "same", 2),
    )
    read = read_export(directory.root)
    assert read.counts.as_json() == {
        "rows": 9,
        "erased": 0,
        "merged": 0,
        "duplicates": 1,
        "incomplete": 2,
        "future": 1,
        "late": 1,
        "out_of_order": 2,
        "events": 5,
    }
    assert read.interactions["item_id"].to_list() == ["old", "a", "b", "c", "same"]
    assert read.interactions["type"].to_list() == [None, "purchase", "view", None, None]
    assert read.interactions["value"].to_list() == [None, 9.5, None, None, None]
    assert read.until == f"{(ARRIVAL + 8) * 1000}-0"


def test_an_erased_user_is_left_out_until_the_erasure(directory: ExportDirectory) -> None:
    ids = export(directory, row("anna", "a", 1), row("bob", "b", 1), row("anna", "c", 1), row("anna", "later", 1))
    directory.add_erasures(0, {user_hash(directory.key, "anna"): ids[2], user_hash(directory.key, "carl"): ids[3]})
    read = read_export(directory.root)
    assert (read.interactions["item_id"].to_list(), read.counts.erased) == (["b", "later"], 2)


SESSION = "\x1fs1"


def test_events_of_a_merged_session_are_those_of_its_user(directory: ExportDirectory) -> None:
    """A session id that is used again after its merge is of another visitor until the next merge."""
    export(
        directory,
        row("anna", "own", 1),
        row(SESSION, "first", 2),
        {"user_id": SESSION, "type": "merge", "session_id": "s1", "merged_into": "anna"},
        row(SESSION, "second", 3),
        {"user_id": SESSION, "type": "merge", "session_id": "s1", "merged_into": "bob"},
        row(SESSION, "open", 4),
        row("\x1fs2", "other", 5, arm="merged_into"),
    )
    read = read_export(directory.root)
    users = dict(read.interactions.select("item_id", "user_id").iter_rows())
    assert users == {"own": "anna", "first": "anna", "second": "bob", "open": SESSION, "other": "\x1fs2"}
    assert (read.counts.rows, read.counts.merged, read.counts.events) == (5, 2, 5)
    assert read.counts.incomplete == 0


def test_a_merge_of_a_later_day_and_an_erasure_of_the_user_reach_the_session(directory: ExportDirectory) -> None:
    export(directory, row(SESSION, "a", 1), row(SESSION, "b", 2))
    merge = {"user_id": SESSION, "type": "merge", "session_id": "s1", "merged_into": "anna"}
    day = 86_400
    (last,) = export(directory, merge, start=2 * day)
    assert len(directory.days()) == 2
    assert set(read_export(directory.root).interactions["user_id"]) == {"anna"}
    directory.add_erasures(1, {user_hash(directory.key, "anna"): last})
    read = read_export(directory.root)
    assert (read.interactions.height, read.counts.erased) == (0, 2)


def test_compaction_removes_the_rows_and_changes_nothing_that_is_read(directory: ExportDirectory) -> None:
    first = export(directory, row("anna", "a", 1), row("bob", "b", 2))
    export(directory, row("anna", "c", 3), start=5)
    export(directory, row("carl", "d", 4), bucket=1)
    export(directory, row("dora", "e", 5), bucket=2)
    directory.add_erasures(0, {user_hash(directory.key, "anna"): first[1]})
    directory.add_erasures(2, {user_hash(directory.key, "dora"): StreamId(2**60, 0)})
    before, positions = items(directory), directory.positions()
    (done,) = compact(directory)
    assert (done.erased, done.files_before, done.files) == (2, 4, 2)
    assert items(directory) == before == ["b", "c", "d"]
    assert directory.positions() == positions
    read = read_export(directory.root)
    assert (read.counts.rows, read.counts.erased) == (3, 0)
    (day,) = directory.days()
    names = sorted(path.name for path in day.glob("*.parquet"))
    assert names[0] == f"b000-{first[0]}-{(ARRIVAL + 5) * 1000}-0-c1.parquet"
    assert len(names) == 2
    assert list(compact(directory)) == []
    directory.add_erasures(0, {user_hash(directory.key, "bob"): StreamId(2**60, 0)})
    assert next(iter(compact(directory))).erased == 1
    assert items(directory) == ["c", "d"]


@pytest.mark.parametrize("moment", ["manifest", "deleting"])
def test_a_killed_compaction_leaves_the_day_as_it_was_or_done(
    directory: ExportDirectory, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    from index.event_export.manifest import DayManifest

    ids = export(directory, row("anna", "a", 1), row("bob", "b", 2))
    export(directory, row("bob", "c", 3), start=5)
    directory.add_erasures(0, {user_hash(directory.key, "anna"): ids[0]})
    whole = DayManifest.save

    def killed(manifest: DayManifest, day: Path) -> None:
        if moment == "deleting":
            whole(manifest, day)
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(DayManifest, "save", killed)
        with pytest.raises(KeyboardInterrupt):
            list(compact(directory))
    assert items(directory) == ["b", "c"]
    list(compact(directory))
    assert items(directory) == ["b", "c"]
    (day,) = directory.days()
    assert len(list(day.glob("*.parquet"))) == 1


def test_a_file_replaced_while_reading_is_read_again(
    directory: ExportDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    from training.events import export_reader

    export(directory, row("anna", "a", 1))
    export(directory, row("anna", "b", 2), start=5)
    whole = export_reader._rows

    def compacted_meanwhile(files: object) -> object:
        list(compact(directory))
        return whole(files)  # type: ignore[arg-type]

    monkeypatch.setattr(export_reader, "_rows", compacted_meanwhile)
    assert items(directory) == ["a", "b"]


def test_what_is_missing_or_damaged_is_named(directory: ExportDirectory, tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="there is no export"):
        read_export(tmp_path / "nowhere")
    export(directory, row("anna", "a", 1))
    (day,) = directory.days()
    (path,) = day.glob("*.parquet")
    content = path.read_bytes()
    path.write_bytes(content[:-1])
    with pytest.raises(DatasetError, match=r"bytes, the manifest says"):
        read_export(directory.root)
    path.write_bytes(b"x" * len(content))
    with pytest.raises(DatasetError, match="restore it"):
        read_export(directory.root)
    path.unlink()
    with pytest.raises(DatasetError, match="No such file"):
        read_export(directory.root)
    (day / "manifest.json").write_text("[")
    with pytest.raises(DatasetError, match=r"manifest.json: cannot be read .*; restore it from a copy"):
        read_export(directory.root)
    (day / "manifest.json").write_text('{"format": 7}')
    with pytest.raises(DatasetError, match="must be an object of format 1"):
        read_export(directory.root)
