"""What stands before the APIs in the clients' programs; works with the clients of httpx and of httpx2 alike."""

import asyncio
import json
from itertools import cycle
from urllib.parse import urlsplit

DEADLINE_SECONDS = 30


class LoadBalancer:
    """Sends each request to the next of these addresses (none: where it goes anyway) and keeps a journal."""

    def __init__(self, *addresses):
        self.journal = []
        self._addresses = cycle([urlsplit(address) for address in addresses]) if addresses else None
        self.hooks = {"request": [self._send], "response": [self._receive]}

    async def _send(self, request):
        if self._addresses is not None:
            address = next(self._addresses)
            request.url = request.url.copy_with(host=address.hostname, port=address.port)
        sent = [(name.lower(), value) for name, value in request.headers.multi_items() if name.startswith("mcp-")]
        entry = {"method": request.method, "api": f"{request.url.host}:{request.url.port}", "sent": sent}
        request.extensions["entry"] = entry
        self.journal.append(entry)

    async def _receive(self, response):
        response.request.extensions["entry"] |= {
            "deployment": response.headers.get("x-podium-deployment-id"),
            "type": response.headers.get("content-type", "").partition(";")[0],
            "status": response.status_code,
        }

    async def settle(self):
        """Wait until each request, also one that the SDK makes by itself, has a response."""
        async with asyncio.timeout(DEADLINE_SECONDS):
            while any("status" not in entry for entry in self.journal):
                await asyncio.sleep(0.02)

    def exchanges(self):
        """The journal, sorted, without what differs between two conversations that are alike."""
        exchanges = []
        for entry in self.journal:
            sent = dict(entry["sent"])
            session = sent.pop("mcp-session-id", None)
            compared = {name: entry[name] for name in ("method", "type", "status")}
            exchanges.append({**compared, "sent": sent, "in_session": session is not None})
        return sorted(exchanges, key=json.dumps)
