"""Serves with LitServe, its batching and its ZeroMQ queue, as it documents for over 100 requests per second."""

from typing import Any

import litserve
import redis

from bench.peers.answering import BATCH, PORT, REDIS, WORKERS, Answering, key_of
from bench.peers.ask import Ask


class LitServeRecommender(litserve.LitAPI):
    """Batches come as lists, since the work is not one tensor."""

    def setup(self, device: str) -> None:  # noqa: ARG002 - given by LitServe
        """Load, once in each worker process."""
        self.answering = Answering()
        self.store = redis.Redis.from_url(REDIS)

    def decode_request(self, request: Ask) -> Ask:
        """Validate the body."""
        return request

    def batch(self, inputs: list[Ask]) -> list[Ask]:
        """Requests that wait at the same time."""
        return inputs

    def predict(self, x: list[Ask]) -> list[dict[str, Any]]:
        """One Redis round trip, one encoder run and one search for all."""
        pipeline = self.store.pipeline(transaction=False)
        for ask in x:
            pipeline.lrange(key_of(ask.user_id), 0, -1)
        return self.answering.answer(pipeline.execute(), [ask.k for ask in x])

    def unbatch(self, output: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """One answer per request."""
        return output

    def encode_response(self, output: dict[str, Any]) -> dict[str, Any]:
        """The JSON of an answer."""
        return output


if __name__ == "__main__":
    api = LitServeRecommender(max_batch_size=BATCH, batch_timeout=0.002, api_path="/recommend")
    server = litserve.LitServer(api, accelerator="cpu", workers_per_device=WORKERS, fast_queue=True, timeout=10)
    server.run(
        host="127.0.0.1", port=PORT, num_api_servers=1, log_level="error", generate_client_file=False, access_log=False
    )
