"""Serves with BentoML and its adaptive batching; a batchable API takes a list, so each request is a list of one."""

from typing import Any

import bentoml
import redis

from bench.peers.answering import BATCH, REDIS, WORKERS, Answering, key_of
from bench.peers.ask import Ask


@bentoml.service(
    workers=WORKERS,
    threads=1,
    traffic={"timeout": 10},
    metrics={"enabled": False},
    logging={"access": {"enabled": False}},
)
class BentoRecommender:
    """The service of one worker process."""

    def __init__(self) -> None:
        self._answering = Answering()
        self._store = redis.Redis.from_url(REDIS)

    @bentoml.api(route="/recommend", batchable=True, max_batch_size=BATCH, max_latency_ms=1000)
    def recommend(self, asks: list[Ask]) -> list[dict[str, Any]]:
        """One Redis round trip, one encoder run and one search for all."""
        pipeline = self._store.pipeline(transaction=False)
        for ask in asks:
            pipeline.lrange(key_of(ask.user_id), 0, -1)
        return self._answering.answer(pipeline.execute(), [ask.k for ask in asks])
