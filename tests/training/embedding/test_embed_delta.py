"""Embedding again changes only the vectors of changed items, after any number of interruptions."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pytest
from PIL import Image

from tests.support.processes.started_threads import started_threads
from tests.support.table_content import Rows, edit_items, set_item
from training.backbones.vlm import Embedding
from training.data.dataset import Dataset, load_dataset
from training.embedding.job import Embedded, Pending, embed_catalogue, pending_items
from training.embedding.plan import EmbeddingPlan
from training.embedding.store import Embeddings
from training.errors import EmbeddingsError, JobStopped


class Killed(BaseException):
    """Stands for a signal."""


class Job:
    """Embeds a shop; shards of 8 items, batches of 3."""

    def __init__(self, data: Path, embedding: Embedding, out: Path) -> None:
        self.data, self.embedding, self.out = data, embedding, out
        self.loaded = 0

    def pending(self, **options: Any) -> Pending:
        return pending_items(load_dataset(self.data), self.embedding.model, self.out, **options)

    def run(self, *, trust_times: bool = False, **options: Any) -> tuple[Pending, Embedded]:
        pending = self.pending(trust_times=trust_times)
        chosen = {"shard_items": 8, "batch_items": 3, **options}
        return pending, embed_catalogue(load_dataset(self.data), pending, self._load, self.out, **chosen)

    def _load(self) -> Embedding:
        self.loaded += 1
        return self.embedding

    def edit(self, change: Callable[[Rows], Rows]) -> None:
        """Change the rows of items.csv."""
        edit_items(self.data, change)

    def set(self, row: int, **values: str) -> None:
        """Change one row of items.csv."""
        set_item(self.data, row, **values)


@pytest.fixture
def job(own_shop: Path, embedding: Embedding, tmp_path: Path) -> Job:
    """A shop that is embedded already."""
    made = Job(own_shop, embedding, tmp_path / "embeddings")
    made.run()
    made.loaded = 0
    return made


def by_id(embeddings: Embeddings) -> dict[str, bytes]:
    """The bytes of every item's vectors."""
    return {
        item_id: b"".join(embeddings.vectors[name][row].tobytes() for name in ("text", "image"))
        for row, item_id in enumerate(embeddings.item_ids)
    }


def counts(pending: Pending) -> tuple[int, int, int, int]:
    delta = pending.delta
    return delta.new, delta.changed, delta.unchanged, delta.deleted


def check_against_scratch(job: Job, tmp_path: Path) -> None:
    """The vectors are those that embedding everything from nothing gives, but for how the batches round."""
    made = Job(job.data, job.embedding, tmp_path / "scratch").run()[1].embeddings
    found = Embeddings.load(job.out)
    assert found.item_ids == made.item_ids
    assert found.model == made.model
    assert found.unreadable == made.unreadable
    for name, block in made.vectors.items():
        np.testing.assert_allclose(found.vectors[name], block, atol=2e-6)


def test_nothing_changed_loads_and_writes_nothing(job: Job, encoded: list[list[int]]) -> None:
    encoded.clear()
    before = {path: path.stat().st_mtime_ns for path in job.out.iterdir()}
    pending, done = job.run()
    assert counts(pending) == (0, 0, 30, 0)
    assert (done.encoded, done.resumed, job.loaded, encoded) == (0, 0, 0, [])
    assert {path: path.stat().st_mtime_ns for path in job.out.iterdir()} == before


def test_new_changed_and_deleted_items(job: Job, encoded: list[list[int]], tmp_path: Path) -> None:
    before = by_id(Embeddings.load(job.out))
    Image.new("RGB", (16, 16), "white").save(job.data / "images" / "9.png")
    job.set(12, text="another text")
    job.edit(lambda rows: [{"item_id": "a new one", "title": "new", "text": "", "image": "images/1.png"}, *rows[:-2]])
    encoded.clear()
    pending, done = job.run()
    assert counts(pending) == (1, 2, 26, 2)
    assert encoded == [[0, 10, 13]]  # rows of "a new one", i09 and i12
    assert (done.encoded, done.resumed) == (3, 0)
    after = by_id(done.embeddings)
    assert {item_id for item_id in after if after[item_id] != before.get(item_id)} == {"a new one", "i09", "i12"}
    check_against_scratch(job, tmp_path)


def test_a_picture_of_the_same_name_size_and_time(job: Job, encoded: list[list[int]], tmp_path: Path) -> None:
    """Only the bytes tell; times are trusted on request, and then the change is not seen."""
    path = job.data / "images" / "9.png"
    status, content = path.stat(), path.read_bytes()
    Image.new("RGB", (16, 16), "white").save(path)
    path.write_bytes(path.read_bytes() + bytes(len(content) - path.stat().st_size))
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert (path.stat().st_size, path.stat().st_mtime_ns) == (status.st_size, status.st_mtime_ns)
    encoded.clear()
    assert counts(job.run(trust_times=True)[0]) == (0, 0, 30, 0)
    assert counts(job.run()[0]) == (0, 1, 29, 0)
    assert encoded == [[9]]
    check_against_scratch(job, tmp_path)


def test_trusted_times_read_only_touched_pictures(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []
    real = __import__("hashlib").file_digest
    monkeypatch.setattr(
        "training.embedding.content_hashes.hashlib.file_digest",
        lambda file, name: read.append(Path(file.name).name) or real(file, name),
    )
    os.utime(job.data / "images" / "7.png", ns=(1, 1))
    assert counts(job.run(trust_times=True)[0]) == (0, 0, 30, 0)
    assert read == ["7.png"]
    read.clear()
    job.run(trust_times=True)  # its new time is recorded now
    assert read == []


@pytest.mark.parametrize(
    ("change", "wanted"),
    [
        ({"title": "another title"}, 0),  # the text is read, not the title
        ({"text": "Crimson thing 0"}, 1),
        ({"text": ""}, 0),  # the title is the same text
        ({"text": " ", "title": ""}, 1),
        ({"image": "images/../images/0.png"}, 0),  # another path to the same bytes
        ({"image": "images/gone.png"}, 1),
        ({"image": "images/6.png"}, 1),
    ],
)
def test_the_changes_that_count(job: Job, change: dict[str, str], wanted: int, tmp_path: Path) -> None:
    job.set(0, **change)
    assert counts(job.run()[0]) == (0, wanted, 30 - wanted, 0)
    check_against_scratch(job, tmp_path)


def test_an_id_that_is_renamed_is_a_new_item_of_known_content(
    job: Job, encoded: list[list[int]], tmp_path: Path
) -> None:
    job.set(4, item_id="i04b")
    encoded.clear()
    pending, done = job.run()
    assert counts(pending) == (1, 0, 29, 1)
    assert (encoded, pending.reused) == ([], 1)
    assert "i04" not in done.embeddings.item_ids
    check_against_scratch(job, tmp_path)


def test_another_order_moves_the_rows_and_embeds_nothing(job: Job, tmp_path: Path) -> None:
    before = by_id(Embeddings.load(job.out))
    job.edit(lambda rows: rows[::-1])
    pending, done = job.run()
    assert counts(pending) == (0, 0, 30, 0)
    assert job.loaded == 0
    assert done.embeddings.item_ids[0] == "i29"
    assert by_id(done.embeddings) == before
    check_against_scratch(job, tmp_path)


def test_an_unreadable_picture_becomes_readable(job: Job, encoded: list[list[int]], tmp_path: Path) -> None:
    Image.new("RGB", (16, 16), "teal").save(job.data / "images" / "5.png")
    (job.data / "images" / "8.png").write_bytes(b"broken")
    encoded.clear()
    _, done = job.run()
    assert encoded == [[5, 8]]
    assert done.embeddings.vectors["image"][5].any()
    assert not done.embeddings.vectors["image"][8].any()
    assert list(json.loads((job.out / "unreadable.json").read_text())) == ["i08"]
    check_against_scratch(job, tmp_path)


def test_another_model_embeds_everything_and_says_why(job: Job, encoded: list[list[int]]) -> None:
    job.embedding = Embedding(job.embedding.embedder, job.embedding.backbone, 6, 4, {"kind": "vlm", "weights": "def"})
    job.set(0, text="changed too")
    encoded.clear()
    pending, done = job.run()
    assert pending.reason is not None
    assert "weights 'abc' → 'def'" in pending.reason
    assert counts(pending) == (0, 1, 29, 0)
    assert (done.encoded, sum(map(len, encoded))) == (30, 30)
    assert done.embeddings.model["weights"] == "def"
    assert job.pending().reason is None


def test_a_model_that_is_not_the_one_compared_with_is_refused(job: Job) -> None:
    job.set(0, text="changed")
    pending = job.pending()
    other = Embedding(job.embedding.embedder, job.embedding.backbone, 6, 4, {"kind": "vlm", "weights": "def"})
    with pytest.raises(EmbeddingsError, match="replaced"):
        embed_catalogue(load_dataset(job.data), pending, lambda: other, job.out, shard_items=8, batch_items=3)


@pytest.mark.parametrize("damage", ["text-000001.npy", "items-000001.parquet", "embeddings.json"])
def test_damaged_embeddings_are_made_again(job: Job, damage: str) -> None:
    (job.out / damage).write_bytes(b"\x00damaged")
    pending, done = job.run()
    assert pending.reason is not None
    assert str(job.out) in pending.reason
    assert done.encoded == 30
    assert Embeddings.load(job.out).item_ids == load_dataset(job.data).item_ids()


def kill_at(done: int) -> Callable[[str, int, int], None]:
    def progress(step: str, now: int, _all: int) -> None:
        if step == "embedding" and now >= done:
            raise Killed

    return progress


def test_the_next_job_starts_at_the_next_shard(
    own_shop: Path, embedding: Embedding, tmp_path: Path, encoded: list[list[int]]
) -> None:
    whole = by_id(Job(own_shop, embedding, tmp_path / "whole").run()[1].embeddings)
    job = Job(own_shop, embedding, tmp_path / "killed")
    with pytest.raises(Killed):
        job.run(progress=kill_at(17))
    (work,) = job.out.iterdir()
    assert sorted(path.name for path in work.iterdir()) == ["000000.npz", "000001.npz", "plan.parquet"]
    encoded.clear()
    done = job.run(shard_items=5, batch_items=2)[1]  # the plan keeps its own sizes
    assert sorted(row for rows in encoded for row in rows) == list(range(16, 30))
    assert (done.encoded, done.resumed) == (14, 16)
    assert by_id(done.embeddings) == whole
    assert list(done.embeddings.unreadable) == ["i05"]  # its shard was done before the kill


def test_asked_to_stop_it_ends_after_the_shard(own_shop: Path, embedding: Embedding, tmp_path: Path) -> None:
    job, asked = Job(own_shop, embedding, tmp_path / "out"), []
    with pytest.raises(JobStopped, match="16 of 30"):
        job.run(stopped=lambda: asked.append(1) or len(asked) > 2)
    assert job.run()[1].resumed == 16
    job.set(0, text="changed")
    with pytest.raises(JobStopped, match="before the first"):
        job.run(stopped=lambda: True)
    assert job.loaded == 2


@pytest.mark.parametrize("damage", [b"", b"PK\x03\x04 cut", b"\x93NUMPY", "cut", "flipped"])
def test_a_damaged_shard_is_made_again(
    own_shop: Path, embedding: Embedding, tmp_path: Path, encoded: list[list[int]], damage: bytes | str
) -> None:
    whole = by_id(Job(own_shop, embedding, tmp_path / "whole").run()[1].embeddings)
    job = Job(own_shop, embedding, tmp_path / "killed")
    with pytest.raises(Killed):
        job.run(progress=kill_at(17))
    shard = next(job.out.iterdir()) / "000001.npz"
    content = bytearray(shard.read_bytes())
    if damage == "cut":
        content = content[:-100]
    elif damage == "flipped":
        content[len(content) // 2] ^= 1
    shard.write_bytes(content if isinstance(damage, str) else damage)
    encoded.clear()
    assert by_id(job.run()[1].embeddings) == whole
    assert sorted(row for rows in encoded for row in rows) == list(range(8, 30))


def test_finished_items_are_copied_when_the_catalogue_changes_meanwhile(
    own_shop: Path, embedding: Embedding, tmp_path: Path, encoded: list[list[int]]
) -> None:
    job = Job(own_shop, embedding, tmp_path / "out")
    with pytest.raises(Killed):
        job.run(progress=kill_at(17))  # i00 … i15 are done
    job.set(2, text="changed meanwhile")
    job.edit(lambda rows: [*rows[:7], *rows[8:]])
    encoded.clear()
    with pytest.raises(Killed):
        job.run(progress=kill_at(23))
    assert encoded[0] == [2, 15, 16]
    job.set(3, title="once more")  # twice interrupted, and what the first plan had done is still there
    encoded.clear()
    done = job.run()[1]
    assert sorted(row for rows in encoded for row in rows) == [3, *range(22, 29)]
    assert done.resumed == 29 - 8
    check_against_scratch(job, tmp_path)
    assert not list(job.out.glob("*work-*"))


def test_the_work_of_another_model_is_not_copied(
    own_shop: Path, embedding: Embedding, tmp_path: Path, encoded: list[list[int]]
) -> None:
    job = Job(own_shop, embedding, tmp_path / "out")
    with pytest.raises(Killed):
        job.run(progress=kill_at(17))
    job.embedding = Embedding(embedding.embedder, embedding.backbone, 6, 4, {"kind": "vlm", "weights": "def"})
    encoded.clear()
    job.run()
    assert sum(map(len, encoded)) == 30


def test_a_damaged_plan_is_made_again(shop: Dataset, embedding: Embedding, own_shop: Path, tmp_path: Path) -> None:
    job = Job(own_shop, embedding, tmp_path / "out")
    with pytest.raises(Killed):
        job.run(progress=kill_at(17))
    (work,) = job.out.iterdir()
    (work / "plan.parquet").write_bytes(b"PAR1 and no more")
    assert job.run()[1].encoded == 30


def test_the_plan_is_in_the_order_of_the_ids(shop: Dataset, embedding: Embedding, tmp_path: Path) -> None:
    contents = pending_items(shop, embedding.model, tmp_path).contents
    turned = type(contents)(contents.frame.reverse())
    work = EmbeddingPlan.open(tmp_path, turned, embedding.model, shard_items=12, batch_items=5)
    assert [work.item_ids(number) for number in range(work.shards)] == [
        [f"i{row:02d}" for row in rows] for rows in (range(12), range(12, 24), range(24, 30))
    ]
    plan = pl.read_parquet(work.directory / "plan.parquet")
    assert plan["item_id"].to_list() == shop.item_ids()


def test_too_little_memory_makes_no_plan_a_damaged_one(
    own_shop: Path, embedding: Embedding, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a killed job made stays for a start with more memory; and no thread is started, which Arrow waits for."""
    job = Job(own_shop, embedding, tmp_path / "out")
    with pytest.raises(Killed):
        job.run(progress=kill_at(17))
    (work,) = job.out.iterdir()
    setup = "from pathlib import Path\nfrom training.embedding.plan import _read_plan"
    assert started_threads(setup, "assert _read_plan(Path(sys.argv[1]))", str(work)) == 0

    def fail(*_arguments: object, **_named: object) -> None:
        raise pa.ArrowMemoryError("malloc of size 1664 failed")

    with monkeypatch.context() as little:
        little.setattr("pyarrow.parquet.ParquetFile.read", fail)
        with pytest.raises(MemoryError, match="malloc of size 1664 failed"):
            job.run()
    assert job.run()[1].encoded < 30
