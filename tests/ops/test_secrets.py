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
    for name in ("ops/make-secrets.sh", "docs/security.md", "docs/backup.md"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
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
    assert set(before) == {"api-keys", "admin-keys", "redis-url", "redis-backup-url", "redis-users"}
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


@pytest.mark.parametrize("kept", ["none", "no last line end", "without its url"])
def test_a_backup_has_a_user_of_its_own_also_beside_files_of_an_earlier_version(
    secrets: Path, tmp_path: Path, kept: str
) -> None:
    (secrets / "redis-backup-url").unlink()
    users = (secrets / "redis-users").read_text().splitlines()
    others = [user for user in users if not user.startswith("user backup ")]
    text = "".join(f"{user}\n" for user in (users if kept == "without its url" else others))
    (secrets / "redis-users").write_text(text.rstrip("\n") if kept == "no last line end" else text)
    subprocess.run(["sh", tmp_path / "ops" / "make-secrets.sh"], check=True, capture_output=True)
    assert [user.split()[1] for user in (secrets / "redis-users").read_text().splitlines()].count("backup") == 1
    url = (secrets / "redis-backup-url").read_text().strip()
    assert url.startswith("redis://backup:")
    assert url.endswith("@redis:6379/0")
    data = tmp_path / "data"
    data.mkdir()
    socket = {"unix_socket_path": f"{data}/redis.sock", "username": "backup", "password": url.split(":")[2][:64]}
    with redis_server(data, f"aclfile {secrets}/redis-users", program=newest_server()), redis.Redis(**socket) as client:
        assert client.eval("return 7", 0) == 7
        assert client.dump("vlm2rec:none") is None
        for refused in (client.flushall, lambda: client.dump("another:none"), lambda: client.get("vlm2rec:none")):
            with pytest.raises(redis.exceptions.NoPermissionError):
                refused()
