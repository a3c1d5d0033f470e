"""A program that runs private servers until it is stopped, like `podium up` without the rest of Podium.

It prints both addresses when the servers accept clients. It needs the standard library alone, so that the Python of any
account can run it.
"""

import asyncio
import json
import sys
from pathlib import Path

from podium.servers import private_servers


async def run_servers(data_dir: Path) -> None:
    """Until cancelled, or until a server ends."""
    async with private_servers(data_dir, durable=False) as servers:
        sys.stdout.write(json.dumps({"database_url": servers.database_url, "amqp_url": servers.amqp_url}) + "\n")
        sys.stdout.flush()
        raise await servers.wait_for_failure()


if __name__ == "__main__":
    try:
        asyncio.run(run_servers(Path(sys.argv[1])))
    except KeyboardInterrupt:
        sys.exit(130)
