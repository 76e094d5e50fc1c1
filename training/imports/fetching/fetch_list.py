"""Records the result of each picture fetch in a file, so that a stopped fetch can be resumed."""

import json
import os
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from training.errors import DatasetError


@dataclass(frozen=True)
class FetchOutcome:
    """The result of fetching one address.

    Attributes:
        url: the address.
        file: path of the picture relative to the data set; None if the fetch failed.
        size: of the picture, bytes.
        reason: why the fetch failed; empty if it succeeded.
        retryable: whether a later fetch may succeed.
    """

    url: str
    file: str | None = None
    size: int = 0
    reason: str = ""
    retryable: bool = False


class FetchList:
    """A file of JSON lines, one per fetch; the last line of an address counts.

    Args:
        path: of the file, which need not exist.

    Raises:
        DatasetError: the file cannot be read, or a line is invalid; a last line that was cut short is ignored.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self.outcomes: dict[str, FetchOutcome] = {}
        try:
            content = path.read_bytes() if path.exists() else b""
        except OSError as error:
            raise DatasetError(f"{path}: cannot be read ({error.strerror}); check its permissions") from error
        *lines, self._cut = content.split(b"\n")  # what follows the last line end was cut short by a kill
        for number, line in enumerate(lines, start=1):
            outcome = _outcome(line)
            if outcome is None:
                raise DatasetError(f"{path}: line {number:,} is not what a fetch writes; remove the line, or the file")
            self.outcomes[outcome.url] = outcome
        self._whole = len(content) - len(self._cut)

    def __enter__(self) -> Self:
        self._file = self._path.open("ab")
        if self._cut:
            self._file.truncate(self._whole)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def add(self, outcome: FetchOutcome) -> None:
        """Append one result; it is in the file when this returns.

        Raises:
            OSError: it cannot be written.
        """
        if outcome.file is None:
            line = {"url": outcome.url, "failed": outcome.reason, "for_now": outcome.retryable}
        else:
            line = {"url": outcome.url, "file": outcome.file, "size": outcome.size}
        self._file.write(json.dumps(line).encode() + b"\n")
        self._file.flush()
        self.outcomes[outcome.url] = outcome

    def sync(self) -> None:
        """Wait until the list is on the disk."""
        os.fsync(self._file.fileno())


def _outcome(line: bytes) -> FetchOutcome | None:
    try:
        value = json.loads(line)
    except ValueError:
        return None
    match value:
        case {"url": str(url), "file": str(file), "size": int(size)}:
            return FetchOutcome(url, file, size)
        case {"url": str(url), "failed": str(reason), "for_now": bool(retryable)}:
            return FetchOutcome(url, reason=reason, retryable=retryable)
    return None
