"""Checks API keys in constant time and limits the rate of each key."""

import hmac
from collections.abc import Callable, Sequence
from typing import NamedTuple

from starlette.datastructures import Headers
from starlette.requests import Request
from structlog.typing import FilteringBoundLogger

from service.access.buckets import Buckets, Caller, LocalBuckets, SharedBuckets
from service.access.key_file import KeyFile, digest_of, keep_apart
from service.access.rate_limit import RateLimit, caller_at
from service.access.replica_buckets import RateStore, ReplicaBuckets
from service.access.scopes import KeyScope
from service.errors import KeyMissing, KeyRefused
from service.settings.access_settings import AccessSettings
from service.settings.worker_place import WorkerPlace


class KeyRing:
    """The keys that open one group of routes, and their rate limit. Several keys at once allow rotation.

    Args:
        sources: of the keys; without any key the group is open or closed, as ``open_without_keys`` says.
        open_without_keys: True for data routes, False for admin routes.
        limit: rate of each key, or of each address where the group is open; None: no limit.
    """

    def __init__(self, sources: Sequence[KeyFile], *, open_without_keys: bool, limit: RateLimit | None = None) -> None:
        self._sources = tuple(source for source in sources if source.configured)
        self._open = open_without_keys and not self._sources
        self._limit = limit

    def admit(self, request: Request, scope: KeyScope | None = None) -> None:
        """Admit a request or refuse it.

        Args:
            request: with its key.
            scope: that the key must have; None: any key of the group will do.

        Raises:
            KeyMissing, KeyRefused: see :meth:`check`.
            RateExceeded: its key, or its address where no keys are set, calls too often.
        """
        digest = None if self._open else self.check(request.headers, scope)
        if self._limit is not None:
            self._limit.take(digest or _address_of(request))

    def charge(self, request: Request, cost: int) -> None:
        """Count an admitted request as several, as a batch is; see `RateLimit.charge`.

        Args:
            request: admitted before.
            cost: requests that it counts as, including itself.
        """
        if self._limit is not None and cost > 1:
            self._limit.charge(self.check(request.headers) or _address_of(request), cost - 1)

    def check(self, headers: Headers, scope: KeyScope | None = None) -> bytes | None:
        """Check the key of a request, in ``Authorization: Bearer`` or ``X-API-Key``.

        Returns:
            The digest of the key; None where the group is open.

        Raises:
            KeyMissing: a key is needed and none was sent.
            KeyRefused: the key does not open the group or lacks the scope, or no key opens the group.
        """
        if self._open:
            return None
        if not self._sources:
            raise KeyRefused("this route is closed: no key is set that opens it")
        sent = _key_in(headers)
        if sent is None:
            raise KeyMissing("send an API key as `Authorization: Bearer KEY` or `X-API-Key: KEY`")
        digest = digest_of(sent)
        known = [entry for source in self._sources for entry in source.scopes().items()]
        matching = [scopes for key, scopes in known if hmac.compare_digest(digest, key)]
        if not matching:
            raise KeyRefused("the API key sent does not open this route")
        if scope is not None and not any(scopes is None or scope in scopes for scopes in matching):
            raise KeyRefused(f"the API key sent does not have the scope {scope}, which this route needs")
        return digest

    def name_of(self, digest: bytes) -> str | None:
        """The name of a key that :meth:`check` found; None: it has none."""
        return next((source.names[digest] for source in self._sources if digest in source.names), None)


class KeyRings(NamedTuple):
    """The keys of all groups of routes.

    Attributes:
        data: open the data routes.
        admin: open the admin routes.
        metrics: open `GET /metrics`.
        replicas: limits the rate over all replicas together; None: each service limits alone.
    """

    data: KeyRing
    admin: KeyRing
    metrics: KeyRing
    replicas: ReplicaBuckets | None = None


def open_key_rings(
    settings: AccessSettings,
    *,
    on_refusal: Callable[[], None],
    log: FilteringBoundLogger,
    workers: WorkerPlace | None = None,
    rates: RateStore | None = None,
) -> KeyRings:
    """Read the keys.

    Args:
        settings: keys, files with keys, and the rate limit, which is that of all workers together.
        on_refusal: called when a request exceeds the rate limit.
        log: gets the reason when a changed file cannot be used; never a key.
        workers: where the worker processes of one service share it; None: there is only this process.
        rates: where all replicas share it; None: each has the whole of it.

    Raises:
        SettingsError: a file cannot be read, or a key is of two kinds.
    """

    def on_file_error(error: str) -> None:
        log.error("keys not read again", detail=error)

    def key_file(kind: str) -> KeyFile:
        keys = [key.get_secret_value() for key in getattr(settings, kind)]
        file = getattr(settings, f"{kind}_file")
        return KeyFile(f"{kind}_file", keys, file, scoped=kind == "api_keys", on_error=on_file_error)

    api, admin, metrics = (key_file(kind) for kind in ("api_keys", "admin_keys", "metrics_keys"))
    keep_apart(admin, metrics, api)
    limit = replicas = None
    if settings.rate_limit is not None:
        buckets: Buckets = LocalBuckets() if workers is None else SharedBuckets(workers.directory)
        if rates is not None:
            buckets = replicas = ReplicaBuckets(buckets, rates)
        limit = RateLimit(settings.rate_limit, settings.rate_burst, on_refusal=on_refusal, buckets=buckets)
    return KeyRings(
        # An admin key opens the data routes too; alone it does not close them to everybody else.
        data=KeyRing([api, admin] if api.configured else [], open_without_keys=True, limit=limit),
        admin=KeyRing([admin], open_without_keys=False, limit=limit),
        metrics=KeyRing([metrics, admin] if metrics.configured else [], open_without_keys=True),
        replicas=replicas,
    )


def _key_in(headers: Headers) -> str | None:
    scheme, _, key = headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer" and key.strip():
        return key.strip()
    return headers.get("x-api-key")


def _address_of(request: Request) -> Caller:
    client = request.scope.get("client")
    return caller_at(client[0]) if client else ""
