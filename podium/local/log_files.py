"""The log files of a data directory: their paths, their last lines, and a limit on their size."""

import asyncio
import os
import shutil
from datetime import timedelta
from pathlib import Path

LOGS = "logs"
TAIL_LINES = 15
MAX_BYTES = 32 * 2**20
CHECK_INTERVAL = timedelta(seconds=30)


def log_folder(data_dir: Path) -> Path:
    """The folder with all logs of this data directory."""
    return data_dir.resolve() / LOGS


def log_of(data_dir: Path, name: str) -> Path:
    """The file with the output of this part, such as `api`."""
    return log_folder(data_dir) / f"{name}.log"


def last_lines(log: Path) -> str:
    """The last TAIL_LINES lines, for an error message."""
    return "\n".join(log.read_text(errors="replace").splitlines()[-TAIL_LINES:])


async def rotate_logs(folder: Path, max_bytes: int = MAX_BYTES, interval: timedelta = CHECK_INTERVAL) -> None:
    """Until cancelled, move the content of each log above `max_bytes` to `<name>.log.1`, replacing the older file."""
    while True:
        await asyncio.to_thread(_rotate_large, folder, max_bytes)
        await asyncio.sleep(interval.total_seconds())


def _rotate_large(folder: Path, max_bytes: int) -> None:
    for log in folder.glob("*.log"):
        if log.stat().st_size > max_bytes:
            # The writers keep the file open in append mode: after the truncation they continue at its start.
            copy = log.with_suffix(".log.new")
            shutil.copyfile(log, copy)
            copy.replace(log.with_suffix(".log.1"))
            os.truncate(log, 0)
