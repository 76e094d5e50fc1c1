"""Collects the finished units of `make bench-method` into one JSON file.

Units that are no longer at hand keep the figures that the file has of them, as long as the plan trains them the same
way.
"""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from bench.measurements import commit, machine, rounded
from bench.method.method_plan import CataloguePlan, MethodPlan, Row, Unit
from bench.method.method_ratios import FIGURES
from bench.method.method_readings import FUSED, POPULARITY, Reading, Readings
from bench.method.method_unit import CUT, FRESH, VALIDATION, UnitPlace
from training.ranking import metrics
from training.ranking.metrics import Interval

_NAMES = (FUSED, "text", "image")
_DIAGNOSTICS = (
    "gap", "image_weak", "confidence text", "confidence image", "gradient text", "gradient image",
    "effective rank text", "effective rank image", "uniformity text", "uniformity image", "cross-modal gap",
)  # fmt: skip
_FORMAT: Final = 2
_BY_SEED: Final = f"{FIGURES} by seed"
_VALIDATION_BY_SEED: Final = "validation by seed"
_PAIRED: Final = "paired"
_PAIRED_ON_VALIDATION: Final = "paired on validation"
_Runs = Mapping[int, Mapping[str, Any]]
_BySeed = Mapping[str, Mapping[str, float]]


def write_table(plan: MethodPlan, work: Path, out: Path) -> None:
    """Collect the finished units, keep what the file has of the others, and write the table.

    Args:
        plan: what is wanted.
        work: directory of the bench.
        out: the JSON file.
    """
    stored = {one["name"]: one for one in stored_table(out).get("catalogues", [])}
    catalogues = [of_catalogue(one, plan.seeds, work, stored.get(one.name, {})) for one in plan.catalogues]
    rows = [row for one in catalogues for row in one["rows"]]
    measured = {
        f"{one['name']}/{row['name']}/{seed}" for one in catalogues for row in one["rows"] for seed in row["seeds"]
    }
    planned = {unit.name for unit in plan.units()}
    table = {
        "format": _FORMAT,
        "machine": machine(),
        "commit": commit(),
        "commits": sorted({name for row in rows for name in row["commits"]}),
        "days": sorted({day for row in rows for day in row["days"]}),
        "seeds": list(plan.seeds),
        "units": {"planned": len(planned), "done": len(planned & measured), "missing": sorted(planned - measured)},
        "training_hours": sum(row["training_seconds"] * len(row["seeds"]) for row in rows) / 3600,
        "catalogues": catalogues,
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    partial = out.with_name(f".{out.name}.part")
    partial.write_text(json.dumps(rounded(table), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    partial.replace(out)


def stored_table(path: Path) -> dict[str, Any]:
    """The table that a file holds; empty without a file or with one of another format."""
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return found if found.get("format") == _FORMAT else {}


def of_catalogue(
    catalogue: CataloguePlan, seeds: tuple[int, ...], work: Path, stored: Mapping[str, Any]
) -> dict[str, Any]:
    """Users, popularity and rows of one catalogue; rows that were never measured are left out.

    Args:
        catalogue: what is wanted.
        seeds: of the training runs.
        work: directory of the bench.
        stored: the same catalogue of the file; empty for none.

    Raises:
        SystemExit: the units at hand have other users than the file.
    """
    about = {
        "name": catalogue.name, "title": catalogue.title, "demo": dict(catalogue.demo), "base": dict(catalogue.base),
    }  # fmt: skip
    same = all(stored.get(key) == json.loads(json.dumps(about[key])) for key in ("demo", "base"))
    kept = {row["name"]: row for row in stored.get("rows", [])} if same else {}
    kept = {row.name: kept[row.name] for row in catalogue.rows if _same_training(row, kept.get(row.name))}
    users, popular, rows = _measured(catalogue, seeds, work, kept)
    if users is None:
        users, popular = (stored["users"], stored[POPULARITY]) if kept else ({}, {})
    elif kept and (users, rounded(popular)) != (stored["users"], stored[POPULARITY]):
        raise SystemExit(f"{catalogue.name}: the file has figures of other users; take the catalogue out of it first")
    return {**about, "users": users, POPULARITY: popular, "rows": _joined(catalogue.rows, kept, rows)}


def choose(rows: Iterable[Mapping[str, Any]]) -> dict[str, str]:
    """Group → its row with the best fused NDCG@10 on validation, among those with the most seeds.

    Args:
        rows: name, group, seeds and validation means of each; the first of equals is chosen.
    """
    chosen: dict[str, Mapping[str, Any]] = {}
    for row in rows:
        best = chosen.get(row["group"])
        if best is None or _standing(row) > _standing(best):
            chosen[row["group"]] = row
    return {group: row["name"] for group, row in chosen.items()}


def _standing(row: Mapping[str, Any]) -> tuple[int, float]:
    return len(row["seeds"]), row["validation"][FUSED]


def _same_training(row: Row, stored: Mapping[str, Any] | None) -> bool:
    return stored is not None and stored["overrides"] == json.loads(json.dumps(dict(row.overrides)))


def _measured(
    catalogue: CataloguePlan, seeds: tuple[int, ...], work: Path, kept: Mapping[str, Mapping[str, Any]]
) -> tuple[dict[str, int] | None, dict[str, float], dict[str, dict[str, Any]]]:
    """Users, popularity and rows from the units at hand; None without any.

    A row with fewer seeds at hand than in the file stays as it is in the file; on validation, others are compared with
    its seeds at hand.
    """
    places = {
        row.name: {seed: UnitPlace.of(work, Unit(catalogue, row, seed)) for seed in seeds} for row in catalogue.rows
    }
    results = {
        name: {seed: result for seed, place in of.items() if (result := place.result()) is not None}
        for name, of in places.items()
    }
    results = {name: of for name, of in results.items() if of}
    if not results:
        return None, {}, {}
    ranks = {name: {seed: places[name][seed].ranks() for seed in of} for name, of in results.items()}
    results = {name: of for name, of in results.items() if len(of) >= len(kept.get(name, {}).get("seeds", ()))}
    popular = next(found for of in ranks.values() for found in of.values())
    rows = {row.name: _row(row, results[row.name]) for row in catalogue.rows if row.name in results}
    _compare(rows, ranks, _readings(ranks, VALIDATION), _PAIRED_ON_VALIDATION)
    # Fresh users' figures are read of the rows that validation chose, and of no other.
    chosen = set(
        choose([rows.get(row.name) or kept[row.name] for row in catalogue.rows if row.name in {*rows, *kept}]).values()
    )
    fresh = {name: ranks[name] for name in rows if name in chosen or FIGURES in kept.get(name, {})}
    if fresh:
        readings = _readings(fresh, FRESH)
        for name in fresh:
            rows[name] |= _of_fresh(name, results[name], readings)
        _compare({name: rows[name] for name in fresh}, fresh, readings, _PAIRED)
    users = {part: len(popular[f"{part} {POPULARITY}"]) for part in (FRESH, VALIDATION)}
    of_popularity = popular[f"{FRESH} {POPULARITY}"]
    means = {
        FIGURES: float(metrics.gains(of_popularity, CUT).mean()),
        f"hr@{CUT}": float(metrics.hits(of_popularity, CUT).mean()),
    }
    return users, means, rows


def _joined(
    planned: Sequence[Row], kept: Mapping[str, Mapping[str, Any]], measured: Mapping[str, dict[str, Any]]
) -> list[dict[str, Any]]:
    """The rows in the order of the plan: those at hand, else those of the file.

    Intervals of the file stay where the figures of both rows do.
    """
    changed = {
        name
        for name, row in measured.items()
        if name in kept and not _same_figures(row.get(_BY_SEED, {}), kept[name].get(_BY_SEED, {}))
    }
    found = []
    for row in planned:
        before = kept.get(row.name, {})
        after = measured.get(row.name)
        if after is None and not before:
            continue
        joined = dict(before if after is None else after)
        paired: dict[str, Any] = {}
        for source in ({} if row.name in changed else before, after or {}):
            for reading, others in source.get(_PAIRED, {}).items():
                usable = {
                    other: interval for other, interval in others.items() if source is after or other not in changed
                }
                paired[reading] = paired.get(reading, {}) | usable
        found.append({**joined, "title": row.title, "group": row.line, _PAIRED: paired})
    return found


def _same_figures(measured: _BySeed, stored: _BySeed) -> bool:
    """Whether two measurements of a row agree to a thousandth; the rounding of ties differs between versions by less.

    Popularity, which stands beside them, is not the row's own: it has many ties, and newer versions count them anew.
    """
    return measured.keys() == stored.keys() and all(
        math.isclose(means.get(reading, 0.0), stored[seed].get(reading, 0.0), rel_tol=1e-3)
        for seed, means in measured.items()
        for reading in _NAMES
    )


def _readings(ranks: Mapping[str, Mapping[int, Mapping[str, metrics.Ranks]]], part: str) -> Readings:
    """NDCG@10 of every user of one part."""
    gains = {
        row: {
            seed: {
                key.removeprefix(f"{part} "): metrics.gains(of_key, CUT)
                for key, of_key in found.items()
                if key.startswith(f"{part} ")
            }
            for seed, found in of.items()
        }
        for row, of in ranks.items()
    }
    popular = [found.pop(POPULARITY) for of in gains.values() for found in of.values()]
    return Readings(gains, popular[0])


def _row(row: Row, results: _Runs) -> dict[str, Any]:
    """What a row is, with its figures on validation."""
    seeds = sorted(results)
    return {
        "name": row.name,
        "title": row.title,
        "group": row.line,
        "overrides": dict(row.overrides),
        "fusion": results[seeds[0]]["fusion"],
        "seeds": seeds,
        "days": sorted({one["at"][:10] for one in results.values()}),
        "commits": sorted({one["commit"] for one in results.values()}),
        "validation": _means([results[seed][FIGURES][VALIDATION] for seed in seeds]),
        _VALIDATION_BY_SEED: {str(seed): results[seed][FIGURES][VALIDATION] for seed in seeds},
        "training_seconds": sum(one["training_seconds"] for one in results.values()) / len(results),
        "ranking_seconds": sum(one["ranking_seconds"] for one in results.values()) / len(results),
        "last_step": {str(seed): results[seed]["last_step"] for seed in seeds},
        "diagnostics": _means(
            [{n: one["log"][n] for n in _DIAGNOSTICS if n in one["log"]} for one in results.values()]
        ),
    }


def _of_fresh(name: str, results: _Runs, fresh: Readings) -> dict[str, Any]:
    """A row's figures of fresh users."""
    return {
        FIGURES: {reading: fresh.mean(one) for reading in _NAMES if (one := Reading(name, reading)) in fresh},
        f"hr@{CUT}": _means([one[f"hr@{CUT}"][FRESH] for one in results.values()]),
        _BY_SEED: {str(seed): results[seed][FIGURES][FRESH] for seed in sorted(results)},
    }


def _compare(rows: Mapping[str, dict[str, Any]], others: Iterable[str], readings: Readings, key: str) -> None:
    """Store the paired intervals of every row against the others and against popularity, over the seeds of both."""
    rivals = (*others, POPULARITY)
    for name, row in rows.items():
        row[key] = {
            reading: {other: interval for other in rivals if (interval := _interval(readings, name, other, reading))}
            for reading in _NAMES
            if Reading(name, reading) in readings
        }


def _interval(readings: Readings, name: str, other: str, reading: str) -> list[float] | None:
    if other == name:
        return None
    below = Reading(POPULARITY) if other == POPULARITY else Reading(other, reading)
    return _plain(readings.ratio(Reading(name, reading), below))


def _plain(ratio: Interval | None) -> list[float] | None:
    """Ratio, lower and upper end; None where there is none, or where an end is 0 or no number."""
    if ratio is None:
        return None
    found = [ratio.ratio, ratio.low, ratio.high]
    return found if all(0 < value < float("inf") for value in found) else None


def _means(found: list[dict[str, float]]) -> dict[str, float]:
    """Mean of each value over those that have it."""
    names = dict.fromkeys(name for one in found for name in one)
    return {
        name: sum(values) / len(values) for name in names if (values := [one[name] for one in found if name in one])
    }
