"""The limit of the database: one row per commit, from CONCURRENCY sessions, each with its own row.

Makes COUNT commits and prints the seconds that they took.
"""

import asyncio
import os
import sys
from time import perf_counter

import asyncpg
import uvloop


async def main(concurrency: int, count: int) -> None:
    """Commit `count` single-row updates."""
    pool = await asyncpg.create_pool(os.environ["PEER_DATABASE_URL"], min_size=concurrency, max_size=concurrency)
    async with pool:
        await pool.execute("CREATE TABLE IF NOT EXISTS peer_rows (id int PRIMARY KEY, n int NOT NULL)")
        await pool.execute(
            "INSERT INTO peer_rows SELECT id, 0 FROM generate_series(1, $1) AS id ON CONFLICT DO NOTHING", concurrency
        )

        async def work(row: int) -> None:
            async with pool.acquire() as connection:
                for _ in range(count // concurrency):
                    await connection.execute("UPDATE peer_rows SET n = n + 1 WHERE id = $1", row)

        began = perf_counter()
        await asyncio.gather(*(work(row) for row in range(1, concurrency + 1)))
        sys.stdout.write(f"{perf_counter() - began}\n")


if __name__ == "__main__":
    uvloop.run(main(int(sys.argv[1]), int(sys.argv[2])))
