"""The files of `make secrets`, with a real Redis."""

import shutil
import subprocess
from pathlib import Path

import pytest
import redis

from service.settings.load import load_settings
from tests.support.promql import OPS
from tests.support.stores.redis_servers import redis_programs, redis_server


@pytest.fixture
def secrets(tmp_path: Path) -> Path:
    for name in ("ops/make-secrets.sh", "docs/security.md"):
        (tmp_path / name).parent.mkdir()
        shutil.copy(OPS.parent / name, tmp_path / name)
    for _ in range(2):  # the second time changes nothing
        subprocess.run(["sh", tmp_path / "ops" / "make-secrets.sh"], check=True, capture_output=True)
    return tmp_path / "secrets"


def newest_server() -> str:
    """The redis-server with the highest version: only from 7 on does the default user matter."""

    def version(program: str) -> list[int]:
        printed = subprocess.run([program, "--version"], capture_output=True, text=True, check=True).stdout
        return [int(part) for part in printed.partition("v=")[2].partition(" ")[0].split(".")]

    return max(redis_programs(), key=version)


def test_keys_are_taken_and_kept(secrets: Path, tmp_path: Path) -> None:
    before = {file.name: file.read_text() for file in secrets.iterdir()}
    subprocess.run(["sh", tmp_path / "ops" / "make-secrets.sh"], check=True, capture_output=True)
    assert {file.name: file.read_text() for file in secrets.iterdir()} == before
    assert set(before) == {"api-keys", "admin-keys", "redis-url", "redis-users"}
    assert len(before["api-keys"]) == len(before["admin-keys"]) == 64
    assert before["api-keys"] != before["admin-keys"]
    files = {f"{name}_file": secrets / name.replace("_", "-") for name in ("api_keys", "admin_keys", "redis_url")}
    load_settings(registry=str(tmp_path), **files)


def test_redis_keeps_what_it_had_and_asks_for_a_password(secrets: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    keep, program = "appendonly yes", newest_server()
    with redis_server(data, keep, program=program), redis.Redis(unix_socket_path=f"{data}/redis.sock") as client:
        client.pipeline(transaction=True).rpush("vlm2rec:h", "1").rpush("vlm2rec:h", "2").execute()
    password = (secrets / "redis-url").read_text().split(":")[2].partition("@")[0]
    socket = {"unix_socket_path": f"{data}/redis.sock"}
    with redis_server(data, keep, f"aclfile {secrets}/redis-users", program=program):
        with redis.Redis(**socket, username="vlm2rec", password=password) as client:
            assert client.lrange("vlm2rec:h", 0, -1) == [b"1", b"2"]
            with pytest.raises(redis.exceptions.NoPermissionError):
                client.flushall()
        with redis.Redis(**socket) as client, pytest.raises(redis.exceptions.AuthenticationError):
            client.ping()
