"""Settings: read once at the door from ``VLM2REC_*`` variables and a TOML file, then handed on as plain values."""

import hashlib
import os
import re
from collections.abc import Mapping
from ipaddress import ip_network
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import parse_qsl, unquote, urlsplit

from pydantic import Field, SecretStr, ValidationError, ValidationInfo, field_validator, model_validator
from pydantic_settings import (
    BaseSettings,
    EnvSettingsSource,
    NoDecode,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)
from pydantic_settings.exceptions import SettingsError as SourceError

from service.access.secret_files import KEY_RULE, is_key, read_secret
from service.errors import SettingsError

PREFIX = "VLM2REC_"
FILE_VARIABLE = "VLM2REC_CONFIG"
# Kubernetes describes services called "vlm2rec" or "vlm2rec-redis" to every pod beside them in variables of these
# names; those that end with PORT alone hold an address, where a setting of ours would hold a number.
_SERVICE_LINK = re.compile(rf"{PREFIX}(?:\w+_)?(?:SERVICE_HOST|SERVICE_PORT\w*|PORT_\d+_(?:TCP|UDP|SCTP)\w*)")
_SERVICE_PORT = re.compile(rf"{PREFIX}(?:\w+_)?PORT")
_SERVICE_ADDRESS = re.compile(r"(?:tcp|udp|sctp)://.*")
_SECRET = {"redis_url", "api_keys", "admin_keys", "metrics_keys"}
_ROOT_PATH = re.compile(r"(/[A-Za-z0-9._~-]+)*")
_ORIGIN = re.compile(r"\*|https?://[^\s/?#@,*]+")
ApiKeys = Annotated[tuple[SecretStr, ...], NoDecode]
Names = Annotated[tuple[str, ...], NoDecode]


def _is_service_link(variable: str, value: str | None) -> bool:
    """Whether a variable is one in which Kubernetes describes a service, and no setting."""
    if _SERVICE_LINK.fullmatch(variable):
        return True
    return bool(_SERVICE_PORT.fullmatch(variable) and _SERVICE_ADDRESS.fullmatch(value or ""))


class _OwnVariables(EnvSettingsSource):
    """The environment without what Kubernetes put there."""

    def _load_env_vars(self) -> Mapping[str, str | None]:
        found = super()._load_env_vars()
        return {name: value for name, value in found.items() if not _is_service_link(name.upper(), value)}


class Settings(BaseSettings):
    """Everything that can be set; a variable wins over the file.

    Attributes: see the description of each field; docs/settings.md lists them all.
    """

    model_config = SettingsConfigDict(env_prefix=PREFIX, extra="forbid", frozen=True)

    registry: str = Field(min_length=1, description="Directory of published bundles.")
    host: str = Field("127.0.0.1", description="Address to listen on.")
    root_path: str = Field(
        "",
        max_length=256,
        description="Path of this service behind a proxy, such as `/rec`; used only in the API's document.",
    )
    port: int = Field(8000, ge=0, le=65_535, description="Port to listen on; 0 takes a free one.")
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="Least severe log line written."
    )
    access_log: Literal["all", "errors", "off"] = Field(
        "all", description="Which requests get a line at info: all, those answered with 400 and above, or none."
    )
    otel: Literal["auto", "on", "off"] = Field(
        "auto", description="Spans of OpenTelemetry: where OTEL_* variables name an exporter, always, or never."
    )
    recall_checks_per_s: float = Field(
        1.0, ge=0, le=100, description="Most answers a second that are checked against exact search; 0: none."
    )
    recall_check_cpu: float = Field(
        0.01, gt=0, le=1, description="Most of one core that these checks may take; they come less often to keep to it."
    )
    device: Literal["cpu", "cuda"] = Field("cpu", description="Where the sequence encoder runs.")
    encoder_threads: int = Field(1, ge=1, le=256, description="Threads that one encoder call uses.")
    engine_threads: int = Field(
        0,
        ge=0,
        le=64,
        description="Threads that look up what waits together; 0: one a core, at most four. None on CUDA.",
    )
    queue_bound: int = Field(
        768,
        ge=2,
        le=100_000,
        description="Requests in progress at which further ones are refused; above half of it they get popular items.",
    )
    verify: Literal["stamp", "full"] = Field(
        "stamp", description="How a bundle is checked before it serves: by its stamp, or by hashing every file."
    )
    wait_for_bundle: bool = Field(
        False, description="Start without a bundle and become ready when one is published, instead of failing."
    )
    poll_ms: int = Field(
        500, ge=10, le=60_000, description="Milliseconds between two looks for a new bundle, a pin and hidden items."
    )
    shadow_histories: int = Field(
        200,
        ge=1,
        le=10_000,
        description="Newest different histories on which a new bundle is compared with the old one.",
    )
    shadow_min_overlap: float | None = Field(
        None, ge=0, le=1, description="Refuse a new bundle whose overlap@20 with the old one is lower."
    )
    shadow_min_coverage: float | None = Field(
        None, ge=0, le=1, description="Refuse a new bundle whose answers cover less."
    )
    shadow_min_answered: float | None = Field(
        None, ge=0, le=1, description="Refuse a new bundle that answers a smaller share of the histories."
    )
    shadow_max_slot_shift: float | None = Field(
        None, ge=0, le=1, description="Refuse a new bundle in which the share of any slot changes by more."
    )
    directives_file: Path | None = Field(
        None,
        description="Where this replica keeps its copy of pin and hidden items; unset: under XDG_STATE_HOME.",
    )
    redis_url: SecretStr = Field(
        SecretStr("redis://127.0.0.1:6379/0"), description="Redis of the histories: redis://, rediss:// or unix://."
    )
    redis_prefix: str = Field("vlm2rec", min_length=1, max_length=64, description="Start of every Redis key.")
    redis_timeout_ms: int = Field(
        250, ge=1, le=60_000, description="Milliseconds that one Redis answer may take before the answer degrades."
    )
    redis_url_file: Path | None = Field(
        None, description="File that holds the Redis URL, for Docker and Kubernetes secrets; read once, at the start."
    )
    history_cap: int = Field(200, ge=1, le=10_000, description="Newest events kept of each user.")
    history_ttl_days: int = Field(
        90, ge=1, le=3650, description="Days after a user's last event until it is forgotten."
    )
    event_ids_cap: int = Field(
        1000, ge=1, le=100_000, description="Newest event ids of each user against which retries are recognised."
    )
    stream_cap: int = Field(
        1_000_000,
        ge=1,
        description="Newest events of all users kept for retraining, an equal part of each of 64 buckets of users.",
    )
    require_consent: bool = Field(
        False, description="Keep only events that say `consent: true`; off: a consent that is not said counts as given."
    )
    body_limit_bytes: int = Field(1_048_576, ge=1024, description="Largest request body.")
    bodies_limit_bytes: int = Field(
        268_435_456, ge=1024, description="Bytes of all bodies together that may be waited for; beyond: 503."
    )
    max_connections: int = Field(
        4096, ge=1, le=1_000_000, description="Connections at once; one more takes an idle one's place, or gets 503."
    )
    request_timeout_s: float = Field(
        20, ge=0.1, le=3600, description="Seconds in which a request must arrive whole, and its answer be taken."
    )
    keep_alive_s: int = Field(
        65, ge=1, le=3600, description="Seconds that a connection may idle; longer than the load balancer's."
    )
    trusted_proxies: Names = Field(
        (), description="Addresses or networks of proxies whose X-Forwarded-For is believed, separated by commas."
    )
    cors_origins: Names = Field(
        (), description="Origins whose pages may call from a browser, separated by commas; `*`: all; none: CORS is off."
    )
    rate_limit: float | None = Field(
        None,
        gt=0,
        le=1e6,
        description="Requests a second of each key, or of each address where no keys are set; unset: no limit.",
    )
    rate_burst: int | None = Field(
        None, ge=1, le=10**6, description="Requests at once after a pause; unset: those of two seconds."
    )
    api_keys: ApiKeys = Field((), description="Keys of the data routes, separated by commas; none: they are open.")
    admin_keys: ApiKeys = Field(
        (), description="Keys of all routes, the admin routes too; none: the admin routes are closed."
    )
    api_keys_file: Path | None = Field(
        None, description="File with more keys of the data routes, one a line; read again when it changes."
    )
    admin_keys_file: Path | None = Field(
        None, description="File with more keys of all routes, one a line; read again when it changes."
    )
    metrics_keys: ApiKeys = Field(
        (), description="Keys of /metrics, separated by commas; none: it is open. Admin keys open it too."
    )
    metrics_keys_file: Path | None = Field(
        None, description="File with more keys of /metrics, one a line; read again when it changes."
    )
    retry_after_s: int = Field(
        1, ge=1, le=3600, description="Seconds sent as Retry-After with every 503, and with 429 in overload."
    )
    drain_s: int = Field(10, ge=0, le=600, description="Seconds that requests in progress may take at the end.")
    drain_delay_s: float = Field(
        0, ge=0, le=600, description="Seconds at the end in which it is not ready but still answers new requests."
    )

    @property
    def directives_path(self) -> Path:
        """Where this replica keeps its copy of pin and hidden items; by default a file a registry, Redis and prefix."""
        if self.directives_file is not None:
            return self.directives_file
        redis = _place_of(self.redis_url.get_secret_value())
        of_whom = f"{Path(self.registry).absolute()}\n{self.redis_prefix}\n{redis}"
        return state_directory() / f"directives-{hashlib.sha256(of_whom.encode()).hexdigest()[:12]}.json"

    @field_validator("root_path")
    @classmethod
    def _prefix(cls, value: str) -> str:
        if not _ROOT_PATH.fullmatch(value):
            raise ValueError("must be empty, or a path with a / before each part and none at its end, as in /rec")
        return value

    @model_validator(mode="before")
    @classmethod
    def _read_redis_url(cls, given: dict[str, Any]) -> dict[str, Any]:
        file = given.get("redis_url_file")
        if file is None:
            return given
        if "redis_url" in given:
            raise ValueError("set redis_url or redis_url_file, not both")
        return {**given, "redis_url": read_secret(Path(file), "redis_url_file").strip()}

    @field_validator("api_keys", "admin_keys", "metrics_keys", "trusted_proxies", "cors_origins", mode="before")
    @classmethod
    def _split(cls, value: Any) -> Any:  # noqa: ANN401 - whatever the variable or the file holds
        if isinstance(value, str):
            return tuple(part.strip() for part in value.split(",") if part.strip())
        return tuple(value) if isinstance(value, list) else value

    @field_validator("api_keys", "admin_keys", "metrics_keys")
    @classmethod
    def _long_enough(cls, value: tuple[SecretStr, ...]) -> tuple[SecretStr, ...]:
        if not all(is_key(key.get_secret_value()) for key in value):
            raise ValueError(KEY_RULE)
        return value

    @field_validator("admin_keys", "metrics_keys")
    @classmethod
    def _apart(cls, value: tuple[SecretStr, ...], info: ValidationInfo) -> tuple[SecretStr, ...]:
        if any(set(value) & set(info.data.get(kind, ())) for kind in ("api_keys", "admin_keys")):
            raise ValueError("a key must be of one kind only: an API key, an admin key or a metrics key")
        return value

    @field_validator("trusted_proxies")
    @classmethod
    def _networks(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for network in value:
            ip_network(network)  # its error names value and rule
        return value

    @field_validator("cors_origins")
    @classmethod
    def _origins(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for origin in value:
            if not _ORIGIN.fullmatch(origin):
                raise ValueError("every origin must be `*`, or scheme and host as in https://shop.example")
        return value

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,  # noqa: ARG003 - replaced
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003 - not used, named by the base class
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Arguments win over variables, variables over the TOML file."""
        file = TomlConfigSettingsSource(settings_cls, os.environ.get(FILE_VARIABLE))
        return init_settings, _OwnVariables(settings_cls), file


def _place_of(redis_url: str) -> str:
    """Which Redis a URL names, without user and password: host, port and database, or socket and database."""
    try:
        url = urlsplit(redis_url)
        host, port = (url.hostname or "localhost").lower(), url.port or 6379
    except ValueError:
        return ""  # refused later, with the reason
    database = dict(parse_qsl(url.query)).get("db")
    if url.scheme == "unix":
        return f"{unquote(url.path)}#{database or 0}"
    return f"{host}:{port}#{database or url.path.strip('/') or 0}"


def state_directory() -> Path:
    """Where replicas keep their copies of pin and hidden items, unless they are told another file."""
    state = os.environ.get("XDG_STATE_HOME") or "~/.local/state"
    return Path(os.path.expanduser(state)) / "vlm2rec"  # noqa: PTH111 - keeps the ~ where nobody has a home


def load_settings(**given: Any) -> Settings:  # noqa: ANN401 - checked by the model
    """Read the settings from arguments, ``VLM2REC_*`` variables and the TOML file that ``VLM2REC_CONFIG`` names.

    Args:
        **given: settings by name; None counts as not given.

    Raises:
        SettingsError: an unknown name, or a value that breaks a rule.
    """
    known = {f"{PREFIX}{name.upper()}" for name in Settings.model_fields} | {FILE_VARIABLE}
    for variable, value in os.environ.items():
        name = variable.upper()
        if name.startswith(PREFIX) and name not in known and not _is_service_link(name, value):
            raise SettingsError(f"{variable} is not a setting; known are {', '.join(sorted(known))}")
    file = os.environ.get(FILE_VARIABLE)
    if file is not None and not Path(file).is_file():
        raise SettingsError(f"{FILE_VARIABLE} must name a TOML file, got {file!r}")
    try:
        return Settings(**{name: value for name, value in given.items() if value is not None})
    except ValidationError as error:
        raise SettingsError("; ".join(_line(problem) for problem in error.errors(include_url=False))) from None
    except (SourceError, OSError, ValueError) as error:
        raise SettingsError(f"the settings cannot be read: {error}") from error


def _line(problem: Any) -> str:  # noqa: ANN401 - pydantic's ErrorDetails
    if not problem["loc"]:
        return str(problem["msg"])  # the input is all settings, secrets too
    name = str(problem["loc"][0])
    received = "a value not shown here" if name in _SECRET else repr(problem["input"])[:80]
    if problem["type"] == "missing":
        return f"{name} must be set: with {PREFIX}{name.upper()}, in the file, or on the command line"
    if problem["type"] == "extra_forbidden":
        return f"{name} is not a setting"  # its value may be a secret under a wrong name
    return f"{name}: {problem['msg']}, got {received}"
