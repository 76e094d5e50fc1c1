"""Names the scopes of API keys: which data routes a key opens, as docs/security.md lists them."""

from typing import Final, Literal, get_args

KeyScope = Literal["recommend", "catalogue", "events", "users", "erase", "merge", "outcomes"]

SCOPES: Final[tuple[KeyScope, ...]] = get_args(KeyScope)
