"""Collects the finished units of `make bench-method` into one JSON file."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from bench.measurements import commit, machine, rounded
from bench.method.method_goals import GOALS, checked
from bench.method.method_plan import IMAGE_ALONE, SFT_LINE, TEXT_ALONE, CataloguePlan, MethodPlan, Row, Unit
from bench.method.method_readings import FUSED, POPULARITY, Reading, Readings
from bench.method.method_unit import CUT, FRESH, VALIDATION, UnitPlace
from training.ranking import metrics
from training.ranking.metrics import Interval

_NAMES = (FUSED, "text", "image")
_DIAGNOSTICS = (
    "gap", "image_weak", "confidence text", "confidence image", "gradient text", "gradient image",
    "effective rank text", "effective rank image", "uniformity text", "uniformity image", "cross-modal gap",
)  # fmt: skip
_FORMAT = 1


def write_table(plan: MethodPlan, work: Path, out: Path) -> None:
    """Collect the finished units and write the table.

    Args:
        plan: what is wanted.
        work: directory of the bench.
        out: the JSON file.
    """
    found = {unit.name: UnitPlace.of(work, unit).result() for unit in plan.units()}
    done = {name: result for name, result in found.items() if result is not None}
    table = {
        "format": _FORMAT,
        "machine": machine(),
        "commit": commit(),
        "commits": sorted({result["commit"] for result in done.values()}),
        "days": sorted({result["at"][:10] for result in done.values()}),
        "seeds": list(plan.seeds),
        "units": {"planned": len(found), "done": len(done), "missing": sorted(set(found) - set(done))},
        "training_hours": sum(result["training_seconds"] for result in done.values()) / 3600,
        "catalogues": [of_catalogue(one, plan.seeds, work) for one in plan.catalogues],
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    partial = out.with_name(f".{out.name}.part")
    partial.write_text(json.dumps(rounded(table), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    partial.replace(out)


def of_catalogue(catalogue: CataloguePlan, seeds: tuple[int, ...], work: Path) -> dict[str, Any]:
    """Rows and goals of one catalogue; rows without any finished run are left out."""
    places = {
        row.name: {seed: UnitPlace.of(work, Unit(catalogue, row, seed)) for seed in seeds} for row in catalogue.rows
    }
    results = {
        name: {seed: result for seed, place in of.items() if (result := place.result()) is not None}
        for name, of in places.items()
    }
    about = {
        "name": catalogue.name,
        "title": catalogue.title,
        "demo": dict(catalogue.demo),
        "base": dict(catalogue.base),
        "goal": catalogue.goal,
    }
    if not any(results.values()):
        return {**about, "rows": [], "goals": []}
    ranks = {name: {seed: places[name][seed].ranks() for seed in of} for name, of in results.items()}
    popular = next(found for of in ranks.values() for found in of.values())
    fresh = _readings(ranks, FRESH)
    chosen = choose(catalogue.rows, _readings(ranks, VALIDATION))
    return {
        **about,
        "users": {part: len(popular[f"{part} {POPULARITY}"]) for part in (FRESH, VALIDATION)},
        POPULARITY: {
            f"ndcg@{CUT}": fresh.mean(Reading(POPULARITY)),
            f"hr@{CUT}": float(metrics.hits(popular[f"{FRESH} {POPULARITY}"], CUT).mean()),
        },
        "chosen": chosen,
        "rows": [_row(row, fresh, results[row.name], chosen) for row in catalogue.rows if results[row.name]],
        "goals": [checked(claim, fresh, chosen) for claim in GOALS.get(catalogue.goal, ())],
    }


def choose(rows: tuple[Row, ...], validation: Readings) -> dict[str, str]:
    """Group → its row with the best fused NDCG@10 on validation, mean over the seeds.

    A group without a run is left out.
    """
    chosen: dict[str, str] = {}
    for row in rows:
        one = Reading(row.name)
        best = chosen.get(row.line)
        if one in validation and (best is None or validation.mean(one) > validation.mean(Reading(best))):
            chosen[row.line] = row.name
    return chosen


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


def _row(
    row: Row, fresh: Readings, results: Mapping[int, Mapping[str, Any]], chosen: Mapping[str, str]
) -> dict[str, Any]:
    """One line of the table."""
    read = [name for name in _NAMES if Reading(row.name, name) in fresh]
    against = chosen.get(SFT_LINE)
    alone = {"text": TEXT_ALONE, "image": IMAGE_ALONE}
    by_seed = {seed: results[seed][f"ndcg@{CUT}"][FRESH] for seed in sorted(results)}
    return {
        "name": row.name,
        "title": row.title,
        "group": row.line,
        "chosen": chosen.get(row.line) == row.name,
        "overrides": dict(row.overrides),
        "fusion": next(iter(results.values()))["fusion"],
        "seeds": sorted(results),
        f"ndcg@{CUT}": {name: fresh.mean(Reading(row.name, name)) for name in read},
        f"hr@{CUT}": _means([one[f"hr@{CUT}"][FRESH] for one in results.values()]),
        f"ndcg@{CUT} by seed": by_seed,
        "validation": _means([one[f"ndcg@{CUT}"][VALIDATION] for one in results.values()]),
        "ratio_to_popularity": {name: _plain(_ratio(fresh, row, name, POPULARITY)) for name in read},
        "against": against,
        "ratio": {name: _plain(_ratio(fresh, row, name, against, name)) for name in read},
        "ratio by seed": {
            name: fresh.ratios_by_seed(Reading(row.name, name), Reading(against, name)) if against else {}
            for name in read
        },
        "utilisation": {
            name: _plain(_ratio(fresh, row, name, chosen.get(line), name))
            for name, line in alone.items()
            if name in read
        },
        "training_seconds": sum(one["training_seconds"] for one in results.values()) / len(results),
        "ranking_seconds": sum(one["ranking_seconds"] for one in results.values()) / len(results),
        "last_step": {seed: results[seed]["last_step"] for seed in sorted(results)},
        "diagnostics": _means(
            [{n: one["log"][n] for n in _DIAGNOSTICS if n in one["log"]} for one in results.values()]
        ),
    }


def _ratio(readings: Readings, row: Row, name: str, other: str | None, other_name: str = FUSED) -> Interval | None:
    if other is None:
        return None
    return readings.ratio(Reading(row.name, name), Reading(other, other_name))


def _plain(ratio: Interval | None) -> list[float] | None:
    """Ratio, lower and upper end; None where there is none, as JSON knows no NaN."""
    if ratio is None or not np.isfinite([ratio.ratio, ratio.low, ratio.high]).all():
        return None
    return [ratio.ratio, ratio.low, ratio.high]


def _means(found: list[dict[str, float]]) -> dict[str, float]:
    """Mean of each value over those that have it."""
    names = dict.fromkeys(name for one in found for name in one)
    return {
        name: sum(values) / len(values) for name in names if (values := [one[name] for one in found if name in one])
    }
