"""Writes the sections of the benchmarks page that have tables and plots, one function each."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bench.markdown_table import markdown_table
from bench.serving.contenders import EVERYONE
from bench.serving.plots import latency, throughput
from bench.serving.results import ServingResults, shown
from bench.serving.targets import (
    ECHO_REFERENCE,
    MOST_P90_MS,
    MOST_P99_MS,
    OVERLOAD_PEAK,
    WRONG_REFUSAL,
    contender,
    echo_of,
    echo_rates,
    size,
)

IMAGES = "img"
OURS, ECHO = "vlm2rec", "echo"
_MIB = 2**20
_REFUSALS = """The time to refuse is measured three times: by the server, from the first bytes of the request until the
refusal is computed (`Server-Timing`) and until its last byte is written (a histogram: the upper bound of the bucket of
the p99), and by the client, from the moment when the request was due. Only the last includes the wait until the server
reads the request.

**Earlier versions of this page said “p99 to refuse 0.01 ms, holds”. That was wrong**: the server timed how long it took
to build one header, not the refusal.
"""
_NOT_REFUSED_AGAIN = """**It is not measured again yet**: `make bench-serving
BENCH_ARGS="--neighbours {neighbours} --only overload"` measures this section again and leaves the rest.
"""


def contenders(read: ServingResults, images: Path) -> Iterator[str]:
    """Everybody on the main catalogue."""
    yield f"## Everybody, {read.settings.get('main', 0):,} items\n"
    rates = {}
    for one in EVERYONE:
        key = contender(one.name, "closed")
        middle, spread = read.median(key, "good"), read.spread(key, "good")
        if middle is not None and spread is not None:
            rates[one.name] = (middle, *spread)
    ordered = dict(sorted(rates.items(), key=lambda pair: -pair[1][0]))
    if ordered:
        throughput(images / "throughput.svg", ordered, ECHO, OURS)
        yield f"![Closed-loop throughput by contender]({IMAGES}/throughput.svg)\n"
    series = {name: list(_points(read, name)) for name in ordered if name != ECHO}
    if any(series.values()):
        drawn = {name: points for name, points in series.items() if points}
        latency(
            images / "latency.svg", drawn, over="requests a second, open loop (p99)", ours=OURS, goal_ms=MOST_P99_MS
        )
        yield f"![p99 at fixed rates by contender]({IMAGES}/latency.svg)\n"
    names = ("÷ echo", "vlm2rec ÷ it", "closed req/s", "CPU an answer", "p50 / p99 at 500/s", "p50 / p99 at 1,000/s")
    more = ("errors", "client CPU", "recall@20", "same items", "memory", "start")
    yield from markdown_table(("", *names, *more), (_row(read, one.name) for one in EVERYONE))
    yield (
        "Client CPU: cores that the load generator used, in the closed loop. CPU an answer: of all processes of the "
        "server, without Redis and the kernel's work for others. "
        "Memory counts pages shared between its processes once. Start: from the start of the process to its first "
        "answer; the system's cache of files is not emptied before. "
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
        return (name, f"could not be measured: {reason}", *[""] * 11)
    closed = contender(name, "closed")
    mine = (key for key in read.measurements if key.startswith("contenders/") and key.split("/")[2] == name)
    errors = sum(int(read.value(key, "errors") or 0) for key in mine)
    answers = f"contenders/1/{name}/answers"
    memory = contender(name, "memory")
    used = read.values(memory, "once") or read.values(memory, "proportional")
    had, planned = len(read.values(closed, "good")), int(read.settings.get("rounds", 0))
    return (
        name if had == planned else f"{name} ({had} of {planned} rounds)",
        shown(read.ratios(closed, echo_of("contenders")), "{:.2f}"),
        shown(read.ratios(contender(OURS, "closed"), closed), "{:.2f}"),
        shown(read.values(closed, "good"), "{:,.0f}"),
        shown(read.values(closed, "cpu_ms"), "{:.2f}", " ms"),
        _latencies(read, contender(name, "open 500"), "p50_ms", "p99_ms"),
        _latencies(read, contender(name, "open 1000"), "p50_ms", "p99_ms"),
        str(errors),
        shown(read.values(closed, "client_cpu"), "{:.2f}"),
        _number(read.value(answers, "recall"), "{:.3f}"),
        _number(read.value(answers, "same"), "{:.1%}"),
        shown([one / _MIB for one in used], "{:,.0f}", " MiB"),
        shown(read.values(contender(name, "start"), "ready_s"), "{:.1f}", " s"),
    )


def _points(read: ServingResults, name: str) -> Iterator[tuple[float, float]]:
    for rate in read.settings.get("rates", []):
        p99 = read.median(contender(name, f"open {rate}"), "p99_ms")
        if p99 is not None:
            yield rate, p99


def sizes(read: ServingResults, images: Path) -> Iterator[str]:
    """The service on catalogues of several sizes."""
    yield "## Growing the catalogue\n"
    rows_of, rate = read.settings.get("sizes", []), (read.settings.get("size_rates") or [0])[0]
    series: dict[str, list[tuple[float, float]]] = {OURS: [], "vlm2rec p90": [], "vlm2rec p99": []}
    for rows in rows_of:
        for name, figure in zip(series, ("p50_ms", "p90_ms", "p99_ms"), strict=True):
            value = read.median(size(rows, f"open {rate}"), figure)
            if value is not None:
                series[name].append((rows, value))
    if all(series.values()):
        drawn = {("vlm2rec p50" if name == OURS else name): points for name, points in series.items()}
        latency(images / "sizes.svg", drawn, over=f"items (at {rate} req/s)", ours=OURS, goal_ms=MOST_P90_MS)
        yield f"![Latency by catalogue size]({IMAGES}/sizes.svg)\n"
    yield _echo(read, "sizes")
    rates = read.settings.get("size_rates", [])
    latencies = (f"p50 / p90 / p99 at {at}/s" for at in rates)
    names = ("index", "÷ echo", "closed req/s", "CPU an answer", *latencies, "memory", "vectors + index")
    yield from markdown_table(("items", *names, "start", "build"), (_size_row(read, rows, rates) for rows in rows_of))


def _size_row(read: ServingResults, rows: int, rates: list[int]) -> tuple[str, ...]:
    made, closed = read.measurements.get(f"bundle/{rows}", {}), size(rows, "closed")
    memory = size(rows, "memory")
    used = read.values(memory, "once") or read.values(memory, "resident")
    return (
        f"{rows:,}",
        str(made.get("kind", "–")),
        shown(read.ratios(closed, echo_of("sizes")), "{:.2f}"),
        shown(read.values(closed, "good"), "{:,.0f}"),
        shown(read.values(closed, "cpu_ms"), "{:.2f}", " ms"),
        *(_latencies(read, size(rows, f"open {rate}"), "p50_ms", "p90_ms", "p99_ms") for rate in rates),
        shown([one / _MIB for one in used], "{:,.0f}", " MiB"),
        f"{(made.get('vectors_bytes', 0) + made.get('index_bytes', 0)) / _MIB:,.0f} MiB",
        shown(read.values(size(rows, "start"), "ready_s"), "{:.1f}", " s"),
        _number(made.get("build_s"), "{:,.0f} s") + (f" ({made['built_on']})" if made.get("built_on") else ""),
    )


def recall(read: ServingResults) -> Iterator[str]:
    """Recall by kind of request and size."""
    rows_of = read.settings.get("sizes", [])
    found = {rows: read.measurements.get(f"recall/{rows}", {}).get("by_kind", {}) for rows in rows_of}
    kinds = list(dict.fromkeys(kind for one in found.values() for kind in one))
    yield "## Recall of what was served\n"
    yield "recall@20 of answers over HTTP against exact search, the user's own items left out on both sides.\n"
    lines = ((kind, *(_number(found[rows].get(kind), "{:.3f}") for rows in rows_of)) for kind in kinds)
    yield from markdown_table(("request", *(f"{rows:,} items" for rows in rows_of)), lines)


def overload(read: ServingResults) -> Iterator[str]:
    """More load than the service can answer."""
    yield f"## Overload, {read.settings.get('main', 0):,} items\n"
    multiples = read.settings.get("overloads", [])
    keys = [f"overload/{{round}}/{times}x" for times in multiples]
    keys.append(f"overload/{{round}}/{(multiples or [0])[-1]}x connections")
    peaks = read.values(OVERLOAD_PEAK, "good")
    yield (
        f"Peak: {shown(peaks, '{:,.0f}')} whole answers a second, in {len(peaks)} round(s). A whole answer that comes "
        "more than a second after it was due counts as late, not as good. p50 / p99 are of all answers with 200, "
        "degraded and late ones too; in the closed loop of all answers.\n"
    )
    yield _echo(read, "overload")
    yield _REFUSALS
    if any(read.median(key, WRONG_REFUSAL) is not None for key in keys):
        yield _NOT_REFUSED_AGAIN.format(neighbours=read.settings.get("neighbours", 0))
    rows = []
    for key in keys:
        figures = [read.values(key, name) for name in ("offered", "degraded", "late", "refused", "errors")]
        refusals = [read.values(key, f"refusal_{place}_p99_ms") for place in ("server", "written", "client")]
        rows.append(
            (
                key.rpartition("/")[2],
                shown(read.ratios(key, OVERLOAD_PEAK), "{:.0%}"),
                shown(read.values(key, "good"), "{:,.0f}"),
                *(shown(values, "{:,.0f}") for values in figures),
                " / ".join(shown(read.values(key, name), "{:,.0f}") for name in ("p50_ms", "p99_ms")) + " ms",
                " / ".join(shown(values, "{:.2f}") for values in refusals) + " ms" if any(refusals) else "–",
                shown(read.values(key, "client_cpu"), "{:.2f}"),
            )
        )
    names = ("good ÷ peak", "good/s", "offered/s", "degraded/s", "late/s", "refused/s", "errors", "p50 / p99")
    yield from markdown_table(("", *names, "p99 to refuse: computed / written / client", "client CPU"), rows)


def users(read: ServingResults) -> Iterator[str]:
    """The service with few and with many users."""
    yield "## Growing the users\n"
    yield _echo(read, "users")
    rate = (read.settings.get("size_rates") or [0])[0]
    rows = []
    for number in (read.settings.get("users", 0), read.settings.get("many_users", 0)):
        redis = f"users/1/{number}/redis"
        used = read.value(redis, "used_bytes")
        rows.append(
            (
                f"{number:,}",
                _number(read.value(redis, "bytes_per_user"), "{:,.0f}"),
                _number(None if used is None else used / _MIB, "{:,.0f} MiB"),
                _latencies(read, f"users/{{round}}/{number}/open {rate}", "p50_ms", "p90_ms", "p99_ms"),
            )
        )
    head = ("users", "Redis bytes a user", "Redis in all, event stream included", f"p50 / p90 / p99 at {rate}/s")
    yield from markdown_table(head, rows)


def _echo(read: ServingResults, stage: str) -> str:
    """What the echo gave in the rounds of a stage."""
    rates = echo_rates(read, stage)
    if not rates:
        return "The echo was not measured in these rounds, so that no time or rate here counts.\n"
    share = shown([rate / ECHO_REFERENCE for rate in rates], "{:.2f}")
    return f"The echo of the same rounds: {share} × its reference, {shown(rates, '{:,.0f}')} req/s.\n"


def _latencies(read: ServingResults, key: str, *names: str) -> str:
    found = [read.values(key, name) for name in names]
    return " / ".join(shown(values, "{:.1f}") for values in found) + " ms" if all(found) else "–"


def _number(value: Any, form: str) -> str:  # noqa: ANN401 - a number or nothing
    return "–" if value is None else form.format(value)
