"""A pod's announcement: made from what is known of it, and sent under one id until it is confirmed."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Self
from uuid import uuid4

import typer
from pydantic import ValidationError

from contracts.messages import RegisterAgent
from podium.cli.durations import short
from podium.cli.exits import ExitCode, Failure
from services.cancellation import lost_as
from workers.retry import backoff

# Longer than any healthy broker takes; a hanging connection is tried anew.
ATTEMPT_SECONDS = 10


@dataclass(frozen=True)
class Told:
    """What became of an announcement, as the worker that decided it says."""

    outcome: str
    reason: str | None = None
    message: str | None = None


# Waits so many seconds for what becomes of an announcement; None if nobody says it, or not in time.
Ask = Callable[[float], Awaitable[Told | None]]
# Returns once the announcement is confirmed.
Send = Callable[[RegisterAgent], Awaitable[Ask | None]]

# Where people set what a field of the announcement holds.
_SOURCES = {
    "name": "AGENT_NAME or --name",
    "acp_url": "ACP_URL or --acp-url (with ACP_PORT)",
    "description": "AGENT_DESCRIPTION or --description",
    "acp_type": "ACP_TYPE or --acp-type",
    "agent_input_type": "AGENT_INPUT_TYPE or --input-type",
    "registration_metadata.deployment_id": "AGENTEX_DEPLOYMENT_ID or --deployment",
    "registration_metadata.docker_image": "AGENT_IMAGE or --image",
    "registration_metadata.rpc_path": "--rpc-path",
    "registration_metadata.health_path": "--health-path",
    "registration_metadata.error_style": "--error-style",
}


class NotSent(Exception):
    """The announcement was not confirmed; the text says why and what to do. It is tried again."""


@dataclass(frozen=True)
class Pod:
    """What a pod has to say of itself, checked."""

    fields: Mapping[str, Any]

    @classmethod
    def of(
        cls,
        *,
        name: str | None,
        acp_url: str | None,
        acp_port: int | None,
        metadata: Mapping[str, Any],
        **more: str | None,
    ) -> Self:
        """The pod that these describe. Raises `Failure` that names the variable to set."""
        for value, field in ((name, "name"), (acp_url, "acp_url")):
            if not value:
                raise Failure(f"Nothing says the pod's {field}: set {_SOURCES[field]}.", ExitCode.USAGE)
        address = f"{str(acp_url).rstrip('/')}:{acp_port}" if acp_port is not None else acp_url
        facts = {key: value for key, value in metadata.items() if value is not None}
        pod = cls(
            {
                "name": name,
                "acp_url": address,
                **{key: value for key, value in more.items() if value is not None},
                **({"registration_metadata": facts} if facts else {}),
            }
        )
        try:
            pod.announcement()
        except ValidationError as error:
            raise _invalid(error) from None
        return pod

    def announcement(self) -> RegisterAgent:
        """An announcement of now, under an id of its own."""
        return RegisterAgent.model_validate({**self.fields, "message_id": uuid4(), "registered_at": datetime.now(UTC)})


def facts_of(pairs: Sequence[str]) -> dict[str, str]:
    """Facts given as NAME=VALUE. Raises `typer.BadParameter`."""
    facts = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals or not name:
            raise typer.BadParameter(f"{pair!r} is not NAME=VALUE.", param_hint="--fact")
        facts[name] = value
    return facts


async def until_confirmed(
    send: Send, message: RegisterAgent, limit: timedelta | None, say: Callable[[str], None]
) -> Ask | None:
    """Send the message, the same each time, until somebody has confirmed it; how to ask what became of it.

    Says why it has not worked, once for each reason. Raises `Failure` after the limit.
    """
    last, attempt = "", 0
    try:
        async with asyncio.timeout(limit.total_seconds() if limit else None):
            while True:
                try:
                    return await _attempt(send, message)
                except NotSent as error:
                    attempt += 1
                    if str(error) != last:
                        last = str(error)
                        say(f"{last} Trying again ...")
                    await asyncio.sleep(backoff(attempt))
    except TimeoutError:
        assert limit is not None  # without one nothing times out here
        raise Failure(
            f"{message.name} was not announced within {short(limit)}. {last}".rstrip(), ExitCode.TIMED_OUT
        ) from None


async def _attempt(send: Send, message: RegisterAgent) -> Ask | None:
    try:
        with lost_as(NotSent("The connection to the broker was lost.")):
            async with asyncio.timeout(ATTEMPT_SECONDS) as patience:
                return await send(message)
    except TimeoutError:
        if not patience.expired():
            raise
        raise NotSent(f"No confirmation came within {ATTEMPT_SECONDS} s.") from None


def _invalid(error: ValidationError) -> Failure:
    problem = error.errors(include_url=False, include_input=False)[0]
    field = ".".join(str(part) for part in problem["loc"])
    message = problem["msg"].removeprefix("Value error, ")
    return Failure(f"{_SOURCES.get(field, field)} is not valid: {message}.", ExitCode.USAGE)
