"""Serves constants with FastAPI after pydantic has read the whole request of `POST /recommend`."""

import uvicorn
from fastapi import FastAPI

from bench.peers.answering import PORT
from bench.peers.ask import Answer, Item
from service.api.requests.request_models import RecommendRequest

app = FastAPI()


@app.post("/recommend")
async def echo(body: RecommendRequest) -> Answer:
    """Answer the requested number of equal items."""
    return Answer(items=[Item(item_id="item-0000001", score=0.5)] * body.k)


if __name__ == "__main__":
    uvicorn.run(app, host="127.0.0.1", port=PORT, log_level="warning", access_log=False)
