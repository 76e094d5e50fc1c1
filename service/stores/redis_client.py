"""Creates Redis connections, and times calls and translates their errors for all adapters to Redis."""

import re
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from time import perf_counter
from types import TracebackType
from typing import Any, Final

from redis.asyncio.connection import AbstractConnection, ConnectionPool
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from service.errors import RedisUnavailable, ServiceError, SettingsError
from service.settings.redis_url import RedisUrl, parse_redis_url
from service.stores.circuit_breaker import BreakerState
from service.stores.redis_reasons import reason_of

Connect = Callable[[], AbstractConnection]


@dataclass(frozen=True, slots=True)
class RedisWatch:
    """Callbacks that observe calls to Redis.

    Attributes:
        on_call: called with the operation and its seconds, answered or not.
        on_error: called with an operation that Redis did not answer or refused.
        on_state: called with a breaker's new state; of several breakers with the worst state.
        on_outcome: called with the operation and the reason of its failure; None: it succeeded.
        on_lost: called with the number of events that a write cut from the streams before they were exported.
        on_node_error: called with host and port of the node of a cluster that did not answer a call.
    """

    on_call: Callable[[str, float], None] | None = None
    on_error: Callable[[str], None] | None = None
    on_state: Callable[[BreakerState], None] | None = None
    on_outcome: Callable[[str, str | None], None] | None = None
    on_lost: Callable[[int], None] | None = None
    on_node_error: Callable[[str], None] | None = None


UNWATCHED: Final = RedisWatch()


def connector(url: str) -> Connect:
    """A function that creates connections without opening them.

    Args:
        url: ``redis://``, ``rediss://`` or ``unix://``.

    Raises:
        SettingsError: redis-py does not understand the URL.
    """
    return connection_pool(url).make_connection


def connection_pool(url: str) -> ConnectionPool:
    """A pool that only creates connections and never keeps one; its attributes have the parts of the URL.

    Connections never retry a command: a read degrades the answer instead, and a write must not be stored twice. They
    have no timeout: `RedisPipeline` limits an exchange together with connecting, and notices when this process is late.

    Raises:
        SettingsError: redis-py does not understand the URL.
    """
    _check_encoding(url)
    try:
        pool = ConnectionPool.from_url(
            url, socket_timeout=None, socket_connect_timeout=None, retry=Retry(NoBackoff(), 0)
        )
        pool.connection_kwargs["protocol"] = 2  # also if the URL says otherwise: the adapters read replies in this form
        # No CLIENT SETINFO: Redis would refuse it to the user of docs/security.md, and log the refusal.
        pool.connection_kwargs["driver_info"] = None
        # Raises for unknown parameters of the URL, which would otherwise happen in the middle of a request.
        pool.connection_class(**pool.connection_kwargs)
    except (ValueError, TypeError):
        # Without the reason, which may quote the password.
        raise SettingsError(
            "redis_url must be a redis://, rediss:// or unix:// URL that redis-py knows, with user and password "
            "percent-encoded (@ is %40, : %3A, / %2F, # %23, ? %3F, % %25); redis+cluster:// and redis+sentinel:// "
            "name several hosts"
        ) from None
    return pool


def several_servers(url: str) -> RedisUrl:
    """The parts of a ``redis+cluster://`` or ``redis+sentinel://`` URL.

    Raises:
        SettingsError: it breaks a rule, which the message names, never the URL.
    """
    _check_encoding(url)
    try:
        return parse_redis_url(url)
    except ValueError as error:
        raise SettingsError(f"redis_url {error}") from None


def translated(operation: str, unavailable: type[ServiceError], watch: RedisWatch) -> AbstractContextManager[None]:
    """Time a call and translate every failure.

    Args:
        operation: its name, for the message and for ``watch``.
        unavailable: the error to raise, with a reason from `service.stores.redis_reasons`, never with Redis' own text.
        watch: its callbacks are called.
    """
    return _Translation(operation, unavailable, watch)


class _Translation:
    """What :func:`translated` returns; a generator takes twice as many steps."""

    __slots__ = ("_began", "_operation", "_unavailable", "_watch")

    def __init__(self, operation: str, unavailable: type[ServiceError], watch: RedisWatch) -> None:
        self._operation = operation
        self._unavailable = unavailable
        self._watch = watch

    def __enter__(self) -> None:
        self._began = perf_counter()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        watch, operation = self._watch, self._operation
        try:
            if error is None:
                if watch.on_outcome is not None:
                    watch.on_outcome(operation, None)
            elif isinstance(error, RedisUnavailable):
                _report_error(watch, operation, str(error))
                raise self._unavailable(f"Redis did not answer ({operation}: {error})") from error
            elif isinstance(error, RedisError):
                reason = reason_of(error)
                _report_error(watch, operation, reason)
                raise self._unavailable(f"Redis did not do it ({operation}: {reason})") from error
        finally:
            if watch.on_call is not None:
                watch.on_call(operation, perf_counter() - self._began)


def texts(stored: Iterable[Any]) -> list[str]:
    """Decode the values of a reply; bytes that are not UTF-8, written by another program, are replaced.

    Raises:
        RedisUnavailable: a value is not a string.
    """
    try:
        return [value.decode("utf-8", "replace") for value in stored]
    except AttributeError as error:
        raise RedisUnavailable("a reply of another form than the command's") from error


def _check_encoding(url: str) -> None:
    """Refuse a URL in which an unencoded character of user or password ends that part of the URL.

    redis-py would silently connect to another address.

    Raises:
        SettingsError: it names the rule, never the URL.
    """
    scheme, _, rest = url.partition("://")
    authority, path = re.fullmatch(r"([^/?#]*)(.*)", rest, re.DOTALL).groups()  # type: ignore[union-attr]  # matches all
    userinfo = authority.rpartition("@")[0]
    lost = "@" in path and "@" not in authority and (scheme != "unix" or bool(authority))
    if "#" in rest or lost or re.search(r"%(?![0-9A-Fa-f]{2})", userinfo):
        raise SettingsError(
            "redis_url must have user and password percent-encoded (@ is %40, : %3A, / %2F, # %23, ? %3F, % %25)"
        )


def _report_error(watch: RedisWatch, operation: str, reason: str) -> None:
    if watch.on_error is not None:
        watch.on_error(operation)
    if watch.on_outcome is not None:
        watch.on_outcome(operation, reason)
