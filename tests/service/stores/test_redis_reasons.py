"""The reason of a Redis failure is in the problem, in /readyz and in the log, without any secret."""

import contextlib
import re
import ssl
from collections.abc import Iterator
from pathlib import Path

import pytest
import structlog
from redis import Redis
from redis._parsers.base import BaseParser

from demo.embedded_redis import EmbeddedRedis
from service.errors import SettingsError, StartError
from service.stores import redis_faults
from service.stores.history_keys import keys_of
from service.stores.redis_client import connector
from service.stores.redis_history_scripts import APPEND
from service.stores.redis_reasons import in_script, reason_of
from tests.support.shops import OpenClient
from tests.support.stores.redis_pairs import on_a_port, program_of
from tests.support.stores.redis_servers import Certificates, free_port, program_with_tls, redis_server

PASSWORD = "hunter2-hunter2"
EVENT = {"user_id": "anna", "item_id": "i1"}


@pytest.mark.parametrize(
    ("answered", "reason"),
    [
        ("OOM command not allowed when used memory > 'maxmemory'.", "OOM: it is out of memory"),
        ("ERR Error running script (call to f_1): @user_script:9: @user_script: 9: -OOM not allowed", "OOM: it is"),
        ("MISCONF Redis is configured to save RDB snapshots, but", "MISCONF: it takes no writes"),
        ("WRONGTYPE Operation against a key holding", "WRONGTYPE: a key of this prefix"),
        ("NOPERM this user has no permissions to run the 'lrange' command", "may not run the command lrange"),
        ("NOPERM User hunter2 has no permissions to run the 'config|get' command", "command config|get"),
        ("NOPERM No permissions to access a key", "NOPERM: its user may not use keys"),
        ("CROSSSLOT Keys in request don't hash to the same slot", "CROSSSLOT: it is a node of a Redis Cluster"),
        ("MOVED 3999 10.0.0.9:6381", "MOVED: it is a node of a Redis Cluster"),
        ("WRONGPASS invalid username-password pair or user is disabled.", "WRONGPASS: it refuses user or password"),
        ("ERR something about hunter2", "ERR"),
        ("hunter2", "ERR"),
        ("STRANGEWORD hunter2", "STRANGEWORD"),
    ],
)  # fmt: skip
def test_word_and_plain_reason_of_what_redis_answers(answered: str, reason: str) -> None:
    found = reason_of(BaseParser.parse_error(answered))
    assert reason in found
    assert "hunter2" not in found
    assert "10.0.0.9" not in found


def test_the_line_of_a_script_names_the_command_that_redis_6_2_does_not() -> None:
    line = next(at for at, text in enumerate(APPEND.text.split("\n"), 1) if "'XLEN'" in text)
    where = f"ERR Error running script (call to f_1): @user_script:{line}: @user_script: {line}: "
    refused = BaseParser.parse_error(where + "The user executing the script can't run this command or subcommand")
    assert reason_of(in_script(refused, APPEND.text)) == "NOPERM: its user may not run the command xlen"
    keys = BaseParser.parse_error(
        where + "The user executing the script can't access at least one of the keys mentioned"
    )
    assert reason_of(in_script(keys, APPEND.text)) == "NOPERM: its user may not use keys of this prefix"


@contextlib.contextmanager
def reasons(open_client: OpenClient, url: str) -> Iterator[tuple[str, dict[str, str]]]:
    """The detail of a refused event, and what /readyz says."""
    with open_client(redis_url=url, redis_prefix="vlm2rec", redis_timeout_ms=2000) as client:
        client.post("/recommend", json={"user_id": "anna"})
        refused = client.post("/events", json=EVENT)
        assert refused.status_code == 503
        ready = client.get("/readyz")
        assert ready.status_code == 200
        assert PASSWORD not in refused.text + ready.text
        yield refused.json()["detail"], ready.json()["redis_troubles"]


@pytest.mark.slow
@pytest.mark.parametrize("version", ["6.2", "7.0"])
def test_a_command_that_the_user_may_not_run_is_named(tmp_path: Path, open_client: OpenClient, version: str) -> None:
    user = f"user vlm2rec on >{PASSWORD} ~vlm2rec:* &* +@all"
    for without in ("xlen", "rpush", "lrange", "select"):
        lines = ("user default off", f"{user} -{without}")
        with on_a_port_as(tmp_path / without, *lines, version=version) as port:
            url = f"redis://vlm2rec:{PASSWORD}@127.0.0.1:{port}/{1 if without == 'select' else 0}"
            reason = f"NOPERM: its user may not run the command {without}"
            if without == "lrange":
                with open_client(redis_url=url, redis_prefix="vlm2rec") as client:
                    assert client.post("/recommend", json={"user_id": "anna"}).json()["degraded"] is not None
                    assert client.get("/readyz").json()["redis_troubles"]["reads"] == f"ping: {reason}"
                continue
            with reasons(open_client, url) as (detail, faults):
                assert reason in detail
                assert reason in faults["writes"]


@contextlib.contextmanager
def on_a_port_as(folder: Path, *lines: str, version: str) -> Iterator[int]:
    folder.mkdir()
    port = free_port()
    with redis_server(folder, f"port {port}", *lines, program=program_of(version)):
        yield port


def test_out_of_memory_and_a_key_of_another_kind(open_client: OpenClient) -> None:
    with EmbeddedRedis() as server, Redis.from_url(server.url) as admin:
        admin.set(keys_of("vlm2rec", "anna").history, "a string")
        with reasons(open_client, server.url) as (detail, faults):
            assert "append: WRONGTYPE: a key of this prefix holds a value of another kind" in detail
            assert set(faults) == {"reads", "writes"} or faults["writes"].startswith("append: WRONGTYPE")
        admin.flushall()
        admin.config_set("maxmemory", 1)
        with reasons(open_client, server.url) as (detail, faults):
            assert "append: OOM: it is out of memory" in detail
            assert faults == {"writes": "append: OOM: it is out of memory with nothing to evict; raise maxmemory"}
        admin.config_set("maxmemory", 0)


def test_every_operation_has_a_kind() -> None:
    """One without a kind would end a failure of another kind by its success."""
    folder = Path(redis_faults.__file__).parent
    unwatched = {"backup", "event_export"}
    sources = [file.read_text() for file in folder.rglob("*.py") if file.parent.name not in unwatched]
    named = re.compile(r"\b_?(?:translated|write)\(\"(\w+)\"")
    assert {name for source in sources for name in named.findall(source)} == redis_faults.KINDS.keys()


def test_a_merge_is_a_write_and_a_shared_rate_is_a_kind_of_its_own() -> None:
    faults = redis_faults.RedisFaults(structlog.get_logger())
    faults.outcome("merge", "OOM: full")
    faults.outcome("rates", "OOM: full")
    faults.outcome("pin", "OOM: full")
    assert faults.current == {"writes": "merge: OOM: full", "rates": "rates: OOM: full", "directives": "pin: OOM: full"}
    faults.outcome("rates", None)
    assert faults.current.keys() == {"writes", "directives"}


def test_faults_end_with_the_next_success_and_fill_no_log() -> None:
    lines: list[dict[str, object]] = []

    class Log:
        def error(self, event: str, **more: object) -> None:
            lines.append({"event": event, **more})

        info = error

    now = [0.0]
    faults = redis_faults.RedisFaults(Log(), lambda: now[0])  # type: ignore[arg-type]
    for _ in range(5):
        faults.outcome("append", "OOM: full")
        faults.outcome("recent", None)
        assert faults.current == {"writes": "append: OOM: full"}
        faults.outcome("erase", None)
        assert faults.current == {}
    assert [line["event"] for line in lines] == ["redis error", "redis answers again"]
    now[0] = 60.0
    faults.outcome("append", "OOM: full")
    assert lines[-1] == {"event": "redis error", "kind": "writes", "operation": "append", "reason": "OOM: full"}


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("redis://127.0.0.1:1/0", "nothing listens at its address"),
        ("unix:///nowhere/redis.sock", "a file that its URL names does not exist"),
        ("rediss://127.0.0.1:1/0?ssl_ca_certs=/nowhere.pem", "a file that its URL names does not exist"),
    ],
)
def test_why_there_is_no_connection(open_client: OpenClient, url: str, reason: str) -> None:
    with reasons(open_client, url) as (detail, faults):
        assert reason in detail
        assert reason in faults["reads"]
        assert reason in faults["writes"]


def test_what_is_wrong_with_tls(tmp_path: Path, open_client: OpenClient) -> None:
    program, port = program_with_tls(), free_port()
    certificates = Certificates(tmp_path)
    certificate, key = certificates.issue("127.0.0.1")
    lines = ("port 0", f"tls-port {port}", f"tls-cert-file {certificate}", f"tls-key-file {key}",
             f"tls-ca-cert-file {certificates.authority}", "tls-auth-clients no",
             f"requirepass {PASSWORD}")  # fmt: skip
    url = f"rediss://:{PASSWORD}@127.0.0.1:{port}/0"
    trusted = f"{url}?ssl_ca_certs={certificates.authority}"
    with redis_server(tmp_path, *lines, program=program):
        for refused, reason in (
            (url, "its certificate is refused: "),
            (trusted.replace("127.0.0.1", "localhost"), "its certificate is for another host name"),
            (url.replace("rediss", "redis"), "needs rediss://"),
            (trusted.replace(PASSWORD, "wrong"), "WRONGPASS: it refuses user or password; in the URL both must be"),
            (trusted.replace(f":{PASSWORD}@", ""), "NOAUTH: it requires a user or password"),
        ):
            with reasons(open_client, refused) as (detail, _):
                assert reason in detail, refused
    with EmbeddedRedis() as plain, Redis.from_url(plain.url) as admin:
        admin.config_set("port", port)
        with reasons(open_client, url) as (detail, _):
            assert "no answer" in detail
            assert "while connecting; with rediss:// its port must speak TLS" in detail


@pytest.mark.parametrize("raw", ["pa/ss", "pa#ss", "pa?ss", "12/ss", "12#ss", "12?ss", "p%zz", "p%", "u:pa/ss"])
@pytest.mark.parametrize("scheme", ["redis", "rediss", "unix"])
def test_a_raw_password_is_refused_with_the_rule(raw: str, scheme: str) -> None:
    with pytest.raises(SettingsError, match="percent-encoded") as refused:
        connector(f"{scheme}://u:{raw}@host" + ("/tmp/redis.sock" if scheme == "unix" else ":6379/0"))
    assert raw not in str(refused.value)


@pytest.mark.parametrize("url", ["redis://u:p%40ss%2F%23%3F%25@host/0", "unix:///tmp/a@b.sock", "redis://:p:w@host",
                                 "redis://host?client_name=a%40b"])  # fmt: skip
def test_a_url_that_is_right_is_taken(url: str) -> None:
    assert connector(url)


def test_a_node_of_a_cluster_ends_the_start(tmp_path: Path, open_client: OpenClient) -> None:
    with (
        on_a_port(tmp_path, "cluster-enabled yes") as port,
        pytest.raises(StartError, match=r"name the cluster: redis\+cluster://"),
        open_client(redis_url=f"redis://127.0.0.1:{port}"),
    ):
        pass


def test_tls_reasons_carry_no_host() -> None:
    error = ssl.SSLCertVerificationError("hostname 'secret.example' does not match")
    error.verify_code, error.verify_message = 62, "Hostname mismatch, certificate is not valid for 'secret.example'."
    assert "secret" not in reason_of(error)
