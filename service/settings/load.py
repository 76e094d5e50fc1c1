"""Reads the settings once, from arguments, variables and a TOML file."""

import hashlib
import os
import re
import sys
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from index.bundle.registries import is_store_url
from index.machine.cores import available_cores
from index.machine.memory import memory_limit
from service.errors import SettingsError
from service.settings.access_settings import AccessSettings
from service.settings.event_settings import EventSettings
from service.settings.groups import (
    MOST_ENGINE_THREADS,
    MOST_WORKERS,
    BundleSettings,
    ComparisonSettings,
    EngineSettings,
    HistorySettings,
    HttpLimits,
    ObservabilitySettings,
    OutcomeSettings,
    RedisSettings,
    ServerSettings,
    SettingsGroup,
)
from service.settings.retrieval_settings import RetrievalSettings
from service.settings.secret_files import is_pipe
from service.settings.worker_place import WorkerPlace

PREFIX: Final = "VLM2REC_"
FILE_VARIABLE: Final = "VLM2REC_CONFIG"
_MOST_ON_ONE_CORE: Final = 4
# Kubernetes describes a service named "vlm2rec" or "vlm2rec-redis" to every pod of its namespace in variables of these
# names. A name that ends with PORT alone holds an address, where one of our settings would hold a number.
_SERVICE_LINK: Final = re.compile(rf"{PREFIX}(?:\w+_)?(?:SERVICE_HOST|SERVICE_PORT\w*|PORT_\d+_(?:TCP|UDP|SCTP)\w*)")
_SERVICE_PORT: Final = re.compile(rf"{PREFIX}(?:\w+_)?PORT")
_SERVICE_ADDRESS: Final = re.compile(r"(?:tcp|udp|sctp)://.*")
# A small bundle with its code and encoder takes a third of it; the rest is for vectors and requests.
_WORKER_BYTES: Final = 256 << 20
_IN_EVENTS: Final = {"types": "event_types", "default_type": "default_type", "outcomes": "event_outcomes"}
_MOST_MESSAGE: Final = 300
_SECRETS: Final = {"redis_url", "api_keys", "admin_keys", "metrics_keys", "retriever", "retriever_token"}


class Settings(BaseModel):
    """All settings by group; docs/settings.md lists every one.

    Attributes:
        worker: which of several worker processes reads them; None: there is only one process.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    server: ServerSettings
    http: HttpLimits
    access: AccessSettings
    bundles: BundleSettings
    comparison: ComparisonSettings
    engine: EngineSettings
    retrieval: RetrievalSettings
    redis: RedisSettings
    histories: HistorySettings
    events: EventSettings
    outcomes: OutcomeSettings
    observability: ObservabilitySettings
    worker: WorkerPlace | None = None

    @model_validator(mode="after")
    def _check_device(self) -> "Settings":
        if self.retrieval.kind == "milvus" and self.bundles.device != "cpu":
            raise ValueError("device must be cpu with Milvus, as its searches wait in several threads")
        return self

    @property
    def worker_count(self) -> int:
        """Number of worker processes; by default as many as cores, memory and bounds allow, and 1 on CUDA."""
        if self.server.workers:
            return self.server.workers
        if self.bundles.chosen_device != "cpu" or sys.platform != "linux":
            return 1
        memory = memory_limit()
        by_memory = MOST_WORKERS if memory is None else max(1, memory // _WORKER_BYTES)
        return min(available_cores(), by_memory, self._most_workers, MOST_WORKERS)

    @property
    def most_in_loop(self) -> int:
        """Largest batch of searches that runs in the event loop of this process.

        On a core of its own a thread searches while the loop goes on. Where both share one core they take turns, so
        that a few searches end sooner in the loop; many would keep it from reading (docs/adr/0014, "One core").
        """
        cores = available_cores() // (1 if self.worker is None else self.worker.count)
        return _MOST_ON_ONE_CORE if cores <= 1 else 1

    def for_worker(self, place: WorkerPlace) -> "Settings":
        """The settings of one of several workers: its part of every bound that is divided, see `WorkerPlace`.

        Raises:
            SettingsError: a bound is too small to be divided, or a file with keys can be read by one worker only.
        """
        self._check_key_files()
        if place.count > self._most_workers:
            raise SettingsError(
                f"workers must be at most {self._most_workers} here, received {place.count}: each needs a connection "
                "(max_connections), two requests in progress (queue_bound) and room for a body (bodies_limit_bytes / "
                "body_limit_bytes); choose fewer workers or higher bounds"
            )
        http, engine, seen = self.http, self.engine, self.observability
        most = MOST_WORKERS if engine.engine_threads else MOST_ENGINE_THREADS
        threads = max(1, min(place.part_of(engine.engine_threads or available_cores()), most))
        if self.retrieval.kind == "milvus" and not engine.engine_threads:
            threads = 0  # they wait, so each worker has as many
        return self.model_copy(
            update={
                "worker": place,
                "http": http.model_copy(
                    update={
                        "max_connections": place.part_of(http.max_connections),
                        "bodies_limit_bytes": place.part_of(http.bodies_limit_bytes),
                    }
                ),
                "engine": engine.model_copy(
                    update={"engine_threads": threads, "queue_bound": place.part_of(engine.queue_bound)}
                ),
                "observability": seen.model_copy(
                    update={
                        "recall_checks_per_s": seen.recall_checks_per_s / place.count,
                        "recall_check_cpu": seen.recall_check_cpu / place.count,
                    }
                ),
            }
        )

    def _check_key_files(self) -> None:
        access = self.access
        for name in ("api_keys_file", "admin_keys_file", "metrics_keys_file"):
            file: Path | None = getattr(access, name)
            if file is not None and is_pipe(file):
                raise SettingsError(
                    f"{name} must name a regular file, as every worker reads it, got the pipe {file}; write the keys "
                    "into a file, or choose --workers 1"
                )

    @property
    def _most_workers(self) -> int:
        """Workers of which each still gets a part of every bound."""
        http = self.http
        bodies = http.bodies_limit_bytes // http.body_limit_bytes
        return max(1, min(http.max_connections, self.engine.queue_bound // 2, bodies))

    @property
    def operator_state_file(self) -> Path:
        """The file with this replica's copy of the pin and the hidden items.

        By default there is one per registry, Redis and prefix.
        """
        if self.bundles.directives_file is not None:
            return self.bundles.directives_file
        registry = self.bundles.registry
        place = registry if is_store_url(registry) else Path(registry).absolute()
        scope = f"{place}\n{self.redis.redis_prefix}\n{self.redis.database}"
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
    nested: dict[str, dict[str, Any]] = {group: {} for group, _ in _groups()}
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
        values = tomllib.loads(Path(file).read_text("utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        raise SettingsError(f"the settings cannot be read: {error}") from error
    events = values.pop("events", {})
    if not isinstance(events, dict):
        raise SettingsError(f"events must be a table [events], got {events!r:.80}")
    # The same table as in the configuration of a training run, so that one text serves both.
    return values | {_IN_EVENTS.get(name, f"events.{name}"): value for name, value in events.items()}


def _is_service_link(variable: str, value: str) -> bool:
    """Whether Kubernetes set this variable to describe a service."""
    if _SERVICE_LINK.fullmatch(variable):
        return True
    return bool(_SERVICE_PORT.fullmatch(variable) and _SERVICE_ADDRESS.fullmatch(value))


def _message(problem: Any) -> str:  # noqa: ANN401 - pydantic's ErrorDetails
    if len(problem["loc"]) <= 1:
        return str(problem["msg"])  # of a whole group, or all: its input holds secrets too
    name = str(problem["loc"][1])
    if problem["type"] == "missing":
        return f"{name} must be set: with {PREFIX}{name.upper()}, in the file, or on the command line"
    received = "a value not shown here" if name in _SECRETS else repr(problem["input"])[:80]
    return f"{name}: {problem['msg'][:_MOST_MESSAGE]}, got {received}"
