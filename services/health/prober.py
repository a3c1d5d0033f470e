"""The health probe of a pod: one GET of its health page."""

import asyncio
import errno
import os
import re
import ssl
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from datetime import timedelta
from uuid import UUID

import aiohttp
from pydantic_core import from_json
from yarl import URL

from services.domain.health_policy import ProbeOutcome
from services.egress import Denied, EgressRules, Server, open_connector
from services.errors import DestinationDenied
from services.settings import Settings

# A health page needs far less. The prober does not read beyond this.
BODY_MAX_BYTES = 16 * 1024
UP_WITHOUT_HEALTH_PAGE = (404, 405)
USER_AGENT = "podium-probe"
# The prober's own machine or network refuses: no descriptor, no memory, no local address or port, no route, a local
# firewall. The pod never saw the probe.
OWN_ERRORS = frozenset(
    {
        errno.EMFILE,
        errno.ENFILE,
        errno.ENOMEM,
        errno.ENOBUFS,
        errno.EADDRINUSE,
        errno.EADDRNOTAVAIL,
        errno.EAFNOSUPPORT,
        errno.ENETDOWN,
        errno.ENETUNREACH,
        errno.EHOSTDOWN,
        errno.EHOSTUNREACH,
        errno.EACCES,
        errno.EPERM,
    }
)
_ERROR_NUMBER = re.compile(r"\[Errno (\d+)\]")
# What is shown of the id in a health page: the verdict is stored, and people read it.
_SHOWN_ID = re.compile(r"[!-~]{1,64}")
# A time limit that is noticed later than this was not noticed by a process that runs: it was stopped, or starved.
LATEST_NOTICE_SECONDS = 2.0


class Prober:
    """Probes pods over HTTP. Both the API and the janitor use it."""

    def __init__(self, session: aiohttp.ClientSession, rules: EgressRules) -> None:
        self._session = session
        self._rules = rules

    async def ask(self, address: str, agent_id: UUID, time_limit: timedelta) -> str | None:
        """The reason why the probe of this address failed; None if a healthy pod of the agent answered."""
        return (await self.probe(address, agent_id, time_limit)).reason

    async def probe(self, address: str, agent_id: UUID, time_limit: timedelta) -> ProbeOutcome:
        """Probe this address. The outcome is unknown if this prober could not do it, whatever the pod's state."""
        loop = asyncio.get_running_loop()
        began, limit = loop.time(), time_limit.total_seconds()
        try:
            url = URL(address, encoded=True)
            self._rules.check_host(url.raw_host or "")
            async with asyncio.timeout(limit) as timer:
                async with self._session.get(url, allow_redirects=False) as response:
                    return outcome_of(response.status, await _body(response, timer.when() or 0), agent_id)
        except TimeoutError:
            if loop.time() - began > limit + LATEST_NOTICE_SECONDS:
                return ProbeOutcome("unknown", "the prober did not run")
            return ProbeOutcome("failed", f"no answer within {limit:g} s")
        except (DestinationDenied, aiohttp.ClientError, OSError, ValueError) as error:
            return _outcome_of_error(error)


@asynccontextmanager
async def open_prober(settings: Settings, *own: Server, concurrency: int = 0) -> AsyncGenerator[Prober, None]:
    """A prober under the egress rules of the gateway. It follows no redirects and keeps no cookies or connections."""
    async with (
        open_connector(settings, *own, limit=concurrency, force_close=True) as connector,
        aiohttp.ClientSession(
            connector=connector,
            cookie_jar=aiohttp.DummyCookieJar(),
            trust_env=False,
            auto_decompress=False,
            headers={"User-Agent": USER_AGENT},
            timeout=aiohttp.ClientTimeout(total=None),  # each probe sets its own time limit
        ) as session,
    ):
        yield Prober(session, EgressRules.of(settings))


def outcome_of(status: int, body: bytes, agent_id: UUID) -> ProbeOutcome:
    """What this response means: answered if it is healthy and names no other agent, else failed."""
    if not (200 <= status < 300 or status in UP_WITHOUT_HEALTH_PAGE):  # noqa: PLR2004 - HTTP
        return ProbeOutcome("failed", f"its health page answers with status {status}")
    named = _agent_named_in(body)
    if named is not None and named != str(agent_id):
        shown = named if _SHOWN_ID.fullmatch(named) else "whose id is not printable"
        return ProbeOutcome("failed", f"the pod there belongs to another agent, {shown}", other_agent=True)
    return ProbeOutcome("answered")


def _outcome_of_error(error: Exception) -> ProbeOutcome:
    if isinstance(error, DestinationDenied):
        return ProbeOutcome("unknown", error.message)
    if isinstance(error, aiohttp.ClientConnectorDNSError):
        return ProbeOutcome("unknown", "its host's name cannot be resolved")
    cause = error.os_error if isinstance(error, aiohttp.ClientConnectorError) else error
    if isinstance(cause, Denied):
        return ProbeOutcome("unknown", str(cause))
    is_own = isinstance(cause, OSError) and _is_own(cause)
    if isinstance(cause, OSError) and (is_own or isinstance(error, aiohttp.ClientConnectorError)):
        reason = f"cannot connect ({os.strerror(cause.errno) if cause.errno else type(cause).__name__})"
        return ProbeOutcome("unknown" if is_own else "failed", reason)
    return ProbeOutcome("failed", f"no valid answer ({type(error).__name__})")


def _is_own(error: OSError) -> bool:
    """Whether the error is the prober's own. The numbers of TLS errors are not those of the operating system."""
    if isinstance(error, ssl.SSLError):
        return False
    if error.errno is not None:
        return error.errno in OWN_ERRORS
    # A name with several addresses, whose errors differ: they are in the message only.
    numbers = [int(each) for each in _ERROR_NUMBER.findall(str(error))]
    return bool(numbers) and OWN_ERRORS.issuperset(numbers)


async def _body(response: aiohttp.ClientResponse, deadline: float) -> bytes:
    """The whole body; empty if it is too large or takes over half of the remaining time. The status decides then."""
    loop = asyncio.get_running_loop()
    body = bytearray()
    try:
        async with asyncio.timeout_at(loop.time() + (deadline - loop.time()) / 2):
            async for chunk in response.content.iter_chunked(BODY_MAX_BYTES):
                body += chunk
                if len(body) > BODY_MAX_BYTES:
                    return b""
    except (TimeoutError, aiohttp.ClientError):
        return b""
    return bytes(body)


def _agent_named_in(body: bytes) -> str | None:
    """`agent_id` of a JSON body, if it is a non-empty string."""
    try:
        agent_id = from_json(body).get("agent_id")
    except (ValueError, AttributeError):
        return None
    return agent_id if isinstance(agent_id, str) and agent_id else None
