"""An agent that answers each call after a set time.

Arguments: the port that it listens on, and the milliseconds.
"""

import asyncio
import sys

from aiohttp import web


async def main(port: int, seconds: float) -> None:
    """Answer until the process ends."""

    async def answer(_: web.Request) -> web.Response:
        await asyncio.sleep(seconds)
        return web.json_response({"jsonrpc": "2.0", "id": 1, "result": "Hello."})

    app = web.Application()
    app.router.add_post("/api", answer)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", port).start()
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]), int(sys.argv[2]) / 1000))
