"""The limits of the database: what it does for programs that do nothing else, with raw asyncpg.

Reads jobs from standard input, one JSON object per line: `kind` (a key of `STATEMENTS`), `connections` and `seconds`.
Prints for each job a JSON object with `seconds`, `answers`, `failures` (always 0), `cpu_seconds` of this process, and
the percentiles `p50_ms` and `p99_ms` of a statement. Ends with its input.
"""

import asyncio
import json
import os
import sys
from time import perf_counter, process_time
from typing import Any

import asyncpg
import uvloop

Connection = Any  # asyncpg's connections have a type parameter at type checking only

ROWS = 200
FILL = f"""
CREATE TABLE IF NOT EXISTS peer_rows (id int PRIMARY KEY, n int NOT NULL, facts text NOT NULL);
INSERT INTO peer_rows SELECT id, 0, repeat('x', 200) FROM generate_series(1, {ROWS}) AS id ON CONFLICT DO NOTHING
"""
STATEMENTS = {
    "commits": "UPDATE peer_rows SET n = n + 1 WHERE id = $1",  # a transaction by itself
    "reads": "SELECT * FROM peer_rows WHERE id = $1",
    "reads of 50": "SELECT * FROM peer_rows WHERE id > $1 % 100 ORDER BY id LIMIT 50",
}


class Limits:
    """The connections of all jobs; each connection has its own row."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._opened: list[Connection] = []

    async def run(self, job: dict[str, Any]) -> dict[str, float]:
        """Do one job; returns the counts."""
        while len(self._opened) < job["connections"]:
            self._opened.append(await asyncpg.connect(self._url))
            if len(self._opened) == 1:
                await self._opened[0].execute(FILL)
        statement, milliseconds = STATEMENTS[job["kind"]], list[float]()
        began, cpu = perf_counter(), process_time()

        async def work(connection: Connection, row: int) -> None:
            sent_at = perf_counter()
            while sent_at < began + job["seconds"]:
                await connection.fetch(statement, row)
                now = perf_counter()
                milliseconds.append((now - sent_at) * 1000)
                sent_at = now

        used = self._opened[: job["connections"]]
        await asyncio.gather(*(work(connection, row) for row, connection in enumerate(used, 1)))
        seconds, cpu_seconds = perf_counter() - began, process_time() - cpu
        count = len(milliseconds)
        milliseconds.sort()
        percentiles = {"p50_ms": milliseconds[count // 2], "p99_ms": milliseconds[count * 99 // 100]}
        return {"seconds": seconds, "answers": count, "failures": 0, "cpu_seconds": cpu_seconds, **percentiles}


async def main() -> None:
    """Do the jobs in their order. Nothing else has to happen in this process while it waits for one."""
    limits = Limits(os.environ["PEER_DATABASE_URL"])
    for line in sys.stdin:
        sys.stdout.write(json.dumps(await limits.run(json.loads(line))) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    uvloop.run(main())
