"""Restores a backup into an empty Redis and registry, after every byte of it was verified."""

from pathlib import Path
from typing import Final

from service.errors import BackupRefused
from service.export.backup.key_files import existing, read_keys
from service.export.backup.manifest import REGISTRY_DIRECTORY, BackupManifest
from service.export.backup.registry_copy import Report, RestoredRegistry, RestoredStoreRegistry, check_bundle
from service.stores.backup.redis_backup import RedisBackup
from service.stores.history_keys import BUCKETS

_OLD_STREAM: Final = "events"  # of versions before the buckets, see `service.stores.history_keys.old_stream_key`
_REPLACE: Final = "name an empty one, or replace what it holds with --replace"


def verify_backup(backup: Path, report: Report) -> BackupManifest:
    """Verify every byte of a backup; reads only.

    Raises:
        BackupRefused: it is not finished, damaged, or of another format.
    """
    manifest = BackupManifest.read(backup)
    bundles = manifest.registry.bundles if manifest.registry is not None else {}
    every = len(manifest.files) + len(bundles)
    for number, name in enumerate(manifest.files):
        report("verifying", number, every)
        manifest.check_file(backup, name)
    for number, (name, content) in enumerate(bundles.items(), len(manifest.files)):
        report("verifying", number, every)
        check_bundle(backup / REGISTRY_DIRECTORY / name, content)
    report("verifying", every, every)
    return manifest


async def restore_backup(
    backup: Path,
    redis: RedisBackup | None,
    registry: RestoredRegistry | RestoredStoreRegistry | None,
    report: Report,
    *,
    replace: bool = False,
) -> BackupManifest:
    """Restore a backup; no service may run on this Redis and registry meanwhile.

    Nothing is written before the backup is verified and both places are known to be empty. After a kill the same call
    begins Redis again and keeps the bundles that were restored.

    Args:
        backup: its directory.
        redis: where the keys go, under its own prefix; None: without Redis.
        registry: where the bundles go; None: without a registry.
        report: called with the progress.
        replace: delete all keys of the prefix, and move the pointer of a registry that has one.

    Raises:
        BackupRefused: the backup is damaged or lacks a part, a place is not empty, or Redis is one node
            of a cluster.
        BackupInterrupted: Redis does not answer, or is older than the one of the backup.
        StoreUnavailable: the object store of the registry does not answer.
        RegistryError: the registry cannot be written.
    """
    if redis is not None:
        await redis.server()
    manifest = verify_backup(backup, report)
    if redis is not None and manifest.redis is None:
        raise BackupRefused(f"{backup}: was made without Redis; restore it with --no-redis")
    if registry is not None and manifest.registry is None:
        raise BackupRefused(f"{backup}: was made without a registry; restore it with --no-registry")
    if registry is not None and not replace and registry.current() is not None:
        raise BackupRefused(f"{registry.location}: this registry has published bundles; {_REPLACE}")
    if redis is not None and redis.is_cluster and _has_old_layout(backup, manifest):
        raise BackupRefused(
            f"{backup}: has histories of a version before the buckets, which a cluster does not read; restore it to "
            "one Redis (docs/redis.md)"
        )
    if redis is not None:
        interrupted = await redis.interrupted_restore() == manifest.content
        if not replace and not interrupted and await _has_keys(redis):
            raise BackupRefused(f"this Redis has keys of this prefix; {_REPLACE}")
    if registry is not None and manifest.registry is not None:
        registry.restore(backup / REGISTRY_DIRECTORY, manifest.registry.bundles, report)
    if redis is not None and manifest.redis is not None:
        await _restore_redis(redis, backup, manifest, manifest.redis.keys, report)
    return manifest


def _has_old_layout(backup: Path, manifest: BackupManifest) -> bool:
    """Whether there is the stream of versions before the buckets."""
    batches = (batch for name in manifest.key_files for batch in read_keys(backup / name))
    return any(key.name == _OLD_STREAM and key.value for batch in batches for key in batch)


async def _has_keys(redis: RedisBackup) -> bool:
    async for names in redis.names():
        if names:
            return True
    return False


async def _restore_redis(
    redis: RedisBackup, backup: Path, manifest: BackupManifest, every: int, report: Report
) -> None:
    await redis.begin_restore(manifest.content)
    async for names in redis.names():
        await redis.delete_all(names)
    done = 0
    for name in manifest.key_files:
        for keys in read_keys(backup / name):
            report("keys", done, every)
            await redis.restore(keys)
            done += existing(keys)
    for bucket in range(BUCKETS):
        report("stream ids", bucket, BUCKETS)
        await redis.list_stream_ids(bucket)
    await redis.end_restore()
    report("stream ids", BUCKETS, BUCKETS)
