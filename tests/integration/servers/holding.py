"""A program that holds private servers until it is ended: what `podium up` does, reduced to that.

It prints the two addresses when both servers answer. Standard library only, so that any account's Python can run it.
"""

import asyncio
import json
import sys
from pathlib import Path

from podium.servers import private_servers


async def hold(data_dir: Path) -> None:
    """Until cancelled."""
    async with private_servers(data_dir, durable=False) as servers:
        sys.stdout.write(json.dumps({"database_url": servers.database_url, "amqp_url": servers.amqp_url}) + "\n")
        sys.stdout.flush()
        raise await servers.wait_for_failure()


if __name__ == "__main__":
    try:
        asyncio.run(hold(Path(sys.argv[1])))
    except KeyboardInterrupt:
        sys.exit(130)
