"""Headers that tell browsers what they may do with an answer: nothing, as long as it does not say otherwise itself."""

from typing import Final

Header = tuple[bytes, bytes]

_ALWAYS: Final[tuple[Header, ...]] = (
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
)
_NO_STORE: Final[Header] = (b"cache-control", b"no-store")
# For pages without a policy of their own, and for answers that somebody opens as if they were pages.
_POLICY: Final[Header] = (b"content-security-policy", b"default-src 'none'; frame-ancestors 'none'")
PLAIN: Final[tuple[Header, ...]] = (*_ALWAYS, _NO_STORE, _POLICY)


def added_to(sent: list[Header]) -> tuple[Header, ...]:
    """The headers that an answer lacks.

    Args:
        sent: what it has, names in lower case. Its own ``Cache-Control`` and ``Content-Security-Policy`` stay.
    """
    stored = policed = False
    for name, _ in sent:
        if name == b"cache-control":
            stored = True
        elif name == b"content-security-policy":
            policed = True
    if not stored and not policed:
        return PLAIN
    return (*_ALWAYS, *(() if stored else (_NO_STORE,)), *(() if policed else (_POLICY,)))
