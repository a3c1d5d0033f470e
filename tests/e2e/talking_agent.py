"""An agent in its own process: it answers at once, or streams without end for calls that contain `stream`.

Argument: the port that it listens on.
"""

import asyncio
import sys

from aiohttp import web

PIECE = b"tick\n"
PAUSE_SECONDS = 0.02


async def answer(request: web.BaseRequest) -> web.StreamResponse:
    """One call."""
    if b"stream" not in await request.read():
        return web.json_response({"jsonrpc": "2.0", "id": 1, "result": "at once"})
    response = web.StreamResponse(headers={"content-type": "text/event-stream"})
    await response.prepare(request)
    while True:
        await response.write(PIECE)
        await asyncio.sleep(PAUSE_SECONDS)


async def main(port: int) -> None:
    """Answer until the process ends."""
    runner = web.ServerRunner(web.Server(answer, handler_cancellation=True))
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", port).start()
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1])))
