"""G59 to G61: several pods of one deployment, each with an address and a state of its own."""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from itertools import permutations
from typing import Any
from uuid import UUID, uuid4

import pytest
from sqlalchemy import select, text

from contracts.messages import DeregisterInstanceRequest, RegisterAgentRequest
from services.domain.announcement import Announcement
from services.domain.health_policy import ProbeResult
from services.domain.state import AgentSnapshot
from services.health.janitors import JanitorReport, report_janitor
from services.health.probes import abandoned, claim, expire_pending, give_verdict, give_verdicts, overdue
from services.registration.batch import Incoming, Terms, register_batch
from services.registration.inbox import remove_decided
from services.retention.instances import forget_departed, remove_failed_instances
from services.retention.versions import StepLimits, purge_deleted
from services.settings import Settings
from services.storage.models import DepartedInstance, Instance, Probe, Registration
from tests.integration.services.world import NAME, World
from tests.support.factories import a_goodbye, ago, incoming

THRESHOLD = 3
V1 = "v1"


def announced(instance_id: str | None, *, deployment_id: str = V1, host: str | None = None, **fields: Any) -> Incoming:
    """The announcement of a pod, at an address of its own."""
    address = f"http://{host or instance_id or 'unnamed'}:8000"
    return incoming(NAME, deployment_id=deployment_id, instance_id=instance_id, acp_url=address, **fields)


async def instances(world: World, deployment_id: str = V1) -> dict[str, str]:
    """The status of each instance."""
    query = select(Instance).where(Instance.deployment_id == deployment_id).order_by(Instance.instance_id)
    found = await world.do(lambda session: session.scalars(query))
    return {each.instance_id: each.status for each in found}


async def told(world: World) -> list[str]:
    """The types of all events, without prefix and version, and the instance that each is about."""
    return [" ".join(filter(None, (each.type[7:-3], each.payload.get("instance_id")))) for each in await world.events()]


async def probe(
    world: World, settings: Settings, failing: Sequence[str], *, janitor: UUID | None = None
) -> dict[str, AgentSnapshot]:
    """Claim what is due and apply the results: those of the instances in `failing` fail. All are due again."""
    targets = await world.do(lambda session: claim(session, settings, 100, janitor_id=janitor))
    applied = {}
    for target in targets:
        result = ProbeResult(target, "no answer" if target.instance_id in failing else None, janitor)
        applied[target.instance_id] = await world.do(
            lambda session, result=result: give_verdict(session, result)  # type: ignore[misc]
        )
    await world.do(lambda session: session.execute(text("UPDATE probes SET due_at = clock_timestamp()")))
    return applied


async def test_each_pod_has_its_own_address_and_order(world: World) -> None:
    """The deployment is Ready once, and goes to production once; a stale announcement concerns its pod only."""
    assert await world.register(announced("pod-1"), announced("pod-2"), announced("pod-3")) == ["Registered"] * 3
    assert await world.register(
        announced("pod-1", host="new", registered_at=ago(-1)), announced("pod-2", host="old", registered_at=ago(60))
    ) == ["Registered", "Stale"]
    assert await instances(world) == {"pod-1": "Ready", "pod-2": "Ready", "pod-3": "Ready"}
    deployment = await world.deployment(V1)
    assert (deployment.has_instances, deployment.status, deployment.acp_url) == (True, "Ready", "http://new:8000")
    assert await world.causes() == [("first", V1)]
    assert await told(world) == [
        "agent.registered",
        "deployment.created",
        "instance.ready pod-1",
        "deployment.ready",
        "deployment.promoted",
        "instance.ready pod-2",
        "instance.ready pod-3",
        "instance.ready pod-1",
    ]


async def test_without_names_nothing_changes(world: World) -> None:
    """A pod that names no instance replaces the one before, as ever, and has no row in the table."""
    for number in range(3):
        await world.register(announced(None, host=f"host-{number}"))
    assert await instances(world) == {}
    deployment = await world.deployment(V1)
    assert (deployment.has_instances, deployment.acp_url) == (False, "http://host-2:8000")
    assert not [each for each in await told(world) if each.startswith("instance")]


async def test_a_pod_without_a_name_among_named_ones(world: World) -> None:
    """It becomes the instance with the empty id, and is replaced by later pods without a name."""
    await world.register(announced(None, registered_at=ago(30)))
    await world.register(announced("pod-1", registered_at=ago(20)))
    await world.register(announced(None, host="later", registered_at=ago(10)))
    assert await instances(world) == {"": "Ready", "pod-1": "Ready"}
    assert (await world.deployment(V1)).acp_url == "http://later:8000"
    assert await told(world) == [
        "agent.registered",
        "deployment.created",
        "deployment.ready",
        "deployment.promoted",
        "instance.ready pod-1",
        "instance.ready",
    ]


async def test_goodbyes(world: World) -> None:
    """The deployment stays Ready until the last instance has gone; then it fails, and keeps the production pointer."""
    await world.register(announced("pod-1"), announced("pod-2"))
    assert await world.register(a_goodbye(V1, "pod-1")) == ["Departed"]
    deployment = await world.deployment(V1)
    assert (deployment.status, deployment.acp_url) == ("Ready", "http://pod-2:8000")
    goodbye = a_goodbye(V1, "pod-2")
    assert await world.register(goodbye) == ["Departed"]
    assert await world.register(goodbye) == ["Duplicate"]
    deployment = await world.deployment(V1)
    assert (deployment.status, deployment.is_production) == ("Failed", True)
    assert deployment.status_reason == "none of its instances is Ready; the last one: it said goodbye"
    assert (await world.agent()).status == "Failed"
    assert await instances(world) == {}
    assert (await told(world))[-3:] == ["instance.gone pod-1", "instance.gone pod-2", "deployment.failed"]
    assert (await world.do(lambda session: session.scalars(select(Probe)))).all() == []
    await world.register(announced("pod-3"))
    assert (await world.deployment(V1)).status == "Ready"
    assert (await world.agent()).status == "Ready"
    assert len(await world.ledger()) == 1


async def test_messages_of_an_instance_in_any_order(world: World) -> None:
    """The newest one decides whether the instance is there, and where."""
    messages = [
        announced("pod-1", host="first", registered_at=ago(40)),
        a_goodbye(V1, "pod-1", registered_at=ago(30)),
        announced("pod-1", host="second", registered_at=ago(20)),
        a_goodbye(V1, "pod-1", registered_at=ago(10)),
    ]
    for last in (2, 3, 4):
        for order in permutations(messages[:last]):
            await world.do(lambda session: session.execute(text("DELETE FROM departed_instances")))
            name = f"bot-{uuid4().hex[:8]}"
            renamed = [_renamed(each, name) for each in order]
            await world.register(_other_agent(name), *renamed)
            query = select(Instance.acp_url).where(Instance.deployment_id == f"{name}.{V1}")
            found = list(await world.do(lambda session, query=query: session.scalars(query)))  # type: ignore[misc]
            assert found == (["http://second:8000"] if last == 3 else []), [each.content for each in renamed]


def _other_agent(name: str) -> Incoming:
    return incoming(name, deployment_id=f"{name}.other")


def _renamed(message: Incoming, name: str) -> Incoming:
    """The same message about another agent."""
    assert isinstance(message.content, Announcement)
    request = message.content.request
    if isinstance(request, DeregisterInstanceRequest):
        renamed = request.model_copy(update={"name": name, "deployment_id": f"{name}.{V1}"})
        return Incoming(Announcement(renamed, uuid4(), message.content.registered_at))
    assert isinstance(request, RegisterAgentRequest)
    assert request.registration_metadata is not None
    metadata = request.registration_metadata.model_copy(update={"deployment_id": f"{name}.{V1}"})
    announcement = request.model_copy(update={"name": name, "registration_metadata": metadata})
    return Incoming(Announcement(announcement, uuid4(), message.content.registered_at))


async def test_a_goodbye_before_everything_else(world: World) -> None:
    """It arrives before the agent exists; an announcement that was published earlier is Stale all the same."""
    assert await world.register(a_goodbye(V1, "pod-1")) == ["Departed"]
    assert await world.register(announced("pod-1", registered_at=ago(10))) == ["Stale"]
    assert await world.register(announced("pod-1", registered_at=ago(-5))) == ["Registered"]
    assert await instances(world) == {"pod-1": "Ready"}


@pytest.mark.parametrize("most", [1, 100])
async def test_a_named_pod_that_changes_nothing_leaves_its_deployment_without_instances(
    world: World, most: int
) -> None:
    """One that is gone or too many adds no row for the pod without a name."""
    await world.register(announced(None, registered_at=ago(40)))
    if most > 1:
        await world.register(a_goodbye(V1, "pod-1", registered_at=ago(10)))
    late = announced("pod-1", registered_at=ago(20))
    (decided,) = await world.do(lambda session: register_batch(session, [late], terms=Terms(instances_max=most)))
    assert type(decided.outcome).__name__ == ("Rejected" if most == 1 else "Stale")
    assert await instances(world) == {}
    assert not (await world.deployment(V1)).has_instances
    await world.register(announced(None, host="later", registered_at=ago(5)))
    assert (await world.deployment(V1)).acp_url == "http://later:8000"


async def test_goodbyes_that_are_refused_or_have_no_effect(world: World) -> None:
    """Nobody says goodbye for a pod of another agent; the pods of a deleted deployment may."""
    await world.register(announced("pod-1"), announced("pod-1", deployment_id="v2"), _other_agent("thief"))
    assert await world.register(a_goodbye(V1, "pod-1", "thief")) == ["Rejected"]
    (parked,) = await world.parked()
    assert parked.reason == "deployment-of-another-agent"
    await world.delete("v2")
    assert await world.register(a_goodbye("v2", "pod-1")) == ["Departed"]
    assert await instances(world) == {"pod-1": "Ready"}
    (row,) = await world.do(
        lambda session: session.scalars(select(Registration).where(Registration.outcome == "Departed"))
    )
    assert (row.deployment_id, row.instance_id) == ("v2", "pod-1")


async def test_too_many_instances(world: World) -> None:
    """The next one is refused and parked; those that are there may announce themselves again."""
    terms = Terms(instances_max=2)

    async def register(message: Incoming) -> str:
        (decided,) = await world.do(lambda session: register_batch(session, [message], terms=terms))
        return type(decided.outcome).__name__

    assert [await register(announced(name)) for name in ("pod-1", "pod-2", "pod-3", "pod-2")] == [
        "Registered",
        "Registered",
        "Rejected",
        "Registered",
    ]
    (parked,) = await world.parked()
    assert parked.reason == "too-many-instances"
    assert await register(a_goodbye(V1, "pod-1")) == "Departed"
    assert await register(announced("pod-3")) == "Registered"


async def test_failing_instances(world: World, settings: Settings) -> None:
    """One that fails takes nothing with it; the last one takes the deployment; one that recovers brings it back."""
    await world.register(announced("pod-1"), announced("pod-2"))
    for _ in range(THRESHOLD):
        await probe(world, settings, ["pod-1"])
    assert await instances(world) == {"pod-1": "Failed", "pod-2": "Ready"}
    deployment = await world.deployment(V1)
    assert (deployment.status, deployment.acp_url) == ("Ready", "http://pod-2:8000")
    for _ in range(THRESHOLD):
        await probe(world, settings, ["pod-1", "pod-2"])
    assert (await world.deployment(V1)).status == "Failed"
    assert (await world.agent()).status == "Failed"
    for _ in range(THRESHOLD):
        await probe(world, settings, ["pod-1"])
    assert await instances(world) == {"pod-1": "Failed", "pod-2": "Ready"}
    assert (await world.deployment(V1)).status == "Ready"
    assert (await told(world))[6:] == [
        "instance.failed pod-1",
        "instance.failed pod-2",
        "deployment.failed",
        "instance.ready pod-2",
        "deployment.ready",
    ]
    assert len(await world.ledger()) == 1


async def test_results_of_several_instances_in_one_transaction(world: World, settings: Settings) -> None:
    """As one by one."""
    await world.register(announced("pod-1"), announced("pod-2"), announced("pod-3"))
    for _ in range(THRESHOLD):
        targets = await world.do(lambda session: claim(session, settings, 100))
        assert len(targets) == 3
        results = [ProbeResult(each, "no answer" if each.instance_id != "pod-2" else None) for each in targets]
        await world.do(lambda session, results=results: give_verdicts(session, results))  # type: ignore[misc]
        await world.do(lambda session: session.execute(text("UPDATE probes SET due_at = clock_timestamp()")))
    assert await instances(world) == {"pod-1": "Failed", "pod-2": "Ready", "pod-3": "Failed"}


async def test_a_result_from_before_an_announcement_counts_for_nothing(world: World, settings: Settings) -> None:
    """It may come from an earlier pod of this name."""
    await world.register(announced("pod-1"), announced("pod-2"))
    targets = await world.do(lambda session: claim(session, settings, 100))
    await world.register(announced("pod-1", registered_at=ago(-1)))
    for target in targets:
        await world.do(
            lambda session, target=target: give_verdict(session, ProbeResult(target, "no answer"))  # type: ignore[misc]
        )
    query = select(Probe.instance_id, Probe.streak).order_by(Probe.instance_id)
    rows = (await world.do(lambda session: session.execute(query))).all()
    assert [tuple(row) for row in rows] == [("pod-1", 0), ("pod-2", -1)]


async def test_a_second_opinion_for_an_instance_of_production(world: World, settings: Settings) -> None:
    """Another janitor must have seen it fail, if one runs."""
    one, two = uuid4(), uuid4()
    for janitor in (one, two):
        report = JanitorReport(
            id=janitor, name=str(janitor), panic_since=None, probed=0, failing=0, unknown=0, unknown_reason=None
        )
        await world.do(lambda session, report=report: report_janitor(session, report))  # type: ignore[misc]
    await world.register(announced("pod-1"), announced("pod-2"))
    for _ in range(THRESHOLD):
        await probe(world, settings, ["pod-1"], janitor=one)
    assert await instances(world) == {"pod-1": "Ready", "pod-2": "Ready"}
    await probe(world, settings, ["pod-1"], janitor=two)
    assert await instances(world) == {"pod-1": "Failed", "pod-2": "Ready"}


async def test_instances_that_must_prove_themselves(world: World, settings: Settings) -> None:
    """With `ready_requires_probe`, each is Pending until it answers; the first that does makes the deployment Ready."""
    terms = Terms(requires_probe=True)
    batch = [announced("pod-1"), announced("pod-2")]
    await world.do(lambda session: register_batch(session, batch, terms=terms))
    assert await instances(world) == {"pod-1": "Pending", "pod-2": "Pending"}
    assert (await world.deployment(V1)).status == "Pending"
    assert await world.production() is None
    await probe(world, settings, ["pod-1"])
    assert await instances(world) == {"pod-1": "Pending", "pod-2": "Ready"}
    assert (await world.deployment(V1)).acp_url == "http://pod-2:8000"
    assert await world.production() == V1


async def test_the_deadline_of_instances(world: World) -> None:
    """A Pending instance fails after the deadline, and its deployment with the last one that could become Ready."""
    terms, deadline = Terms(requires_probe=True), timedelta(minutes=15)
    batch = [announced("pod-1"), announced("pod-2")]
    await world.do(lambda session: register_batch(session, batch, terms=terms))
    aged = "UPDATE {} SET status_changed_at = clock_timestamp() - interval '1 hour'"
    await world.do(lambda session: session.execute(text(aged.format("instances"))))
    late = await world.do(lambda session: overdue(session, deadline, 10))
    assert {deployment_id for _, deployment_id in late} == {V1}
    agent_id = late[0][0]
    await world.do(lambda session: expire_pending(session, agent_id, V1, deadline))
    assert await instances(world) == {"pod-1": "Failed", "pod-2": "Failed"}
    assert (await world.deployment(V1)).status == "Failed"
    assert await world.do(lambda session: overdue(session, deadline, 10)) == []
    await world.do(lambda session: register_batch(session, [announced("pod-3")], terms=terms))
    assert (await world.deployment(V1)).status == "Pending"


async def test_removal_of_instances_that_failed_long_ago(world: World, settings: Settings) -> None:
    """Except the last one of a deployment; an older announcement does not bring one back, a new one does."""
    await world.register(announced("pod-1"), announced("pod-2"), announced("pod-3"))
    for _ in range(THRESHOLD):
        await probe(world, settings, ["pod-1", "pod-3"])
    long_ago = datetime.now(UTC) - timedelta(hours=1)
    assert await world.do(lambda session: remove_failed_instances(session, long_ago, 10)) == 0
    soon = datetime.now(UTC) + timedelta(hours=1)
    assert await world.do(lambda session: remove_failed_instances(session, soon, 10)) == 2
    assert await instances(world) == {"pod-2": "Ready"}
    assert sorted((await told(world))[-2:]) == ["instance.gone pod-1", "instance.gone pod-3"]
    assert await world.register(announced("pod-1", registered_at=ago(60))) == ["Stale"]
    assert await world.register(announced("pod-1")) == ["Registered"]
    for _ in range(THRESHOLD):
        await probe(world, settings, ["pod-1", "pod-2"])
    assert await world.do(lambda session: remove_failed_instances(session, soon, 10)) == 1
    assert len(await instances(world)) == 1
    assert await world.do(lambda session: forget_departed(session, soon, 10)) > 0
    assert (await world.do(lambda session: session.scalars(select(DepartedInstance)))).all() == []


@pytest.mark.parametrize("policy", ["hold", "rollback"])
async def test_production_whose_last_instance_has_gone(world: World, policy: str) -> None:
    """It is not probed any more, so the janitor looks for it if the agent's policy is to roll back."""
    await world.register(announced("pod-1"), announced("pod-1", deployment_id="v2"))
    await world.change(on_failure=policy)
    await world.promote("v2")
    await world.register(a_goodbye("v2", "pod-1"))
    found = await world.do(abandoned)
    assert found == ([(await world.agent_id(), "v2")] if policy == "rollback" else [])


async def test_purged_deployments_have_no_instances(world: World) -> None:
    """What is left of them is a tombstone."""
    await world.register(announced("pod-1"), announced("pod-1", deployment_id="v2"))
    await world.delete("v2")
    limits = StepLimits(before=datetime.now(UTC) + timedelta(days=1), keep=0, rows=10)
    await world.do(lambda session: purge_deleted(session, limits))
    assert await instances(world, "v2") == {}
    assert await instances(world) == {"pod-1": "Ready"}


async def test_forgetting_messages_of_instances_from_a_clock_that_is_ahead(world: World) -> None:
    """Their rows in the inbox stay until something as new was applied to the same instance."""
    ahead = announced("pod-1", host="ahead", registered_at=ago(-3600))
    await world.register(ahead, announced("pod-2"))
    later = datetime.now(UTC) + timedelta(days=30)
    await world.register(announced("pod-2", registered_at=ago(-20)))
    await world.do(lambda session: remove_decided(session, later, 100))
    assert await world.register(ahead) == ["Duplicate"]
