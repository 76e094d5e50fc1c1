"""Declares the settings of the service, in groups that constructors take whole."""

import re
from ipaddress import ip_network
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from pydantic import (
    BeforeValidator,
    ConfigDict,
    Field,
    SecretStr,
    field_validator,
    model_validator,
)

from index.machine.cores import available_cores
from service.settings.plain_numbers import PlainNumbers
from service.settings.redis_url import RedisKind, database_of, kind_of
from service.settings.secret_files import read_secret

_ROOT_PATH: Final = re.compile(r"(/[A-Za-z0-9._~-]+)*")
_ORIGIN: Final = re.compile(r"\*|https?://[^\s/?#@,*]+")
_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f-\x9f]")
_HOST: Final = re.compile(r"[^\s\x00-\x1f\x7f-\x9f\ud800-\udfff,]{1,253}")
MOST_WORKERS: Final = 64
"""Largest number of worker processes."""
_MOST_BYTES: Final = 1 << 40
MOST_ENGINE_THREADS: Final = 4
"""Most engine threads of a process by default: one event loop cannot feed more."""


def _split(value: Any) -> Any:  # noqa: ANN401 - any value of a variable or of the file
    """Split the text of a variable at its commas; a list from the file becomes a tuple."""
    if isinstance(value, str):
        return tuple(part.strip() for part in value.split(",") if part.strip())
    return tuple(value) if isinstance(value, list) else value


def _check_path(value: Any) -> Any:  # noqa: ANN401 - any value of a variable or of the file
    """Refuse a path that names no file: an empty one would be the working directory."""
    if isinstance(value, str) and (not value.strip() or _CONTROL.search(value)):
        raise ValueError("must be a path, neither empty nor with control characters; leave the setting out for none")
    return value


ApiKeys = Annotated[tuple[SecretStr, ...], BeforeValidator(_split)]
Names = Annotated[tuple[str, ...], BeforeValidator(_split)]
FilePath = Annotated[Path, BeforeValidator(_check_path)]


class SettingsGroup(PlainNumbers):
    """A group of settings.

    A field has the name of its variable in lower case without the prefix, so a name occurs in one group only.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)


class ServerSettings(SettingsGroup):
    """The address of the server, its proxies and its shutdown."""

    host: str = Field("127.0.0.1", description="Address to listen on.")
    port: int = Field(8000, ge=0, le=65_535, description="Port to listen on; 0 takes a free one.")
    workers: int = Field(
        0,
        ge=0,
        le=MOST_WORKERS,
        description="Worker processes that share the port (Linux); 0: one per core and 256 MiB of memory, 1 on CUDA.",
    )
    root_path: str = Field(
        "",
        max_length=256,
        description="Path under which a proxy publishes this service, such as `/rec`; only for the OpenAPI document.",
    )
    trusted_proxies: Names = Field(
        (), description="Addresses or networks of proxies whose X-Forwarded-For is trusted, separated by commas."
    )
    cors_origins: Names = Field(
        (), description="Origins whose pages may call from a browser, separated by commas; `*`: all; none: CORS is off."
    )
    keep_alive_s: int = Field(
        65, ge=1, le=3600, description="Seconds that a connection may be idle; more than the load balancer's."
    )
    drain_s: int = Field(10, ge=0, le=600, description="Seconds that requests in progress may take at shutdown.")
    drain_delay_s: float = Field(
        0,
        ge=0,
        le=600,
        description="Seconds at shutdown in which `/readyz` answers 503 but new requests are still answered.",
    )
    start_timeout_s: float = Field(
        600,
        ge=1,
        le=86_400,
        description="Seconds from the start of one of several workers until it answers; a slower one is replaced.",
    )

    @field_validator("host")
    @classmethod
    def _check_host(cls, value: str) -> str:
        if not _HOST.fullmatch(value):
            raise ValueError("must be one name or address of this machine, as in 127.0.0.1 or ::")
        return value

    @field_validator("root_path")
    @classmethod
    def _check_root_path(cls, value: str) -> str:
        if not _ROOT_PATH.fullmatch(value):
            raise ValueError("must be empty, or a path with a / before each part and none at its end, as in /rec")
        return value

    @field_validator("trusted_proxies")
    @classmethod
    def _check_networks(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for network in value:
            ip_network(network)  # its error names value and rule
        return value

    @field_validator("cors_origins")
    @classmethod
    def _check_origins(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for origin in value:
            if not _ORIGIN.fullmatch(origin):
                raise ValueError("every origin must be `*`, or scheme and host as in https://shop.example")
        return value


class HttpLimits(SettingsGroup):
    """Limits on connections, requests and bodies."""

    max_connections: int = Field(
        4096, ge=1, le=1_000_000, description="Most open connections; one more replaces an idle one, or gets 503."
    )
    request_timeout_s: float = Field(
        20,
        ge=0.1,
        le=3600,
        description="Seconds in which a request must arrive whole, and in which its response must be read.",
    )
    body_limit_bytes: int = Field(1_048_576, ge=1024, le=_MOST_BYTES, description="Largest request body in bytes.")
    bodies_limit_bytes: int = Field(
        268_435_456, ge=1024, le=_MOST_BYTES, description="Bytes of all arriving bodies together; beyond that: 503."
    )
    retry_after_s: int = Field(
        1, ge=1, le=3600, description="Seconds of the Retry-After header of every 503, and of a 429 in overload."
    )


class BundleSettings(SettingsGroup):
    """The registry, and how a bundle is found, checked and loaded."""

    registry: str = Field(min_length=1, description="Directory of published bundles, or `s3://bucket/prefix`.")
    registry_cache: FilePath | None = Field(
        None, description="Directory for copies of the bundles of an object store; unset: under XDG_CACHE_HOME."
    )
    registry_cache_mb: int = Field(20_000, ge=1, le=100_000_000, description="Most MiB of these copies together.")
    wait_for_bundle: bool = Field(
        False, description="Start without a bundle and become ready when one is published, instead of failing."
    )
    poll_ms: int = Field(
        500, ge=10, le=60_000, description="Milliseconds between two checks for a new bundle, a pin and hidden items."
    )
    verify: Literal["stamp", "full"] = Field(
        "stamp", description="Check of a bundle before it serves: its stamp, or the hash of every file (`full`)."
    )
    device: Literal["cpu", "cuda", "auto"] = Field(
        "cpu", description="Device of sequence encoder and index; `auto`: `cuda` where there is a GPU, else `cpu`."
    )
    encoder_threads: int = Field(1, ge=1, le=256, description="Threads that one encoder call uses.")
    directives_file: FilePath | None = Field(
        None,
        description="File with this replica's copy of the pin and the hidden items; unset: under XDG_STATE_HOME.",
    )

    @property
    def chosen_device(self) -> Literal["cpu", "cuda"]:
        """The device, chosen by what there is where the setting is ``auto``."""
        if self.device != "auto":
            return self.device
        from index.search.device import available_device

        return available_device()

    @property
    def poll_s(self) -> float:
        """Seconds between two checks of the registry."""
        return self.poll_ms / 1000.0


class ComparisonSettings(SettingsGroup):
    """The comparison of a new bundle with the active one, and its bounds; a bound that is None is not checked."""

    shadow_histories: int = Field(
        200,
        ge=1,
        le=10_000,
        description="Newest distinct histories on which a new bundle is compared with the active one.",
    )
    shadow_min_overlap: float | None = Field(
        None, ge=0, le=1, description="Refuse a new bundle whose overlap@20 with the active one is lower."
    )
    shadow_min_coverage: float | None = Field(
        None, ge=0, le=1, description="Refuse a new bundle whose answers cover a smaller share of the items."
    )
    shadow_min_answered: float | None = Field(
        None, ge=0, le=1, description="Refuse a new bundle that answers a smaller share of the histories."
    )
    shadow_max_slot_shift: float | None = Field(
        None, ge=0, le=1, description="Refuse a new bundle in which the share of any slot changes by more."
    )


class EngineSettings(SettingsGroup):
    """The threads and the queue of the engine."""

    engine_threads: int = Field(
        0,
        ge=0,
        le=64,
        description="Threads that encode and search batches, of all workers together; 0: one per core, at most four in "
        "each worker. None on CUDA.",
    )
    queue_bound: int = Field(
        768,
        ge=2,
        le=100_000,
        description="Requests in progress at which new ones are refused; above half of it they get popular items.",
    )

    @property
    def threads(self) -> int:
        """Threads that encode and search batches on the CPU."""
        return self.engine_threads or min(available_cores(), MOST_ENGINE_THREADS)


class RedisSettings(SettingsGroup):
    """The connection to Redis."""

    redis_url: SecretStr = Field(
        SecretStr("redis://127.0.0.1:6379/0"),
        description="URL of the Redis with the histories: redis://, rediss:// or unix://; redis+cluster:// or "
        "redis+sentinel:// with several hosts.",
    )
    redis_url_file: FilePath | None = Field(
        None, description="File that holds the Redis URL, for Docker and Kubernetes secrets; read once at startup."
    )
    redis_prefix: str = Field("vlm2rec", min_length=1, max_length=64, description="Prefix of every Redis key.")
    redis_timeout_ms: int = Field(
        250, ge=1, le=60_000, description="Milliseconds that a Redis reply may take before the answer degrades."
    )
    redis_wait_replicas: int = Field(
        0, ge=0, le=8, description="Replicas that must confirm events before they count as stored (`WAIT`); 0: none."
    )

    @model_validator(mode="before")
    @classmethod
    def _read_url(cls, given: dict[str, Any]) -> dict[str, Any]:
        file = given.get("redis_url_file")
        if file is None:
            return given
        if "redis_url" in given:
            raise ValueError("set redis_url or redis_url_file, not both")
        return {**given, "redis_url": read_secret(Path(file), "redis_url_file").strip()}

    @property
    def url(self) -> str:
        """The URL with its password."""
        return self.redis_url.get_secret_value()

    @property
    def timeout_s(self) -> float:
        """Seconds that a reply may take."""
        return self.redis_timeout_ms / 1000.0

    @property
    def kind(self) -> RedisKind:
        """What the URL names: one server, the master that Sentinels name, or a cluster."""
        return kind_of(self.url)

    @property
    def database(self) -> str:
        """The Redis that the URL names, without user and password."""
        return database_of(self.url)


class HistorySettings(SettingsGroup):
    """What is stored of each user, and for how long."""

    history_cap: int = Field(200, ge=1, le=10_000, description="Newest events stored per user.")
    history_ttl_days: int = Field(
        90, ge=1, le=3650, description="Days after a user's last event until the history expires."
    )
    event_ids_cap: int = Field(
        1000, ge=1, le=100_000, description="Newest event ids stored per user, by which retries are recognised."
    )
    stream_cap: int = Field(
        1_000_000,
        ge=1,
        le=10**12,
        description="Newest events of all users stored for retraining, an equal part in each of 64 buckets of users.",
    )
    late_s: int = Field(
        3600,
        ge=0,
        le=604_800,
        description="Seconds that an event may arrive late and still get its place in the history by its time; a later "
        "one is appended, in order of arrival.",
    )
    impressions_cap: int = Field(200, ge=1, le=10_000, description="Newest impressions stored per user.")
    impressions_ttl_days: int = Field(
        7, ge=1, le=3650, description="Days after a user's last impression until the impressions expire."
    )
    session_ttl_hours: int = Field(
        168,
        ge=1,
        le=87_600,
        description="Hours after the last event of an anonymous session until its data expire; of one that was merged "
        "into a user until it is nobody's again.",
    )
    require_consent: bool = Field(
        False, description="Store only events with `consent: true`; off: an event without the field has consent."
    )

    @property
    def ttl_s(self) -> int:
        """Seconds after a user's last event until the history expires."""
        return self.history_ttl_days * 86_400

    @property
    def impressions_ttl_s(self) -> int:
        """Seconds after a user's last impression until the impressions expire."""
        return self.impressions_ttl_days * 86_400

    @property
    def session_ttl_s(self) -> int:
        """Seconds after the last event of an anonymous session until its data, or the record of its user, expire."""
        return self.session_ttl_hours * 3600


class OutcomeSettings(SettingsGroup):
    """Answers that are kept until it is known what they brought."""

    outcomes: bool = Field(False, description="Keep answers and count the clicks and conversions that follow them.")
    outcomes_window_h: int = Field(
        24, ge=1, le=168, description="Hours after an answer in which an event is attributed to it."
    )
    outcomes_sample: float = Field(
        1.0, gt=0, le=1, description="Share of the users, and of the answers without a user, that are counted."
    )
    outcomes_memory_mb: int = Field(
        256, ge=1, le=1_048_576, description="Most MiB in Redis for kept answers; beyond it the oldest are dropped."
    )

    @property
    def window_s(self) -> int:
        """Seconds after an answer in which an event is attributed to it."""
        return self.outcomes_window_h * 3600

    @property
    def memory_bytes(self) -> int:
        """Most bytes of all kept answers."""
        return self.outcomes_memory_mb << 20


class ObservabilitySettings(SettingsGroup):
    """Logs, traces and the live measurement of recall."""

    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="Lowest level of the log lines that are written."
    )
    access_log: Literal["all", "errors", "off"] = Field(
        "all", description="Requests that get a log line: all, those answered with 400 or above, or none."
    )
    otel: Literal["auto", "on", "off"] = Field(
        "auto", description="OpenTelemetry spans: if OTEL_* variables name an exporter, always, or never."
    )
    recall_checks_per_s: float = Field(
        1.0, ge=0, le=100, description="Most answers per second that are compared with exact search; 0: none."
    )
    recall_check_cpu: float = Field(
        0.01, gt=0, le=1, description="Largest share of one core that these comparisons may use; it limits their rate."
    )
