"""A common way to forward streams: a Litestar handler with an httpx client, under uvicorn, with a fixed route.

Arguments: the port that it listens on, and the address of the agent.
"""

import sys
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import uvicorn
from litestar import Litestar, Request, post
from litestar.background_tasks import BackgroundTask
from litestar.response import Stream

AnyRequest = Request[Any, Any, Any]

AGENT = sys.argv[2] if len(sys.argv) > 2 else ""


@asynccontextmanager
async def lifespan(app: Litestar) -> AsyncGenerator[None, None]:
    """One client for all calls."""
    async with httpx.AsyncClient(timeout=30) as client:
        app.state.client = client
        yield


@post("/rpc", status_code=200)
async def forward(request: AnyRequest) -> Stream:
    """Forward the request body; stream the response back."""
    client: httpx.AsyncClient = request.app.state.client
    headers = {"content-type": request.headers["content-type"]}
    call = client.build_request("POST", AGENT, content=await request.body(), headers=headers)
    answer = await client.send(call, stream=True)
    return Stream(
        answer.aiter_raw(),
        status_code=answer.status_code,
        media_type=answer.headers["content-type"],
        background=BackgroundTask(answer.aclose),
    )


if __name__ == "__main__":
    uvicorn.run(
        Litestar([forward], lifespan=[lifespan], logging_config=None, openapi_config=None),
        host="127.0.0.1",
        port=int(sys.argv[1]),
        access_log=False,
        log_level="warning",
    )
