"""Writes docs/benchmarks.md and its plots from bench/results/*.json.

    python -m bench.serving.page

Every figure on the page is read from the files.
"""

import argparse
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from bench.markdown_table import markdown_table
from bench.serving.contenders import EVERYONE
from bench.serving.plots import latency, throughput
from bench.serving.results import ServingResults
from bench.serving.targets import MOST_P90_MS, MOST_P99_MS, WRONG_REFUSAL, Verdict, contender, size, verdicts

_ROOT = Path(__file__).parents[2]
PAGE = _ROOT / "docs" / "benchmarks.md"

_IMAGES = "img"
_OURS, _ECHO = "vlm2rec", "echo"
_INTRO = """# Benchmarks

Made by `python -m bench.serving.page` from `bench/results/`; do not edit. To measure again, on a quiet
machine:

```sh
make bench-serving                        # goes on where it ended; BENCH_ARGS=--fresh begins anew
```

Load generator, Redis and server share one machine, so **only ratios within one run mean anything**; contenders take
turns, and every figure is the median of {rounds} round(s), each by itself, so that those of a row need not add up;
errors are those of all rounds. Latencies are of answered requests: what was never answered counts under errors and in
no percentile. Closed loop: {tool} with {connections} connections. Open
loop: requests due at random moments of a constant rate (Poisson), latency counted from the moment a request was due.
Every request names a user with a stored history of 10 and asks for 20 items; catalogues are made, clustered vectors of
192 dimensions (text, image, behaviour), the encoder has 2 layers of 128.{lists}
"""
_LISTS = " Every item has {neighbours} neighbours\nin each of three item-to-item lists."
_WHY = (
    "Where the time goes, and so why some do not hold, is in "
    "[Experiments: serving](experiments/serving.md#where-the-time-goes), with what was tried against it. "
    "`make bench-instructions` counts the processor instructions of an answer, which other load of the machine does "
    "not change ([CPU of an answer](experiments/serving-cpu.md)).\n"
)
_REFUSALS = """The time to refuse is measured twice: by the server, from the first bytes of the request to those of the
refusal, and by the client, from the moment when the request was due. Only the latter includes the wait until the server
reads the request.

**Earlier versions of this page said “p99 to refuse 0.01 ms, holds”. That was wrong**: the server timed how long it took
to build one header, not the refusal.
"""
_NOT_REFUSED_AGAIN = """**It is not measured again yet**: `make bench-serving BENCH_ARGS="--only overload"` measures
this section again and leaves the rest.
"""
_NOT_RUN = """## Not run

- **GPU**: no figures; none was at hand. `python -m bench.gpu.gpu_serving` measures p50 and p99 at 1,000 requests a
  second and the highest rate with p99 below 50 ms for 1M and 10M items, `bench/gpu/gpu_index.py` the index, `python -m
  bench.gpu.gpu_training` training and embedding; all three were only run on a CPU at toy size.
- **10M items**: not built here.
- **A swap of bundles under load** is measured by a bench of its own, if its result is listed below.
"""


def page(read: ServingResults, images: Path, others: Iterable[Path]) -> str:
    """The whole page.

    Args:
        read: the serving run.
        images: directory for the plots.
        others: result files of other benches, to be linked.
    """
    settings = read.settings
    lists = _LISTS.format(neighbours=settings["neighbours"]) if settings.get("neighbours") else ""
    rounds, tool = len(read.rounds), settings["load"]
    parts = [
        _INTRO.format(rounds=rounds, connections=settings["connections"], tool=tool, lists=lists),
        *_run(read),
        "## What holds\n",
        *_verdicts(verdicts(read)),
        _WHY,
        *_contenders(read, images),
        *_sizes(read, images),
        *_recall(read),
        *_overload(read),
        *_users(read),
        *_stages(read),
        _NOT_RUN,
        *_others(others),
    ]
    return "\n".join(parts).rstrip() + "\n"


def _run(read: ServingResults) -> Iterator[str]:
    measured = read.measurements.values()
    commits = sorted({one["commit"] for one in measured})
    days = sorted({one["at"][:10] for one in measured})
    load = [one["load_average"] for one in measured]
    machine = read.machine
    yield (
        f"**This run:** {machine.get('cpu', '?')}, {machine.get('cores', '?')} cores, {machine.get('memory_gib', '?')} "
        f"GiB, {machine.get('system', '?')}, Python {machine.get('python', '?')}; "
        f"{' to '.join(days[:1] + days[1:][-1:])}, commit {', '.join(commits)}; load average while measuring "
        f"{min(load):.1f} to {max(load):.1f}, the bench's own load included.\n"
    )
    if any(one.endswith("+") for one in commits):
        yield "**+: files of the working tree differed from that commit while this was measured.**\n"
    if len({one.rstrip("+") for one in commits}) > 1:
        yield "**The run was gone on with after a commit: figures from different stages are of different code.**\n"


def _verdicts(found: list[Verdict]) -> Iterator[str]:
    yield from markdown_table(
        ("", "target", "measured", "holds"),
        ((one.about, one.target + (" (goal)" if one.goal else ""), one.measured, _holds(one)) for one in found),
    )
    known = [one for one in found if one.holds is not None]
    owed = [one for one in known if not one.goal]
    held, held_owed = sum(bool(one.holds) for one in known), sum(bool(one.holds) for one in owed)
    yield f"{held} of {len(known)} hold; of those that are owed, {held_owed} of {len(owed)}.\n"


def _holds(one: Verdict) -> str:
    return "–" if one.holds is None else "yes" if one.holds else "**no**"


def _contenders(read: ServingResults, images: Path) -> Iterator[str]:
    yield f"## Everybody, {read.settings.get('main', 0):,} items\n"
    rates = {}
    for one in EVERYONE:
        key = contender(one.name, "closed")
        median, spread = read.median(key, "good"), read.spread(key, "good")
        if median is not None and spread is not None:
            rates[one.name] = (median, *spread)
    ordered = dict(sorted(rates.items(), key=lambda pair: -pair[1][0]))
    if ordered:
        throughput(images / "throughput.svg", ordered, _ECHO, _OURS)
        yield f"![Closed-loop throughput by contender]({_IMAGES}/throughput.svg)\n"
    series = {name: list(_points(read, name)) for name in ordered if name != _ECHO}
    if any(series.values()):
        shown = {name: points for name, points in series.items() if points}
        latency(
            images / "latency.svg", shown, over="requests a second, open loop (p99)", ours=_OURS, goal_ms=MOST_P99_MS
        )
        yield f"![p99 at fixed rates by contender]({_IMAGES}/latency.svg)\n"
    names = ("closed req/s", "vlm2rec ÷ it", "p50 / p99 at 500/s", "p50 / p99 at 1,000/s", "errors", "recall@20")
    more = ("same items", "memory", "start")
    yield from markdown_table(("", *names, *more), (_row(read, one.name) for one in EVERYONE))
    yield (
        "Memory counts pages shared between processes once. Start: from the start of the process to its first answer; "
        "the system's cache of files is not emptied before. "
        "Recall and “same items” hold served answers against exact search and against the bundle asked directly; the "
        "echo answers constants.\n"
    )
    yield "How each is set up:\n"
    for one in EVERYONE:
        found = read.measurements.get(f"contenders/1/{one.name}/versions", {})
        listed = ", ".join(f"{name} {version}" for name, version in found.get("versions", {}).items())
        tried = [
            f"{rate:,.0f} req/s with {processes}"
            for processes in one.processes
            if (rate := read.mean(f"tuning/{{round}}/{one.name}/{processes}", "good")) is not None
        ]
        best = f" The number of processes was tried: {', '.join(tried)}." if tried else ""
        yield f"- **{one.name}**: {found.get('settings', one.settings)}{f' ({listed})' if listed else ''}.{best}"
    yield ""


def _row(read: ServingResults, name: str) -> tuple[str, ...]:
    reason = read.failed(f"contenders/1/{name}/start")
    if reason is not None:
        return (name, f"could not be measured: {reason}", *[""] * 8)
    closed = contender(name, "closed")
    mine = (key for key in read.measurements if key.startswith("contenders/") and key.split("/")[2] == name)
    errors = sum(int(read.value(key, "errors") or 0) for key in mine)
    answers = f"contenders/1/{name}/answers"
    memory = read.median(contender(name, "memory"), "proportional")
    return (
        name,
        _number(read.median(closed, "good"), "{:,.0f}"),
        _number(read.ratio(contender(_OURS, "closed"), closed), "{:.2f}"),
        _pair(read, name, 500),
        _pair(read, name, 1000),
        str(errors),
        _number(read.value(answers, "recall"), "{:.3f}"),
        _number(read.value(answers, "same"), "{:.1%}"),
        _number(None if memory is None else memory / 2**20, "{:,.0f} MiB"),
        _number(read.median(contender(name, "start"), "ready_s"), "{:.1f} s"),
    )


def _points(read: ServingResults, name: str) -> Iterator[tuple[float, float]]:
    for rate in read.settings.get("rates", []):
        p99 = read.median(contender(name, f"open {rate}"), "p99_ms")
        if p99 is not None:
            yield rate, p99


def _pair(read: ServingResults, name: str, rate: int) -> str:
    key = contender(name, f"open {rate}")
    p50, p99 = read.median(key, "p50_ms"), read.median(key, "p99_ms")
    return "–" if p50 is None or p99 is None else f"{p50:.1f} / {p99:.1f} ms"


def _sizes(read: ServingResults, images: Path) -> Iterator[str]:
    yield "## Growing the catalogue\n"
    sizes, rate = read.settings.get("sizes", []), (read.settings.get("size_rates") or [0])[0]
    series: dict[str, list[tuple[float, float]]] = {"vlm2rec": [], "vlm2rec p90": [], "vlm2rec p99": []}
    for rows in sizes:
        for name, figure in zip(series, ("p50_ms", "p90_ms", "p99_ms"), strict=True):
            value = read.median(size(rows, f"open {rate}"), figure)
            if value is not None:
                series[name].append((rows, value))
    if all(series.values()):
        shown = {("vlm2rec p50" if name == _OURS else name): points for name, points in series.items()}
        latency(images / "sizes.svg", shown, over=f"items (at {rate} req/s)", ours=_OURS, goal_ms=MOST_P90_MS)
        yield f"![Latency by catalogue size]({_IMAGES}/sizes.svg)\n"
    rates = read.settings.get("size_rates", [])
    latencies = (f"p50 / p90 / p99 at {at}/s" for at in rates)
    names = ("index", "closed req/s", *latencies, "resident", "vectors + index", "start", "build")
    yield from markdown_table(("items", *names), (_size_row(read, rows, rates) for rows in sizes))


def _size_row(read: ServingResults, rows: int, rates: list[int]) -> tuple[str, ...]:
    made = read.measurements.get(f"bundle/{rows}", {})
    resident = read.median(size(rows, "memory"), "resident")
    latencies = []
    for rate in rates:
        found = [read.median(size(rows, f"open {rate}"), name) for name in ("p50_ms", "p90_ms", "p99_ms")]
        latencies.append("–" if None in found else " / ".join(f"{value:.1f}" for value in found) + " ms")
    return (
        f"{rows:,}",
        str(made.get("kind", "–")),
        _number(read.median(size(rows, "closed"), "good"), "{:,.0f}"),
        *latencies,
        _number(None if resident is None else resident / 2**20, "{:,.0f} MiB"),
        f"{(made.get('vectors_bytes', 0) + made.get('index_bytes', 0)) / 2**20:,.0f} MiB",
        _number(read.median(size(rows, "start"), "ready_s"), "{:.1f} s"),
        _number(made.get("build_s"), "{:,.0f} s"),
    )


def _recall(read: ServingResults) -> Iterator[str]:
    sizes = read.settings.get("sizes", [])
    found = {rows: read.measurements.get(f"sizes/1/{rows}/recall", {}).get("by_kind", {}) for rows in sizes}
    kinds = list(dict.fromkeys(kind for one in found.values() for kind in one))
    yield "## Recall of what was served\n"
    yield "recall@20 of answers over HTTP against exact search, the user's own items left out on both sides.\n"
    lines = ((kind, *(_number(found[rows].get(kind), "{:.3f}") for rows in sizes)) for kind in kinds)
    yield from markdown_table(("request", *(f"{rows:,} items" for rows in sizes)), lines)


def _overload(read: ServingResults) -> Iterator[str]:
    yield f"## Overload, {read.settings.get('main', 0):,} items\n"
    peak = read.median("overload/{round}/peak", "good")
    keys = [f"overload/{{round}}/{times}x" for times in read.settings.get("overloads", [])]
    keys.append(f"overload/{{round}}/{(read.settings.get('overloads') or [0])[-1]}x connections")
    yield (
        f"Peak: {_number(peak, '{:,.0f}')} whole answers a second. A whole answer that comes more than a second after "
        "it was due counts as late, not as good. p50 / p99 are of all answers with 200, degraded and late ones too; "
        "in the closed loop of all answers.\n"
    )
    yield _REFUSALS
    if any(read.median(key, WRONG_REFUSAL) is not None for key in keys):
        yield _NOT_REFUSED_AGAIN
    rows = []
    for key in keys:
        figures = [read.median(key, name) for name in ("offered", "good", "degraded", "late", "refused", "errors")]
        seen = [_number(value, "{:,.0f}") for value in figures]
        refusals = [read.median(key, f"refusal_{place}_p99_ms") for place in ("server", "client")]
        refusal = "–" if None in refusals else " / ".join(f"{value:.2f}" for value in refusals) + " ms"
        latencies = " / ".join(_number(read.median(key, name), "{:,.0f}") for name in ("p50_ms", "p99_ms"))
        share = _number(read.ratio(key, "overload/{round}/peak"), "{:.0%}")
        rows.append((key.rpartition("/")[2], *seen, share, f"{latencies} ms", refusal))
    names = ("offered/s", "good/s", "degraded/s", "late/s", "refused/s", "errors", "good ÷ peak", "p50 / p99")
    yield from markdown_table(("", *names, "p99 to refuse, server / client"), rows)


def _users(read: ServingResults) -> Iterator[str]:
    yield "## Growing the users\n"
    rate = (read.settings.get("size_rates") or [0])[0]
    rows = []
    for users in (read.settings.get("users", 0), read.settings.get("many_users", 0)):
        key, redis = f"users/{{round}}/{users}/open {rate}", f"users/1/{users}/redis"
        latencies = (_number(read.median(key, name), "{:.1f}") for name in ("p50_ms", "p90_ms", "p99_ms"))
        used = read.value(redis, "used_bytes")
        rows.append(
            (
                f"{users:,}",
                _number(read.value(redis, "bytes_per_user"), "{:,.0f}"),
                _number(None if used is None else used / 2**20, "{:,.0f} MiB"),
                " / ".join(latencies) + " ms",
            )
        )
    head = ("users", "Redis bytes a user", "Redis in all, event stream included", f"p50 / p90 / p99 at {rate}/s")
    yield from markdown_table(head, rows)


def _stages(read: ServingResults) -> Iterator[str]:
    yield "## How long it takes\n"
    spent: dict[str, float] = {}
    for key, one in read.measurements.items():
        stage = key.partition("/")[0]
        spent[stage] = spent.get(stage, 0.0) + float(one["took_s"])
    total = sum(spent.values())
    yield from markdown_table(
        ("stage", "minutes"), ((s, f"{t / 60:.1f}") for s, t in {**spent, "in all": total}.items())
    )


def _others(others: Iterable[Path]) -> Iterator[str]:
    listed = [f"- `bench/results/{path.name}`" for path in sorted(others)]
    if listed:
        yield "## Results of the other benches\n"
        yield from listed


def _number(value: Any, form: str) -> str:  # noqa: ANN401 - a number or nothing
    return "–" if value is None else form.format(value)


def write_page(results: Path, out: Path) -> Path:
    """Write the page of a result file, its plots beside it; gives where it is.

    Raises:
        SystemExit: the file holds no measurements.
    """
    read = ServingResults.of(results)
    if not read.measurements:
        raise SystemExit(f"{results} holds no measurements; run `make bench-serving` first")
    others = [path for path in results.parent.glob("*.json") if path != results]
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(page(read, out.parent / _IMAGES, others))
    return out


def main() -> None:
    """Write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=_ROOT / "bench" / "results" / "serving.json")
    parser.add_argument("--out", type=Path, default=PAGE)
    options = parser.parse_args()
    print(write_page(options.results, options.out))


if __name__ == "__main__":
    main()
