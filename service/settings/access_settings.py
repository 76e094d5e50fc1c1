"""Declares the settings of API keys and rate limits."""

from collections.abc import Iterable

from pydantic import Field, SecretStr, ValidationInfo, field_validator

from service.settings.groups import ApiKeys, FilePath, SettingsGroup
from service.settings.secret_files import KEY_RULE, NAME_RULE, is_key, is_key_name, key_line


class AccessSettings(SettingsGroup):
    """API keys and rate limits."""

    api_keys: ApiKeys = Field((), description="Keys of the data routes, separated by commas; none: they are open.")
    admin_keys: ApiKeys = Field(
        (),
        description="Keys of all routes, the admin routes included, separated by commas, each with its name for the "
        "audit log where it has one, as in `KEY name=anna`; none: the admin routes are closed.",
    )
    metrics_keys: ApiKeys = Field(
        (), description="Keys of /metrics, separated by commas; none: it is open. Admin keys open it too."
    )
    api_keys_file: FilePath | None = Field(
        None,
        description="File with more keys of the data routes, one per line, each with its scopes where it has not all; "
        "read again when it changes.",
    )
    admin_keys_file: FilePath | None = Field(
        None,
        description="File with more keys of all routes, one per line, each with its name where it has one; read again "
        "when it changes.",
    )
    metrics_keys_file: FilePath | None = Field(
        None, description="File with more keys of /metrics, one per line; read again when it changes."
    )
    rate_limit: float | None = Field(
        None,
        gt=0,
        le=1e6,
        description="Requests per second of each key, or of each address where no keys are set; unset: no limit.",
    )
    rate_burst: int | None = Field(
        None, ge=1, le=10**6, description="Requests at once after a pause; unset: as many as in two seconds."
    )
    rate_shared: bool = Field(
        False, description="Limit each caller's rate over all replicas together, which exchange their counts in Redis."
    )

    @field_validator("api_keys", "admin_keys", "metrics_keys")
    @classmethod
    def _check_keys(cls, value: tuple[SecretStr, ...]) -> tuple[SecretStr, ...]:
        lines = [key_line(key.get_secret_value()) for key in value]
        if not all(is_key(line.key) and line.scopes is None for line in lines):
            raise ValueError(f"{KEY_RULE}; a name may follow it, as in KEY name=NAME")
        if not all(line.name is None or is_key_name(line.name) for line in lines):
            raise ValueError(NAME_RULE)
        return value

    @field_validator("rate_shared")
    @classmethod
    def _check_limit(cls, value: bool, info: ValidationInfo) -> bool:
        if value and info.data.get("rate_limit") is None:
            raise ValueError("needs a rate_limit to share")
        return value

    @field_validator("admin_keys", "metrics_keys")
    @classmethod
    def _check_kinds(cls, value: tuple[SecretStr, ...], info: ValidationInfo) -> tuple[SecretStr, ...]:
        if any(_keys_in(value) & _keys_in(info.data.get(kind, ())) for kind in ("api_keys", "admin_keys")):
            raise ValueError("a key must be of one kind only: an API key, an admin key or a metrics key")
        return value


def _keys_in(value: Iterable[SecretStr]) -> set[str]:
    """The keys without their names."""
    return {key_line(key.get_secret_value()).key for key in value}
