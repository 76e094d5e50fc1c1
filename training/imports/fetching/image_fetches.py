"""Fetches the pictures that a data set names by address and writes their paths to its ``image`` column."""

import hashlib
import os
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from queue import SimpleQueue

import polars as pl

from index.items.item_table import ITEM_ID
from training.data.data_place import confined_file
from training.data.dataset import IMAGE, ITEM_SUFFIXES, ITEMS, TEXT, TITLE
from training.data.tables.table_files import csv_header, find_table, read_table
from training.errors import DatasetError
from training.imports.fetching.fetch_list import FetchList, FetchOutcome
from training.imports.fetching.picture_fetcher import FetchedPicture, MakeFetcher, PictureFetcher
from training.imports.import_directory import FETCHES_FILE, IMAGES, not_written
from training.imports.source_format import IMAGE_URL
from training.runs.lock import run_lock

_AHEAD = 4
_PART = ".part"


@dataclass
class FetchSummary:
    """Counts of a fetch job.

    Attributes:
        wanted: distinct addresses of items without a picture.
        fetched: pictures fetched by this job.
        kept: addresses whose picture exists already.
        skipped: addresses that failed permanently in an earlier job and were not requested again.
        left: addresses beyond the job's limit.
        failed: reason → addresses that failed in this job.
        named: items with a picture after the job.
    """

    wanted: int = 0
    fetched: int = 0
    kept: int = 0
    skipped: int = 0
    left: int = 0
    failed: dict[str, list[str]] = field(default_factory=dict)
    named: int = 0


def fetch_images(
    directory: Path,
    make_fetcher: MakeFetcher,
    *,
    parallel: int = 4,
    most: int | None = None,
    again: bool = False,
    progress: Callable[[int, int], None] = lambda _done, _all: None,
) -> FetchSummary:
    """Fetch the missing pictures of a data set.

    A picture is stored as ``images/<hash of its address>.<suffix>``, and each result is recorded at once, so a stopped
    or killed job can be resumed. The items file is replaced once, at the end; if it has changed since the start, the
    paths are written into its new rows.

    Args:
        directory: a data set whose items file has a column ``image_url``.
        make_fetcher: makes the fetcher of each thread.
        parallel: number of threads.
        most: largest number of pictures to request in this job; None for all.
        again: request addresses again that failed permanently before.
        progress: called with the numbers of finished and of all requests.

    Raises:
        DatasetError: the items file cannot be read or has no ``image_url``, ``images`` is not a directory inside the
            data set, or something cannot be written.
        RunBusy: another job is fetching for this data set.
    """
    path = find_table(directory, ITEMS, ITEM_SUFFIXES)
    with run_lock(directory):
        items = _read(path)
        try:
            with FetchList(directory / FETCHES_FILE) as done:
                return _Job(directory, path, items, done).run(make_fetcher, parallel, most, progress, again=again)
        except OSError as error:
            raise not_written(directory, error) from error


class _Job:
    def __init__(self, directory: Path, path: Path, items: pl.DataFrame, done: FetchList) -> None:
        self._directory = directory
        self._path = path
        self._items = items
        self._done = done
        self._summary = FetchSummary()
        self._asked = False

    def run(
        self,
        make_fetcher: MakeFetcher,
        parallel: int,
        most: int | None,
        progress: Callable[[int, int], None],
        *,
        again: bool,
    ) -> FetchSummary:
        self._make_images()
        for part in (self._directory / IMAGES).glob(f".*{_PART}"):
            part.unlink()
        wanted = self._wanted(again=again)
        asked = wanted if most is None else wanted[:most]
        self._summary.left = len(wanted) - len(asked)
        try:
            if asked:
                self._asked = True
                self._fetch(asked, make_fetcher, min(parallel, len(asked)), progress)
        finally:
            self._done.sync()
            self._name_pictures()
        return self._summary

    def _make_images(self) -> None:
        """Make the directory of the pictures, unless it is there.

        Raises:
            DatasetError: it is a file, or a link that leads out of the data set: no job would read its pictures.
        """
        images = self._directory / IMAGES
        if images.is_symlink() or images.exists():
            if not images.is_dir() or not images.resolve().is_relative_to(self._directory.resolve()):
                raise DatasetError(
                    f"{images}: must be a directory in the data set, as no other is read; move the pictures there, or "
                    "move the whole data set and link to that"
                )
        else:
            images.mkdir()

    def _wanted(self, *, again: bool) -> list[str]:
        """Distinct addresses to request, in the order of the items."""
        addresses = []
        for image, url in self._items.select(IMAGE, IMAGE_URL).iter_rows():
            if url and confined_file(self._directory, image) is None:
                addresses.append(url)
        addresses = list(dict.fromkeys(addresses))
        self._summary.wanted = len(addresses)
        wanted = []
        for url in addresses:
            known = self._done.outcomes.get(url)
            if self._is_stored(known):
                self._summary.kept += 1
            elif known is not None and known.file is None and not known.retryable and not again:
                self._summary.skipped += 1
            else:
                wanted.append(url)
        return wanted

    def _is_stored(self, outcome: FetchOutcome | None) -> bool:
        if outcome is None or outcome.file is None:
            return False
        found = confined_file(self._directory, outcome.file)
        return found is not None and found.stat().st_size == outcome.size

    def _fetch(
        self, urls: list[str], make_fetcher: MakeFetcher, parallel: int, progress: Callable[[int, int], None]
    ) -> None:
        with ExitStack() as closing:
            fetchers: SimpleQueue[PictureFetcher] = SimpleQueue()
            for _ in range(parallel):
                fetcher = make_fetcher()
                closing.callback(fetcher.close)
                fetchers.put(fetcher)
            pool = closing.enter_context(ThreadPoolExecutor(parallel, thread_name_prefix="fetch"))
            closing.callback(pool.shutdown, cancel_futures=True)
            for asked, outcome in enumerate(_in_threads(pool, self._one, urls, fetchers, parallel * _AHEAD), start=1):
                self._done.add(outcome)
                if outcome.file is None:
                    self._summary.failed.setdefault(outcome.reason, []).append(outcome.url)
                else:
                    self._summary.fetched += 1
                progress(asked, len(urls))

    def _one(self, url: str, fetchers: "SimpleQueue[PictureFetcher]") -> FetchOutcome:
        fetcher = fetchers.get()
        try:
            answer = fetcher.fetch(url)
        finally:
            fetchers.put(fetcher)
        if not isinstance(answer, FetchedPicture):
            return FetchOutcome(url, reason=answer.reason, retryable=answer.retryable)
        name = f"{hashlib.sha256(url.encode()).hexdigest()[:32]}.{answer.suffix}"
        part = self._directory / IMAGES / f".{name}{_PART}"
        with part.open("wb") as file:
            file.write(answer.content)
            file.flush()
            os.fsync(file.fileno())
        part.replace(self._directory / IMAGES / name)
        return FetchOutcome(url, f"{IMAGES}/{name}", len(answer.content))

    def _name_pictures(self) -> None:
        """Write the paths of fetched pictures into the items file if any item gains one."""
        if self._asked:  # fetches take hours, in which an export may have replaced the file
            self._items = _read(self._path)
        names = []
        changed = False
        for image, url in self._items.select(IMAGE, IMAGE_URL).iter_rows():
            known = self._done.outcomes.get(url) if url else None
            if known is not None and self._is_stored(known) and confined_file(self._directory, image) is None:
                changed |= image != known.file
                names.append(known.file)
            else:
                names.append(image)
        self._summary.named = sum(1 for name in names if name)
        if changed:
            _replace(self._path, self._items.with_columns(pl.Series(IMAGE, names, dtype=pl.String)))


def _in_threads(
    pool: ThreadPoolExecutor,
    one: Callable[[str, "SimpleQueue[PictureFetcher]"], FetchOutcome],
    urls: list[str],
    fetchers: "SimpleQueue[PictureFetcher]",
    ahead: int,
) -> Iterator[FetchOutcome]:
    """Results in order of completion; at most ``ahead`` fetches are pending."""
    waiting: set[Future[FetchOutcome]] = set()
    for url in urls:
        waiting.add(pool.submit(one, url, fetchers))
        if len(waiting) >= ahead:
            finished, waiting = wait(waiting, return_when=FIRST_COMPLETED)
            yield from (future.result() for future in finished)
    while waiting:
        finished, waiting = wait(waiting, return_when=FIRST_COMPLETED)
        yield from (future.result() for future in finished)


def _read(path: Path) -> pl.DataFrame:
    """The items file with a column ``image``; all columns of a CSV file are text, and a nameless one is kept."""
    if path.suffix not in (".csv", ".parquet") or path.is_dir():
        raise DatasetError(f"{path}: only items.csv and items.parquet are filled in; write the items as one such file")
    try:
        if path.suffix == ".parquet":
            items = pl.read_parquet(path, glob=False, hive_partitioning=False)
        else:
            # polars alone would complete a cut row and rename a repeated column, and both would be written back
            read_table(path, text=(ITEM_ID, TITLE, TEXT, IMAGE, IMAGE_URL), required=[ITEM_ID])
            items = pl.read_csv(path, infer_schema=False, glob=False)
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException, OSError, ValueError) as error:
        raise DatasetError(f"{path}: cannot be read; `vlm2rec data check` says what is wrong with it") from error
    missing = next((name for name in (ITEM_ID, IMAGE_URL) if name not in items.columns), None)
    if missing is not None:
        raise DatasetError(f"{path}: has no column {missing!r}; it names the address of each item's picture")
    if IMAGE not in items.columns:
        items = items.with_columns(pl.lit(None, pl.String).alias(IMAGE))
    if items.schema[IMAGE_URL] not in (pl.String, pl.Null) or items.schema[IMAGE] not in (pl.String, pl.Null):
        raise DatasetError(f"{path}: the columns {IMAGE!r} and {IMAGE_URL!r} must hold text; write them as strings")
    return items.with_columns(pl.col(IMAGE, IMAGE_URL).cast(pl.String).str.strip_chars())


def _replace(path: Path, items: pl.DataFrame) -> None:
    """Replace the items file, behind a link too, with the permissions and the header that it has."""
    path = path.resolve()
    part = path.with_name(f".{path.name}{_PART}")
    try:
        with part.open("wb") as file:
            shutil.copymode(path, part)
            if path.suffix == ".csv":
                names = csv_header(path)
                names += items.columns[len(names) :]
                file.write(pl.DataFrame([names], orient="row").write_csv(include_header=False).encode())
                items.write_csv(file, include_header=False)
            else:
                items.write_parquet(file)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
