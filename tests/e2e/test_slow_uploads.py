"""Many callers that upload slowly: the memory of the API stays bounded, and other calls are answered."""

import asyncio
from contextlib import AsyncExitStack, suppress
from pathlib import Path

import aiohttp

from services.settings import Settings
from tests.integration.api.pods import running_pod
from tests.support.factories import a_body
from tests.support.forked_programs import NEW_PROCESS
from tests.support.processes import api_process

MIB = 1024 * 1024
UPLOADS = 120
# All but the last byte of a body.
SENT = 4 * MIB - 1
BUFFER_MIB = 32
SMALL_CALLS = 20
# Half of the uploads without Content-Length; what does not fit is refused, and its caller stops to send.
HEADS = (f"Content-Length: {4 * MIB}\r\n\r\n".encode(), b"Transfer-Encoding: chunked\r\n\r\n400000\r\n")


def resident_mib(port: int) -> float:
    """The resident memory of the process that was started for this port."""
    for status in Path("/proc").glob("[0-9]*/status"):
        try:
            if f"PODIUM_PORT={port}\0".encode() not in (status.parent / "environ").read_bytes():
                continue
            [line] = [each for each in status.read_text().splitlines() if each.startswith("VmRSS")]
        except (OSError, ValueError):
            continue
        if b"podium\0api" in (status.parent / "cmdline").read_bytes():
            return int(line.split()[1]) / 1024
    raise AssertionError(port)


async def test_slow_uploads_take_bounded_memory(settings: Settings, tmp_path: Path) -> None:
    """Nearly whole bodies of 4 MiB that never end, while small calls to another agent are answered."""
    limits = {**NEW_PROCESS, "PODIUM_REQUEST_BUFFER_BYTES": str(BUFFER_MIB * MIB)}
    async with (
        api_process(settings, tmp_path, **limits) as url,
        running_pod() as pod,
        aiohttp.ClientSession() as client,
        AsyncExitStack() as stack,
    ):
        for name in ("bot", "other"):
            async with client.post(f"{url}/agents/register", json=a_body(name, deployment_id=name, acp_url=pod.url)):
                pass
        port = int(url.rpartition(":")[2])
        before = resident_mib(port)

        async def slow_upload(number: int) -> None:
            _, writer = await asyncio.open_connection("127.0.0.1", port)
            stack.callback(writer.close)
            writer.write(b"POST /agents/name/bot/rpc HTTP/1.1\r\nHost: localhost\r\n" + HEADS[number % 2])
            writer.write(b"x" * SENT)
            with suppress(TimeoutError, ConnectionError):
                async with asyncio.timeout(15):
                    await writer.drain()

        async def small_call() -> int:
            async with client.post(f"{url}/agents/name/other/rpc", json={"id": 1}) as response:
                return response.status

        uploads = [asyncio.create_task(slow_upload(number)) for number in range(UPLOADS)]
        during = [await small_call() for _ in range(SMALL_CALLS)]
        await asyncio.gather(*uploads)
        grown = resident_mib(port) - before
        after = [await small_call() for _ in range(SMALL_CALLS)]
    assert set(during + after) == {200}
    # What the process holds at most, and about as much again for copies and the allocator.
    assert grown < 3 * BUFFER_MIB
