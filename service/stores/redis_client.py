"""What every adapter to Redis shares: how connections are made, and how calls and their failures are told."""

import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from time import perf_counter
from typing import Any, Final

from redis.asyncio.connection import AbstractConnection, ConnectionPool
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from service.errors import LinkDown, ServiceError, SettingsError
from service.settings.groups import RedisSettings
from service.stores.circuit_breaker import BreakerState
from service.stores.redis_reasons import reason_of

Connect = Callable[[], AbstractConnection]

_LONGEST_CONNECT_S: Final = 1.0


@dataclass(frozen=True, slots=True)
class RedisWatch:
    """Whom to tell how calls of Redis go.

    Attributes:
        on_call: the operation and its seconds, answered or not.
        on_error: the operation, when Redis did not answer it or refused it.
        on_state: the breaker's new state; of several breakers the worst one's.
        on_outcome: the operation and why it failed; None: it did not.
    """

    on_call: Callable[[str, float], None] | None = None
    on_error: Callable[[str], None] | None = None
    on_state: Callable[[BreakerState], None] | None = None
    on_outcome: Callable[[str, str | None], None] | None = None


UNWATCHED: Final = RedisWatch()


def connector(redis: RedisSettings) -> Connect:
    """How to make connections, none of them opened yet.

    They never ask twice: a read answers degraded instead, a write must not be stored twice.

    Args:
        redis: URL, and the timeout of one step of connecting, of which a second counts at most.

    Raises:
        SettingsError: the URL is not one that redis-py understands.
    """
    url, step_s = redis.url, min(redis.timeout_s, _LONGEST_CONNECT_S)
    _check_encoding(url)
    try:
        pool = ConnectionPool.from_url(
            url, socket_timeout=step_s, socket_connect_timeout=step_s, retry=Retry(NoBackoff(), 0)
        )
        pool.connection_kwargs["protocol"] = 2  # whatever the URL says: the adapters read replies in this form
        # Unknown parameters in the URL are found out only here, which would otherwise be in the middle of a request.
        pool.connection_class(**pool.connection_kwargs)
    except (ValueError, TypeError):
        # Without the reason, which may quote the password.
        raise SettingsError(
            "redis_url must be a redis://, rediss:// or unix:// URL that redis-py knows, with user and password "
            "percent-encoded (@ is %40, : %3A, / %2F, # %23, ? %3F, % %25)"
        ) from None
    return pool.make_connection


@contextmanager
def translated(operation: str, unavailable: type[ServiceError], watch: RedisWatch) -> Iterator[None]:
    """Time a call and turn every failure into ours.

    Args:
        operation: what was asked, for the message and for ``watch``.
        unavailable: the error to raise; it carries the reason in words of `service.stores.redis_reasons`, never in
            Redis' own.
        watch: whom to tell.
    """
    began = perf_counter()
    try:
        yield
        if watch.on_outcome is not None:
            watch.on_outcome(operation, None)
    except LinkDown as error:
        _tell_error(watch, operation, str(error))
        raise unavailable(f"Redis did not answer ({operation}: {error})") from error
    except RedisError as error:
        reason = reason_of(error)
        _tell_error(watch, operation, reason)
        raise unavailable(f"Redis did not do it ({operation}: {reason})") from error
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


def _check_encoding(url: str) -> None:
    """Refuse a URL in which a raw character of user or password ends the part that it stands in.

    redis-py would connect somewhere else with it, without a word.

    Raises:
        SettingsError: with the rule, never with the URL.
    """
    scheme, _, rest = url.partition("://")
    authority, path = re.fullmatch(r"([^/?#]*)(.*)", rest, re.DOTALL).groups()  # type: ignore[union-attr]  # matches all
    userinfo = authority.rpartition("@")[0]
    lost = "@" in path and "@" not in authority and (scheme != "unix" or bool(authority))
    if "#" in rest or lost or re.search(r"%(?![0-9A-Fa-f]{2})", userinfo):
        raise SettingsError(
            "redis_url must have user and password percent-encoded (@ is %40, : %3A, / %2F, # %23, ? %3F, % %25)"
        )


def _tell_error(watch: RedisWatch, operation: str, reason: str) -> None:
    if watch.on_error is not None:
        watch.on_error(operation)
    if watch.on_outcome is not None:
        watch.on_outcome(operation, reason)
