"""Computes entity tags and compares them with `If-None-Match` (RFC 9110, 8.8.3)."""

import hashlib
import re

_TAG = re.compile(r'"[\x21\x23-\x7e\x80-\xff]*"')


def entity_tag(content: bytes) -> str:
    """The strong tag of a content, the same on every replica."""
    return f'"{hashlib.sha256(content).hexdigest()[:32]}"'


def none_match(header: str | None, tag: str) -> bool:
    """Whether the content must be sent: ``If-None-Match`` is missing, or names neither the tag nor ``*``.

    Args:
        header: of the request; compared weakly, as the RFC asks for.
        tag: of the content.
    """
    if header is None:
        return True
    return header.strip() != "*" and tag not in _TAG.findall(header)
