"""The rate limit, by hand and against a token bucket written down directly."""

import random
import subprocess
import sys
from pathlib import Path

import pytest

from service.access.buckets import LocalBuckets, SharedBuckets
from service.access.rate_limit import RateLimit, caller_at
from service.errors import RateExceeded


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture(autouse=True, params=["one process", "workers"])
def buckets(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Every test runs on the buckets of one process and on those that workers share."""
    if request.param == "workers":
        monkeypatch.setattr("service.access.rate_limit.LocalBuckets", lambda: SharedBuckets(tmp_path))


def taken(limit: RateLimit, caller: str = "a") -> bool:
    try:
        limit.take(caller)
    except RateExceeded:
        return False
    return True


def test_a_burst_and_then_the_rate() -> None:
    clock = Clock()
    limit = RateLimit(10.0, 3, clock=clock)
    assert [taken(limit) for _ in range(4)] == [True, True, True, False]
    clock.now += 0.09
    assert not taken(limit)
    clock.now += 0.01
    assert [taken(limit), taken(limit)] == [True, False]
    clock.now += 100.0  # a long pause is worth no more than the burst
    assert [taken(limit) for _ in range(4)] == [True, True, True, False]


def test_what_is_refused_costs_nothing() -> None:
    clock = Clock()
    limit = RateLimit(1.0, 1, clock=clock)
    assert taken(limit)
    assert not any(taken(limit) for _ in range(100))
    clock.now += 1.0
    assert taken(limit)


@pytest.mark.parametrize(("rate", "retry_after_s"), [(10.0, 1), (1.0, 1), (0.1, 10), (0.3, 4)])
def test_a_refusal_has_the_seconds_to_wait(rate: float, retry_after_s: int) -> None:
    clock = Clock()
    limit = RateLimit(rate, 1, clock=clock)
    limit.take("a")
    with pytest.raises(RateExceeded, match=f"at most {rate:g} requests a second, 1 at once") as refused:
        limit.take("a")
    assert refused.value.retry_after_s == retry_after_s
    clock.now += retry_after_s
    assert taken(limit)


def test_callers_are_apart() -> None:
    limit = RateLimit(1.0, 1, clock=Clock())
    assert [taken(limit, "a"), taken(limit, "b"), taken(limit, "a")] == [True, True, False]


@pytest.mark.parametrize(("rate", "burst"), [(10.0, 20), (0.1, 1), (0.7, 2)])
def test_the_burst_is_that_of_two_seconds(rate: float, burst: int) -> None:
    limit = RateLimit(rate, clock=Clock())
    assert sum(taken(limit) for _ in range(100)) == burst


def test_a_batch_of_n_costs_n() -> None:
    clock = Clock()
    limit = RateLimit(10.0, 5, clock=clock)
    limit.take("a")
    limit.charge("a", 99)  # a hundred in all, of which five were saved up: 9.5 s of waiting, and a tenth for one more
    clock.now += 9.59
    assert not taken(limit)
    clock.now += 0.02
    assert [taken(limit), taken(limit)] == [True, False]


def test_it_is_a_token_bucket() -> None:
    rng, clock = random.Random(5), Clock()
    rate, burst = 3.0, 7
    limit, tokens = RateLimit(rate, burst, clock=clock), float(burst)
    outcomes = []
    for _ in range(5000):
        pause = rng.choice([0.0, 0.01, 0.1, 0.5, 4.0]) * rng.random()
        clock.now += pause
        tokens = min(burst, tokens + pause * rate)
        expected = tokens >= 1.0 - 1e-6
        tokens -= expected
        outcomes.append(expected)
        assert taken(limit) == expected
    assert 0.2 < sum(outcomes) / len(outcomes) < 0.98


def test_many_callers_take_bounded_memory_and_the_least_recent_are_forgotten() -> None:
    refusals: list[int] = []
    buckets = LocalBuckets(100)
    limit = RateLimit(1.0, 1, buckets=buckets, clock=Clock(), on_refusal=lambda: refusals.append(1))
    for number in range(1000):
        assert taken(limit, f"caller {number}")
        assert not taken(limit, "caller 0") or number == 0  # comes all the time, so it is kept
    assert len(buckets) == 100
    assert not taken(limit, "caller 999")
    assert taken(limit, "caller 500")
    assert len(refusals) >= 1000


@pytest.mark.parametrize(
    ("address", "caller"),
    [
        ("10.1.2.3", "10.1.2.3"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::"),
        ("2001:db8:1:2:ffff::", "2001:db8:1:2::"),
        ("fe80::1%eth0", "fe80::"),
        ("::ffff:10.1.2.3", "10.1.2.3"),
        ("a:strange:name", "a:strange:name"),
    ],
)
def test_who_calls(address: str, caller: str) -> None:
    assert caller_at(address) == caller


def test_workers_together_admit_what_one_process_would(tmp_path: Path) -> None:
    code = (
        "import sys\nfrom pathlib import Path\n"
        "from service.access.buckets import SharedBuckets\nfrom service.access.rate_limit import RateLimit\n"
        "from tests.service.access.test_rate_limit import Clock, taken\n"
        "limit = RateLimit(1.0, 3000, buckets=SharedBuckets(Path(sys.argv[1])), clock=Clock())\n"
        "sys.stdin.readline()\n"  # until the others are as far
        "print(sum(taken(limit) for _ in range(2000)))\n"
    )
    workers = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(tmp_path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=Path(__file__).parents[3],
        )
        for _ in range(3)
    ]
    for worker in workers:
        assert worker.stdin is not None
        worker.stdin.write("\n")
        worker.stdin.flush()
    assert sum(int(worker.communicate(timeout=600)[0]) for worker in workers) == 3000


def test_shared_buckets_are_bounded_and_keep_those_that_are_limited(tmp_path: Path) -> None:
    clock = Clock()
    limit = RateLimit(1.0, 1, buckets=SharedBuckets(tmp_path, most=64), clock=clock)
    assert taken(limit, "caller 0")
    limit.charge("caller 0", 10)
    for number in range(1, 2000):
        assert taken(limit, f"caller {number}")
        clock.now += 0.001
    assert not taken(limit, "caller 0")
    assert (tmp_path / "rates").stat().st_size == 16 + 64 * 16


def test_a_lock_that_is_never_freed_refuses_nothing(tmp_path: Path) -> None:
    first, second = SharedBuckets(tmp_path), SharedBuckets(tmp_path)
    with first.locked():
        assert taken(RateLimit(1.0, 1, buckets=second, clock=Clock()))
