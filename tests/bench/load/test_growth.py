"""The verdict of the soak on runs whose answer is known: flat, growing, noisy, with single peaks, too short."""

import numpy as np
import pytest

from bench.load import soak
from bench.load.growth import hourly_growth, judge, slope

HALF_HOUR = np.arange(0, 1800, 5.0)
REST = {"descriptors": 12, "clients": 0}


def run(**changed):
    flat = {"rss": 200.0, "anonymous": 120.0, "blocks": 500_000, "descriptors": 12, "stores": 9, "threads": 8}
    samples = [flat | {"second": float(second), "p99_ms": 20.0} for second in HALF_HOUR]
    for name, values in changed.items():
        for sample, value in zip(samples, values, strict=True):
            sample[name] = value
    return samples


def test_the_slope_is_the_lines_own_and_peaks_do_not_move_it():
    line = 3.0 + 0.5 * HALF_HOUR
    assert slope(HALF_HOUR, line) == pytest.approx(0.5)
    line[::7] += 1000.0
    assert slope(HALF_HOUR, line) == pytest.approx(0.5, rel=0.05)
    assert slope([1.0], [2.0]) == 0.0


def test_growth_is_reported_per_hour_as_a_share():
    assert hourly_growth(HALF_HOUR, 100.0 + HALF_HOUR / 1800) == pytest.approx(0.02, rel=0.02)
    saw = 100.0 + 30.0 * (HALF_HOUR % 120 < 60)  # a second bundle in memory for half of the time
    assert hourly_growth(HALF_HOUR, saw) == pytest.approx(0.0, abs=1e-9)


def test_a_flat_run_holds():
    transient = [12] * 350 + [20] * 10  # a swap at the end
    noise = np.random.default_rng(0).normal(0, 0.2, len(HALF_HOUR))
    found = judge(run(rss=200 + noise, descriptors=transient), {"before": REST, "after": REST})
    assert found["holds"] is True
    assert found["descriptors_back"] is True


@pytest.mark.parametrize(
    ("changed", "rest"),
    [
        ({"anonymous": 120 + HALF_HOUR / 450}, REST),  # 8 MiB an hour
        ({"blocks": 500_000 + 10 * HALF_HOUR}, REST),
        ({"descriptors": [12] * 200 + [13] * 160}, REST),
        ({"threads": [8] * 260 + [9] * 100}, REST),
        ({}, {"descriptors": 13, "clients": 0}),
        ({}, {"descriptors": 12, "clients": 1}),
    ],
)
def test_what_grows_does_not_hold(changed, rest):
    assert judge(run(**changed), {"before": REST, "after": rest})["holds"] is False


def test_a_short_run_is_not_judged():
    assert judge(run()[:60], {"before": REST, "after": REST})["holds"] is None
    assert judge([], {})["holds"] is None


@pytest.mark.parametrize(
    ("given", "message"),
    [(["--items", "300"], "--items must be at least 500"), (["--rate", "0"], "--minutes, --rate and --workers must")],
)
def test_a_soak_that_cannot_run_is_refused(
    given: list[str], message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["soak", *given])
    with pytest.raises(SystemExit, match="2"):
        soak.main()
    assert message in capsys.readouterr().err
