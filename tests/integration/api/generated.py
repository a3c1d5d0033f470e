"""Requests that Schemathesis generates from the OpenAPI document, valid and invalid."""

import asyncio
import sys
from pathlib import Path

from tests.integration.api.client import Api

CONFIG = Path(__file__).with_name("schemathesis.toml")
SEED = 3
RUN_SECONDS = 110.0


async def generated_requests(api: Api, *options: str, folder: Path, seconds: float = RUN_SECONDS) -> str:
    """Send them and return the report. Asserts that each answer is as documented."""
    run = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "schemathesis.cli", "--config-file", str(CONFIG), "run", "--no-color"),
        *("--seed", str(SEED), "--no-shrink", "--continue-on-failure", "--request-timeout", "5"),
        *(*options, f"{api.url}/openapi.json"),
        cwd=folder,  # for its cache
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    try:
        printed, _ = await asyncio.wait_for(run.communicate(), seconds)
    finally:
        if run.returncode is None:
            run.kill()
            await run.wait()
    report = printed.decode()
    assert run.returncode == 0, report
    return report
