"""Says which bundles services may answer from or go back to, so that a deletion spares them."""

import asyncio
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from index.bundle.registries import AnyRegistry

RedisOption = Annotated[
    str | None,
    typer.Option(
        "--redis",
        metavar="URL",
        help="The Redis of the service: bundles that it has pinned or runs an experiment with are kept.",
        show_default="VLM2REC_REDIS_URL",
    ),
]
SpareOption = Annotated[
    list[str] | None,
    typer.Option("--spare", metavar="ID", help="A bundle to keep as well; may be given several times."),
]

_UNSET = "."  # of a registry, without which there are no settings
_VARIABLES = ("VLM2REC_REDIS_URL", "VLM2REC_REDIS_URL_FILE", "VLM2REC_CONFIG")  # one of them may name a Redis
_TIMEOUT_S = 5.0


def named_here() -> frozenset[str]:
    """Ids of the bundles that services on this machine have pinned or run an experiment with, from their files."""
    from service.bundles.operator_state import named_bundles

    file = os.environ.get("VLM2REC_DIRECTIVES_FILE")
    return named_bundles(*([Path(file)] if file else []))


def named_in_redis(redis: str | None) -> frozenset[str]:
    """Ids of the bundles that the replicas of a Redis have pinned or run an experiment with.

    Args:
        redis: its URL; None: that of the settings of a service, by variables or in the file that ``VLM2REC_CONFIG``
            names; where they set none, nothing is read.

    Raises:
        SettingsError: the URL breaks a rule.
        OperatorStateUnavailable: Redis does not answer.
    """
    if redis is None and not any(os.environ.get(name) for name in _VARIABLES):
        return frozenset()
    from service.bundles.operator_state import stored_bundles
    from service.settings.load import load_settings
    from service.stores.redis_operator_state import RedisOperatorState

    settings = load_settings({"registry": _UNSET}, redis_url=redis)
    if not {"redis_url", "redis_url_file"} & settings.redis.model_fields_set:
        return frozenset()

    async def read() -> frozenset[str]:
        store = RedisOperatorState(settings.redis, timeout_s=_TIMEOUT_S)
        try:
            return await stored_bundles(store)
        finally:
            await store.close()

    return asyncio.run(read())


def in_use_by_services(redis: str | None) -> frozenset[str]:
    """What :func:`named_here` and :func:`named_in_redis` tell.

    Raises:
        SettingsError: the URL breaks a rule.
        OperatorStateUnavailable: Redis does not answer.
    """
    return named_here() | named_in_redis(redis)


def published_in(registry: "AnyRegistry") -> frozenset[str] | None:
    """Ids of the current bundle and of the one that a rollback makes current; None: nothing is published.

    Raises:
        RegistryError: the registry cannot be read.
    """
    current = registry.current()
    return None if current is None else frozenset((current, *registry.earlier(current)[:1]))
