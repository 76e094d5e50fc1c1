"""A hostile value of any setting is accepted for what it says, or refused in one line with setting, rule and value."""

import sys
from typing import Any

import pytest

from cli import app
from service.errors import SettingsError, StartError
from service.server import listen
from service.settings.load import GROUP_OF, PREFIX, load_settings

HUGE = "9" * 400
HOSTILE = (
    *("", " ", "\t", "0", "-1", "-0", "nan", "inf", "1e309", HUGE, "0x10", "10 s", "10s", "1,2", "1 2", "１２"),
    *(
        "true",
        "None",
        "a\nb",
        "\x1b[31mred",
        "ä€",
        "\udcff",
        "x" * 5000,
        "a=1,a=2",
        "redis://h:99999",
        "s3://",
        "::1,::2",
    ),
)


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    for name in list(os.environ):
        if name.startswith(PREFIX):
            monkeypatch.delenv(name)


@pytest.mark.parametrize("name", GROUP_OF)
def test_a_hostile_value_is_accepted_or_refused_in_one_line(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    for value in HOSTILE:
        monkeypatch.setenv(f"{PREFIX}{name.upper()}", value)
        try:
            settings = load_settings(**({} if name == "registry" else {"registry": "r"}))
        except SettingsError as error:
            line = str(error)
            assert name in line, value
            assert line.isprintable(), value
            assert len(line) < 700, value
            continue
        assert settings.worker_count >= 1, value
        found: Any = getattr(getattr(settings, GROUP_OF[name]), name)
        if isinstance(found, int | float):
            assert -1 < found < 10**13, value


def test_a_host_whose_labels_no_resolver_takes_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(f"{PREFIX}HOST", "x" * 64)
    with pytest.raises(StartError, match="x is not an address of this machine"):
        listen(load_settings(registry="r", port=0).server)


@pytest.mark.parametrize(
    ("variable", "value", "message"),
    [
        ("HOST", "", "host: .*must be one name or address of this machine, as in 127.0.0.1 or ::, got ''"),
        ("HOST", HUGE, "host: .*must be one name or address"),
        ("HOST", "\udcff", "host: .*must be one name or address"),
        ("HOST", "a\nb", r"host: .*, got 'a\\nb'"),
        ("DIRECTIVES_FILE", "", "directives_file: .*must be a path, neither empty"),
        ("REGISTRY_CACHE", " ", "registry_cache: .*must be a path, neither empty"),
        ("REDIS_URL_FILE", "a\nb", r"redis_url_file must name a file that can be read, got 'a\\nb'"),
        ("STREAM_CAP", HUGE, "stream_cap: .*less than or equal to 1000000000000"),
        ("BODY_LIMIT_BYTES", HUGE, "body_limit_bytes: "),
        ("BODIES_LIMIT_BYTES", HUGE, "bodies_limit_bytes: "),
        ("EVENT_TYPES", "a=1,a=2", "event_types: .*must name each type once, got 'a=1,a=2'"),
    ],
)
def test_what_no_start_could_use_is_refused(
    monkeypatch: pytest.MonkeyPatch, variable: str, value: str, message: str
) -> None:
    monkeypatch.setenv(PREFIX + variable, value)
    with pytest.raises(SettingsError, match=message):
        load_settings(registry="r")


def test_the_command_says_it_in_one_line_with_exit_code_2(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(f"{PREFIX}HOST", "a\nb")
    monkeypatch.setattr(sys, "argv", ["vlm2rec", "serve", "--registry", "r"])
    with pytest.raises(SystemExit) as ended:
        app.run()
    assert ended.value.code == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("error: host: ")
