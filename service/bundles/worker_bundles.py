"""Lets the workers of one service act as one: a bundle is validated by one of them, and all follow its verdict.

- The first worker that needs a bundle holds a lock while it loads, hashes and compares it, and records the verdict. The
  others then load it without hashing and comparing it again, or refuse it for the same reason.
- No worker loads a bundle while that would be the third one mapped by any of them: it asks the others to free the
  bundle before their active one, and waits.
- A worker that is on an older bundle than the others first follows them, so that all can go on together.
"""

import asyncio
import fcntl
import hashlib
import json
import os
from collections.abc import AsyncIterator, Callable, Collection, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from time import monotonic, sleep, time
from typing import Final

from index.bundle.bundle import Bundle
from index.errors import BundleInvalid, BundleNotFound, may_pass
from service.bundles.validation import ValidBundle
from service.errors import BundleRefused, NotReady, RefusalReason
from service.runtime.worker_board import WorkerBoard, bundle_digest
from service.settings.worker_place import WorkerPlace

_POLL_S: Final = 0.05
_ROOM_LIMIT_S: Final = 10.0
_MOST_BUNDLES: Final = 2


@dataclass(frozen=True, slots=True)
class BundleVerdict:
    """What a worker found out about one publication of a bundle.

    Attributes:
        reason: why it may not be activated; None: it is good.
        message: what is wrong with it.
        hashed: whether every file was hashed.
    """

    reason: RefusalReason | None = None
    message: str = ""
    hashed: bool = False

    def refusal(self) -> BundleRefused | None:
        """The refusal, if it is one."""
        return None if self.reason is None else BundleRefused(self.reason, self.message)


class WorkerBundles:
    """What one worker and the others agree on.

    Args:
        place: which worker this is.
        board: shows which bundles the workers have mapped.
        registry: directory of published bundles.
    """

    def __init__(self, place: WorkerPlace, board: WorkerBoard, registry: Path) -> None:
        self._place = place
        self._board = board
        self._registry = registry

    def key_of(self, bundle_id: str) -> str:
        """Key of the files of a bundle as they are now; another one after any write, so that a verdict ends with it."""
        digest = hashlib.sha256(bundle_id.encode())
        try:
            for entry in sorted(os.scandir(self._registry / bundle_id), key=lambda entry: entry.name):
                status = entry.stat(follow_symlinks=False)
                signature = (entry.name, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
                digest.update(repr(signature).encode())
        except OSError as error:
            digest.update(repr(error.errno).encode())
        return digest.hexdigest()[:32]

    def verdict(self, key: str) -> BundleVerdict | None:
        """The verdict of any worker; None: there is none yet."""
        try:
            return BundleVerdict(**json.loads((self._place.directory / f"verdict-{key}.json").read_bytes()))
        except FileNotFoundError:
            return None

    def record(self, key: str, verdict: BundleVerdict) -> None:
        """Let all workers follow a verdict."""
        self._write(f"verdict-{key}.json", json.dumps(asdict(verdict)))

    @asynccontextmanager
    async def turn(self) -> AsyncIterator[None]:
        """Hold the lock of those that validate a bundle; it is freed when its holder dies."""
        descriptor = self._open("validation.lock")
        try:
            while not _is_locked(descriptor):
                await asyncio.sleep(_POLL_S)
            yield
        finally:
            os.close(descriptor)

    @contextmanager
    def blocking_turn(self, name: str = "validation.lock", stop: Callable[[], bool] = lambda: False) -> Iterator[bool]:
        """As :meth:`turn`, for a thread beside the event loop.

        Args:
            name: of the lock.
            stop: called now and then; True ends the waiting.

        Yields:
            Whether the lock is held.
        """
        descriptor = self._open(name)
        try:
            while not (held := _is_locked(descriptor)) and not stop():
                sleep(_POLL_S)
            yield held
        finally:
            os.close(descriptor)

    def hashed_once(self, bundle_id: str, hash_files: Callable[[], bool], stop: Callable[[], bool]) -> bool:
        """Hash the files of a bundle, unless another worker did or does; called in a thread beside the event loop.

        Args:
            bundle_id: of the bundle.
            hash_files: hashes every file; False: it was stopped; raises where one was altered.
            stop: called now and then; True ends the waiting.

        Returns:
            Whether every file was hashed.
        """
        key = self.key_of(bundle_id)
        with self.blocking_turn("hashing.lock", stop) as held:
            if not held:
                return False
            known = self.verdict(key)
            if known is not None and known.hashed:
                return True
            if not hash_files():
                return False
            if key == self.key_of(bundle_id) and (known is None or known.reason is None):
                self.record(key, BundleVerdict(hashed=True))
        return True

    def hold(self, bundle_ids: Collection[str]) -> None:
        """Show which bundles this worker has mapped."""
        self._board.set_bundles(self._place.number, bundle_ids)

    async def make_room(self, bundle_id: str, held: Collection[str]) -> None:
        """Wait until this bundle is at most the second one that any worker has mapped, and show that it is mapped.

        Args:
            bundle_id: will be loaded.
            held: what this worker has mapped.

        Raises:
            NotReady: other workers use earlier ones for too long.
        """
        until = monotonic() + _ROOM_LIMIT_S
        try:
            while not self._take_room(bundle_id, held):
                self._board.set_wants_room(self._place.number, True)
                if monotonic() > until:
                    raise NotReady("other workers still use earlier bundles; try again soon")
                await asyncio.sleep(_POLL_S)
        finally:
            self._board.set_wants_room(self._place.number, False)

    @property
    def room_is_wanted(self) -> bool:
        """Whether another worker waits until this one frees the bundle before its active one."""
        return self._board.room_is_wanted(self._place.number)

    def activated(self, bundle_id: str, held: Collection[str]) -> None:
        """Show that this bundle answers here from now on."""
        self.hold(held)
        self._write(self._active_of(self._place.number), json.dumps([time(), bundle_id]))

    def followed(self, active: str | None) -> str | None:
        """The bundle that this worker should change to first, as others activated it later than this one its own.

        Args:
            active: the bundle that answers here; None: there is none yet.

        Returns:
            Its id; None: this worker is as far as the others.
        """
        others = [self._active(number) for number in range(1, self._place.count + 1) if number != self._place.number]
        newest = max((found for found in others if found is not None), default=None)
        mine = self._active(self._place.number)
        if newest is None or newest[1] == active or (active is not None and mine is not None and newest < mine):
            return None
        return newest[1]

    def _take_room(self, bundle_id: str, held: Collection[str]) -> bool:
        with self._board.locked():
            self.hold(held)
            if len(self._board.bundles() | {bundle_digest(bundle_id)}) > _MOST_BUNDLES:
                return False
            self.hold({*held, bundle_id})
            return True

    def _active(self, number: int) -> tuple[float, str] | None:
        try:
            at, bundle_id = json.loads((self._place.directory / self._active_of(number)).read_bytes())
        except FileNotFoundError:
            return None
        return at, bundle_id

    def _active_of(self, number: int) -> str:
        return f"active-{number}.json"

    def _open(self, name: str) -> int:
        return os.open(self._place.directory / name, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)

    def _write(self, name: str, content: str) -> None:
        path = self._place.directory / f"{name}.{self._place.number}.part"
        path.write_text(content)
        path.replace(self._place.directory / name)


def verdict_on(valid: ValidBundle | BundleRefused, *, hashed: bool) -> BundleVerdict:
    """The verdict on a bundle that was validated.

    Args:
        valid: what came of it.
        hashed: every file was hashed while it was loaded.
    """
    if isinstance(valid, BundleRefused):
        return BundleVerdict(valid.reason, str(valid))
    return BundleVerdict(hashed=hashed or valid.verified)


def _is_locked(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def hash_in_full(
    bundle: Bundle, stop: Callable[[], bool], workers: WorkerBundles | None
) -> bool | BundleRefused | None:
    """Whether every file was hashed; a refusal if one was altered. A deleted bundle can still answer requests.

    None: a file cannot be read now, for want of descriptors or as its mount does not answer, which says nothing of it.
    """
    try:
        if workers is not None:
            return workers.hashed_once(bundle.id, lambda: bundle.verify_in_full(stop), stop)
        return bundle.verify_in_full(stop)
    except BundleNotFound:
        return False
    except (BundleInvalid, OSError) as error:
        if may_pass(error):
            return None
        if isinstance(error, OSError):
            raise
        return BundleRefused("altered", str(error))
