"""Everything that `demo` raises on purpose, one tree.

DemoError                 also raised itself: the demo cannot be built or shown
└── EmbeddedRedisError    no redis-server to run, or it does not start

Every message says which value broke which rule and what to do about it.
"""


class DemoError(Exception):
    """Root of the errors of this package; raised itself where the demo cannot be built or shown."""


class EmbeddedRedisError(DemoError):
    """No redis-server can be found, or it does not start."""
