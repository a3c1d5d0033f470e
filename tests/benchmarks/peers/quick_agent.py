"""An agent that costs as little as one can: it answers every request with the same bytes.

Takes the port that it listens on.
"""

import asyncio
import sys
from typing import cast

import uvloop

BODY = b'{"jsonrpc":"2.0","id":1,"result":{"content":"Hello."}}'
ANSWER = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%b" % (len(BODY), BODY)
# What the load sends ends so; a request that comes in two pieces is answered once.
END_OF_REQUEST = b"}"


class Agent(asyncio.Protocol):
    """One connection."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the way back."""
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        """Answer once the request is whole."""
        if data.endswith(END_OF_REQUEST):
            self._transport.write(ANSWER)


async def main(port: int) -> None:
    """Answer until the process ends."""
    server = await asyncio.get_running_loop().create_server(Agent, "127.0.0.1", port)
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(main(int(sys.argv[1])))
