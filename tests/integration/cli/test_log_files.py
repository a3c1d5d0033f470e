"""The logs that `podium up` keeps."""

import asyncio
from datetime import timedelta
from pathlib import Path

from podium.local.log_files import keep_bounded
from podium.servers.process import Command, Launch, Surroundings, start
from tests.support.waiting import eventually

CHATTER = 'while :; do echo "one more line of a log"; done'


async def test_a_log_that_grows_is_turned_over_while_its_program_goes_on_writing(tmp_path: Path) -> None:
    """Log and predecessor stay bounded, however much is written."""
    log, older = tmp_path / "chatter.log", tmp_path / "chatter.log.1"
    program = await start(Launch(Command(["sh", "-c", CHATTER], {}, tmp_path)), Surroundings(None, log))
    keeper = asyncio.create_task(keep_bounded(tmp_path, 100_000, timedelta(milliseconds=20)))
    try:
        turned: set[float] = set()

        async def turned_over_twice() -> bool:
            if older.exists():
                turned.add(older.stat().st_mtime)
            return len(turned) > 1

        await eventually(turned_over_twice, "the log is turned over twice")
    finally:
        await program.stop()
        keeper.cancel()
    assert older.stat().st_size >= 100_000
    assert b"\0" not in log.read_bytes()
