"""The log files of `podium up`."""

import asyncio
from datetime import timedelta
from pathlib import Path

from podium.local.log_files import keep_bounded
from podium.servers.process import Command, Launch, Surroundings, start
from tests.support.waiting import eventually

CHATTER = 'while :; do echo "one more line of a log"; done'


async def test_a_growing_log_is_rotated_while_its_program_writes(tmp_path: Path) -> None:
    """The log and the rotated log stay bounded."""
    log, older = tmp_path / "chatter.log", tmp_path / "chatter.log.1"
    program = await start(Launch(Command(["sh", "-c", CHATTER], {}, tmp_path)), Surroundings(None, log))
    keeper = asyncio.create_task(keep_bounded(tmp_path, 100_000, timedelta(milliseconds=20)))
    try:
        rotated: set[float] = set()

        async def rotated_twice() -> bool:
            if older.exists():
                rotated.add(older.stat().st_mtime)
            return len(rotated) > 1

        await eventually(rotated_twice, "the log is rotated twice")
    finally:
        await program.stop()
        keeper.cancel()
    assert older.stat().st_size >= 100_000
    assert b"\0" not in log.read_bytes()
