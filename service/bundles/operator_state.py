"""OperatorState: what operators tell all replicas, the pinned bundle and the hidden items, as this replica knows it.

With it each replica learns that a user was erased on another one.

The store is the truth, and every replica polls it. A copy in a local file is used when the store cannot be reached at
the start. A store that lost what a replica knows (a Redis without a disk that restarted) gets it back from the first
replica that notices, so that neither a hidden item nor a bundle that was rolled back comes back by accident.
"""

import asyncio
from collections.abc import Awaitable, Callable, Collection
from dataclasses import dataclass
from pathlib import Path

import orjson

from index.bundle.integrity import write_durably
from service.errors import OperatorStateUnavailable
from service.recommend.hidden_items import HiddenItems, in_pieces
from service.stores.protocols import Changes, Edition, OperatorStateStore

_FORMAT = 1
_NOTHING = Edition()


@dataclass(frozen=True, slots=True)
class OperatorStateCopy:
    """All directives of one moment, as they are kept in the local file.

    Attributes:
        edition: which state of the store they are.
        pin: id of the pinned bundle; None: the pointer's serves.
        hidden: hidden item ids.
    """

    edition: Edition = _NOTHING
    pin: str | None = None
    hidden: Collection[str] = ()

    def save(self, path: Path) -> None:
        """Write the file in one step; the directory is made.

        Raises:
            OSError: it cannot be written.
        """
        path.parent.mkdir(parents=True, exist_ok=True)
        kept = {"format": _FORMAT, "epoch": self.edition.epoch, "number": self.edition.number, "pin": self.pin}
        # In pieces, as each holds the interpreter's lock to its end; the event loop goes on between two of them.
        hidden = b",".join(orjson.dumps(piece)[1:-1] for piece in in_pieces(self.hidden))
        write_durably(path, orjson.dumps(kept)[:-1] + b',"hidden":[' + hidden + b"]}")

    @classmethod
    def load(cls, path: Path) -> "OperatorStateCopy":
        """Read the file; nothing is known where there is none.

        Raises:
            OSError: it cannot be read.
            ValueError: it holds something else.
        """
        try:
            kept = orjson.loads(path.read_bytes())
        except FileNotFoundError:
            return cls()
        if not isinstance(kept, dict) or kept.get("format") != _FORMAT:
            raise ValueError(f"it must be an object of format {_FORMAT}")
        epoch, number, pin, hidden = (kept.get(name) for name in ("epoch", "number", "pin", "hidden"))
        if not isinstance(epoch, str) or type(number) is not int or not isinstance(pin, str | None):
            raise ValueError("epoch, number and pin must be a string, an integer and a string or null")
        if not isinstance(hidden, list) or not all(isinstance(item, str) for item in hidden):
            raise ValueError("hidden must be a list of strings")
        # Whoever is given these back numbers them 1, 2 …, so the number of changes may not be smaller.
        return cls(Edition(epoch, max(number, len(hidden))), pin, tuple(hidden))


class OperatorState:
    """This replica's copy of the directives.

    Args:
        store: where all replicas keep them.
        path: the local file.
        on_file_error: told why the file could not be read or written; serving goes on without it.
        on_erasure: called when a user was erased since the last look, on whichever replica; and at the first look.

    Attributes:
        hidden: the hidden items.
        pin: id of the pinned bundle; None: the pointer's serves.
    """

    def __init__(
        self,
        store: OperatorStateStore,
        path: Path,
        on_file_error: Callable[[str], None],
        on_erasure: Callable[[], None] = lambda: None,
    ) -> None:
        self._store = store
        self._path = path
        self._on_file_error = on_file_error
        self._on_erasure = on_erasure
        self._erasure: str | None = None
        self._busy = asyncio.Lock()
        self._saving = asyncio.Lock()
        kept = self._load()
        self._edition = kept.edition
        self._saved = kept.edition
        self.pin = kept.pin
        self.hidden = HiddenItems(kept.hidden)

    def copy(self) -> OperatorStateCopy:
        """All directives now."""
        return OperatorStateCopy(self._edition, self.pin, self.hidden.snapshot().ids)

    async def begin_with(self, read: OperatorStateCopy) -> None:
        """Take what was read from the store before this replica's event loop began, unless more is known already."""
        async with self._busy:
            if not read.edition.is_behind(self._edition):
                await self.hidden.replace(read.hidden)
                self.pin, self._edition = read.pin, read.edition

    async def sync(self) -> None:
        """Catch up with the store; one short call when nothing changed.

        Raises:
            OperatorStateUnavailable: the store does not answer; what is known stays.
        """
        async with self._busy:
            await self._catch_up()
        await self.save()

    async def set_pin(self, bundle_id: str | None) -> None:
        """Pin a bundle for all replicas, or none; in the store when this returns.

        Raises:
            OperatorStateUnavailable: the store does not answer; it may or may not be pinned.
        """
        await self._write(lambda known: self._store.pin(bundle_id, known))

    async def set_available(self, item_id: str, available: bool) -> None:
        """Show or hide an item on all replicas; in the store when this returns, and true here at once.

        Raises:
            OperatorStateUnavailable: the store does not answer; it may or may not be done.
        """
        change = self._store.show if available else self._store.hide
        await self._write(lambda known: change(item_id, known))

    async def announce_erasure(self) -> None:
        """Let every replica know that a user was erased; this one too looks at it as at any other's.

        Raises:
            OperatorStateUnavailable: the store does not answer; others may not know.
        """
        await self._store.announce_erasure()

    async def save(self) -> None:
        """Bring the local file up to date; a failure is told and tried again with the next change."""
        async with self._saving:
            if self._saved == self._edition:
                return
            copy = self.copy()
            self._saved = copy.edition
            writing = asyncio.create_task(self._keep(copy))
            try:
                await asyncio.shield(writing)
            except asyncio.CancelledError:
                # Cancelled while no thread is free, it would never be written; left alone, it might be written last.
                await asyncio.wait({writing})
                raise

    async def _keep(self, copy: OperatorStateCopy) -> None:
        try:
            await asyncio.to_thread(copy.save, self._path)
        except OSError as error:
            self._on_file_error(f"{self._path}: the directives cannot be kept here ({error}); check path and space")

    async def close(self) -> None:
        """Keep what is known in the local file, and close the store."""
        await self.save()
        await self._store.close()

    async def _write(self, write: Callable[[Edition], Awaitable[bool]]) -> None:
        async with self._busy:
            if not await write(self._edition):
                await self._catch_up()
                if not await write(self._edition):
                    raise OperatorStateUnavailable("the store of directives lost its state twice; try again")
            await self._catch_up()

    async def _catch_up(self) -> None:
        edition = await self._store.edition()
        if edition.erasure != self._erasure:
            self._erasure = edition.erasure
            self._on_erasure()
        if edition.is_behind(self._edition):
            await self._store.restore(self._edition, self.pin, tuple(self.hidden.ids))
            return
        if edition == self._edition:
            return
        changes = await self._store.changes(self._edition)
        if not changes.edition.is_behind(self._edition):
            await self._apply(changes)

    async def _apply(self, changes: Changes) -> None:
        if changes.whole:
            await self.hidden.replace(changes.hidden)
        else:
            await self.hidden.change(changes.hidden, changes.shown)
        self.pin = changes.pin
        self._edition = changes.edition

    def _load(self) -> OperatorStateCopy:
        try:
            return OperatorStateCopy.load(self._path)
        except (OSError, ValueError) as error:
            self._on_file_error(f"{self._path}: the directives kept here cannot be read ({error}); they are ignored")
            return OperatorStateCopy()
