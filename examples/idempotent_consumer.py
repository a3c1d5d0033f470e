"""A crash-safe consumer: commits the last sequence and the effect of an event in one SQLite transaction.

PODIUM_AMQP_URL=amqp://... CONSUMER_DB=cutovers.sqlite python -m examples.idempotent_consumer
"""

import asyncio
import json
import os
import sqlite3
from typing import Any

from aio_pika import connect_robust

QUEUE = "example.idempotent-consumer"
# Quorum queues drop messages over the delivery limit; RabbitMQ 4 defaults to 20. No crash loop reaches this one.
ARGUMENTS: dict[str, Any] = {"x-queue-type": "quorum", "x-delivery-limit": 1_000_000}
SCHEMA = """
CREATE TABLE IF NOT EXISTS seen (source TEXT PRIMARY KEY, sequence TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS cutovers (agent TEXT, generation INTEGER, deployment_id TEXT, cause TEXT);
"""
# Text order equals numeric order. Returns no row if the event is not greater than the last one of its source.
ADVANCE = """
INSERT INTO seen VALUES (:source, :sequence)
ON CONFLICT (source) DO UPDATE SET sequence = excluded.sequence WHERE excluded.sequence > seen.sequence
RETURNING sequence
"""


def apply(db: sqlite3.Connection, event: dict[str, Any]) -> bool:
    """Apply the event once: one row per promotion. Returns whether the event was new."""
    with db:  # commits both or neither
        new = bool(db.execute(ADVANCE, event).fetchall())
        if new and event["type"] == "podium.deployment.promoted.v1":
            row = (event["agentname"], event["generation"], event["subject"], event["data"]["cause"])
            db.execute("INSERT INTO cutovers VALUES (?, ?, ?, ?)", row)
    return new


async def main() -> None:
    """Acknowledge after the commit, so the broker redelivers an event whose commit is lost."""
    db = sqlite3.connect(os.environ["CONSUMER_DB"])
    db.executescript(SCHEMA)
    async with await connect_robust(os.environ["PODIUM_AMQP_URL"]) as connection:
        channel = await connection.channel()
        await channel.set_qos(prefetch_count=100)
        queue = await channel.declare_queue(QUEUE, durable=True, arguments=ARGUMENTS)
        await queue.bind("podium.events", "#")
        async with queue.iterator() as messages:
            async for message in messages:
                apply(db, json.loads(message.body))
                await message.ack()


if __name__ == "__main__":
    asyncio.run(main())
