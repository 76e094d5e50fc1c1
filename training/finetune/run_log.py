"""Writes the log of a training run as JSON lines and as event files of TensorBoard."""

# A line holds the means over the steps since the line before. The JSON lines are authoritative: a resumed run cuts
# them back to its checkpoint and writes the event files again from them.

import contextlib
import json
import math
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from index.machine.text_files import replace_text

_STEP, _SECONDS = "step", "seconds"


class RunLog:
    """A log file that a resumed run continues as if it had not been interrupted.

    Args:
        path: of the file.
        events: directory of the event files.
        window: values of the steps since the last line, from the checkpoint.
        step: steps done; later lines and an incomplete last line are removed.
        writes: whether this process writes the files.

    Attributes:
        window: values of the steps since the last line.
    """

    def __init__(self, path: Path, events: Path, window: list[dict[str, float]], step: int, *, writes: bool) -> None:
        self._path = path
        self._events: _EventFiles | None = None
        self.window = window
        if writes:
            shutil.rmtree(events, ignore_errors=True)
            lines = self._cut(step)
            with contextlib.ExitStack() as on_error:
                self._events = _EventFiles(events)
                on_error.callback(self.close)
                for line in lines:
                    self._events.add(line)
                on_error.pop_all()

    def add(self, values: dict[str, float]) -> None:
        """Add the values of one step; a name may be missing from some steps."""
        self.window.append(values)

    def write(self, step: int, rest: Mapping[str, float]) -> None:
        """Write a line and begin a new window.

        Args:
            step: steps done.
            rest: values that are not means, including ``seconds``.
        """
        names = {name: None for values in self.window for name in values}
        means = {
            name: math.fsum(found) / len(found)
            for name in names
            if (found := [values[name] for values in self.window if name in values])
        }
        self.window.clear()
        if self._events is not None:
            line = {_STEP: step, **means, **rest}
            with self._path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
            self._events.add(line)

    def close(self) -> None:
        """Close the event files."""
        if self._events is not None:
            self._events.close()

    def _cut(self, step: int) -> list[dict[str, float]]:
        kept = []
        lines = self._path.read_text(encoding="utf-8").splitlines() if self._path.is_file() else []
        for text in lines:
            try:
                line = json.loads(text)
                if line[_STEP] <= step:
                    kept.append(line)
            except (ValueError, KeyError, TypeError):
                continue
        if lines:
            replace_text(self._path, "".join(json.dumps(line) + "\n" for line in kept))
        return kept


class _EventFiles:
    """Event files of TensorBoard; their clock is the time in training steps."""

    def __init__(self, directory: Path) -> None:
        from tensorboardX.event_file_writer import EventsWriter

        directory.mkdir(parents=True)
        self._writer = cast("Any", EventsWriter)(str(directory / "events"))

    def add(self, line: Mapping[str, float]) -> None:
        from tensorboardX.proto.event_pb2 import Event
        from tensorboardX.proto.summary_pb2 import Summary

        values = [
            Summary.Value(tag=_tag(name), simple_value=value)
            for name, value in line.items()
            if name not in {_STEP, _SECONDS}
        ]
        event = Event(wall_time=line.get(_SECONDS, 0.0), step=int(line[_STEP]), summary=Summary(value=values))
        self._writer.write_event(event)
        self._writer.flush()

    def close(self) -> None:
        try:
            self._writer.close()
        finally:  # the writer gives up at the first error and leaves the file open
            self._writer._py_recordio_writer.close()  # noqa: SLF001 - there is no public way to close it


def _tag(name: str) -> str:
    """``effective rank text`` → ``effective_rank/text``: related values share a panel."""
    group, _, last = name.replace("@", "_at_").rpartition(" ")
    return re.sub(r"[^\w/.-]", "_", f"{group or 'train'}/{last}")
