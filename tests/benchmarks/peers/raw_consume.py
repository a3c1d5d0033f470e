"""The upper limit: aio-pika receives messages and acknowledges many at once, without database and decoding.

Receives COUNT messages and prints the seconds from the first to the last.
"""

import os
import sys
from time import perf_counter

import aio_pika
import uvloop

PREFETCH = 400
ACKNOWLEDGE_EVERY = 200


async def main(count: int) -> None:
    """Handle `count` messages."""
    connection = await aio_pika.connect(os.environ["PODIUM_AMQP_URL"])
    async with connection:
        channel = await connection.channel()
        await channel.set_qos(prefetch_count=PREFETCH)
        queue = await channel.get_queue("podium.registrations", ensure=False)
        began, taken = 0.0, 0
        async with queue.iterator() as messages:
            async for message in messages:
                began = began or perf_counter()
                taken += 1
                if taken % ACKNOWLEDGE_EVERY == 0 or taken == count:
                    await message.ack(multiple=True)
                if taken == count:
                    break
    sys.stdout.write(f"{perf_counter() - began}\n")


if __name__ == "__main__":
    uvloop.run(main(int(sys.argv[1])))
