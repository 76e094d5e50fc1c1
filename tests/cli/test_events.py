"""`vlm2rec events`: exports once, compacts, detaches; errors are one line."""

import asyncio
import uuid
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from cli.app import app
from index.errors import EventExportError
from index.event_export.object_path import export_path
from service.errors import EventsUnavailable, SettingsError
from service.stores.protocols import Event, session_owner
from tests.support.stores.exports import Shop


@pytest.fixture
def shop(redis_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Shop:
    prefix = f"test-{uuid.uuid4().hex}"
    monkeypatch.setenv("VLM2REC_REDIS_URL", redis_url)
    monkeypatch.setenv("VLM2REC_REDIS_PREFIX", prefix)
    return Shop(redis_url, tmp_path / "export", prefix)


def events(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["events", *arguments])


def test_export_compact_and_detach(shop: Shop) -> None:
    async def check(store: object) -> None:
        await store.append([Event("anna", "a", 1.0), Event("bob", "b", 1.0)])  # type: ignore[attr-defined]

    async def erase(store: object) -> None:
        await store.erase("anna")  # type: ignore[attr-defined]

    shop.run(check)
    assert events("export", "--to", str(shop.root)).stdout == "2 events in 2 files, 0 erasures\n"
    assert events("export", "--to", str(shop.root)).stdout == "0 events in 0 files, 0 erasures\n"
    assert events("compact", str(shop.root)).stdout == "nothing to compact\n"
    shop.run(erase)
    assert events("export", "--to", str(shop.root)).stdout == "0 events in 0 files, 1 erasures\n"
    done = events("compact", str(shop.root)).stdout
    assert done.endswith(": 1 rows of erased users removed, 2 files are 1\n")
    assert [row["user_id"] for row in shop.rows()] == ["bob"]
    shop.run(erase)
    done = events("detach")
    assert (done.stdout, done.stderr) == ("detached\n", "warning: 1 erasures did not reach the export: delete it\n")


def test_merges_of_sessions_are_no_events(shop: Shop) -> None:
    async def check(store: object) -> None:
        await store.append([Event(session_owner("s"), "a", 1.0)])  # type: ignore[attr-defined]
        await store.merge("s", "anna")  # type: ignore[attr-defined]

    shop.run(check)
    assert (
        events("export", "--to", str(shop.root)).stdout == "1 events and 1 merges of sessions in 1 files, 0 erasures\n"
    )


def test_a_redis_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    done = events("export", "--to", str(tmp_path / "export"), "--redis", f"unix://{tmp_path}/nothing.sock")
    assert isinstance(done.exception, EventsUnavailable)
    assert "Redis did not answer" in str(done.exception)


def test_rows_cut_before_their_export_are_a_warning(shop: Shop) -> None:
    async def check(store: object) -> None:
        await shop.export()
        await store.append([Event("anna", str(n), 1.0) for n in range(8)])  # type: ignore[attr-defined]

    shop.run(check, stream_cap=64 * 5)
    done = events("export", "--to", str(shop.root))
    assert done.stdout == "5 events in 1 files, 0 erasures\n"
    assert done.stderr.startswith("warning: 3 events were cut at the cap before they were exported; raise VLM2REC_")


def test_follow_exports_a_bucket_before_it_is_cut(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    import os
    import signal
    import threading
    import time

    import redis

    from cli.online import events as command
    from service.stores.history_keys import bucket_of, stream_key

    monkeypatch.setattr(command, "_POLL_S", 0.02)
    monkeypatch.setenv("VLM2REC_STREAM_CAP", str(64 * 40))
    stream = stream_key(shop.prefix, bucket_of("anna"))
    left: list[int] = []

    def arrive() -> None:
        try:
            for first in range(0, 60, 12):  # a quarter of the bucket's cap is 10; the default is a file of 50,000

                async def append(store: object, first: int = first) -> None:
                    some = [Event("anna", str(number), 1.0) for number in range(first, first + 12)]
                    await store.append(some)  # type: ignore[attr-defined]

                shop.run(append, stream_cap=64 * 40)
                until = time.monotonic() + 20
                with redis.Redis.from_url(shop.url) as client:
                    while client.xlen(stream) and time.monotonic() < until:
                        time.sleep(0.01)
                    left.append(client.xlen(stream))
                if left[-1]:
                    return
        finally:
            os.kill(os.getpid(), signal.SIGTERM)

    thread = threading.Thread(target=arrive)
    before = signal.signal(signal.SIGTERM, lambda *_: None)  # the thread may end before the command listens
    try:
        thread.start()
        done = events("export", "--to", str(shop.root), "--follow")
    finally:
        thread.join()
        signal.signal(signal.SIGTERM, before)
    assert left == [0] * 5, "events wait until they are ten minutes old"
    assert "warning" not in done.stderr
    assert [row["item_id"] for row in shop.rows()] == [str(number) for number in range(60)]


def test_follow_waits_for_redis_and_ends_after_a_signal(
    shop: Shop, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import os
    import signal

    from cli.online import events as command
    from service.export.exporter import Exported

    class Flaky:
        """Fails once, exports once, then gets the signal."""

        attached = 0

        async def attach(self) -> None:
            self.attached += 1
            if self.attached == 1:
                raise EventsUnavailable("Redis did not answer (attach: gone)")

        async def export(self, *, min_events: int, max_age_s: float) -> Exported:
            assert (min_events, max_age_s) == (10, 0.0)
            os.kill(os.getpid(), signal.SIGTERM)
            return Exported(events=3, files=1)

    exporter = Flaky()
    asyncio.run(asyncio.wait_for(command._follow(exporter, 10, 0.0), 30))  # type: ignore[arg-type]
    shown = capsys.readouterr()
    assert exporter.attached == 2
    assert "waiting: Redis did not answer (attach: gone)" in shown.err
    assert "3 events in 1 files" in shown.out


@pytest.mark.parametrize("fault", ["a second exporter", "a read-only disk"])
def test_what_stops_an_export_is_one_line_and_a_code(
    shop: Shop, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], fault: str
) -> None:
    import errno
    from contextlib import nullcontext

    from cli.main import main
    from index.event_export import directory as directory_module

    def refused(*_arguments: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    async def check(store: object) -> None:
        await store.append([Event("anna", "a", 1.0)])  # type: ignore[attr-defined]

    shop.run(check)
    directory = directory_module.ExportDirectory.open_or_create(shop.root)
    is_busy = fault == "a second exporter"
    with monkeypatch.context() as patched, directory.exporting() if is_busy else nullcontext():
        patched.setattr("sys.argv", ["vlm2rec", "events", "export", "--to", str(shop.root)])
        if not is_busy:
            patched.setattr(directory_module, "write_rows", refused)
        with pytest.raises(SystemExit) as ended:
            main()
    shown = capsys.readouterr().err
    assert ended.value.code == (75 if is_busy else 2)
    assert shown.startswith(f"error: {shop.root}: ")
    assert ("another exporter is at work here" if is_busy else "Read-only file system") in shown
    assert shown.count("\n") == 1
    assert events("export", "--to", str(shop.root)).stdout == "1 events in 1 files, 0 erasures\n"


@pytest.mark.parametrize(
    "place",
    [
        *("gs://shop/export", "GS://shop/export", "file:///tmp/export", "file:/tmp/export", "az://shop/export"),
        *(
            "https://user:hunter2@shop.example/export",
            "s3:shop/export",
            "S3:/shop/export",
            "s3://",
            "kafka:host:9092/x",
        ),
        *("KAFKA://host/x", "kafkas://host:9092/x"),
    ],
)
def test_a_url_is_no_directory(shop: Shop, place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It would become a directory of that name, and Redis would be trimmed."""
    monkeypatch.chdir(tmp_path)
    shop.run(lambda store: store.append([Event("anna", "a", 1.0)]))
    done = events("export", "--to", place)
    assert isinstance(done.exception, EventExportError | SettingsError)
    assert "hunter2" not in str(done.exception)
    assert list(tmp_path.iterdir()) == []
    assert events("export", "--to", str(shop.root)).stdout == "1 events in 1 files, 0 erasures\n"
    assert isinstance(events("compact", place).exception, EventExportError)


def test_a_name_with_a_colon_is_a_directory(shop: Shop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("shop:a", "./gs:/x", "s3-copy"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        assert export_path(name) == Path(name)


def test_a_config_of_kafka_needs_kafka(shop: Shop, tmp_path: Path) -> None:
    config = tmp_path / "kafka.properties"
    config.write_text("sasl.password=a\n")
    for place in (str(shop.root), "s3://shop/export"):
        done = events("export", "--to", place, "--kafka-config", str(config))
        assert isinstance(done.exception, SettingsError)
        assert str(done.exception).startswith("--kafka-config is only for an export to kafka://")
    assert not shop.root.exists()
