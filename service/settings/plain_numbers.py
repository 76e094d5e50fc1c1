"""Refuses numbers in texts (a variable, a query string) that are not written in the digits 0 to 9."""

import re
from collections.abc import Mapping
from functools import cache
from typing import Any, Final, get_args

from pydantic import BaseModel, ValidationInfo, field_validator
from pydantic_core import PydanticCustomError

DECIMAL: Final = re.compile(r"-?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?")
"""A decimal number in a text: no sign but a minus, no space, no underscore, no digits of other scripts."""

_INTEGER: Final = re.compile(r"-?[0-9]+")
_RULES: Final[Mapping[type, tuple[re.Pattern[str], str]]] = {
    int: (_INTEGER, "must be an integer, in the digits 0 to 9"),
    float: (DECIMAL, "must be a number, as in 20, 0.5 or 1e-3"),
}


class PlainNumbers(BaseModel):
    """A model whose numbers may arrive as texts.

    Pydantic reads ``1_0``, ``" 10"``, ``+10`` and ``10.0`` as the integer 10, and true as 1. Here they break a rule.
    """

    @field_validator("*", mode="before")
    @classmethod
    def _check_number(cls, value: Any, info: ValidationInfo) -> Any:  # noqa: ANN401 - any value of a variable or file
        kind = _number_of(cls, str(info.field_name)) if isinstance(value, str | bool) else None
        if kind is None:
            return value
        form, rule = _RULES[kind]
        if isinstance(value, bool) or not form.fullmatch(value):
            raise PydanticCustomError("plain_number", rule)
        return value


@cache
def _number_of(model: type[BaseModel], name: str) -> type | None:
    """The kind of number that a field holds, ``int`` or ``float``; None: it holds something else."""
    return _number_in(model.model_fields[name].annotation)


def _number_in(annotation: Any) -> type | None:  # noqa: ANN401 - a type, or a union of types
    if annotation in _RULES:
        return annotation  # type: ignore[no-any-return]
    return next(filter(None, map(_number_in, get_args(annotation))), None)
