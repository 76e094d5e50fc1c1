"""Serves with a `def` endpoint of FastAPI: each request has a pool thread, one Redis read and a batch of one."""

import redis
import uvicorn
from fastapi import FastAPI

from bench.peers.answering import PORT, REDIS, WORKERS, Answering, key_of
from bench.peers.ask import Answer, Ask

app = FastAPI()
answering = Answering()
store = redis.Redis.from_url(REDIS)


@app.post("/recommend", response_model=Answer)
def recommend(ask: Ask) -> object:
    """Recommend to a user."""
    return answering.answer([store.lrange(key_of(ask.user_id), 0, -1)], [ask.k])[0]


if __name__ == "__main__":
    target = "bench.peers.fastapi_def:app" if WORKERS > 1 else app
    uvicorn.run(target, host="127.0.0.1", port=PORT, log_level="warning", access_log=False, workers=WORKERS)
