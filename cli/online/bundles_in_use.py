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
_REDIS_VARIABLES = ("VLM2REC_REDIS_URL", "VLM2REC_REDIS_URL_FILE")
_TIMEOUT_S = 5.0


def named_here() -> frozenset[str]:
    """Ids of the bundles that services on this machine have pinned or run an experiment with, from their files."""
    from service.bundles.operator_state import named_bundles

    file = os.environ.get("VLM2REC_DIRECTIVES_FILE")
    return named_bundles(*([Path(file)] if file else []))


def named_in_redis(redis: str | None) -> frozenset[str]:
    """Ids of the bundles that the replicas of a Redis have pinned or run an experiment with.

    Args:
        redis: its URL; None: that of the variables of a service, and without them nothing is read.

    Raises:
        SettingsError: the URL breaks a rule.
        OperatorStateUnavailable: Redis does not answer.
    """
    if redis is None and not any(os.environ.get(name) for name in _REDIS_VARIABLES):
        return frozenset()
    from service.bundles.operator_state import stored_bundles
    from service.settings.load import load_settings
    from service.stores.redis_operator_state import RedisOperatorState

    settings = load_settings({"registry": _UNSET}, redis_url=redis)

    async def read() -> frozenset[str]:
        store = RedisOperatorState(settings.redis, timeout_s=_TIMEOUT_S)
        try:
            return await stored_bundles(store)
        finally:
            await store.close()

    return asyncio.run(read())


def published_in(registry: "AnyRegistry") -> frozenset[str] | None:
    """Ids of the current bundle and of the one that a rollback makes current; None: nothing is published.

    Raises:
        RegistryError: the registry cannot be read.
    """
    current = registry.current()
    return None if current is None else frozenset((current, *registry.earlier(current)[:1]))
