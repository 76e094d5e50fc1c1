"""What every adapter to Redis shares: how connections are made, and how calls and their failures are told."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from time import perf_counter
from typing import Any, Final

from redis.asyncio.connection import AbstractConnection, ConnectionPool
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from service.breaker import BreakerState
from service.errors import LinkDown, ServiceError, SettingsError
from service.redis_reasons import reason_of

Connect = Callable[[], AbstractConnection]

_LONGEST_CONNECT_S: Final = 1.0


@dataclass(frozen=True, slots=True)
class RedisWatch:
    """Whom to tell how calls of Redis go.

    Attributes:
        on_call: the operation and its seconds, answered or not.
        on_error: the operation, when Redis did not answer it or refused it.
        on_state: the breaker's new state; of several breakers the worst one's.
    """

    on_call: Callable[[str, float], None] | None = None
    on_error: Callable[[str], None] | None = None
    on_state: Callable[[BreakerState], None] | None = None


UNWATCHED: Final = RedisWatch()


def connector(url: str, timeout_s: float) -> Connect:
    """How to make connections, none of them opened yet.

    They never ask twice: a read answers degraded instead, a write must not be stored twice.

    Args:
        url: ``redis://``, ``rediss://`` or ``unix://``.
        timeout_s: seconds that one step of connecting may take, a second at most.

    Raises:
        SettingsError: the URL is not one that redis-py understands.
    """
    step_s = min(timeout_s, _LONGEST_CONNECT_S)
    try:
        pool = ConnectionPool.from_url(
            url, socket_timeout=step_s, socket_connect_timeout=step_s, retry=Retry(NoBackoff(), 0)
        )
        pool.connection_kwargs["protocol"] = 2  # whatever the URL says: the adapters read replies in this form
        # Unknown parameters in the URL are found out only here, which would otherwise be in the middle of a request.
        pool.connection_class(**pool.connection_kwargs)
    except (ValueError, TypeError):
        # Without the reason, which may quote the password.
        raise SettingsError("redis_url must be a redis://, rediss:// or unix:// URL that redis-py knows") from None
    return pool.make_connection


@contextmanager
def translated(operation: str, unavailable: type[ServiceError], watch: RedisWatch) -> Iterator[None]:
    """Time a call and turn every failure into ours.

    Args:
        operation: what was asked, for the message and for ``watch``.
        unavailable: the error to raise; it never carries what Redis said, which may name keys and hosts.
        watch: whom to tell.
    """
    began = perf_counter()
    try:
        yield
    except LinkDown as error:
        _tell_error(watch, operation)
        raise unavailable(f"Redis did not answer ({operation}: {error})") from error
    except RedisError as error:
        _tell_error(watch, operation)
        raise unavailable(f"Redis did not do it ({operation}: {reason_of(error)})") from error
    finally:
        if watch.on_call is not None:
            watch.on_call(operation, perf_counter() - began)


def texts(stored: Iterable[Any]) -> list[str]:
    """Decode what a reply holds; bytes that are no UTF-8, written by somebody else, are replaced.

    Raises:
        LinkDown: it holds something that is no string.
    """
    try:
        return [value.decode("utf-8", "replace") for value in stored]
    except AttributeError as error:
        raise LinkDown("a reply of another form than the command's") from error


def _tell_error(watch: RedisWatch, operation: str) -> None:
    if watch.on_error is not None:
        watch.on_error(operation)
