"""Reads sizes as people write them: `100M`, `2.5k`."""

import re
from typing import Final

_FACTORS: Final = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "b": 10**9}
_SIZE: Final = re.compile(
    r"([0-9]{1,3}(?:[_,][0-9]{3}){0,4}|[0-9]{1,15}|[0-9]{0,15}\.[0-9]{1,15}) ?([kmgb]?)", re.IGNORECASE
)
_MOST: Final = 10**12


def parse_size(text: str, *, name: str) -> int:
    """A count: digits, with a point or with commas, and k, M, or G or B for 10³, 10⁶, 10⁹.

    Args:
        text: as in ``100M``.
        name: of the option, for the message.

    Raises:
        ValueError: it is no such text, no whole number, or not 1 … 10¹².
    """
    found = _SIZE.fullmatch(text.strip())
    if found is None:
        raise ValueError(f"{name} must be a number such as 20000, 20k, 1.5M or 2G, got {text!r:.40}")
    value = float(found[1].replace(",", "").replace("_", "")) * _FACTORS[found[2].lower()]
    if value != round(value) or not 1 <= value <= _MOST:
        raise ValueError(f"{name} must be a whole number from 1 to 1,000G, got {text!r:.40}")
    return round(value)
