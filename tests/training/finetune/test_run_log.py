"""The log of a run and its event files."""

import json
import struct
from pathlib import Path

import pytest
from tensorboardX.proto.event_pb2 import Event

from training.finetune.run_log import RunLog


def opened(directory: Path, step: int = 0, *, writes: bool = True) -> RunLog:
    return RunLog(directory / "log.jsonl", directory / "events", [], step, writes=writes)


def lines(directory: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (directory / "log.jsonl").read_text().splitlines()]


def events(directory: Path) -> list[tuple[int, float, dict[str, float]]]:
    """Step, clock and values of every event, by the file format: length, its checksum, the event, its checksum."""
    (path,) = (directory / "events").iterdir()
    data, found = path.read_bytes(), []
    while data:
        (size,) = struct.unpack("<Q", data[:8])
        event = Event.FromString(data[12 : 12 + size])
        data = data[16 + size :]
        if event.HasField("summary"):
            values = {value.tag: value.simple_value for value in event.summary.value}
            found.append((event.step, event.wall_time, values))
    return found


def test_a_line_is_the_mean_since_the_last_one(tmp_path: Path) -> None:
    log = opened(tmp_path)
    log.add({"loss": 1.0})
    log.add({"loss": 4.0, "gap": 2.5})  # a value of some steps only is the mean over these
    log.write(2, {"seconds": 0.5})
    log.add({"loss": 7.0})
    log.write(3, {"seconds": 0.75, "ndcg@10 image": 0.25})
    log.close()
    assert lines(tmp_path) == [
        {"step": 2, "loss": 2.5, "gap": 2.5, "seconds": 0.5},
        {"step": 3, "loss": 7.0, "seconds": 0.75, "ndcg@10 image": 0.25},
    ]
    assert events(tmp_path) == [
        (2, 0.5, {"train/loss": 2.5, "train/gap": 2.5}),
        (3, 0.75, {"train/loss": 7.0, "ndcg_at_10/image": 0.25}),
    ]


def test_a_window_is_taken_up_again(tmp_path: Path) -> None:
    log = RunLog(tmp_path / "log.jsonl", tmp_path / "events", [{"loss": 1.0}], 1, writes=True)
    log.add({"loss": 2.0})
    log.write(2, {})
    assert lines(tmp_path) == [{"step": 2, "loss": 1.5}]
    assert log.window == []
    log.close()


@pytest.mark.parametrize("torn", ["", '{"step": 4, "lo', "null\n", '["step"]\n', '{"loss": 1}\n'])
def test_a_resumed_log_and_its_events_end_at_the_checkpoint(tmp_path: Path, torn: str) -> None:
    log = opened(tmp_path)
    for step in (1, 2, 3):
        log.add({"effective rank text": float(step)})
        log.write(step, {})
    log.close()
    with (tmp_path / "log.jsonl").open("a") as file:
        file.write(torn)
    log = opened(tmp_path, step=2)
    log.add({"effective rank text": 30.0})
    log.write(3, {})
    log.close()
    assert [(line["step"], line["effective rank text"]) for line in lines(tmp_path)] == [(1, 1), (2, 2), (3, 30)]
    assert [(step, values["effective_rank/text"]) for step, _, values in events(tmp_path)] == [(1, 1), (2, 2), (3, 30)]


def test_other_processes_write_nothing(tmp_path: Path) -> None:
    log = opened(tmp_path, writes=False)
    log.add({"loss": 1.0})
    log.write(1, {})
    log.close()
    assert log.window == []
    assert list(tmp_path.iterdir()) == []
