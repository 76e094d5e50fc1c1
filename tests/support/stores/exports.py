"""An exporter of a Redis, what it wrote, and events whose order of arrival is known."""

import asyncio
import uuid
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any

import pyarrow as pa

from index.event_export.directory import ExportDirectory
from index.event_export.manifest import DayManifest
from index.event_export.object_path import ExportPath
from index.event_export.rows import SCHEMA, read_rows
from service.export.exporter import Exported, Exporter
from service.stores.event_export.redis_event_export import RedisEventExport
from service.stores.protocols import Event
from service.stores.redis_histories import RedisHistories
from tests.support.stores.real_redis import connection, open_histories


class Shop:
    """A prefix of its own in a Redis, with histories and an exporter to one directory."""

    def __init__(self, url: str, root: ExportPath, prefix: str | None = None) -> None:
        self.url, self.root = url, root
        self.prefix = prefix or f"test-{uuid.uuid4().hex}"

    def run(self, check: Callable[[RedisHistories], Coroutine[Any, Any, None]], **options: Any) -> None:
        async def whole() -> None:
            store = open_histories(self.url, prefix=self.prefix, timeout_s=10.0, **options)
            try:
                await check(store)
            finally:
                await store.close()

        asyncio.run(whole())

    @asynccontextmanager
    async def events(self) -> AsyncIterator[RedisEventExport]:
        export = RedisEventExport(connection(self.url, prefix=self.prefix), timeout_s=10.0)
        try:
            yield export
        finally:
            await export.close()

    async def export(self, root: str | ExportPath | None = None, rows_per_file: int = 100) -> Exported:
        """Export everything once."""
        directory = ExportDirectory.open_or_create(root or self.root)
        async with self.events() as events:
            with directory.exporting():
                exporter = Exporter(events, directory, rows_per_file=rows_per_file)
                await exporter.attach()
                return await exporter.export()

    def rows(self) -> list[dict[str, Any]]:
        """The rows that count, in the order of days, buckets and ids."""
        return counted_rows(self.root).to_pylist()


def counted_rows(root: str | ExportPath) -> pa.Table:
    """The rows of all files that the manifests name."""
    tables = [SCHEMA.empty_table()]
    for day in ExportDirectory(root).days():
        for file in sorted(DayManifest.load(day).files.values(), key=lambda file: file.range):
            table = read_rows(day / file.name)
            assert (table.num_rows, len((day / file.name).read_bytes())) == (file.rows, file.size)
            tables.append(table)
    return pa.concat_tables(tables)


def some_events(count: int, *, users: int = 7, start: int = 0) -> list[Event]:
    """Events of a few users, each with an id of its own."""
    numbers = range(start, start + count)
    return [Event(f"u{n % users}", f"i{n}", 1_700_000_000.5 + n, "view", f"e{n}", f"r{n}") for n in numbers]
