"""Looks at the registry's pointer and at the mapped files, without waiting long for their file system.

A file system whose server hangs may take minutes to answer. Polls, which also apply pins and hidden items, go on
meanwhile; the look that hangs is taken up by the poll after its end.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final

from index.bundle.mapped_files import MappedFiles
from index.errors import BundleInvalid, RegistryError
from service.bundles.loaded_bundles import LoadedBundle
from service.bundles.loader import BundleLoader
from service.errors import FilesUnavailable
from service.runtime.file_calls import ABANDONED_S, SILENT, FileCalls

_PATIENCE_S: Final = 0.5


@dataclass(frozen=True, slots=True)
class Look:
    """What a look has found.

    Attributes:
        current: id of the registry's current bundle; None: nothing is published, it cannot be read, or it was not read.
        error: why the pointer cannot be read; None: it can, or it was not read.
        written: those of the mapped files that were written to since the look before.
        shorter: those that became shorter, with the reason not to read them any more.
        asked_at: number of changes by operators when the look began.
    """

    current: str | None
    error: RegistryError | None
    written: tuple[MappedFiles, ...]
    shorter: tuple[tuple[MappedFiles, BundleInvalid], ...]
    asked_at: int


class RegistryLook:
    """Takes one look at a time.

    Args:
        loader: reads the pointer.
        calls: the thread that reads.
    """

    def __init__(self, loader: BundleLoader, calls: FileCalls) -> None:
        self._loader = loader
        self._calls = calls
        self._running: asyncio.Task[Look] | None = None
        self._is_late = False

    async def take(self, held: Sequence[LoadedBundle | None], *, pointer: bool, asked_at: int) -> Look:
        """What the registry has now, or had when an earlier look began that took longer.

        Args:
            held: the bundles in memory.
            pointer: whether the pointer is read.
            asked_at: number of changes by operators until now.

        Raises:
            FilesUnavailable: the file system has not answered yet.
        """
        mapped = tuple(loaded.bundle.files for loaded in held if loaded is not None and not loaded.truncated)
        del held  # a reference would keep a bundle in memory
        if self._running is None:
            look = partial(self._look, mapped, pointer, asked_at)
            self._running = asyncio.create_task(self._calls.run(look, patience_s=ABANDONED_S))
        await asyncio.wait({self._running}, timeout=0 if self._is_late else _PATIENCE_S)
        self._is_late = not self._running.done()
        if self._is_late:
            raise FilesUnavailable(SILENT)
        done, self._running = self._running, None
        return done.result()

    def close(self) -> None:
        """Give up a look that hangs."""
        if self._running is not None:
            self._running.cancel()

    def _look(self, mapped: tuple[MappedFiles, ...], pointer: bool, asked_at: int) -> Look:
        written: list[MappedFiles] = []
        shorter: list[tuple[MappedFiles, BundleInvalid]] = []
        for files in mapped:
            try:
                if files.written():
                    written.append(files)
            except BundleInvalid as error:
                shorter.append((files, error))
        current, failure = None, None
        if pointer:
            try:
                current = self._loader.polled_current()
            except RegistryError as error:
                failure = error
        return Look(current, failure, tuple(written), tuple(shorter), asked_at)
