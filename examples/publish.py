"""Announces one version of an agent and exits: all that Podium requires of a pod. Needs aio-pika.

With PODIUM_AGENT_KEY, from `podium agents key NAME`, the announcement is signed.

PODIUM_AMQP_URL=amqp://... AGENT_NAME=hello AGENTEX_DEPLOYMENT_ID=hello-v1 ACP_URL=http://10.0.0.7:8000 \
python -m examples.publish
"""

import asyncio
import hmac
import json
import os
from datetime import UTC, datetime
from uuid import uuid4

from aio_pika import DeliveryMode, Message, connect
from aio_pika.exceptions import AMQPError


async def main() -> None:
    """Publish until the broker confirms. Retries send the same message, so Podium applies it once."""
    name = os.environ["AGENT_NAME"]
    body = {
        "name": name,
        "acp_url": os.environ["ACP_URL"],
        "message_id": str(uuid4()),
        "registered_at": datetime.now(UTC).isoformat(),
        "registration_metadata": {"deployment_id": os.environ["AGENTEX_DEPLOYMENT_ID"]},
    }
    content = json.dumps(body).encode()
    headers = {}
    if key := os.environ.get("PODIUM_AGENT_KEY"):
        digest = hmac.new(key.encode(), f"{body['message_id']}\n".encode() + content, "sha256").hexdigest()
        headers["x-podium-signature"] = f"v1={digest}"
    message = Message(
        content, headers=dict(headers), content_type="application/json", delivery_mode=DeliveryMode.PERSISTENT
    )
    while True:
        try:
            async with asyncio.timeout(10), await connect(os.environ["PODIUM_AMQP_URL"]) as connection:
                channel = await connection.channel(on_return_raises=True)  # mandatory has no effect without it
                exchange = await channel.get_exchange("podium.registrations")
                await exchange.publish(message, f"agent.{name}", mandatory=True)
        except (AMQPError, OSError) as error:
            print(f"Not announced yet, trying again: {error!r}", flush=True)  # noqa: T201 - its output
            await asyncio.sleep(1)
        else:
            print(f"Announced {name}.", flush=True)  # noqa: T201 - its output
            return


if __name__ == "__main__":
    asyncio.run(main())
