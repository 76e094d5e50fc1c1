"""An operator-state store in memory, for tests."""

import uuid
from collections.abc import Sequence
from dataclasses import replace

from service.errors import Conflict, OperatorStateUnavailable
from service.stores.protocols import OTHER_EXPERIMENT, Changes, Edition


class MemoryOperatorState:
    """Operator state in this process; lost when it ends. Several replicas in one process may share it.

    Args:
        shown_cap: newest items shown again that are remembered as changes.

    Attributes:
        available: set it to False and every call fails as if the store were down.
    """

    def __init__(self, *, shown_cap: int = 10_000) -> None:
        self._shown_cap = shown_cap
        self.available = True
        self.lose()

    def lose(self) -> None:
        """Forget everything, as a Redis without a disk does when it restarts."""
        self._edition = Edition()
        self._erasure = ""
        self._floor = 0
        self._pin: str | None = None
        self._experiment: str | None = None
        self._logged: list[str] = []
        self._hidden: dict[str, int] = {}
        self._shown: dict[str, int] = {}

    async def edition(self) -> Edition:
        """The state now; see `OperatorStateStore.edition`."""
        self._check_available()
        return replace(self._edition, erasure=self._erasure)

    async def changes(self, since: Edition) -> Changes:
        """The changes; see `OperatorStateStore.changes`."""
        self._check_available()
        whole = since.epoch != self._edition.epoch or since.number < self._floor
        after = 0 if whole else since.number
        hidden = tuple(item for item, number in self._hidden.items() if number > after)
        shown = () if whole else tuple(item for item, number in self._shown.items() if number > after)
        return Changes(self._edition, self._pin, whole, hidden, shown, self._experiment)

    async def pin(self, bundle_id: str | None, known: Edition) -> bool:
        """Pin a bundle; see `OperatorStateStore.pin`."""
        if not self._accepts(known):
            return False
        if bundle_id != self._pin:
            self._next()
            self._pin = bundle_id
        return True

    async def set_experiment(self, definition: str | None, known: Edition, *, instead_of: str | None) -> bool:
        """Run an experiment; see `OperatorStateStore.set_experiment`."""
        if not self._accepts(known):
            return False
        if definition != self._experiment:
            if instead_of != self._experiment:
                raise Conflict(OTHER_EXPERIMENT)
            self._next()
            self._experiment = definition
        return True

    async def hide(self, item_id: str, known: Edition) -> bool:
        """Hide an item; see `OperatorStateStore.hide`."""
        if not self._accepts(known):
            return False
        if item_id not in self._hidden:
            self._hidden[item_id] = self._next()
            self._shown.pop(item_id, None)
        return True

    async def show(self, item_id: str, known: Edition) -> bool:
        """Show an item again; see `OperatorStateStore.show`."""
        if not self._accepts(known):
            return False
        if self._hidden.pop(item_id, None) is not None:
            self._shown[item_id] = self._next()
            while len(self._shown) > self._shown_cap:
                self._floor = self._shown.pop(next(iter(self._shown)))
        return True

    async def announce_erasure(self) -> None:
        """Announce an erasure; see `OperatorStateStore.announce_erasure`."""
        self._check_available()
        self._erasure = uuid.uuid4().hex

    async def log_change(self, entry: str) -> None:
        """Add to the audit log; see `OperatorStateStore.log_change`."""
        self._check_available()
        self._logged = [entry, *self._logged][:1000]

    async def logged_changes(self) -> list[str]:
        """The audit log; see `OperatorStateStore.logged_changes`."""
        self._check_available()
        return list(self._logged)

    async def restore(
        self, edition: Edition, pin: str | None, hidden: Sequence[str], experiment: str | None = None
    ) -> None:
        """Restore a state; see `OperatorStateStore.restore`."""
        self._check_available()
        if self._edition.is_behind(edition):
            self._edition, self._floor, self._pin, self._experiment = edition, edition.number, pin, experiment
            self._hidden = {item: number for number, item in enumerate(hidden, 1)}
            self._shown = {}

    async def close(self) -> None:
        """Nothing to close."""

    def _accepts(self, known: Edition) -> bool:
        self._check_available()
        if self._edition.is_behind(known):
            return False
        if not self._edition.epoch:
            self._edition = Edition(uuid.uuid4().hex, 0)
        return True

    def _next(self) -> int:
        self._edition = Edition(self._edition.epoch, self._edition.number + 1)
        return self._edition.number

    def _check_available(self) -> None:
        if not self.available:
            raise OperatorStateUnavailable("the operator state is switched off; try again later")
