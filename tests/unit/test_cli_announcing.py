from datetime import timedelta
from typing import Any
from uuid import UUID

import pytest
import typer

from contracts.messages import RegisterAgent
from podium.cli import announcing
from podium.cli.announcing import NotSent, Pod, facts_of, until_confirmed
from podium.cli.exits import ExitCode, Failure


def a_pod(**fields: Any) -> Pod:
    """A pod of version v1."""
    known = {"name": "bot", "acp_url": "http://10.0.0.7", "acp_port": 8000, "metadata": {"deployment_id": "v1"}}
    return Pod.of(**{**known, **fields})


def test_a_pod_says_what_is_known_and_nothing_else() -> None:
    """What nobody set is left out, so that an older value of it stays."""
    body = a_pod(description=None).announcement().model_dump(mode="json", exclude_unset=True)
    assert body.keys() == {"name", "acp_url", "registration_metadata", "message_id", "registered_at"}
    assert body["acp_url"] == "http://10.0.0.7:8000"
    assert body["registration_metadata"] == {"deployment_id": "v1"}


def test_a_legacy_agent_has_no_metadata_at_all() -> None:
    """As the existing SDK sends it."""
    assert a_pod(metadata={"branch": None}).announcement().registration_metadata is None


def test_each_announcement_is_a_new_message() -> None:
    """A sidecar's next round must not be taken for a repetition of the last."""
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
def test_what_is_wrong_is_named_as_people_set_it(fields: dict[str, Any], named: str) -> None:
    """The variable and the option, in one line."""
    with pytest.raises(Failure, match=named) as raised:
        a_pod(**fields)
    assert raised.value.code is ExitCode.USAGE
    assert "\n" not in raised.value.sentence


def test_facts_are_name_and_value() -> None:
    """The value may hold anything."""
    assert facts_of(["a=b=c", "d="]) == {"a": "b=c", "d": ""}
    with pytest.raises(typer.BadParameter):
        facts_of(["a"])


async def test_the_same_message_is_sent_until_it_is_confirmed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Under one id, and why it does not work is said once for each reason."""
    monkeypatch.setattr(announcing, "backoff", lambda _: 0.001)
    outcomes = iter(["The broker is away.", "The broker is away.", "No queue.", None])
    sent: list[UUID] = []
    said: list[str] = []

    async def send(message: RegisterAgent) -> None:
        sent.append(message.message_id)
        if (reason := next(outcomes)) is not None:
            raise NotSent(reason)

    message = a_pod().announcement()
    await until_confirmed(send, message, None, said.append)
    assert sent == [message.message_id] * 4
    assert said == ["The broker is away. Trying again ...", "No queue. Trying again ..."]


async def test_an_announcement_is_given_up_when_its_time_is_over() -> None:
    """With the reason of the last attempt."""

    async def send(_: RegisterAgent) -> None:
        raise NotSent("The broker is away.")

    with pytest.raises(Failure, match="The broker is away") as raised:
        await until_confirmed(send, a_pod().announcement(), timedelta(milliseconds=20), lambda _: None)
    assert raised.value.code is ExitCode.TIMED_OUT


async def test_an_attempt_that_hangs_is_made_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """A broker that takes the message and never answers is no reason to wait for ever."""
    import asyncio  # noqa: PLC0415 - needed here alone

    monkeypatch.setattr(announcing, "ATTEMPT_SECONDS", 0.01)
    monkeypatch.setattr(announcing, "backoff", lambda _: 0.001)
    attempts = 0

    async def send(_: RegisterAgent) -> None:
        nonlocal attempts
        attempts += 1
        if attempts == 1:
            await asyncio.Event().wait()

    await until_confirmed(send, a_pod().announcement(), None, lambda _: None)
    assert attempts == 2


async def test_a_refusal_is_not_repeated() -> None:
    """What the API refuses for good ends the command."""

    async def send(_: RegisterAgent) -> None:
        raise Failure("Another image.", ExitCode.CONFLICT)

    with pytest.raises(Failure, match="Another image"):
        await until_confirmed(send, a_pod().announcement(), None, lambda _: None)
