"""Validates the ids of users, sessions, items and events in requests."""

import re
import secrets
from typing import Annotated, Final

from pydantic import AfterValidator, GetCoreSchemaHandler, GetJsonSchemaHandler, WithJsonSchema
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

MAX_ID_BYTES: Final = 256
NOT_A_PLAIN_ID: Final = "not_a_plain_id"
"""Type of an error that is no broken rule; another error tells which rule the id breaks."""

NO_FIELD: Final = secrets.token_hex()
"""Last part of the location of an id in an error of pydantic; drawn, so that no client can name a field like it."""

_NOT_IN_IDS = re.compile("[\x00-\x1f\x7f-\x9f\ud800-\udfff]")


def _check_id(value: str) -> str:
    if not value or len(value) > MAX_ID_BYTES or (not value.isascii() and len(value.encode()) > MAX_ID_BYTES):
        raise PydanticCustomError("id_length", f"must have 1 to {MAX_ID_BYTES} bytes")
    if _NOT_IN_IDS.search(value):
        raise PydanticCustomError("id_characters", "must not hold control characters")
    return value


class PlainIdsFirst:
    """Accepts ids of printable ASCII without a call of Python; all other values are left to the validators before it.

    A bulk of 1,000 events has 3,000 ids, nearly all of which are such. Other values break a rule as `NOT_A_PLAIN_ID`
    besides those that they break.
    """

    def __get_pydantic_core_schema__(self, source: type[str], handler: GetCoreSchemaHandler) -> CoreSchema:
        plain = core_schema.custom_error_schema(
            core_schema.str_schema(pattern=rf"^[\x20-\x7e]{{1,{MAX_ID_BYTES}}}$", strict=True),
            NOT_A_PLAIN_ID,
            custom_error_message="is no plain id",
        )
        choices: list[tuple[CoreSchema, str]] = [(plain, NO_FIELD), (handler(source), NO_FIELD)]
        return core_schema.union_schema([*choices], mode="left_to_right")

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        _, (every_id, _) = schema["choices"]
        return handler(every_id)


_ID_SCHEMA = {
    "type": "string",
    "minLength": 1,
    "maxLength": MAX_ID_BYTES,
    "pattern": r"^[^\u0000-\u001f\u007f-\u009f]+$",
}
Id = Annotated[str, AfterValidator(_check_id), PlainIdsFirst(), WithJsonSchema(_ID_SCHEMA)]
