from datetime import timedelta
from typing import Any
from uuid import UUID

import pytest
import typer

from podium.cli import announcements
from podium.cli.announcements import NotConfirmed, Pod, PodMessage, parse_facts, send_until_confirmed
from podium.cli.exits import ExitCode, Failure


def a_pod(**fields: Any) -> Pod:
    """A pod of deployment v1."""
    known = {"name": "bot", "acp_url": "http://10.0.0.7", "acp_port": 8000, "metadata": {"deployment_id": "v1"}}
    return Pod.from_options(**{**known, **fields})


def test_an_announcement_has_only_the_fields_that_are_set() -> None:
    """A field that is not set is left out, so the stored value stays."""
    body = a_pod(description=None).announcement().model_dump(mode="json", exclude_unset=True)
    assert body.keys() == {"name", "acp_url", "registration_metadata", "message_id", "registered_at"}
    assert body["acp_url"] == "http://10.0.0.7:8000"
    assert body["registration_metadata"] == {"deployment_id": "v1"}


def test_a_legacy_agent_has_no_metadata_at_all() -> None:
    """The existing SDK sends it in this form."""
    assert a_pod(metadata={"branch": None}).announcement().registration_metadata is None


def test_each_announcement_is_a_new_message() -> None:
    """A sidecar's next announcement must not count as a repetition of the last one."""
    pod = a_pod()
    assert pod.announcement().message_id != pod.announcement().message_id


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"name": None}, "AGENT_NAME"),
        ({"acp_url": ""}, "ACP_URL"),
        ({"name": "Bad Name"}, "AGENT_NAME"),
        ({"acp_url": "10.0.0.7"}, "ACP_URL"),
        ({"acp_url": "http://10.0.0.7:8000"}, "ACP_URL"),  # beside ACP_PORT
        ({"acp_type": "magic"}, "ACP_TYPE"),
        ({"metadata": {"deployment_id": "no blanks"}}, "AGENTEX_DEPLOYMENT_ID"),
        ({"metadata": {"docker_image": ""}}, "AGENT_IMAGE"),
    ],
)
def test_an_error_names_the_variable_that_is_wrong(fields: dict[str, Any], named: str) -> None:
    """With the option, on one line."""
    with pytest.raises(Failure, match=named) as raised:
        a_pod(**fields)
    assert raised.value.code is ExitCode.USAGE
    assert "\n" not in raised.value.message


def test_facts_are_name_and_value() -> None:
    """The value can contain any character."""
    assert parse_facts(["a=b=c", "d="]) == {"a": "b=c", "d": ""}
    with pytest.raises(typer.BadParameter):
        parse_facts(["a"])


async def test_the_same_message_is_sent_until_it_is_confirmed(monkeypatch: pytest.MonkeyPatch) -> None:
    """All attempts have one message id. A cause is noted when it changes."""
    monkeypatch.setattr(announcements, "backoff", lambda _: 0.001)
    outcomes = iter(["The broker is away.", "The broker is away.", "No queue.", None])
    sent: list[UUID] = []
    notes: list[str] = []

    async def send(message: PodMessage) -> None:
        sent.append(message.message_id)
        if (reason := next(outcomes)) is not None:
            raise NotConfirmed(reason)

    message = a_pod().announcement()
    await send_until_confirmed(send, message, None, notes.append)
    assert sent == [message.message_id] * 4
    assert notes == ["The broker is away. Trying again ...", "No queue. Trying again ..."]


async def test_an_announcement_fails_after_its_time_limit() -> None:
    """The error has the cause of the last attempt."""

    async def send(_: PodMessage) -> None:
        raise NotConfirmed("The broker is away.")

    with pytest.raises(Failure, match="The broker is away") as raised:
        await send_until_confirmed(send, a_pod().announcement(), timedelta(milliseconds=20), lambda _: None)
    assert raised.value.code is ExitCode.TIMED_OUT


async def test_an_attempt_that_hangs_is_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    """A broker that accepts the message and never confirms it does not block the command."""
    import asyncio  # noqa: PLC0415 - needed only here

    monkeypatch.setattr(announcements, "ATTEMPT_SECONDS", 0.01)
    monkeypatch.setattr(announcements, "backoff", lambda _: 0.001)
    attempts = 0

    async def send(_: PodMessage) -> None:
        nonlocal attempts
        attempts += 1
        if attempts == 1:
            await asyncio.Event().wait()

    await send_until_confirmed(send, a_pod().announcement(), None, lambda _: None)
    assert attempts == 2


async def test_a_refusal_is_not_repeated() -> None:
    """A refusal by the API ends the command."""

    async def send(_: PodMessage) -> None:
        raise Failure("Another image.", ExitCode.CONFLICT)

    with pytest.raises(Failure, match="Another image"):
        await send_until_confirmed(send, a_pod().announcement(), None, lambda _: None)
