"""Writes docs/method-results.md and its plots from bench/results/method.json.

    python -m bench.method.method_page

Every figure on the page is read from the file, or computed from what the file holds.
"""

import argparse
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from bench.markdown_table import markdown_table
from bench.method.method_goals import FUSIONS, GOALS, checked, simple_remedies
from bench.method.method_plan import IMAGE_ALONE, SFT_LINE, TEXT_ALONE
from bench.method.method_ratios import RowRatio, RowRatios
from bench.method.method_readings import FUSED, POPULARITY, Reading
from bench.method.method_table import choose
from bench.serving.plots import readings
from training.config.types import Fusion
from training.ranking.metrics import Interval

_ROOT = Path(__file__).parents[2]
RESULTS = _ROOT / "bench" / "results" / "method.json"
PAGE = _ROOT / "docs" / "method-results.md"
_IMAGES = "img"
_NAMES = ("fused", "text", "image")
_DIAGNOSTICS = {
    "image_weak": "share of rows with the image weaker",
    "gap": "gap",
    "gradient text": "gradient text",
    "gradient image": "gradient image",
    "effective rank text": "rank text",
    "effective rank image": "rank image",
    "cross-modal gap": "cross-modal gap",
}
_ALONE = {"text": TEXT_ALONE, "image": IMAGE_ALONE}
_INTRO = """# What balancing is worth

Made by `python -m bench.method.method_page` from `bench/results/method.json`; do not edit. To measure again (hours,
never part of CI; it can be killed at any moment and goes on where it was):

```sh
make bench-method                         # BENCH_ARGS="--jobs 2 --threads 1"; --smoke takes two minutes
```

Tiny Qwen2.5-VL models trained from scratch on made catalogues ([docs/method.md](method.md) says what the terms are),
ranked directly: vector of the history · vector of the item, over the whole catalogue, the history masked, for fresh
users whom training never saw. *Fused* ranks by both modalities, *text* and *image* by one of them in the same model.
Rows have up to {seeds} seeds; figures are means over them. **Losses are compared at the same fusion.** Where a line has
several candidates, fused NDCG@10 on validation chooses among those with the most seeds; fresh users' figures are of the
chosen one. *Utilisation* is what a modality alone is worth in the joint model over a model trained on that modality
alone.

Ratios are paired: a user's gains are averaged over the seeds, then users are drawn again 1,000 times; in brackets the
95 % interval. It says what other users would change, not what other seeds would; so ratios of each seed stand beside
it. **†**: no paired interval of the two rows is stored; the one shown is the widest that their intervals against a
third row allow.
"""
_NOTHING = """# What balancing is worth

Nothing was measured yet. `make bench-method` does (hours, never part of CI), and writes this page.
"""


def page(table: Mapping[str, Any], images: Path) -> str:
    """The whole page.

    Args:
        table: what `bench.method.method_table` wrote; empty for none.
        images: directory for the plots.
    """
    if not table:
        return _NOTHING
    parts = [_INTRO.format(seeds=len(table["seeds"])), *_run(table)]
    for one in table["catalogues"]:
        parts += _catalogue(one, images)
    return "\n".join(parts).rstrip() + "\n"


def _run(table: Mapping[str, Any]) -> Iterator[str]:
    machine, units, days = table["machine"], table["units"], table["days"]
    yield (
        f"**Runs:** {machine['cpu']}, {machine['cores']} cores, Python {machine['python']}; "
        f"{', '.join(days)}, commits {', '.join(table['commits'])}; {units['done']} of "
        f"{units['planned']} runs done, {table['training_hours']:.1f} hours of training in all.\n"
    )
    if units["missing"]:
        yield "**Not done** (row: seeds):\n"
        yield from _missing(units["missing"])
        yield ""


def _missing(names: Iterable[str]) -> Iterator[str]:
    """A line for each catalogue."""
    rows: dict[str, dict[str, list[str]]] = {}
    for name in names:
        catalogue, row, seed = name.split("/")
        rows.setdefault(catalogue, {}).setdefault(row, []).append(seed)
    for catalogue, of in rows.items():
        yield f"- `{catalogue}`: " + ", ".join(f"{row}: {' '.join(seeds)}" for row, seeds in of.items())


def _catalogue(one: Mapping[str, Any], images: Path) -> Iterator[str]:
    yield f"## {one['title'][:1].upper()}{one['title'][1:]}\n"
    yield f"`{one['name']}`: {_settings(one['demo'])}. Every run: {_settings(one['base'])}.\n"
    rows = one["rows"]
    if not rows:
        yield "Nothing was measured yet.\n"
        return
    popular = one["popularity"]["ndcg@10"]
    ratios, chosen = RowRatios(rows, popular), choose(rows)
    yield (
        f"{one['users']['fresh']:,} fresh users, {one['users']['validation']:,} for validation. Popularity: NDCG@10 "
        f"{_decimal(popular)}, HR@10 {_decimal(one['popularity']['hr@10'])}.\n"
    )
    for fusion in FUSIONS:
        yield from _goals(fusion, ratios, chosen)
    ranked = [row for row in rows if "ndcg@10" in row]
    shown = {row["title"]: row["ndcg@10"] for row in ranked if row["name"] in chosen.values()}
    name = f"method-{one['name']}.svg"
    readings(images / name, shown, names=_NAMES, over="NDCG@10 (dashed: popularity)", reference=popular)
    yield f"![NDCG@10 of every line, fused, text only and image only]({_IMAGES}/{name})\n"
    yield from markdown_table(
        ("NDCG@10 of fresh users", *_NAMES, "HR@10 fused", "fused ÷ popularity", "seeds", "measured", "minutes"),
        (
            (
                row["title"],
                *(_decimal(row["ndcg@10"].get(reading)) for reading in _NAMES),
                _decimal(row["hr@10"].get("fused")),
                _ratio(ratios.ratio(Reading(row["name"]), Reading(POPULARITY))),
                str(len(row["seeds"])),
                ", ".join(row["days"]),
                f"{row['training_seconds'] / 60:.1f}",
            )
            for row in ranked
        ),
    )
    yield from _ratios(ranked, ratios, chosen)
    yield from _candidates(rows, chosen)
    yield from _diagnostics(rows)
    yield "Configurations, over what every run has:\n"
    yield from (f"- {row['title']}: {_settings(row['overrides'])}" for row in rows)
    yield ""


def _goals(fusion: Fusion, ratios: RowRatios, chosen: Mapping[str, str]) -> Iterator[str]:
    found = [checked(claim, ratios, chosen) for claim in GOALS[fusion]]
    if all(one["ratio"] is None for one in found):
        return
    yield from markdown_table(
        (f"goal at `{fusion}`", "measured", "row", "against", "holds"),
        (
            (
                f"*premise:* {one['statement']}" if one["premise"] else one["statement"],
                "not measured" if one["ratio"] is None else _ratio(one["ratio"]),
                one["measured"] or "–",
                one["compared_with"] or "–",
                _holds(one),
            )
            for one in found
        ),
    )
    goals = [one["holds"] for one in found if not one["premise"]]
    missing = goals.count(None)
    held = f"{goals.count(True)} of {len(goals) - missing} measured goals hold"
    rest = f", {missing} is not measured" if missing == 1 else f", {missing} are not measured" if missing else ""
    yield f"{held}{rest}. {_remedies(fusion, ratios, chosen)}\n"


def _remedies(fusion: Fusion, ratios: RowRatios, chosen: Mapping[str, str]) -> str:
    """One sentence on VLM2Rec beside each simple remedy."""
    said = [
        f"{'above' if ratio.interval.low > 1 else 'below' if ratio.interval.high < 1 else 'level with'} {row} "
        f"({_ratio(ratio)})"
        for row, ratio in simple_remedies(fusion, ratios, chosen).items()
    ]
    return f"Fused, VLM2Rec ranks {', '.join(said)}." if said else "No simple remedy was measured at this fusion."


def _holds(one: Mapping[str, Any]) -> str:
    if one["holds"] is None:
        return "–"
    return ("yes" if one["holds"] else "**no**") + ("" if one["clear"] else ", within the interval")


def _ratios(rows: Iterable[Mapping[str, Any]], ratios: RowRatios, chosen: Mapping[str, str]) -> Iterator[str]:
    names = [f"{reading} ÷ SFT's" for reading in _NAMES]

    def cells(row: Mapping[str, Any]) -> Iterator[str]:
        line = SFT_LINE[row["fusion"]]
        sft = chosen.get(line, line)
        alone = row["name"] in _ALONE.values()
        for reading in _NAMES:
            yield "–" if alone else _ratio(ratios.ratio(Reading(row["name"], reading), Reading(sft, reading)))
        by_seed = {} if alone else ratios.ratios_by_seed(Reading(row["name"]), Reading(sft))
        yield " · ".join(f"{ratio:.2f}" for ratio in by_seed.values()) or "–"
        for reading, name in reversed(_ALONE.items()):
            yield _ratio(ratios.ratio(Reading(row["name"], reading), Reading(name, reading)))

    yield from markdown_table(
        ("same fusion", *names, "fused, seed by seed", "image utilisation", "text utilisation"),
        ((row["title"], *cells(row)) for row in rows),
    )


def _candidates(rows: Iterable[Mapping[str, Any]], chosen: Mapping[str, str]) -> Iterator[str]:
    """Validation's figures of the lines that have several candidates, with plain fine-tuning of the same fusion."""
    found = list(rows)
    groups = [row["group"] for row in found]
    for fusion in FUSIONS:
        sft = next((row for row in found if row["name"] == chosen.get(SFT_LINE[fusion])), None)
        shown = [row for row in found if row["fusion"] == fusion and (groups.count(row["group"]) > 1 or row is sft)]
        if not any(groups.count(row["group"]) > 1 for row in shown):
            continue
        yield from markdown_table(
            (f"validation, {fusion}", *_NAMES, "fused ÷ SFT's, same seeds", "image ÷ SFT's", "seeds"),
            (
                (
                    f"**{row['title']}**" if row["name"] in chosen.values() else row["title"],
                    *(_decimal(row["validation"].get(reading)) for reading in _NAMES),
                    *(_on_validation(row, sft, reading) for reading in (FUSED, "image")),
                    " ".join(str(seed) for seed in row["seeds"]),
                )
                for row in shown
            ),
        )


def _on_validation(row: Mapping[str, Any], sft: Mapping[str, Any] | None, reading: str) -> str:
    """The ratio of two rows on validation; without an interval where none is stored and both have the same seeds."""
    if sft is None or row is sft:
        return "–"
    found = row["paired on validation"].get(reading, {}).get(sft["name"])
    if found is not None:
        return _ratio(RowRatio(Interval(*found), paired=True))
    one, other = row["validation"].get(reading), sft["validation"].get(reading)
    return f"{one / other:.2f}" if row["seeds"] == sft["seeds"] and one and other else "–"


def _diagnostics(rows: Iterable[Mapping[str, Any]]) -> Iterator[str]:
    yield from markdown_table(
        ("end of training", *_DIAGNOSTICS.values()),
        (
            (row["title"], *(_number(row["diagnostics"].get(name), "{:.3g}") for name in _DIAGNOSTICS))
            for row in rows
            if row["diagnostics"]
        ),
    )


def _settings(given: Mapping[str, Any]) -> str:
    return ", ".join(f"`{name} = {json.dumps(value)}`" for name, value in given.items()) or "as it comes"


def _decimal(value: float | None) -> str:
    """Four decimals without the zero before them."""
    return _number(value, "{:.4f}").removeprefix("0")


def _ratio(found: RowRatio | None) -> str:
    if found is None:
        return "–"
    ratio = found.interval
    return f"{ratio.ratio:.2f} [{ratio.low:.2f}, {ratio.high:.2f}]{'' if found.paired else '†'}"


def _number(value: Any, form: str) -> str:  # noqa: ANN401 - a number or nothing
    return "–" if value is None else form.format(value)


def write_page(results: Path, out: Path) -> Path:
    """Write the page of a result file, its plots beside it; gives where it is. Without a file, the page says so."""
    table = json.loads(results.read_text(encoding="utf-8")) if results.is_file() else {}
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(page(table, out.parent / _IMAGES), encoding="utf-8")
    return out


def main() -> None:
    """Write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--out", type=Path, default=PAGE)
    options = parser.parse_args()
    print(write_page(options.results, options.out))


if __name__ == "__main__":
    main()
