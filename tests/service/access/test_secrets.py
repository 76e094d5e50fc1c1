"""No key, password or stack trace is in a log line, a metric or a response, also after errors."""

import contextlib
import json
import os
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from service.app import create_app
from service.errors import SettingsError
from service.settings.load import load_settings
from tests.support.processes.service_process import Service
from tests.support.shops import OpenClient

KEY, ADMIN, FILED, NEXT = (
    "key-0123456789-of-shop",
    "key-0123456789-of-admin",
    "key-0123456789-filed",
    "key-0123456789-next",
)
PASSWORD = "hunter2-hunter2"
SECRETS = (KEY, ADMIN, FILED, NEXT, PASSWORD)


@contextlib.contextmanager
def started(*arguments: str, **environment: str) -> Iterator[Service]:
    service = Service(*arguments, **environment)
    try:
        yield service
    finally:
        if service.process.poll() is None:
            service.process.kill()
        service.process.communicate()


def raw(port: int, sent: bytes) -> bytes:
    with socket.create_connection(("127.0.0.1", port), timeout=60) as client:
        client.sendall(sent)
        client.shutdown(socket.SHUT_WR)
        return b"".join(iter(lambda: client.recv(65_536), b""))


def test_no_secret_is_shown(small_registry: Path, tmp_path: Path) -> None:
    keys, url = tmp_path / "keys", tmp_path / "redis-url"
    keys.write_text(FILED)
    url.write_text(f"redis://shop:{PASSWORD}@127.0.0.1:1/0")
    with started(
        *("--registry", str(small_registry), "--log-level", "debug"),
        VLM2REC_API_KEYS=KEY,
        VLM2REC_ADMIN_KEYS=ADMIN,
        VLM2REC_API_KEYS_FILE=str(keys),
        VLM2REC_REDIS_URL_FILE=str(url),
        VLM2REC_RATE_LIMIT="0.5",
        VLM2REC_RATE_BURST="5",
    ) as service:
        responses: list[bytes] = []
        for key in (KEY, ADMIN, FILED, NEXT):
            for header in (
                f"authorization: Bearer {key}",
                f"authorization: {key}",
                f"x-api-key: {key}",
                f"cookie: {key}",
            ):
                for line in ("POST /recommend", "GET /items", "POST /bundle/reload", "GET /users/a/history", "GET /x"):
                    head = f"{line} HTTP/1.1\r\nhost: x\r\n{header}\r\n"
                    body = b'{"user_id": "anna"}'
                    responses.append(
                        raw(
                            service.port,
                            f"{head}content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n".encode()
                            + body,
                        )
                    )
        responses += [
            raw(service.port, f"GET / HTTP/1.1\r\nhost: x\r\nx-api-key: {KEY}\r\nbroken\r\n\r\n".encode()),
            raw(service.port, f"GET / HTTP/9.9\r\nx-api-key: {KEY}\r\n\r\n".encode()),
            raw(
                service.port,
                f"POST /events HTTP/1.1\r\nhost: x\r\nx-api-key: {KEY}\r\ncontent-length: 9\r\n\r\n{{".encode(),
            ),
            raw(service.port, f"GET / HTTP/1.1\r\nhost: x\r\nx-api-key: {KEY}\r\nx-a: {'a' * 70_000}\r\n\r\n".encode()),
        ]
        keys.write_text(f"{NEXT}\nshort")
        time.sleep(1.1)
        responses.append(raw(service.port, f"GET /items HTTP/1.1\r\nhost: x\r\nx-api-key: {FILED}\r\n\r\n".encode()))
        responses.append(raw(service.port, b"GET /metrics HTTP/1.1\r\nhost: x\r\n\r\n"))
        statuses = {int(answer.split()[1]) for answer in responses if answer}  # one left before it asked
        assert statuses >= {200, 401, 403, 404, 400, 429, 431}
        service.process.send_signal(signal.SIGTERM)
        output, errors = service.process.communicate(timeout=60)
    assert "keys not read again" in errors
    assert len([line for line in errors.splitlines() if '"event":"request"' in line]) > 80
    everything = b"".join(responses).decode() + output + errors
    for secret in SECRETS:
        assert secret not in everything
        assert secret[:-1] not in everything
    assert "Traceback" not in everything


@pytest.fixture
def clean(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    for name in [name for name in os.environ if name.startswith("VLM2REC_")]:
        monkeypatch.delenv(name)
    return monkeypatch


def failure() -> str:
    """What is said where the start fails; the command prints just that."""
    with pytest.raises(SettingsError) as failed:
        create_app(load_settings(registry="unused"))
    assert failed.value.__cause__ is None or not [
        secret for secret in SECRETS if secret in repr(failed.value.__cause__)
    ]
    return str(failed.value)


@pytest.mark.parametrize(
    "environment",
    [
        {"API_KEYS": f"{KEY}, {KEY[:10]}"},
        {"API_KEYS": KEY, "ADMIN_KEYS": KEY},
        {"REDIS_URL": f"redis://shop:{PASSWORD[:5]}/{PASSWORD}@redis:6379"},
        {"REDIS_URL": f"http://shop:{PASSWORD}@redis:6379"},
        {"REDIS_URL": f"redis://shop:{PASSWORD}@redis:port"},
        {"REDIS_URL": f"redis://shop:{PASSWORD}@redis", "REDIS_URL_FILE": "/nowhere", "API_KEYS": KEY},
    ],
)
def test_no_secret_is_shown_where_the_start_fails(clean: pytest.MonkeyPatch, environment: dict[str, str]) -> None:
    for name, value in environment.items():
        clean.setenv(f"VLM2REC_{name}", value)
    message = failure()
    assert not [secret for secret in (*SECRETS, KEY[:10], PASSWORD[:5]) if secret in message]


@pytest.mark.parametrize("text", ['api_key = ["{}"]', 'apikeys = "{}"', 'api_keys = ["{}", 7]', 'api_keys = "{}\n"'])
def test_no_secret_of_a_wrong_file_is_shown(clean: pytest.MonkeyPatch, tmp_path: Path, text: str) -> None:
    file = tmp_path / "service.toml"
    file.write_text(text.format(KEY))
    clean.setenv("VLM2REC_CONFIG", str(file))
    assert KEY not in failure()


def test_no_stack_trace_gets_out(open_client: OpenClient, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> None:
        raise RuntimeError(f"{PASSWORD} in a line of code")

    with open_client() as client:
        monkeypatch.setattr("service.recommend.recommender.Recommender.recommend", broken)
        answer = client.post("/recommend", json={"items": ["i1"]})
    assert answer.status_code == 500
    assert answer.headers["content-type"] == "application/problem+json"
    shown = answer.text + json.dumps(dict(answer.headers))
    assert not [word for word in ("Traceback", "RuntimeError", PASSWORD, ".py", "line ") if word in shown]
    assert answer.json()["detail"] == f"the log has the reason under request_id {answer.headers['x-request-id']}"
