"""What the count of events takes from Redis, and when it takes the service for idle."""

import pytest
import redis

from bench.instructions import event_instructions as module


class Asked:
    """The requests that would be sent."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.bodies: list[bytes] = []

    def ask(self, bodies: list[bytes]) -> None:
        self.bodies += bodies
        with redis.Redis.from_url(self.url) as client:
            for body in bodies:
                client.eval("return redis.call('SET', KEYS[1], '1')", 1, body)
                client.delete(body)


class Counted:
    """Counts of a busy second and of an idle one, instead of a process."""

    def __init__(self) -> None:
        self.counts = [({"interpreter": 900_000}, 1.0), ({"interpreter": 100_000}, 1.0)]

    def start(self) -> None:
        """Nothing to start."""

    def stop(self) -> tuple[dict[str, int], float]:
        return self.counts.pop(0)


def test_the_second_half_of_the_requests_is_counted_by_event(redis_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_IDLE_S", 0.0)
    monkeypatch.setattr(module, "_QUIET_S", 0.0)
    asked = Asked(redis_url)
    load = module.Load("bulks", "/events", 1, 2, [b"a", b"b", b"c", b"d"])
    found = module._cost(Counted(), redis_url, load, asked)  # type: ignore[arg-type]
    assert asked.bodies == [b"c", b"d"]
    assert found["instructions_k"] == (900 - 100) / 4
    assert (found["redis_calls"]["eval"], found["redis_calls"]["set"], found["redis_calls"]["del"]) == (0.5, 0.5, 0.5)
    assert found["redis_us"] > 0
