"""An agent that uses as little time as possible: it answers every call with the same bytes, and every probe.

Argument: the port that it listens on.
"""

import asyncio
import sys
from typing import cast

import uvloop

BODY = b'{"jsonrpc":"2.0","id":1,"result":{"content":"Hello."}}'
ANSWER = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%b" % (len(BODY), BODY)
HEALTHY = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 2\r\n\r\n{}"
# The last byte of each call of the load program, so that a call in two parts gets one answer.
END_OF_CALL = b"}"
END_OF_PROBE = b"\r\n\r\n"


class Agent(asyncio.Protocol):
    """One connection."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Store the transport for the answers."""
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        """Answer when the request is complete."""
        if data.endswith(END_OF_CALL):
            self._transport.write(ANSWER)
        elif data.startswith(b"GET ") and data.endswith(END_OF_PROBE):
            self._transport.write(HEALTHY)


async def main(port: int) -> None:
    """Answer until the process ends."""
    server = await asyncio.get_running_loop().create_server(Agent, "127.0.0.1", port)
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(main(int(sys.argv[1])))
