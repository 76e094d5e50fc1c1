"""Serves with MOSEC: HTTP and batching in Rust, the work in Python, no validation beyond JSON."""

from typing import Any

import orjson
import redis
from mosec import Server, Worker

from bench.peers.answering import BATCH, REDIS, WORKERS, Answering, key_of


class MosecRecommender(Worker):
    """The worker of one process."""

    def __init__(self) -> None:
        super().__init__()
        self._answering = Answering()
        self._store = redis.Redis.from_url(REDIS)

    def deserialize(self, data: bytes) -> Any:  # noqa: ANN401 - given by MOSEC
        """Read JSON faster than MOSEC does by itself."""
        return orjson.loads(data)

    def serialize(self, data: Any) -> bytes:  # noqa: ANN401 - given by MOSEC
        """Write JSON faster than MOSEC does by itself."""
        return orjson.dumps(data)

    def forward(self, data: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """One Redis round trip, one encoder run and one search for all."""
        pipeline = self._store.pipeline(transaction=False)
        for ask in data:
            pipeline.lrange(key_of(ask["user_id"]), 0, -1)
        return self._answering.answer(pipeline.execute(), [ask["k"] for ask in data])


if __name__ == "__main__":
    server = Server()
    server.append_worker(MosecRecommender, num=WORKERS, max_batch_size=BATCH, max_wait_time=2, route="/recommend")
    server.run()
