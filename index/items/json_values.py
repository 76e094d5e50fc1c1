"""Values of metadata columns as plain JSON."""

import datetime as dt
import math
from decimal import Decimal
from typing import Any

import numpy as np


def json_value(value: Any) -> Any:  # noqa: ANN401 - whatever arrow holds
    """The value as JSON can hold it.

    Args:
        value: of a column of metadata, nested or not.

    Returns:
        Numbers, strings, booleans, lists and objects; a number that is not finite is None, times are ISO 8601, bytes
        are hexadecimal, anything else is its text.
    """
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, np.floating | Decimal):
        return json_value(float(value))
    if isinstance(value, dt.date | dt.time):
        return value.isoformat()
    if isinstance(value, list | tuple):
        return [json_value(part) for part in value]
    if isinstance(value, dict):
        return {str(name): json_value(part) for name, part in value.items()}
    if isinstance(value, bytes):
        return value.hex()
    return str(value)
