"""Reads the settings once, from arguments, variables and a TOML file."""

import hashlib
import os
import re
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from pydantic import BaseModel, ConfigDict, ValidationError

from service.errors import SettingsError
from service.settings.groups import (
    AccessSettings,
    BundleSettings,
    ComparisonSettings,
    EngineSettings,
    HistorySettings,
    HttpLimits,
    ObservabilitySettings,
    RedisSettings,
    ServerSettings,
    SettingsGroup,
)

PREFIX: Final = "VLM2REC_"
FILE_VARIABLE: Final = "VLM2REC_CONFIG"
# Kubernetes describes a service named "vlm2rec" or "vlm2rec-redis" to every pod of its namespace in variables of these
# names. A name that ends with PORT alone holds an address, where one of our settings would hold a number.
_SERVICE_LINK: Final = re.compile(rf"{PREFIX}(?:\w+_)?(?:SERVICE_HOST|SERVICE_PORT\w*|PORT_\d+_(?:TCP|UDP|SCTP)\w*)")
_SERVICE_PORT: Final = re.compile(rf"{PREFIX}(?:\w+_)?PORT")
_SERVICE_ADDRESS: Final = re.compile(r"(?:tcp|udp|sctp)://.*")
_SECRETS: Final = {"redis_url", "api_keys", "admin_keys", "metrics_keys"}


class Settings(BaseModel):
    """All settings by group; docs/settings.md lists every one."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    server: ServerSettings
    http: HttpLimits
    access: AccessSettings
    bundles: BundleSettings
    comparison: ComparisonSettings
    engine: EngineSettings
    redis: RedisSettings
    histories: HistorySettings
    observability: ObservabilitySettings

    @property
    def operator_state_file(self) -> Path:
        """The file with this replica's copy of the pin and the hidden items.

        By default there is one per registry, Redis and prefix.
        """
        if self.bundles.directives_file is not None:
            return self.bundles.directives_file
        scope = f"{Path(self.bundles.registry).absolute()}\n{self.redis.redis_prefix}\n{self.redis.database}"
        return state_directory() / f"directives-{hashlib.sha256(scope.encode()).hexdigest()[:12]}.json"


def _groups() -> Iterator[tuple[str, type[SettingsGroup]]]:
    for name, field in Settings.model_fields.items():
        group = field.annotation
        if isinstance(group, type) and issubclass(group, SettingsGroup):
            yield name, group


GROUP_OF: Final[Mapping[str, str]] = {name: group for group, model in _groups() for name in model.model_fields}
"""The group of each setting, by the setting's name."""


def state_directory() -> Path:
    """The directory of the replicas' copies of the operator state, unless a setting names another file."""
    state = os.environ.get("XDG_STATE_HOME") or "~/.local/state"
    return Path(os.path.expanduser(state)) / "vlm2rec"  # noqa: PTH111 - keeps the ~ where there is no home directory


def load_settings(defaults: Mapping[str, Any] | None = None, **given: Any) -> Settings:  # noqa: ANN401 - checked below
    """Read the settings: arguments win over ``VLM2REC_*`` variables, these over the file that ``VLM2REC_CONFIG`` names.

    Args:
        defaults: values that replace the defaults of these settings.
        **given: settings by name; None counts as not given.

    Raises:
        SettingsError: a name is unknown, or a value breaks a rule.
    """
    arguments = {name: value for name, value in given.items() if value is not None}
    values = {**(defaults or {}), **_file(), **_variables(), **arguments}
    unknown = [name for name in values if name not in GROUP_OF]
    if unknown:  # without its value, which may be a secret under a wrong name
        raise SettingsError("; ".join(f"{name} is not a setting" for name in unknown))
    nested: dict[str, dict[str, Any]] = {group: {} for group in Settings.model_fields}
    for name, value in values.items():
        nested[GROUP_OF[name]][name] = value
    try:
        return Settings.model_validate(nested)
    except ValidationError as error:
        raise SettingsError("; ".join(_message(problem) for problem in error.errors(include_url=False))) from None


def _variables() -> dict[str, str]:
    """The values of the variables, without those that Kubernetes set.

    Raises:
        SettingsError: a variable with our prefix is not a setting.
    """
    names = {f"{PREFIX}{name.upper()}": name for name in GROUP_OF}
    found = {}
    for variable, value in os.environ.items():
        upper = variable.upper()
        if not upper.startswith(PREFIX) or upper == FILE_VARIABLE or _is_service_link(upper, value):
            continue
        if upper not in names:
            raise SettingsError(f"{variable} is not a setting; known are {', '.join(sorted({*names, FILE_VARIABLE}))}")
        found[names[upper]] = value
    return found


def _file() -> dict[str, Any]:
    """The values of the TOML file, if a variable names one."""
    file = os.environ.get(FILE_VARIABLE)
    if file is None:
        return {}
    if not Path(file).is_file():
        raise SettingsError(f"{FILE_VARIABLE} must name a TOML file, got {file!r}")
    try:
        return tomllib.loads(Path(file).read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise SettingsError(f"the settings cannot be read: {error}") from error


def _is_service_link(variable: str, value: str) -> bool:
    """Whether Kubernetes set this variable to describe a service."""
    if _SERVICE_LINK.fullmatch(variable):
        return True
    return bool(_SERVICE_PORT.fullmatch(variable) and _SERVICE_ADDRESS.fullmatch(value))


def _message(problem: Any) -> str:  # noqa: ANN401 - pydantic's ErrorDetails
    if len(problem["loc"]) == 1:
        return str(problem["msg"])  # of a whole group: its input holds secrets too
    name = str(problem["loc"][1])
    if problem["type"] == "missing":
        return f"{name} must be set: with {PREFIX}{name.upper()}, in the file, or on the command line"
    received = "a value not shown here" if name in _SECRETS else repr(problem["input"])[:80]
    return f"{name}: {problem['msg']}, got {received}"
