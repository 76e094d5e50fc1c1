"""Serves with Ray Serve, its batching and its high-throughput mode (HAProxy in front, direct ingress)."""

import asyncio
import signal
from typing import Any

import ray
import redis.asyncio
from ray import serve
from starlette.requests import Request
from starlette.responses import JSONResponse

from bench.peers.answering import BATCH, PORT, REDIS, WORKERS, Answering, key_of
from bench.peers.ask import Ask


@serve.deployment(num_replicas=WORKERS, max_ongoing_requests=1000, ray_actor_options={"num_cpus": 1})
class RayRecommender:
    """The deployment of one replica."""

    def __init__(self) -> None:
        self._answering = Answering()
        self._store = redis.asyncio.Redis.from_url(REDIS)

    @serve.batch(max_batch_size=BATCH, batch_wait_timeout_s=0.002)
    async def recommend(self, asks: list[Ask]) -> list[dict[str, Any]]:
        """One Redis round trip, one encoder run and one search for all."""
        pipeline = self._store.pipeline(transaction=False)
        for ask in asks:
            pipeline.lrange(key_of(ask.user_id), 0, -1)
        return self._answering.answer(await pipeline.execute(), [ask.k for ask in asks])

    async def __call__(self, request: Request) -> JSONResponse:
        """Validate, wait for the batch."""
        return JSONResponse(await self.recommend(Ask.model_validate_json(await request.body())))


async def _until_stopped() -> None:
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    await stop.wait()


if __name__ == "__main__":
    ray.init(address="local", num_cpus=4, include_dashboard=False, object_store_memory=100_000_000)
    serve.start(http_options={"host": "127.0.0.1", "port": PORT})
    serve.run(RayRecommender.bind(), route_prefix="/recommend")
    asyncio.run(_until_stopped())
    serve.shutdown()
    ray.shutdown()
