"""Exports the events of a service, and compacts what was exported (`vlm2rec events …`)."""

import asyncio
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Protocol

import typer
from rich.console import Console

if TYPE_CHECKING:
    from service.export.exporter import Exported
    from service.settings.load import Settings
    from service.stores.event_export.redis_event_export import RedisEventExport

app = typer.Typer(no_args_is_help=True)

_POLL_S = 5.0
_LONGEST_PAUSE_S = 30.0
_KAFKA_TIMEOUT_S = 30.0

_out = Console(soft_wrap=True, highlight=False)
_err = Console(stderr=True, soft_wrap=True, highlight=False)

RedisOption = Annotated[
    str | None,
    typer.Option("--redis", metavar="URL", help="The Redis of the service.", show_default="VLM2REC_REDIS_URL"),
]


class _AnyExporter(Protocol):
    """An exporter to files or to Kafka."""

    async def attach(self) -> None: ...

    async def export(self, *, min_events: int = 1, max_age_s: float = 0.0) -> "Exported": ...


@app.command()
def export(
    to: Annotated[
        str,
        typer.Option(
            "--to",
            metavar="DIR|URL",
            help="A directory, new or of an earlier export, or s3://BUCKET/PREFIX, or kafka://HOST:PORT/TOPIC.",
        ),
    ],
    redis: RedisOption = None,
    follow: Annotated[bool, typer.Option("--follow", help="Go on until Ctrl-C or SIGTERM.")] = False,
    max_age_s: Annotated[
        float, typer.Option(min=0, help="With --follow: seconds after which an event is exported.")
    ] = 600.0,
    rows_per_file: Annotated[
        int, typer.Option(min=1, max=1_000_000, help="Most events of a file; a full file is written at once.")
    ] = 50_000,
    kafka_config: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Settings of librdkafka as name=value lines, such as sasl.password."),
    ] = None,
) -> None:
    """Export the events and trim the streams by what was exported: to Parquet files, each event exactly once, or to a
    Kafka topic, each at least once.

    Killed at any moment and started again, it loses nothing. Without --follow it exports all events that have arrived
    and ends. With --follow it waits for Redis, S3 or Kafka where that is down. DIR must be on a local file system.
    """
    from index.event_export.directory import ExportDirectory
    from service.errors import SettingsError
    from service.export.exporter import Exporter, most_waiting
    from service.export.kafka_exporter import KafkaExporter
    from service.export.kafka_topic import KafkaTopic, TopicWriter, is_kafka_url
    from service.settings.secret_files import read_properties

    async def work(exporter: _AnyExporter) -> None:
        if not follow:
            await exporter.attach()
            _say(await exporter.export())
            return
        await _follow(exporter, most_waiting(rows_per_file, _settings(redis).histories.stream_cap), max_age_s)

    if is_kafka_url(to):
        config = {} if kafka_config is None else read_properties(kafka_config, "--kafka-config")
        writer = TopicWriter(KafkaTopic.parse(to), config, timeout_s=_KAFKA_TIMEOUT_S, report=_warn)
        try:
            _run(redis, lambda events: work(KafkaExporter(events, writer, records_per_write=rows_per_file)))
        finally:
            writer.close()
        return
    if kafka_config is not None:
        raise SettingsError("--kafka-config is only for an export to kafka://HOST:PORT/TOPIC; leave it out")
    directory = ExportDirectory.open_or_create(to)
    with directory.exporting():
        _run(redis, lambda events: work(Exporter(events, directory, rows_per_file=rows_per_file)))


@app.command()
def compact(
    export: Annotated[str, typer.Argument(help="The export.", metavar="DIR|URL")],
) -> None:
    """Remove the rows of erased users, and join the files of a bucket and day. An exporter may be at work."""
    from index.event_export.compaction import compact as compact_days
    from index.event_export.directory import ExportDirectory

    done = list(compact_days(ExportDirectory(export)))
    for day in done:
        _out.print(
            f"{day.day}: {day.erased:,} rows of erased users removed, {day.files_before:,} files are {day.files:,}",
            markup=False,
        )
    if not done:
        _out.print("nothing to compact")


@app.command()
def detach(redis: RedisOption = None) -> None:
    """Forget the export of a Redis: streams are cut at their cap again, and another directory may begin.

    The exported directory stays as it is; erasures do not reach it any more.
    """

    async def work(events: "RedisEventExport") -> None:
        left = await events.detach()
        if left:
            _err.print(f"warning: {left:,} erasures did not reach the export: delete it", style="yellow")
        _out.print("detached")

    _run(redis, work)


def _run(redis: str | None, work: "Callable[[RedisEventExport], Awaitable[None]]") -> None:
    """Do work on the streams of the Redis that the options and settings name."""
    from service.stores.event_export.redis_event_export import RedisEventExport

    settings = _settings(redis)

    async def whole() -> None:
        events = RedisEventExport(settings.redis)
        try:
            await work(events)
        finally:
            await events.close()

    asyncio.run(whole())


def _settings(redis: str | None) -> "Settings":
    """The settings of the service, but for the registry, which an exporter does not need."""
    from service.settings.load import load_settings

    return load_settings({"registry": "."}, redis_url=redis)


async def _follow(exporter: _AnyExporter, min_events: int, max_age_s: float) -> None:
    """Export what is due every few seconds until a signal; after a failure of Redis, S3 or Kafka attach again."""
    from index.errors import ExportUnavailable
    from service.errors import EventsUnavailable, KafkaUnavailable

    attached, lost, pause_s = False, 0, 0.0
    async with _stop_requested() as stop:
        while not stop.is_set():
            try:
                if not attached:
                    await exporter.attach()
                    attached = True
                done = await exporter.export(min_events=min_events, max_age_s=max_age_s)
            except (EventsUnavailable, ExportUnavailable, KafkaUnavailable) as error:
                _warn(f"waiting: {error}")
                attached, pause_s = False, min(2 * pause_s or 0.5, _LONGEST_PAUSE_S)
            else:
                pause_s = 0.0
                if done.events or done.erasures or done.merges or done.lost > lost:
                    _say(done)
                lost = done.lost
            await _wait(stop, pause_s or min(_POLL_S, max(max_age_s, 0.1)))


@asynccontextmanager
async def _stop_requested() -> AsyncIterator[asyncio.Event]:
    """An event that SIGINT or SIGTERM sets, so that a round in progress ends first."""
    loop, stop = asyncio.get_running_loop(), asyncio.Event()
    signals = (signal.SIGINT, signal.SIGTERM)
    for number in signals:
        loop.add_signal_handler(number, stop.set)
    try:
        yield stop
    finally:
        for number in signals:
            loop.remove_signal_handler(number)


async def _wait(stop: asyncio.Event, seconds: float) -> None:
    try:
        await asyncio.wait_for(stop.wait(), seconds)
    except TimeoutError:
        return


def _warn(text: str) -> None:
    _err.print(text, markup=False, style="yellow")


def _say(done: "Exported") -> None:
    in_files = "" if done.files is None else f" in {done.files:,} files"
    merges = f" and {done.merges:,} merges of sessions" if done.merges else ""
    _out.print(f"{done.events:,} events{merges}{in_files}, {done.erasures:,} erasures")
    if done.lost:
        _err.print(
            f"warning: {done.lost:,} events were cut at the cap before they were exported; raise VLM2REC_STREAM_CAP, "
            "of the service and here, or export more often",
            style="yellow",
        )
