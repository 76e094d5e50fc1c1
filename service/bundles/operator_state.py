"""Keeps this replica's copy of the operator state (pinned bundle, hidden items, experiment) in step with the store.

The store is the truth, and every replica polls it; a poll also shows that a user was erased on another replica. A copy
in a local file is used when the store cannot be reached at the start. A store that has lost its state, such as a Redis
without a disk that restarted, gets it back from the first replica that notices, so that neither a hidden item nor a
bundle that was rolled back is served again by accident.
"""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Collection, Mapping
from dataclasses import dataclass
from math import inf
from pathlib import Path
from time import monotonic
from typing import Any, Final

import orjson

from index.bundle.integrity import write_durably
from service.errors import OperatorStateUnavailable
from service.experiments.experiment import Experiment
from service.recommend.hidden_items import HiddenItems, in_chunks
from service.settings.load import state_directory
from service.stores.protocols import Changes, Edition, OperatorStateStore

_FORMAT = 1
_NOTHING = Edition()
RETRY_S: Final = 5.0
"""Seconds between two attempts to write the local file."""


@dataclass(frozen=True, slots=True)
class OperatorStateCopy:
    """The operator state at one moment, as the local file holds it.

    Attributes:
        edition: which state of the store it is.
        pin: id of the pinned bundle; None: the registry's current bundle is served.
        hidden: hidden item ids.
        experiment: the running experiment as JSON; None: none runs.
    """

    edition: Edition = _NOTHING
    pin: str | None = None
    hidden: Collection[str] = ()
    experiment: str | None = None

    @property
    def pinned(self) -> frozenset[str]:
        """The id of the pinned bundle, if there is one."""
        return frozenset(() if self.pin is None else (self.pin,))

    def in_experiment(self) -> frozenset[str]:
        """Ids of the bundles that the arms of the experiment name.

        Raises:
            ValueError: another version wrote the experiment.
        """
        return frozenset() if self.experiment is None else Experiment.from_json(self.experiment).bundles

    def save(self, path: Path) -> None:
        """Write the file in one step; the directory is made.

        Raises:
            OSError: it cannot be written.
        """
        path.parent.mkdir(parents=True, exist_ok=True)
        fields = {"format": _FORMAT, "epoch": self.edition.epoch, "number": self.edition.number, "pin": self.pin}
        if self.experiment is not None:
            fields["experiment"] = self.experiment
        # In chunks, as each call holds the interpreter's lock; the event loop runs between two of them.
        hidden = b",".join(orjson.dumps(chunk)[1:-1] for chunk in in_chunks(self.hidden))
        write_durably(path, orjson.dumps(fields)[:-1] + b',"hidden":[' + hidden + b"]}")

    @classmethod
    def load(cls, path: Path) -> "OperatorStateCopy":
        """Read the file; the empty state if there is none.

        Raises:
            OSError: it cannot be read.
            ValueError: it does not hold an operator state.
        """
        try:
            fields = orjson.loads(path.read_bytes())
        except FileNotFoundError:
            return cls()
        if not isinstance(fields, dict) or fields.get("format") != _FORMAT:
            raise ValueError(f"it must be an object of format {_FORMAT}")
        epoch, number, pin, hidden = (fields.get(name) for name in ("epoch", "number", "pin", "hidden"))
        experiment = fields.get("experiment")
        texts = isinstance(pin, str | None) and isinstance(experiment, str | None)
        if not isinstance(epoch, str) or type(number) is not int or not texts:
            raise ValueError("epoch, number, pin and experiment must be a string, an integer and strings or null")
        if not isinstance(hidden, list) or not all(isinstance(item, str) for item in hidden):
            raise ValueError("hidden must be a list of strings")
        # A store to which these are restored numbers them 1, 2 …, so the number of changes may not be smaller.
        return cls(Edition(epoch, max(number, len(hidden))), pin, tuple(hidden), experiment)


class OperatorState:
    """This replica's copy of the operator state.

    Args:
        store: shared by all replicas.
        path: the local file.
        on_file_error: called with the reason if the file cannot be read or written; serving goes on without it.
        on_erasure: called if a user was erased on any replica since the last poll; and at the first poll.

    Attributes:
        hidden: the hidden items.
        pin: id of the pinned bundle; None: the registry's current bundle is served.
        experiment: the running experiment; None: none runs.
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
        copy = self._load()
        self._edition = copy.edition
        self._saved = copy.edition
        self._unsaved: Edition | None = None
        self._save_at = -inf
        self.pin = copy.pin
        self.hidden = HiddenItems(copy.hidden)
        self._definition = copy.experiment
        self.experiment = self._read_experiment()

    def copy(self) -> OperatorStateCopy:
        """The operator state now."""
        return OperatorStateCopy(self._edition, self.pin, self.hidden.snapshot().ids, self._definition)

    async def begin_with(self, read: OperatorStateCopy) -> None:
        """Take the state that was read from the store before the event loop, unless this copy is newer."""
        async with self._busy:
            if not read.edition.is_behind(self._edition):
                await self.hidden.replace(read.hidden)
                self.pin, self._edition = read.pin, read.edition
                self._take_experiment(read.experiment)

    async def sync(self) -> None:
        """Bring this copy up to date; one short call when nothing changed.

        Raises:
            OperatorStateUnavailable: the store does not answer; this copy stays as it is.
        """
        try:
            async with self._busy:
                await self._catch_up()
        finally:  # also a change that was made just before the store failed
            await self.save()

    async def set_pin(self, bundle_id: str | None) -> None:
        """Pin a bundle for all replicas, or none; the store holds it when this returns.

        Raises:
            OperatorStateUnavailable: the store does not answer; the pin may or may not be written.
        """
        await self._write(lambda known: self._store.pin(bundle_id, known))

    @property
    def definition(self) -> str | None:
        """The running experiment as it is stored; None: none runs."""
        return self._definition

    async def set_experiment(self, experiment: Experiment | None, *, instead_of: str | None) -> None:
        """Run an experiment on all replicas, or none; when this returns, the store and this replica hold it.

        Args:
            experiment: None: none is to run.
            instead_of: :attr:`definition` when the caller decided.

        Raises:
            Conflict: another one runs meanwhile, or none; nothing is changed.
            OperatorStateUnavailable: the store does not answer; the change may or may not be written.
        """
        definition = None if experiment is None else experiment.to_json()
        await self._write(lambda known: self._store.set_experiment(definition, known, instead_of=instead_of))

    async def set_available(self, item_id: str, available: bool) -> None:
        """Show or hide an item on all replicas; when this returns, the store and this replica hold it.

        Raises:
            OperatorStateUnavailable: the store does not answer; the change may or may not be written.
        """
        change = self._store.show if available else self._store.hide
        await self._write(lambda known: change(item_id, known))

    async def log_change(self, entry: Mapping[str, Any]) -> None:
        """Add an entry to the audit log of all replicas.

        Raises:
            OperatorStateUnavailable: the store does not answer.
        """
        await self._store.log_change(orjson.dumps(entry).decode())

    async def logged_changes(self) -> list[dict[str, Any]]:
        """The audit log, newest first; what another program wrote is passed over.

        Raises:
            OperatorStateUnavailable: the store does not answer.
        """
        found = []
        for text in await self._store.logged_changes():
            try:
                entry = orjson.loads(text)
            except ValueError:
                continue
            if isinstance(entry, dict):
                found.append(entry)
        return found

    async def announce_erasure(self) -> None:
        """Let every replica know that a user was erased; this one learns it by its next poll, as the others do.

        Raises:
            OperatorStateUnavailable: the store does not answer; other replicas may not learn it.
        """
        await self._store.announce_erasure()

    async def save(self) -> None:
        """Bring the local file up to date; a failure is reported, and retried after a pause or with the next change."""
        async with self._saving:
            waits = self._unsaved == self._edition and monotonic() < self._save_at
            if self._saved == self._edition or waits:
                return
            copy = self.copy()
            writing = asyncio.create_task(self._write_file(copy))
            try:
                await asyncio.shield(writing)
            except asyncio.CancelledError:
                # A cancelled write is lost if no thread was free; one that goes on could overwrite a later one.
                await asyncio.wait({writing})
                raise

    async def _write_file(self, copy: OperatorStateCopy) -> None:
        try:
            await asyncio.to_thread(copy.save, self._path)
        except OSError as error:
            if copy.edition != self._unsaved:
                self._on_file_error(f"{self._path}: the operator state cannot be saved ({error}); check path and space")
            self._unsaved, self._save_at = copy.edition, monotonic() + RETRY_S
        else:
            self._saved, self._unsaved = copy.edition, None

    async def close(self) -> None:
        """Save the local file and close the store."""
        self._save_at = -inf
        await self.save()
        await self._store.close()

    async def _write(self, write: Callable[[Edition], Awaitable[bool]]) -> None:
        async with self._busy:
            if not await write(self._edition):
                await self._catch_up()
                if not await write(self._edition):
                    raise OperatorStateUnavailable("the store lost the operator state twice; try again")
            await self._catch_up()

    async def _catch_up(self) -> None:
        edition = await self._store.edition()
        if edition.erasure != self._erasure:
            self._erasure = edition.erasure
            self._on_erasure()
        if edition.is_behind(self._edition):
            await self._store.restore(self._edition, self.pin, tuple(self.hidden.ids), self._definition)
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
        self._take_experiment(changes.experiment)
        self._edition = changes.edition

    def _take_experiment(self, definition: str | None) -> None:
        if definition != self._definition:
            self._definition = definition
            self.experiment = self._read_experiment()

    def _read_experiment(self) -> Experiment | None:
        """The experiment; None if there is none, or if another program or version wrote it."""
        if self._definition is None:
            return None
        try:
            return Experiment.from_json(self._definition)
        except ValueError as error:
            self._on_file_error(f"the stored experiment cannot be read ({error}); it does not run here")
            return None

    def _load(self) -> OperatorStateCopy:
        try:
            return OperatorStateCopy.load(self._path)
        except (OSError, ValueError) as error:
            self._on_file_error(f"{self._path}: the saved operator state cannot be read ({error}); it is ignored")
            return OperatorStateCopy()


def named_bundles(*files: Path) -> frozenset[str]:
    """Ids of the bundles that services on this machine have pinned or run an experiment with, from their local files.

    Args:
        files: local files outside of the usual directory; one that cannot be read is passed over.

    Returns:
        Ids of bundles of any registry.
    """
    found: set[str] = set()
    for path in (*state_directory().glob("directives-*.json"), *files):
        with contextlib.suppress(OSError, ValueError):
            copy = OperatorStateCopy.load(path)
            found |= copy.pinned
            found |= copy.in_experiment()
    return frozenset(found)


async def stored_bundles(store: OperatorStateStore) -> frozenset[str]:
    """Ids of the bundles that all replicas of a store have pinned or run an experiment with.

    Raises:
        OperatorStateUnavailable: the store does not answer, or another version wrote the experiment.
    """
    changes = await store.changes(_NOTHING)
    copy = OperatorStateCopy(changes.edition, changes.pin, experiment=changes.experiment)
    try:
        return copy.pinned | copy.in_experiment()
    except ValueError as error:
        raise OperatorStateUnavailable(
            f"the stored experiment cannot be read ({error}); use the version that started it, or end it"
        ) from error
