"""The log of a training run: one JSON object a line, means over the steps since the last line."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any


class RunLog:
    """A log file that a resumed run continues as if it had never been broken off.

    Args:
        path: of the file.
        window: values of the steps since the last line, as an earlier part of the run left them.
        writes: whether this process is the one that writes.

    Attributes:
        window: the same, as it is now.
    """

    def __init__(self, path: Path, window: list[dict[str, float]], *, writes: bool) -> None:
        self._path, self._writes = path, writes
        self.window = window

    def add(self, values: dict[str, float]) -> None:
        """Take in one step's values; a name may be missing from some steps."""
        self.window.append(values)

    def write(self, step: int, rest: Mapping[str, Any]) -> dict[str, Any]:
        """Write a line and begin a new window.

        Args:
            step: steps done.
            rest: what is not a mean.

        Returns:
            The line.
        """
        names = {name: None for values in self.window for name in values}
        means = {
            name: math.fsum(found) / len(found)
            for name in names
            if (found := [values[name] for values in self.window if name in values])
        }
        line = {"step": step, **means, **rest}
        if self._writes:
            with self._path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
        self.window.clear()
        return line

    def cut(self, step: int) -> None:
        """Take out lines of steps that will be done again, and one that a kill cut short."""
        if not self._writes or not self._path.is_file():
            return
        kept = []
        for line in self._path.read_text(encoding="utf-8").splitlines():
            try:
                if json.loads(line)["step"] <= step:
                    kept.append(line)
            except (ValueError, KeyError, TypeError):
                continue
        aside = self._path.with_suffix(".part")
        aside.write_text("".join(f"{line}\n" for line in kept), encoding="utf-8")
        aside.replace(self._path)
