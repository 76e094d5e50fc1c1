"""What every adapter to Redis shares: how a client is opened and how its errors are told."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from service.errors import ServiceError, SettingsError


def open_client(url: str, timeout_s: float) -> Redis:
    """A client that connects on first use and again after every failure, and never asks twice.

    No retries: a read answers degraded instead, a write must not be stored twice. A pooled connection that Redis closed
    is noticed and replaced before it is used.

    Args:
        url: ``redis://``, ``rediss://`` or ``unix://``.
        timeout_s: seconds that one answer, or connecting, may take.

    Raises:
        SettingsError: the URL is not one that redis-py understands.
    """
    try:
        client: Redis = Redis.from_url(
            url, socket_timeout=timeout_s, socket_connect_timeout=timeout_s, retry=Retry(NoBackoff(), 0)
        )
        # Unknown parameters in the URL are found out only here, which would otherwise be in the middle of a request.
        client.connection_pool.connection_class(**client.connection_pool.connection_kwargs)
    except (ValueError, TypeError):
        # Without the reason, which may quote the password.
        raise SettingsError("redis_url must be a redis://, rediss:// or unix:// URL that redis-py knows") from None
    return client


@contextmanager
def translated(
    operation: str, unavailable: type[ServiceError], on_error: Callable[[str], None] | None
) -> Iterator[None]:
    """Turn every failure of redis-py into ours; `OSError` covers sockets that go away at the wrong moment.

    Args:
        operation: what was asked, for the message and for ``on_error``.
        unavailable: the error to raise.
        on_error: told the operation.
    """
    try:
        yield
    except (RedisError, OSError) as error:
        if on_error is not None:
            on_error(operation)
        raise unavailable(f"Redis did not answer ({operation}: {type(error).__name__})") from error
