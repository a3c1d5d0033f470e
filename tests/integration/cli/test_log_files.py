"""The log files of `podium up`."""

import asyncio
from datetime import timedelta
from pathlib import Path

from podium.local.log_files import rotate_logs
from podium.servers.process import Command, Launch, ProcessContext, start
from tests.support.waiting import eventually

CHATTER = 'while :; do echo "one more line of a log"; done'


async def test_a_growing_log_is_rotated_while_its_program_writes(tmp_path: Path) -> None:
    """The log and the rotated log stay bounded, and the program keeps its open file."""
    log, older = tmp_path / "chatter.log", tmp_path / "chatter.log.1"
    program = await start(Launch(Command(["sh", "-c", CHATTER], {}, tmp_path)), ProcessContext(None, log))
    rotation = asyncio.create_task(rotate_logs(tmp_path, 100_000, timedelta(milliseconds=20)))
    try:
        rotations: set[float] = set()

        async def rotated_twice() -> bool:
            if older.exists():
                rotations.add(older.stat().st_mtime)
            return len(rotations) > 1

        await eventually(rotated_twice, "the log is rotated twice")
    finally:
        await program.stop()
        rotation.cancel()
    assert older.stat().st_size >= 100_000
    assert b"\0" not in log.read_bytes()
