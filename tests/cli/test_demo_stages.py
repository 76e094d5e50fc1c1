"""The demo's record of stages: finished stages are reused, stale ones are not."""

import socket
from pathlib import Path

import pytest

from cli.offline.demo import Stage, StageRecord, demo
from demo.errors import DemoError

CATALOGUE = Stage("catalogue", ("make", "data"))
TRAIN = Stage("train", ("train", "data"))
EMBED = Stage("embed", ("embed", "data"))


def test_keeps_stages_over_a_restart(tmp_path: Path) -> None:
    record = StageRecord(tmp_path / "stages.json")
    record.add(0, CATALOGUE)
    record.add(1, TRAIN)
    again = StageRecord(tmp_path / "stages.json")
    assert [again.has(0, CATALOGUE), again.has(1, TRAIN), again.has(2, EMBED)] == [True, True, False]


def test_a_stage_done_again_makes_the_later_ones_stale(tmp_path: Path) -> None:
    record = StageRecord(tmp_path / "stages.json")
    for position, stage in enumerate([CATALOGUE, TRAIN, EMBED]):
        record.add(position, stage)
    changed = Stage("train", ("train", "data", "--preset", "other"))
    assert not record.has(1, changed)
    record.add(1, changed)
    again = StageRecord(tmp_path / "stages.json")
    assert [again.has(0, CATALOGUE), again.has(1, changed), again.has(2, EMBED)] == [True, True, False]


@pytest.mark.parametrize("content", ["", "{", "[]", '{"done": null}'])
def test_an_unreadable_record_means_nothing_is_done(tmp_path: Path, content: str) -> None:
    (tmp_path / "stages.json").write_text(content)
    assert not StageRecord(tmp_path / "stages.json").has(0, CATALOGUE)


def test_a_taken_port_is_refused_before_anything_is_built(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(DemoError, match=f"port {port} .* PORT="):
            demo(tmp_path / "demo", "127.0.0.1", port)
    assert not (tmp_path / "demo").exists()
