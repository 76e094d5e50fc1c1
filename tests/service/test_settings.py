"""Settings from arguments, variables and a file."""

import os
import sys
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from cli.online.serve import serve
from index.bundle.event_types import EventTypes
from service.errors import SettingsError
from service.settings.load import GROUP_OF, Settings, load_settings
from service.settings.worker_place import WorkerPlace


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    for name in list(os.environ):
        if name.startswith("VLM2REC_"):
            monkeypatch.delenv(name)


def test_arguments_win_over_variables_and_these_over_the_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    file = tmp_path / "service.toml"
    file.write_text(
        'registry = "from file"\nport = 1\nhost = "file"\nhistory_cap = 7\napi_keys = ["0123456789abcdef"]\n'
    )
    monkeypatch.setenv("VLM2REC_CONFIG", str(file))
    monkeypatch.setenv("VLM2REC_PORT", "2")
    monkeypatch.setenv("VLM2REC_HOST", "variable")
    settings = load_settings(host="argument", log_level=None)
    assert (settings.bundles.registry, settings.server.port, settings.server.host) == ("from file", 2, "argument")
    assert settings.histories.history_cap == 7
    assert settings.observability.log_level == "info"
    assert settings.access.api_keys == (SecretStr("0123456789abcdef"),)


def test_keys_in_a_variable_are_separated_by_commas(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLM2REC_API_KEYS", "0123456789abcdef, fedcba9876543210,")
    keys = load_settings(registry="r").access.api_keys
    assert [key.get_secret_value() for key in keys] == ["0123456789abcdef", "fedcba9876543210"]


@pytest.mark.parametrize(
    ("variable", "value", "message"),
    [
        ("VLM2REC_PORTS", "1", "VLM2REC_PORTS is not a setting; known are "),
        ("VLM2REC_PORT", "x", "port: must be an integer, in the digits 0 to 9, got 'x'"),
        *(("VLM2REC_PORT", text, "port: must be an integer") for text in ("8_000", " 8000", "80\n", "+80", "8e3", "")),
        ("VLM2REC_PORT", "8000.0", r"port: must be an integer, in the digits 0 to 9, got '8000\.0'"),
        *(("VLM2REC_RATE_LIMIT", text, "rate_limit: must be a number") for text in ("1_0", "1 ", "+1", "inf", ".")),
        ("VLM2REC_RATE_BURST", "1_0", "rate_burst: must be an integer"),
        ("VLM2REC_EVENT_TYPES", "rent=1_0", "rent must be a weight.*got '1_0'"),
        ("VLM2REC_RETRIEVER", "milvus+http://host:１９５３０", "retriever: .*must be faiss, or milvus"),
        ("VLM2REC_PORT", "65536", "port: .*less than or equal to 65535.*got '65536'"),
        ("VLM2REC_ROOT_PATH", "rec", "root_path: .*a / before each part and none at its end, as in /rec, got 'rec'"),
        ("VLM2REC_ROOT_PATH", "/rec/", "root_path: .*as in /rec, got '/rec/'"),
        ("VLM2REC_ROOT_PATH", "https://a.example/rec", "root_path: .*as in /rec"),
        ("VLM2REC_LOG_LEVEL", "loud", "log_level: .*'debug', 'info', 'warning' or 'error', got 'loud'"),
        ("VLM2REC_API_KEYS", "short-key", "api_keys: .*16 to 512 ASCII characters, .* got a value not shown here"),
        ("VLM2REC_CORS_ORIGINS", "https://a.example/path", "cors_origins: .*as in https://shop.example, got"),
        ("VLM2REC_CORS_ORIGINS", "https://*.example", "cors_origins: .*every origin must be"),
        ("VLM2REC_CORS_ORIGINS", "a.example", "cors_origins: .*every origin must be"),
        ("VLM2REC_TRUSTED_PROXIES", "10.0.0.1, proxy", "trusted_proxies: .*'proxy' does not appear to be"),
        ("VLM2REC_TRUSTED_PROXIES", "*", "trusted_proxies: "),
        ("VLM2REC_RATE_LIMIT", "0", "rate_limit: .*greater than 0"),
        ("VLM2REC_EVENT_TYPES", "view=nan", "event_types, .*: view must be a weight of -10 to 10.*got"),
        ("VLM2REC_EVENT_TYPES", "view=1,shop", "1 to 64 characters"),
        ("VLM2REC_EVENT_TYPES", "search=none", "search must be a weight.*got 'none'"),
        ("VLM2REC_DEFAULT_TYPE", "bought", "default_type must be one of the types view, cart, .*got 'bought'"),
        ("VLM2REC_EVENT_OUTCOMES", "view=sale", "event_outcomes: the outcome of view must be .*, got 'sale'"),
        ("VLM2REC_EVENT_OUTCOMES", "rent=sale", "event_outcomes: the outcome of rent must be .*, got 'sale'"),
        ("VLM2REC_EVENT_OUTCOMES", "view=1", "the outcome of view must be .*, got 1.0"),
        ("VLM2REC_LATE_S", "-1", "late_s: .*greater than or equal to 0"),
        ("VLM2REC_CONFIG", "/nonexistent.toml", "VLM2REC_CONFIG must name a TOML file"),
    ],
)
def test_a_wrong_value_is_refused_by_name(
    monkeypatch: pytest.MonkeyPatch, variable: str, value: str, message: str
) -> None:
    monkeypatch.setenv(variable, value)
    with pytest.raises(SettingsError, match=message) as refused:
        load_settings(registry="r")
    assert "short-key" not in str(refused.value)


def test_lists_in_a_variable_are_separated_by_commas(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLM2REC_CORS_ORIGINS", "https://a.example, http://localhost:3000")
    monkeypatch.setenv("VLM2REC_TRUSTED_PROXIES", "10.0.0.0/8,::1")
    settings = load_settings(registry="r")
    assert settings.server.cors_origins == ("https://a.example", "http://localhost:3000")
    assert settings.server.trusted_proxies == ("10.0.0.0/8", "::1")
    assert load_settings(registry="r", cors_origins="*").server.cors_origins == ("*",)


def test_defaults_of_the_caller_lose_against_everything_else(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    defaults = {"host": "default", "port": 3, "root_path": "/default", "poll_ms": 90}
    file = tmp_path / "service.toml"
    file.write_text("port = 4\n")
    monkeypatch.setenv("VLM2REC_CONFIG", str(file))
    monkeypatch.setenv("VLM2REC_HOST", "variable")
    settings = load_settings(defaults, registry="r", root_path="/argument")
    assert settings.server.host == "variable"
    assert settings.server.port == 4
    assert settings.server.root_path == "/argument"
    assert settings.bundles.poll_ms == 90


def test_variables_may_be_in_lower_case(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("vlm2rec_port", "82")
    assert load_settings(registry="r").server.port == 82


def test_a_name_belongs_to_one_group() -> None:
    groups = {Settings.model_fields[group].annotation for group in GROUP_OF.values()}
    fields = [name for group in groups for name in group.model_fields]
    assert len(fields) == len(set(fields)) == len(GROUP_OF)


def test_the_registry_must_be_set() -> None:
    with pytest.raises(SettingsError, match="registry must be set: with VLM2REC_REGISTRY"):
        load_settings()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("colour = 1", "colour is not a setting"),
        ("[server]\nport = 1", "server is not a setting"),
        ("port = [", "cannot be read"),
        ("port = " + "[" * 5_000, "cannot be read"),
        ("\ufeffport = true", "port: must be an integer"),
        ("port = true", "port: must be an integer, in the digits 0 to 9, got True"),
        ("rate_limit = true", "rate_limit: must be a number"),
        ('port = "8_000"', "port: must be an integer"),
        ("events = 3", r"events must be a table \[events\], got 3"),
        ("[events]\ntype = 1", "events.type is not a setting"),
        ("[events.types]\nview = inf", "view must be a weight.*got inf"),
        ("[events]\ntypes = 1", "types"),
        ("\x00", "cannot"),
    ],
)
def test_a_wrong_file_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "service.toml"
    file.write_text(text)
    monkeypatch.setenv("VLM2REC_CONFIG", str(file))
    with pytest.raises(SettingsError, match=message):
        load_settings(registry="r")


def test_event_types_are_a_table_of_the_file_or_a_text(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert load_settings(registry="r").events.table is None
    of_bundle = EventTypes.of({"view": 2})
    assert load_settings(registry="r").events.over(of_bundle) == of_bundle
    assert load_settings(registry="r").events.over(None) == EventTypes.of()
    monkeypatch.setenv("VLM2REC_EVENT_TYPES", "rent=4, search=ignore,")
    monkeypatch.setenv("VLM2REC_DEFAULT_TYPE", "search")
    by_text = load_settings(registry="r").events
    assert by_text.over(of_bundle) == by_text.table == EventTypes.of({"rent": 4, "search": "ignore"}, "search")
    monkeypatch.delenv("VLM2REC_EVENT_TYPES")
    monkeypatch.delenv("VLM2REC_DEFAULT_TYPE")
    file = tmp_path / "service.toml"
    file.write_text('port = 81\n[events]\ndefault_type = "search"\n[events.types]\nrent = 4\nsearch = "ignore"\n')
    monkeypatch.setenv("VLM2REC_CONFIG", str(file))
    assert load_settings(registry="r").events.table == by_text.table


def test_outcomes_of_types_are_a_table_of_the_file_or_a_text(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("VLM2REC_EVENT_OUTCOMES", "like=click, purchase=none")
    events = load_settings(registry="r").events
    assert events.over(None) == EventTypes.of({}, None, {"like": "click", "purchase": "none"})
    monkeypatch.setenv("VLM2REC_EVENT_OUTCOMES", "like=click, purchase=always")
    with pytest.raises(SettingsError, match="the outcome of purchase must be"):
        load_settings(registry="r")
    monkeypatch.delenv("VLM2REC_EVENT_OUTCOMES")
    file = tmp_path / "service.toml"
    file.write_text('[events.types]\nrent = 4\n[events.outcomes]\nrent = "conversion"\n')
    monkeypatch.setenv("VLM2REC_CONFIG", str(file))
    assert load_settings(registry="r").events.table == EventTypes.of({"rent": 4}, None, {"rent": "conversion"})


def test_outcomes_alone_change_no_type_of_the_bundle(monkeypatch: pytest.MonkeyPatch) -> None:
    of_bundle = EventTypes.of({"rent": 4, "view": 0.1, "search": "ignore"}, "rent", {"view": "none"})
    monkeypatch.setenv("VLM2REC_EVENT_OUTCOMES", "rent=conversion,of_another_bundle=click")
    monkeypatch.setenv("VLM2REC_DEFAULT_TYPE", "view")  # a table of these settings must have every type
    with pytest.raises(SettingsError, match=r"event_outcomes: outcomes must name types among .*, got 'rent'"):
        load_settings(registry="r")
    monkeypatch.delenv("VLM2REC_DEFAULT_TYPE")
    table = load_settings(registry="r").events.over(of_bundle)
    assert (table.types, table.default_type) == (of_bundle.types, "rent")
    assert table.outcomes == {"view": "none", "rent": "conversion"}
    assert [table.outcome(name) for name in ("rent", None, "view", "of_another_bundle")] == [
        *("conversion", "conversion"), None, None,
    ]  # fmt: skip


def test_variables_of_a_kubernetes_service_with_our_name_are_not_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SERVICE_HOST", "SERVICE_PORT", "SERVICE_PORT_HTTP", "PORT_8000_TCP", "PORT_8000_TCP_ADDR"):
        monkeypatch.setenv(f"VLM2REC_{name}", "10.0.0.1")
    monkeypatch.setenv("VLM2REC_REDIS_SERVICE_HOST", "10.0.0.2")
    monkeypatch.setenv("VLM2REC_PORT", "tcp://10.0.0.1:8000")
    assert load_settings(registry="r").server.port == 8000


@pytest.mark.parametrize("of", ["VLM2REC_REDIS", "VLM2REC", "VLM2REC_MODEL_STORE", "VLM2REC_API_KEYS"])
def test_every_variable_of_a_kubernetes_service_is_ignored(monkeypatch: pytest.MonkeyPatch, of: str) -> None:
    for scheme, port in (("tcp", 6379), ("udp", 53), ("sctp", 9)):
        kind = scheme.upper()
        monkeypatch.setenv(f"{of}_PORT", f"{scheme}://10.0.0.5:{port}")
        monkeypatch.setenv(f"{of}_PORT_{port}_{kind}", f"{scheme}://10.0.0.5:{port}")
        for name, value in (("PROTO", scheme), ("PORT", str(port)), ("ADDR", "10.0.0.5")):
            monkeypatch.setenv(f"{of}_PORT_{port}_{kind}_{name}", value)
        monkeypatch.setenv(f"{of}_SERVICE_HOST", "10.0.0.5")
        monkeypatch.setenv(f"{of}_SERVICE_PORT", str(port))
        monkeypatch.setenv(f"{of}_SERVICE_PORT_REDIS", str(port))
        settings = load_settings(registry="r")
        assert (settings.server.port, settings.access.api_keys) == (8000, ())


def test_the_file_wins_over_a_variable_of_kubernetes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "service.toml").write_text('registry = "r"\nport = 81\n')
    monkeypatch.setenv("VLM2REC_CONFIG", str(tmp_path / "service.toml"))
    monkeypatch.setenv("VLM2REC_PORT", "tcp://10.0.0.1:8000")
    assert load_settings().server.port == 81


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("VLM2REC_REDIS_PORT", "6379"),
        ("VLM2REC_REDIS_PORT", "http://10.0.0.5"),
        ("VLM2REC_REDIS_PORTS", "tcp://10.0.0.5:6379"),
        ("VLM2REC_REDIS_HOST", "10.0.0.5"),
        ("VLM2REC_PORT_X_TCP", "tcp://10.0.0.5:6379"),
    ],
)
def test_other_unknown_variables_are_refused(monkeypatch: pytest.MonkeyPatch, variable: str, value: str) -> None:
    monkeypatch.setenv(variable, value)
    with pytest.raises(SettingsError, match=f"{variable} is not a setting"):
        load_settings(registry="r")


def test_each_redis_has_its_own_file_of_operator_state() -> None:
    """Another spelling of the URL, or another password, keeps the file."""

    def path(url: str, **more: str) -> Path:
        return load_settings(registry="r", redis_url=url, **more).operator_state_file

    same = [
        "redis://127.0.0.1:6379/0", "redis://127.0.0.1", "redis://:secret@127.0.0.1/", "rediss://u:other@127.0.0.1:6379",
        "redis://127.0.0.1?db=0",
    ]  # fmt: skip
    others = [
        "redis://127.0.0.1:6380/0", "redis://127.0.0.1:6379/1", "redis://staging", "unix:///run/a.sock",
        "unix:///run/b.sock", "unix:///run/a.sock?db=1",
    ]  # fmt: skip
    assert len({path(url) for url in same}) == 1
    assert path("redis://Staging") == path("redis://staging")
    assert len({path(url) for url in [same[0], *others]}) == 1 + len(others)
    assert path(same[0], redis_prefix="x") != path(same[0])


def test_secrets_are_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = load_settings(registry="r", redis_url="redis://:hunter2@host", api_keys="0123456789abcdef")
    assert "hunter2" not in repr(settings)
    assert "0123456789abcdef" not in repr(settings)


@pytest.mark.parametrize("kept", [False, True])
def test_an_embedded_redis_has_its_own_file_of_operator_state(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, kept: bool
) -> None:
    files: list[Path] = []
    monkeypatch.setattr(
        "service.workers.supervisor.serve", lambda settings, announce: files.append(settings.operator_state_file)
    )
    for name in ("a", "b", "a"):
        serve(registry="r", embedded_redis=True, redis_dir=tmp_path / name if kept else None)
    assert files[0] != files[1]
    if kept:
        assert files == [tmp_path / "a/directives.json", tmp_path / "b/directives.json", tmp_path / "a/directives.json"]
    else:
        assert len(set(files)) == 3
        assert not any(file.parent.exists() for file in files)  # deleted with the data of their Redis
    monkeypatch.setenv("VLM2REC_DIRECTIVES_FILE", str(tmp_path / "mine.json"))
    serve(registry="r", embedded_redis=True)
    assert files[-1] == tmp_path / "mine.json"


def test_the_parts_of_all_workers_sum_to_each_bound() -> None:
    settings = load_settings(registry="r", max_connections=4095, queue_bound=10, recall_check_cpu=0.3, engine_threads=4)
    parts = [settings.for_worker(place_of(number, 3)) for number in (1, 2, 3)]
    assert [part.http.max_connections for part in parts] == [1365, 1365, 1365]
    assert [part.engine.queue_bound for part in parts] == [4, 3, 3]
    assert [part.engine.threads for part in parts] == [2, 1, 1]
    assert sum(part.http.bodies_limit_bytes for part in parts) == settings.http.bodies_limit_bytes
    assert sum(part.observability.recall_check_cpu for part in parts) == pytest.approx(0.3)
    assert sum(part.observability.recall_checks_per_s for part in parts) == pytest.approx(1.0)
    assert {part.access.rate_limit for part in load_parts(3, rate_limit=7.0)} == {7.0}


@pytest.mark.parametrize(
    ("cores", "count", "threads"), [(16, 1, [4]), (16, 2, [4, 4]), (192, 2, [4, 4]), (6, 2, [3, 3]), (2, 4, [1] * 4)]
)
def test_a_worker_has_at_most_four_engine_threads_by_default(
    monkeypatch: pytest.MonkeyPatch, cores: int, count: int, threads: list[int]
) -> None:
    for module in ("load", "groups"):
        monkeypatch.setattr(f"service.settings.{module}.available_cores", lambda: cores)
    assert [part.engine.threads for part in load_parts(count)] == threads
    assert [part.engine.threads for part in load_parts(2, engine_threads=16)] == [8, 8]  # as chosen


@pytest.mark.parametrize(("cores", "count", "most"), [(1, 1, 4), (2, 1, 1), (2, 2, 4), (3, 2, 4), (4, 2, 1), (2, 4, 4)])
def test_a_few_searches_run_in_the_event_loop_of_a_worker_with_one_core(
    monkeypatch: pytest.MonkeyPatch, cores: int, count: int, most: int
) -> None:
    monkeypatch.setattr("service.settings.load.available_cores", lambda: cores)
    assert {part.most_in_loop for part in load_parts(count)} == {most}


@pytest.mark.parametrize("name", ["api_keys_file", "admin_keys_file", "metrics_keys_file"])
def test_a_pipe_with_keys_is_for_one_worker(tmp_path: Path, name: str) -> None:
    """It gives its text once, to the first worker; the others would wait for a writer."""
    os.mkfifo(tmp_path / "keys")
    settings = load_settings(registry="r", **{name: tmp_path / "keys"})
    with pytest.raises(SettingsError, match=rf"{name} must name a regular file, .* the pipe .*; .* --workers 1"):
        settings.for_worker(place_of(1, 2))


def test_a_bound_that_is_too_small_for_the_workers_is_named() -> None:
    for small in ({"queue_bound": 5}, {"max_connections": 2}, {"bodies_limit_bytes": 2048, "body_limit_bytes": 1024}):
        with pytest.raises(SettingsError, match=r"workers must be at most 2 here, received 3: .*queue_bound"):
            load_parts(3, **small)


def test_by_default_there_is_a_worker_a_core_and_one_on_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.settings.load.available_cores", lambda: 6)
    monkeypatch.setattr("service.settings.load.memory_limit", lambda: 64 << 30)
    assert load_settings(registry="r").worker_count == 6
    assert load_settings(registry="r", workers=0).worker_count == 6
    assert load_settings(registry="r", workers=1).worker_count == 1
    assert load_settings(registry="r", workers=0, queue_bound=8).worker_count == 4
    assert load_settings(registry="r", workers=0, device="cuda").worker_count == 1
    assert load_settings(registry="r", workers=2, device="cuda").worker_count == 2
    for device, count in (("cpu", 6), ("cuda", 1)):
        monkeypatch.setattr("index.search.device.available_device", lambda device=device: device)
        assert load_settings(registry="r", workers=0, device="auto").worker_count == count
    with pytest.raises(SettingsError, match="workers: Input should be less than or equal to 64"):
        load_settings(registry="r", workers=65)


@pytest.mark.parametrize(
    ("cores", "memory", "workers"),
    [(1, 8 << 30, 1), (8, 512 << 20, 2), (8, 100 << 20, 1), (8, None, 8), (256, 1 << 40, 64)],
)
def test_little_memory_and_many_cores_bound_the_default(
    monkeypatch: pytest.MonkeyPatch, cores: int, memory: int | None, workers: int
) -> None:
    monkeypatch.setattr("service.settings.load.available_cores", lambda: cores)
    monkeypatch.setattr("service.settings.load.memory_limit", lambda: memory)
    assert load_settings(registry="r").worker_count == workers


@pytest.mark.parametrize(("platform", "workers"), [("linux", 4), ("darwin", 1)])
def test_one_worker_where_several_cannot_share_a_port(
    monkeypatch: pytest.MonkeyPatch, platform: str, workers: int
) -> None:
    monkeypatch.setattr("service.settings.load.available_cores", lambda: 4)
    monkeypatch.setattr(sys, "platform", platform)
    assert load_settings(registry="r").worker_count == workers


def place_of(number: int, count: int) -> WorkerPlace:
    return WorkerPlace(number=number, count=count, directory=Path("unused"))


def load_parts(count: int, **settings: Any) -> list[Settings]:
    whole = load_settings(registry="r", **settings)
    return [whole.for_worker(place_of(number, count)) for number in range(1, count + 1)]
