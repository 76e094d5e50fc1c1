"""Opens the API keys of the data routes, the admin routes and the metrics."""

from collections.abc import Callable
from typing import NamedTuple

from structlog.typing import FilteringBoundLogger

from service.access.auth import KeyRing
from service.access.key_file import KeyFile
from service.access.rate_limit import RateLimit
from service.settings.groups import AccessSettings


class KeyRings(NamedTuple):
    """The keys of all groups of routes.

    Attributes:
        data: open the data routes.
        admin: open the admin routes.
        metrics: open `GET /metrics`.
    """

    data: KeyRing
    admin: KeyRing
    metrics: KeyRing


def open_key_rings(settings: AccessSettings, *, on_refusal: Callable[[], None], log: FilteringBoundLogger) -> KeyRings:
    """Read the keys.

    Args:
        settings: keys, files with keys, and the rate limit.
        on_refusal: called when a request exceeds the rate limit.
        log: gets the reason when a changed file cannot be used; never a key.

    Raises:
        SettingsError: a file cannot be read, or a key is of two kinds.
    """

    def on_file_error(error: str) -> None:
        log.error("keys not read again", detail=error)

    def key_file(kind: str) -> KeyFile:
        keys = [key.get_secret_value() for key in getattr(settings, kind)]
        return KeyFile(f"{kind}_file", keys, getattr(settings, f"{kind}_file"), on_trouble=on_file_error)

    api, admin, metrics = (key_file(kind) for kind in ("api_keys", "admin_keys", "metrics_keys"))
    admin.keep_apart_from(api, metrics)
    metrics.keep_apart_from(api, admin)
    api.keep_apart_from(admin, metrics)
    limit = None
    if settings.rate_limit is not None:
        limit = RateLimit(settings.rate_limit, settings.rate_burst, on_refusal=on_refusal)
    return KeyRings(
        # An admin key opens the data routes too; alone it does not close them to everybody else.
        data=KeyRing([api, admin] if api.configured else [], open_without_keys=True, limit=limit),
        admin=KeyRing([admin], open_without_keys=False, limit=limit),
        metrics=KeyRing([metrics, admin] if metrics.configured else [], open_without_keys=True),
    )
