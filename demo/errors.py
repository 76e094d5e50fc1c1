"""Errors of the demo, one tree.

DemoError                 also raised itself: the demo cannot be built or shown
└── EmbeddedRedisError    no redis-server to run, or it does not start

Every message names the value, the rule and the remedy.
"""


class DemoError(Exception):
    """Root of the errors of this package; raised itself where the demo cannot be built or shown."""


class EmbeddedRedisError(DemoError):
    """No redis-server can be found, or it does not start."""
