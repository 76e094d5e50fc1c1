"""Backs up Redis and the registry, and restores them (`vlm2rec backup …`)."""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

if TYPE_CHECKING:
    from service.export.backup.manifest import BackupManifest
    from service.export.backup.registry_copy import Report, RestoredRegistry, RestoredStoreRegistry
    from service.settings.load import Settings
    from service.stores.backup.redis_backup import RedisBackup

app = typer.Typer(no_args_is_help=True)

_UNSET = "."

_out = Console(soft_wrap=True, highlight=False)
_err = Console(stderr=True, soft_wrap=True, highlight=False)

RedisOption = Annotated[
    str | None,
    typer.Option("--redis", metavar="URL", help="The Redis of the service.", show_default="VLM2REC_REDIS_URL"),
]
RegistryOption = Annotated[
    str | None,
    typer.Option(
        "--registry",
        metavar="DIR",
        help="Published bundles: a directory, or s3://bucket/prefix.",
        show_default="VLM2REC_REGISTRY",
    ),
]
NoRedisOption = Annotated[bool, typer.Option("--no-redis", help="Leave Redis out.")]
NoRegistryOption = Annotated[bool, typer.Option("--no-registry", help="Leave the registry out.")]
_NOTHING_LEFT = "--no-redis and --no-registry leave nothing; give at most one of them"


@app.command()
def create(
    to: Annotated[Path, typer.Option("--to", metavar="DIR", help="The backup: a new directory.")],
    redis: RedisOption = None,
    registry: RegistryOption = None,
    no_redis: NoRedisOption = False,
    no_registry: NoRegistryOption = False,
) -> None:
    """Back up all keys of the service in Redis, and all published bundles; the service goes on meanwhile.

    DIR appears when the backup is whole. It holds personal data and is readable by its owner only.
    """
    from index.bundle.registries import open_registry
    from service.export.backup.create import create_backup

    if no_redis and no_registry:
        raise typer.BadParameter(_NOTHING_LEFT)
    settings = _settings(redis, registry)
    source = None if no_registry else open_registry(_registry(settings))

    async def work(redis: "RedisBackup | None", report: "Report") -> "BackupManifest":
        return await create_backup(to, redis, source, report)

    manifest = _run(None if no_redis else settings, work)
    if manifest.redis is not None and manifest.redis.erased_meanwhile:
        _err.print(
            "warning: a user was erased while the backup was made, and may be in it; erase users of that time again "
            "after a restore",
            style="yellow",
        )
    _say("backed up", manifest)


@app.command()
def verify(
    backup: Annotated[Path, typer.Argument(help="The backup.", metavar="DIR")],
) -> None:
    """Verify every byte of a backup."""
    from service.export.backup.restore import verify_backup

    with _progress() as report:
        manifest = verify_backup(backup, report)
    _say("intact", manifest)


@app.command()
def restore(
    backup: Annotated[Path, typer.Option("--from", metavar="DIR", help="The backup.")],
    redis: RedisOption = None,
    registry: RegistryOption = None,
    no_redis: NoRedisOption = False,
    no_registry: NoRegistryOption = False,
    replace: Annotated[
        bool,
        typer.Option("--replace", help="Delete what this Redis has under the prefix, and move the registry's pointer."),
    ] = False,
) -> None:
    """Restore a backup into an empty Redis and an empty registry, after it was verified. Stop the service before."""
    from service.export.backup.restore import restore_backup

    if no_redis and no_registry:
        raise typer.BadParameter(_NOTHING_LEFT)
    settings = _settings(redis, registry)
    target = None if no_registry else _restored(_registry(settings))

    async def work(redis: "RedisBackup | None", report: "Report") -> "BackupManifest":
        return await restore_backup(backup, redis, target, report, replace=replace)

    _say("restored", _run(None if no_redis else settings, work))


def _settings(redis: str | None, registry: str | None) -> "Settings":
    from service.settings.load import load_settings

    return load_settings({"registry": _UNSET}, redis_url=redis, registry=registry)


def _registry(settings: "Settings") -> str:
    """Path or URL of the registry that the settings name.

    Raises:
        SettingsError: they name none.
    """
    from service.errors import SettingsError

    if settings.bundles.registry == _UNSET:
        raise SettingsError("registry is not set; name it with --registry or leave it out with --no-registry")
    return settings.bundles.registry


def _restored(place: str) -> "RestoredRegistry | RestoredStoreRegistry":
    """The registry at a place, to restore to.

    Raises:
        RegistryError: the place has another form, or the extra for object stores is missing.
    """
    from index.bundle.registries import is_store_url
    from service.export.backup.registry_copy import RestoredRegistry, RestoredStoreRegistry

    return RestoredStoreRegistry(place) if is_store_url(place) else RestoredRegistry(place)


def _run(
    settings: "Settings | None", work: "Callable[[RedisBackup | None, Report], Awaitable[BackupManifest]]"
) -> "BackupManifest":
    """Do work with the Redis of the settings; None: without one."""
    from service.stores.backup.redis_backup import RedisBackup

    async def whole() -> "BackupManifest":
        redis = None if settings is None else RedisBackup(settings.redis)
        try:
            with _progress() as report:
                return await work(redis, report)
        finally:
            if redis is not None:
                await redis.close()

    return asyncio.run(whole())


@contextlib.contextmanager
def _progress() -> Iterator["Report"]:
    """A bar per step on stderr; a step whose end is not known counts alone."""
    columns = (TextColumn("{task.description:<12}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=_err, transient=True) as bars:
        tasks = {}

        def report(step: str, done: int, every: int | None) -> None:
            if step not in tasks:
                tasks[step] = bars.add_task(step, total=every)
            bars.update(tasks[step], completed=done, total=every)

        yield report


def _say(what: str, manifest: "BackupManifest") -> None:
    parts = []
    if manifest.redis is not None:
        parts.append(f"{manifest.redis.keys:,} keys of Redis {manifest.redis.server}")
    if manifest.registry is not None:
        parts.append(f"{len(manifest.registry.bundles):,} bundles, current {manifest.registry.current}")
    _out.print(f"{what}: {'; '.join(parts) or 'nothing'} (backup of {manifest.began:%Y-%m-%dT%H:%M:%SZ})", markup=False)
