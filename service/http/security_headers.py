"""Adds the headers that restrict what browsers may do with a response."""

from typing import Final

Header = tuple[bytes, bytes]

_ALWAYS: Final[tuple[Header, ...]] = (
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
)
_NO_STORE: Final[Header] = (b"cache-control", b"no-store")
# For pages without a policy of their own, and for responses that a person opens as if they were pages.
_POLICY: Final[Header] = (b"content-security-policy", b"default-src 'none'; frame-ancestors 'none'")
DEFAULTS: Final[tuple[Header, ...]] = (*_ALWAYS, _NO_STORE, _POLICY)


def missing_headers(sent: list[Header]) -> tuple[Header, ...]:
    """The security headers that a response lacks.

    Args:
        sent: its headers, names in lower case. Its own ``Cache-Control`` and ``Content-Security-Policy`` stay.
    """
    has_cache_control = has_policy = False
    for name, _ in sent:
        if name == b"cache-control":
            has_cache_control = True
        elif name == b"content-security-policy":
            has_policy = True
    if not has_cache_control and not has_policy:
        return DEFAULTS
    return (*_ALWAYS, *(() if has_cache_control else (_NO_STORE,)), *(() if has_policy else (_POLICY,)))
