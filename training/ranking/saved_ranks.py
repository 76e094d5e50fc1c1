"""Stores the ranks of systems in a file, so that rows of several runs, or of another library, share one table."""

# A Parquet file with a row per system and target: ``table``, ``targets`` (a fingerprint of that table's targets),
# ``system``, ``user``, ``full`` and ``sampled`` (ranks, 0 = best, infinite = cannot be returned; a tie counts half),
# ``full_tied`` and ``sampled_tied`` (candidates tied with the target) and ``first`` (the rows of the ten first items,
# −1 for an empty position), targets in their order. A file without the ties is read as one that has none.

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from index.machine.disk import describe_disk_error, is_stream
from training.data.sequences import Targets
from training.errors import EvaluationError
from training.ranking.metrics import Ranks
from training.ranking.ranking import LIST_LENGTH, TargetRanks
from training.ranking.table import BASELINES, WITHOUT_REPEATS, Table

_SCHEMA = pl.Schema(
    {
        "table": pl.String(),
        "targets": pl.String(),
        "system": pl.String(),
        "user": pl.String(),
        "full": pl.Float64(),
        "sampled": pl.Float64(),
        "first": pl.List(pl.Int64()),
    }
)
_TIES = pl.Schema({"full_tied": pl.Float64(), "sampled_tied": pl.Float64()})
_TODO = "write it again with `vlm2rec evaluate --save-ranks` or `bench/method/sasrec.py`"


@dataclass(frozen=True)
class RankedTable:
    """One set of targets with the ranks of several systems.

    Attributes:
        name: of the table.
        targets: the held-out events.
        items: size of the catalogue.
        rankings: system → ranking of these targets; ratios are to the first.
        whole: number of targets before evenly spaced ones were chosen.
        exclude_seen: items of the history were excluded, so that a target in its own history could not be returned.
        cold: (items,) bool, items that were held out of training; None where none were.
        candidates: number of items that were ranked; None for all.
        added: names of the systems that files of ranks added.
    """

    name: str
    targets: Targets
    items: int
    rankings: Mapping[str, TargetRanks]
    whole: int
    exclude_seen: bool = True
    cold: NDArray[np.bool_] | None = None
    candidates: int | None = None
    added: tuple[str, ...] = ()

    def measured(self, *, seed: int = 0) -> Table:
        """The table of metrics.

        Args:
            seed: of the bootstrap.
        """
        return Table.of(
            self.name,
            self.rankings,
            self.items,
            whole=self.whole,
            repeats=int(self.targets.repeats.sum()),
            exclude_seen=self.exclude_seen,
            cold=self.cold,
            candidates=self.candidates,
            added=self.added,
            seed=seed,
        )

    def without_repeats(self) -> "tuple[RankedTable, ...]":
        """The same on the targets that are not in their own history; empty if that is all of them or none."""
        new = ~self.targets.repeats
        if new.all() or not new.any():
            return ()
        rankings = {
            name: TargetRanks(
                ranking.full.only(new),
                ranking.sampled.only(new) if len(ranking.sampled) else ranking.sampled,
                ranking.lists[new],
            )
            for name, ranking in self.rankings.items()
        }
        name = f"{self.name} {WITHOUT_REPEATS}"
        return (replace(self, name=name, targets=self.targets.only(new), rankings=rankings, whole=int(new.sum())),)

    def joined(self, path: Path, label: str | None) -> "RankedTable":
        """The same with the systems of a file of ranks.

        Args:
            path: file of :func:`save_ranks`.
            label: added to their names in brackets; the baselines, equal everywhere, are then left out.

        Raises:
            EvaluationError: the file cannot be read, is of other targets, or has a system whose name is in this table.
        """
        found = read_ranks(path, self.name, self.targets, self.items, exclude_seen=self.exclude_seen)
        if label is not None:
            found = {f"{name} ({label})": ranking for name, ranking in found.items() if name not in BASELINES}
        twice = sorted(set(found) & set(self.rankings))
        if twice:
            raise EvaluationError(f"{path}: there is a row {twice[0]!r} already; tell them apart: --ranks LABEL={path}")
        return replace(self, rankings={**self.rankings, **found}, added=(*self.added, *found))


def targets_fingerprint(targets: Targets, items: int, *, exclude_seen: bool = True) -> str:
    """16 hex digits over users, histories, targets, size of the catalogue, and whether seen items are excluded."""
    digest = hashlib.sha256(
        f"{items}{'' if exclude_seen else ' with seen'}\n".encode()
        + "\n".join(targets.users).encode("utf-8", "surrogatepass")
    )
    lengths = np.array([len(history) for history in targets.histories], dtype=np.int64)
    for array in (targets.targets, lengths, *targets.histories):
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()[:16]


def check_ranks_file(path: Path) -> None:
    """Refuse a device or a pipe, before the minutes that ranking takes.

    Raises:
        EvaluationError: ranks cannot be saved there.
    """
    if is_stream(path):
        raise EvaluationError(f"{path}: ranks are saved to a file; name one")


def save_ranks(path: Path, tables: Sequence[RankedTable]) -> None:
    """Write the ranks of these tables to a temporary file and rename it.

    Raises:
        EvaluationError: the file cannot be written.
    """
    frames = [
        pl.DataFrame(
            {
                "table": [table.name] * len(table.targets),
                "targets": [mark] * len(table.targets),
                "system": [system] * len(table.targets),
                "user": table.targets.users,
                "full": ranking.full.means,
                "sampled": ranking.sampled.means,
                "first": ranking.lists.tolist(),
                "full_tied": ranking.full.tied,
                "sampled_tied": ranking.sampled.tied,
            },
            schema={**_SCHEMA, **_TIES},
        )
        for table in tables
        for mark in [targets_fingerprint(table.targets, table.items, exclude_seen=table.exclude_seen)]
        for system, ranking in table.rankings.items()
    ]
    check_ranks_file(path)
    partial = path.with_name(f"{path.name}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        pl.concat(frames).write_parquet(partial)
        partial.replace(path)
    except (OSError, pl.exceptions.PolarsError) as error:
        raise EvaluationError(
            describe_disk_error(error, path, "evaluate again, or name another file", what="the ranks")
        ) from error


def read_ranks(
    path: Path, table: str, targets: Targets, items: int, *, exclude_seen: bool = True
) -> dict[str, TargetRanks]:
    """Read the ranks of one table.

    Args:
        path: file of :func:`save_ranks`.
        table: its name.
        targets: expected targets.
        items: size of the catalogue.
        exclude_seen: items of the history were excluded.

    Returns:
        System → ranks; empty if the file has no such table.

    Raises:
        EvaluationError: the file cannot be read, is not a file of ranks, or is of other targets.
    """
    try:
        ties = set(_TIES) <= set(pl.read_parquet_schema(path))
        wanted = pl.Schema({**_SCHEMA, **_TIES}) if ties else _SCHEMA
        frame = pl.read_parquet(path, glob=False, columns=list(wanted))
    except (OSError, ValueError, pl.exceptions.PolarsError, pl.exceptions.PanicException) as error:
        raise EvaluationError(f"{path}: no file of ranks ({error}); {_TODO}") from error
    if frame.schema != wanted or frame.select(pl.any_horizontal(pl.all().has_nulls())).item():
        raise EvaluationError(f"{path}: a file of ranks has the columns {dict(wanted)} without nulls; {_TODO}")
    part = frame.filter(pl.col("table") == table)
    own = targets_fingerprint(targets, items, exclude_seen=exclude_seen)
    missed = targets.repeats & exclude_seen  # the service excludes them, whichever system ranked them
    found: dict[str, TargetRanks] = {}
    for (system,), rows in part.group_by("system", maintain_order=True):
        if rows["targets"].unique().to_list() != [own] or rows["user"].to_list() != targets.users:
            raise EvaluationError(
                f"{path}: {system!r} was ranked on other {table} targets than these ({own}); use the same data set, "
                "interactions, exclude_seen, share of cold items and number of targets for both"
            )
        ranking = _ranking(path, rows, items)
        sampled = ranking.sampled.missed(missed) if len(ranking.sampled) else ranking.sampled
        found[str(system)] = replace(ranking, full=ranking.full.missed(missed), sampled=sampled)
    return found


def _ranking(path: Path, rows: pl.DataFrame, items: int) -> TargetRanks:
    lists = rows["first"]
    full, sampled = _ranks(rows, "full"), _ranks(rows, "sampled")
    fits = bool((lists.list.len() == LIST_LENGTH).all()) and not lists.explode().is_null().any()
    first: NDArray[np.int64] = lists.explode().to_numpy().astype(np.int64).reshape(-1, LIST_LENGTH) if fits else _NONE
    within = fits and bool(((first >= -1) & (first < items)).all())
    positions = [column for found in (full, sampled) for column in (found.ahead, found.tied)]
    if not within or not all((column >= 0).all() for column in positions):
        raise EvaluationError(
            f"{path}: ranks and ties must be 0 or more, and a list {LIST_LENGTH} rows of the catalogue or −1; {_TODO}"
        )
    return TargetRanks(full, sampled, first)


def _ranks(rows: pl.DataFrame, name: str) -> Ranks:
    tied = rows[f"{name}_tied"].to_numpy() if f"{name}_tied" in rows.columns else None
    return Ranks.of_means(rows[name].to_numpy(), tied)


_NONE: NDArray[np.int64] = np.zeros((0, LIST_LENGTH), dtype=np.int64)
