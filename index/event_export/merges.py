"""Sessions that were merged into users, as rows of an export.

A merge is an entry of the session's stream, after the events that it covers. Its row has the session as ``user_id``, no
item, and the user in ``extra``. The service writes it; no field of an event has this name, so no client can.
"""

import json
from collections.abc import Sequence
from typing import Final

MERGED_INTO: Final = "merged_into"
"""Field of a merge: the user."""


_NAME: Final = MERGED_INTO.encode()


def is_merge(fields: Sequence[bytes]) -> bool:
    """Whether an entry of a stream is a merge and not an event.

    Args:
        fields: names and values in turn.
    """
    return _NAME in fields and _NAME in fields[::2]  # most have it nowhere, which is seen faster


def merged_into(extra: str | None) -> str | None:
    """The user that a session was merged into; None if the row is no merge.

    Args:
        extra: of the row.
    """
    if extra is None or MERGED_INTO not in extra:
        return None
    try:
        fields = json.loads(extra)
    except (ValueError, RecursionError):
        return None
    user = fields.get(MERGED_INTO) if isinstance(fields, dict) else None
    return user if isinstance(user, str) and user else None
