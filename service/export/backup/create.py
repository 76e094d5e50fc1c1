"""Makes a backup of Redis and a registry while the service goes on.

What was acknowledged before the backup began is in it, unless it was erased, expired or cut at its cap since. The keys
are scanned first. Then users with an event since the beginning are read again, all keys of a user at one moment, and
each stream together with how far it is exported. At last both sides of each merge since the beginning are read again,
with their streams, until none has come in between. So a user is never between two states.
"""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Final

from index.bundle.integrity import sha256_of, sync_directory, write_durably
from index.bundle.manifest import FileEntry
from index.bundle.pointer import POINTER_FILE
from index.bundle.registries import AnyRegistry
from index.machine.disk import translate_disk_errors
from index.machine.locks import directory_lock
from service.errors import BackupRefused
from service.export.backup.key_files import KeyFiles
from service.export.backup.manifest import (
    MANIFEST_FILE,
    REDIS_DIRECTORY,
    REGISTRY_DIRECTORY,
    BackupManifest,
    RedisPart,
    RegistryPart,
)
from service.export.backup.registry_copy import Report, copy_registry
from service.stores.backup.redis_backup import RedisBackup, group_of, group_of_owner, shared_groups
from service.stores.history_keys import BUCKETS, bucket_of
from service.stores.protocols import session_of

_MARGIN_MS: Final = 2000  # times of merges are whole seconds
_CATCH_UP: Final = 256
_MERGE_ROUNDS: Final = 4


async def create_backup(
    target: Path, redis: RedisBackup | None, registry: AnyRegistry | None, report: Report
) -> BackupManifest:
    """Make a backup.

    Everything is written beside the target, under a hidden name, and renamed at the end. After a kill the next call
    begins Redis again and keeps the bundles that were copied.

    Args:
        target: a new or empty directory.
        redis: None: without Redis.
        registry: None: without a registry.
        report: called with the progress.

    Raises:
        BackupRefused: the target has files, another backup is at work there, a bundle is damaged, or Redis is one node
            of a cluster.
        BackupInterrupted: Redis does not answer, or slots of a cluster are being moved.
        StoreUnavailable: the object store of the registry does not answer.
        DiskError: a file cannot be written.
    """
    began, files = datetime.now(UTC), dict[str, FileEntry]()
    server = None if redis is None else await redis.server()
    with translate_disk_errors(target, again="start the same command again"), _partial(target) as partial:
        redis_part = registry_part = None
        shutil.rmtree(partial / REDIS_DIRECTORY, ignore_errors=True)
        if redis is not None and server is not None:
            redis_part, written = await _copy_redis(redis, server, partial / REDIS_DIRECTORY, report)
            files |= {f"{REDIS_DIRECTORY}/{name}": entry for name, entry in written.items()}
        if registry is not None:
            pointer, bundles = copy_registry(registry, partial / REGISTRY_DIRECTORY, report)
            path = partial / REGISTRY_DIRECTORY / POINTER_FILE
            files[f"{REGISTRY_DIRECTORY}/{POINTER_FILE}"] = FileEntry(sha256=sha256_of(path), size=path.stat().st_size)
            registry_part = RegistryPart(current=str(pointer.current), bundles=bundles)
        manifest = BackupManifest.seal(
            version=version("vlm2rec"),
            began=began,
            ended=datetime.now(UTC),
            redis=redis_part,
            registry=registry_part,
            files=files,
        )
        write_durably(partial / MANIFEST_FILE, manifest.to_json())
        partial.rename(target)
        sync_directory(target.parent)
    return manifest


@contextmanager
def _partial(target: Path) -> Iterator[Path]:
    """The directory beside the target that is renamed to it at the end, locked; only its owner may read it."""
    if target.is_symlink() or (target.exists() and not (target.is_dir() and not any(target.iterdir()))):
        raise BackupRefused(f"{target}: exists already; name a new directory for each backup")
    partial = target.absolute().with_name(f".{target.absolute().name}.partial")
    before = os.umask(0o077)
    try:
        partial.mkdir(parents=True, exist_ok=True)
        with directory_lock(partial):
            yield partial
    except BlockingIOError as error:
        raise BackupRefused(f"{target}: another backup is being written there; wait for it") from error
    finally:
        os.umask(before)


async def _copy_redis(
    redis: RedisBackup, server: str, directory: Path, report: Report
) -> tuple[RedisPart, dict[str, FileEntry]]:
    if await redis.interrupted_restore() is not None:
        raise BackupRefused("a restore into this Redis was interrupted; finish it first")
    began_ms, erasure = await redis.now_ms() - _MARGIN_MS, await redis.last_erasure()
    directory.mkdir()
    with KeyFiles(directory) as files:
        async for names in redis.names():
            groups = dict.fromkeys(group for group in map(group_of, names) if group is not None)
            # With the keys that do not exist: they may have existed where another key of the user was met.
            files.add(await redis.dump(list(groups), gone=True))
            report("keys", files.keys, None)
        shared = shared_groups()
        for number, group in enumerate(shared):
            report("streams", number, len(shared))
            if number < BUCKETS:
                await _copy_owners(redis, files, await redis.owners_since(number, began_ms))
            files.add(await redis.dump([group]))
        report("streams", len(shared), len(shared))
        await _copy_merged(redis, files, began_ms)
    erased = await redis.last_erasure() != erasure
    return RedisPart(server=server, keys=files.keys, erased_meanwhile=erased), files.written


async def _copy_merged(redis: RedisBackup, files: KeyFiles, since_ms: int) -> None:
    """Read users and sessions again that were merged since a time, then those merged meanwhile.

    Both are read after the merge was found, so no event is in neither of them, even if the last round found merges. The
    user is first: a session that is read after the end of a merge is empty, and its user has the events by then.
    """
    known: set[tuple[str, str]] = set()
    for _ in range(_MERGE_ROUNDS):
        merged: set[tuple[str, str]] = set()
        async for names in redis.names("{b*}:merges:*"):
            merged |= await redis.merged_since(names, since_ms)
        if not (merged := merged - known):
            return
        known |= merged
        users, sessions = ({pair[side] for pair in merged} for side in range(2))
        await _copy_owners(redis, files, users)
        await _copy_owners(redis, files, sessions)
        shared = shared_groups()
        for bucket in sorted(set(map(bucket_of, users | sessions))):
            # Those with events since the first time, as the stream has these; a session may be merged by now.
            owners = await redis.owners_since(bucket, since_ms)
            await _copy_owners(redis, files, {owner for owner in owners if session_of(owner) is None})
            files.add(await redis.dump([shared[bucket]]))


async def _copy_owners(redis: RedisBackup, files: KeyFiles, owners: set[str]) -> None:
    groups = [group_of_owner(owner) for owner in sorted(owners)]
    for at in range(0, len(groups), _CATCH_UP):
        files.add(await redis.dump(groups[at : at + _CATCH_UP], gone=True))
