"""The logs that `podium up` keeps, bounded: whoever leaves it running for months is not to run out of disk."""

import asyncio
import os
import shutil
from datetime import timedelta
from pathlib import Path

LARGEST_BYTES = 32 * 2**20
LOOK_INTERVAL = timedelta(seconds=30)


async def keep_bounded(folder: Path, largest: int = LARGEST_BYTES, interval: timedelta = LOOK_INTERVAL) -> None:
    """Until cancelled: a log that has grown beyond `largest` is moved to `<name>.log.1`, in place of an older one."""
    while True:
        await asyncio.to_thread(_turn_over, folder, largest)
        await asyncio.sleep(interval.total_seconds())


def _turn_over(folder: Path, largest: int) -> None:
    for log in folder.glob("*.log"):
        if log.stat().st_size > largest:
            # Its writers keep it open to append: they go on at the start of the same file.
            copy = log.with_suffix(".log.new")
            shutil.copyfile(log, copy)
            copy.replace(log.with_suffix(".log.1"))
            os.truncate(log, 0)
