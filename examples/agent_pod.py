"""An agent's pod: serves JSON-RPC and announces itself. Needs aio-pika and aiohttp, and PODIUM_AMQP_URL.

AGENT_NAME=hello AGENTEX_DEPLOYMENT_ID=hello-v1 ACP_URL=http://127.0.0.1 ACP_PORT=8001 python -m examples.agent_pod

With PODIUM_AGENT_KEY, from `podium agents key NAME`, its messages are signed.
With AGENT_INSTANCE_ID, several pods of one version can run. Each says goodbye when it is stopped by SIGTERM.
"""

import asyncio
import hmac
import json
import os
import signal
from datetime import UTC, datetime
from typing import Any
from uuid import uuid4

from aio_pika import DeliveryMode, Message, connect
from aio_pika.exceptions import AMQPError
from aiohttp import web

INSTANCE_ID = os.environ.get("AGENT_INSTANCE_ID")


def announcement(name: str, deployment_id: str) -> Message:
    """The announcement of this version. Retries send the same message, with the same id."""
    body: dict[str, Any] = {
        "name": name,
        "acp_url": f"{os.environ['ACP_URL']}:{os.environ['ACP_PORT']}",
        "description": "Says hello, and which version says it.",
        "message_id": str(uuid4()),
        "registered_at": datetime.now(UTC).isoformat(),
        "registration_metadata": {"deployment_id": deployment_id, "docker_image": f"registry/hello:{deployment_id}"},
    }
    if INSTANCE_ID is not None:
        body["registration_metadata"]["instance_id"] = INSTANCE_ID
    return signed(body)


def goodbye(name: str, deployment_id: str) -> Message:
    """The goodbye of this instance: it gets no further calls."""
    body = {
        "kind": "deregister",
        "name": name,
        "deployment_id": deployment_id,
        "instance_id": INSTANCE_ID,
        "message_id": str(uuid4()),
        "registered_at": datetime.now(UTC).isoformat(),
    }
    return signed(body)


def signed(body: dict[str, Any]) -> Message:
    """The message of this body, signed if there is a key."""
    content = json.dumps(body).encode()
    headers = {}
    if key := os.environ.get("PODIUM_AGENT_KEY"):
        digest = hmac.new(key.encode(), f"{body['message_id']}\n".encode() + content, "sha256").hexdigest()
        headers["x-podium-signature"] = f"v1={digest}"
    return Message(content, headers=dict(headers), delivery_mode=DeliveryMode.PERSISTENT)


async def publish(message: Message, name: str) -> None:
    """Publish until the broker confirms. `mandatory` turns a missing queue into an error."""
    while True:
        try:
            async with await connect(os.environ["PODIUM_AMQP_URL"], timeout=5) as connection:
                channel = await connection.channel(on_return_raises=True)
                exchange = await channel.get_exchange("podium.registrations")
                async with asyncio.timeout(5):
                    await exchange.publish(message, f"agent.{name}", mandatory=True)
        except (AMQPError, OSError):
            await asyncio.sleep(1)
        else:
            return


async def main() -> None:
    """Start the server, then announce it, so the address works as soon as Podium knows it."""
    name, deployment_id = os.environ["AGENT_NAME"], os.environ["AGENTEX_DEPLOYMENT_ID"]

    async def rpc(request: web.Request) -> web.Response:
        call = await request.json()
        return web.json_response({"jsonrpc": "2.0", "id": call.get("id"), "result": f"Hello from {deployment_id}."})

    async def healthy(_: web.Request) -> web.Response:
        return web.Response(text="ok")

    app = web.Application()
    app.add_routes([web.post("/api", rpc), web.get("/healthz", healthy)])
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", int(os.environ["ACP_PORT"])).start()
    await publish(announcement(name, deployment_id), name)
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    await stop.wait()
    if INSTANCE_ID is not None:
        await publish(goodbye(name, deployment_id), name)
    await runner.cleanup()  # after the calls in flight


if __name__ == "__main__":
    asyncio.run(main())
