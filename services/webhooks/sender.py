"""One delivery: a POST under the egress rules for webhooks, and what its outcome means."""

import asyncio
import os
import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from typing import Literal

import aiohttp
from yarl import URL

from contracts.events import CONTENT_TYPE
from services.egress import Denied, EgressRules, Server, open_connector
from services.errors import DestinationDenied
from services.settings import Settings
from services.tls import certificate_problem
from services.webhooks.signing import signature_headers

Outcome = Literal["accepted", "refused", "failed", "denied"]

GONE = 410
# Of the body only this is read, and only so long: the status has decided.
BODY_MAX_BYTES = 2048
BODY_SECONDS = 1.0
DETAIL_MAX_LENGTH = 200
USER_AGENT = "podium-webhook"
# Of the time limit of a delivery.
_CONNECT_SHARE = 1 / 3


@dataclass(frozen=True, slots=True)
class Delivery:
    """What is sent, and where to. Each secret makes a signature."""

    url: str = field(repr=False)
    event_id: str
    body: bytes = field(repr=False)
    secrets: tuple[bytes, ...] = field(repr=False)


@dataclass(frozen=True, slots=True)
class Attempt:
    """The outcome of one delivery: accepted with 2xx, refused with another status, failed, or not allowed.

    `detail` is the beginning of the answer's body, or why there is no answer. `retry_after` is what the receiver asks.
    """

    outcome: Outcome
    detail: str
    seconds: float
    status: int | None = None
    retry_after: timedelta | None = None


class WebhookSender:
    """Sends deliveries. It follows no redirects, uses no proxy, and keeps no cookies or connections."""

    def __init__(self, session: aiohttp.ClientSession, rules: EgressRules, limit: timedelta) -> None:
        self._session = session
        self._rules = rules
        self._limit = limit.total_seconds()

    async def send(self, delivery: Delivery) -> Attempt:
        """Send it once. Never takes longer than the time limit and a second."""
        began = time.monotonic()

        def ended(outcome: Outcome, detail: str) -> Attempt:
            return Attempt(outcome, printable(detail), time.monotonic() - began)

        try:
            url = URL(delivery.url, encoded=True)
            self._rules.check_host(url.raw_host or "")
            async with asyncio.timeout(self._limit):
                response = await self._session.post(
                    url, data=delivery.body, headers=_headers(delivery), allow_redirects=False
                )
            return await _attempt_of(response, began)
        except aiohttp.ConnectionTimeoutError:
            return ended("failed", "it does not accept a connection in time")
        except TimeoutError:
            return ended("failed", f"no answer within {self._limit:g} s")
        except (DestinationDenied, aiohttp.ClientError, OSError, ValueError) as error:
            return ended(*_failure_of(error))


@asynccontextmanager
async def open_webhook_sender(settings: Settings, *own: Server) -> AsyncGenerator[WebhookSender, None]:
    """A sender. `own` lists servers of Podium, beyond those in the settings, which are never dialled."""
    rules, limit = EgressRules.of_webhooks(settings), settings.webhook_timeout.total_seconds()
    async with (
        open_connector(settings, *own, rules=rules, limit=0, force_close=True) as connector,
        aiohttp.ClientSession(
            connector=connector,
            cookie_jar=aiohttp.DummyCookieJar(),
            trust_env=False,
            auto_decompress=False,
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=limit * _CONNECT_SHARE),
        ) as session,
    ):
        yield WebhookSender(session, rules, settings.webhook_timeout)


def printable(text: str) -> str:
    """The first 200 printable characters."""
    return "".join(each for each in text[: BODY_MAX_BYTES * 2] if each.isprintable())[:DETAIL_MAX_LENGTH]


def retry_after_of(value: str | None, now: datetime) -> timedelta | None:
    """The wait in a `retry-after` header (RFC 9110, section 10.2.3); None without a valid one."""
    if value is None:
        return None
    with suppress(ValueError, TypeError, OverflowError):
        if value.strip().isascii() and value.strip().isdecimal():
            return timedelta(seconds=int(value))
        at = parsedate_to_datetime(value)
        return max(at.replace(tzinfo=at.tzinfo or UTC) - now, timedelta(0))
    return None


def _headers(delivery: Delivery) -> dict[str, str]:
    return {
        "content-type": CONTENT_TYPE,
        "user-agent": USER_AGENT,
        "accept-encoding": "identity",
        **signature_headers(delivery.event_id, int(time.time()), delivery.body, delivery.secrets),
    }


async def _attempt_of(response: aiohttp.ClientResponse, began: float) -> Attempt:
    """What the head of an answer means. Its body is for people, and a bad one changes nothing."""
    seconds = time.monotonic() - began
    detail = await _beginning(response)
    is_accepted = 200 <= response.status < 300  # noqa: PLR2004 - HTTP
    return Attempt(
        "accepted" if is_accepted else "refused",
        printable(detail.decode("utf-8", "replace")),
        seconds,
        response.status,
        retry_after_of(response.headers.get("retry-after"), datetime.now(UTC)),
    )


async def _beginning(response: aiohttp.ClientResponse) -> bytes:
    """The first bytes of the body that arrive soon; then the connection is closed."""
    body = bytearray()
    try:
        async with asyncio.timeout(BODY_SECONDS):
            async for chunk in response.content.iter_any():
                body += chunk[: BODY_MAX_BYTES - len(body)]
                if len(body) >= BODY_MAX_BYTES:
                    break
    except (TimeoutError, aiohttp.ClientError, OSError, ValueError):
        pass
    finally:
        response.close()
    return bytes(body)


def _failure_of(error: Exception) -> tuple[Outcome, str]:
    cause = error.os_error if isinstance(error, aiohttp.ClientConnectorError) else error
    if isinstance(error, DestinationDenied) or isinstance(cause, Denied):
        return "denied", "its address may not be dialled: see PODIUM_WEBHOOK_DIAL_NETWORKS, _HOSTS and _PORTS"
    if isinstance(error, aiohttp.ClientConnectorDNSError):
        return "failed", "its host's name cannot be resolved"
    if (problem := certificate_problem(error)) is not None:
        return "failed", problem
    if isinstance(error, aiohttp.ClientConnectorError) and cause is not None:
        why = os.strerror(cause.errno) if isinstance(cause, OSError) and cause.errno else type(cause).__name__
        return "failed", f"cannot connect ({why})"
    return "failed", f"no valid answer ({type(error).__name__})"
