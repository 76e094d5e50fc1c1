"""Writes docs/method-results.md and its plots from bench/results/method.json.

    python -m bench.method.method_page

Every figure on the page is read from the file.
"""

import argparse
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from bench.markdown_table import markdown_table
from bench.serving.plots import readings

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
_INTRO = """# What balancing is worth

Made by `python -m bench.method.method_page` from `bench/results/method.json`; do not edit. To measure again (hours,
never part of CI; it can be killed at any moment and goes on where it was):

```sh
make bench-method                         # BENCH_ARGS="--jobs 2 --threads 1"; --smoke takes two minutes
```

Tiny Qwen2.5-VL models trained from scratch on made catalogues ([docs/method.md](method.md) says what the terms are),
ranked directly: vector of the history · vector of the item, over the whole catalogue, the history masked, for fresh
users whom training never saw. *Fused* ranks by both modalities, *text* and *image* by one of them in the same model.
Every row is trained with {seeds} seeds; figures are means over them. Where a line has several candidates, fused NDCG@10
on validation chooses (**bold**), and goals and plots speak of the chosen one alone. Ratios are paired: a user's gains
are averaged over the seeds, then users are drawn again 1,000 times; in brackets the 95 % interval. It tells what other
users would change, not what other seeds would; so ratios of each seed stand beside it. *Utilisation* is what a modality
alone is worth in the joint model over a model trained on that modality alone.
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
        f"**This run:** {machine['cpu']}, {machine['cores']} cores, Python {machine['python']}; "
        f"{' to '.join(days[:1] + days[1:][-1:])}, commits {', '.join(table['commits'])}; {units['done']} of "
        f"{units['planned']} runs done, {table['training_hours']:.1f} hours of training in all.\n"
    )
    if units["missing"]:
        yield f"**Not done:** {', '.join(units['missing'])}\n"


def _catalogue(one: Mapping[str, Any], images: Path) -> Iterator[str]:
    yield f"## {one['title'][:1].upper()}{one['title'][1:]}\n"
    yield f"`{one['name']}`: {_settings(one['demo'])}. Every run: {_settings(one['base'])}.\n"
    rows = one["rows"]
    if not rows:
        yield "Nothing was measured yet.\n"
        return
    popular = one["popularity"]["ndcg@10"]
    yield (
        f"{one['users']['fresh']:,} fresh users, {one['users']['validation']:,} for validation. Popularity: NDCG@10 "
        f"{_decimal(popular)}, HR@10 {_decimal(one['popularity']['hr@10'])}.\n"
    )
    yield from _goals(one["goals"])
    shown = {row["title"]: row["ndcg@10"] for row in rows if row["chosen"]}
    name = f"method-{one['name']}.svg"
    readings(images / name, shown, names=_NAMES, over="NDCG@10 (dashed: popularity)", reference=popular)
    yield f"![NDCG@10 of every line, fused, text only and image only]({_IMAGES}/{name})\n"
    yield from markdown_table(
        ("NDCG@10", *_NAMES, "HR@10 fused", "validation", "fused ÷ popularity", "minutes"),
        (
            (
                _name(row),
                *(_decimal(row["ndcg@10"].get(reading)) for reading in _NAMES),
                _decimal(row["hr@10"].get("fused")),
                _decimal(row["validation"].get("fused")),
                _interval(row["ratio_to_popularity"].get("fused")),
                f"{row['training_seconds'] / 60:.1f}",
            )
            for row in rows
        ),
    )
    yield from _ratios(rows)
    yield from _diagnostics(rows)
    yield "Configurations, over what every run has:\n"
    yield from (f"- {row['title']}: {_settings(row['overrides'])}" for row in rows)
    yield ""


def _goals(goals: Iterable[Mapping[str, Any]]) -> Iterator[str]:
    found = list(goals)
    if not found:
        return
    yield from markdown_table(
        ("goal", "measured", "against", "holds"),
        (
            (
                one["statement"],
                "not measured" if one["value"] is None else _interval([one["value"], one["low"], one["high"]]),
                one["compared_with"] or "–",
                _holds(one),
            )
            for one in found
        ),
    )
    yield f"{sum(bool(one['holds']) for one in found)} of {len(found)} hold.\n"


def _holds(one: Mapping[str, Any]) -> str:
    if one["holds"] is None:
        return "–"
    return ("yes" if one["holds"] else "**no**") + ("" if one["clear"] else ", within the interval")


def _ratios(rows: Iterable[Mapping[str, Any]]) -> Iterator[str]:
    names = [f"{reading} ÷ SFT's" for reading in _NAMES]
    yield from markdown_table(
        ("ratios", *names, "fused, seed by seed", "image utilisation", "text utilisation"),
        (
            (
                _name(row),
                *(_interval(row["ratio"].get(reading)) for reading in _NAMES),
                " · ".join(f"{ratio:.2f}" for ratio in row["ratio by seed"].get("fused", {}).values()) or "–",
                _interval(row["utilisation"].get("image")),
                _interval(row["utilisation"].get("text")),
            )
            for row in rows
        ),
    )


def _diagnostics(rows: Iterable[Mapping[str, Any]]) -> Iterator[str]:
    yield from markdown_table(
        ("end of training", *_DIAGNOSTICS.values()),
        (
            (_name(row), *(_number(row["diagnostics"].get(name), "{:.3g}") for name in _DIAGNOSTICS))
            for row in rows
            if row["diagnostics"]
        ),
    )


def _name(row: Mapping[str, Any]) -> str:
    return f"**{row['title']}**" if row["chosen"] else str(row["title"])


def _settings(given: Mapping[str, Any]) -> str:
    return ", ".join(f"`{name} = {json.dumps(value)}`" for name, value in given.items()) or "as it comes"


def _decimal(value: float | None) -> str:
    """Four decimals without the zero before them."""
    return _number(value, "{:.4f}").removeprefix("0")


def _interval(found: list[float] | None) -> str:
    return "–" if found is None else "{:.2f} [{:.2f}, {:.2f}]".format(*found)


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
