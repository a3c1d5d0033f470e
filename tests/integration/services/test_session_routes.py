"""Routes of calls with a session: to the deployment that issued it while that is Ready, else as without a session."""

from collections.abc import AsyncIterator
from uuid import UUID

import pytest
import pytest_asyncio
from sqlalchemy import text

from services.errors import AgentDeletedError, DeploymentUnavailable
from services.routing.conversations import digest_of, end_session, keep_session
from services.routing.resolver import RouteResolver
from services.routing.routes import Route, RouteKey
from services.settings import Settings
from tests.integration.services.world import NAME, World
from tests.support.factories import incoming

ID, UNKNOWN = digest_of(b"one"), digest_of(b"two")
V1, V2 = f"{NAME}.v1", f"{NAME}.v2"


@pytest_asyncio.fixture
async def reads(settings: Settings) -> AsyncIterator[RouteResolver]:
    """The route resolver of one process."""
    async with RouteResolver(settings, application_name="reads") as reads:
        yield reads


@pytest_asyncio.fixture
async def agent_id(world: World) -> UUID:
    """An agent with V1 in production, which has issued a session, and V2 as a preview."""
    await world.two_versions()
    agent_id = await world.agent_id()
    await world.do(lambda session: keep_session(session, agent_id, ID, V1))
    return agent_id


async def by_both(reads: RouteResolver, agent_id: UUID, session: bytes | None = ID) -> Route:
    """The route by id and by name, which must be equal."""
    found = [await reads.find(each.in_session(session)) for each in (RouteKey(agent_id=agent_id), RouteKey(name=NAME))]
    assert found[0] == found[1]
    return found[0]


async def test_a_session_stays_across_a_promote(world: World, reads: RouteResolver, agent_id: UUID) -> None:
    """Calls without a session, or with an unknown one, go to the new version at once."""
    await world.promote(V2)
    route = await by_both(reads, agent_id)
    assert (route.deployment_id, route.generation, route.session_known) == (V1, 2, True)
    for session in (None, UNKNOWN):
        route = await by_both(reads, agent_id, session)
        assert (route.deployment_id, route.session_known) == (V2, False)
    await world.do(lambda session: end_session(session, agent_id, ID))
    assert (await by_both(reads, agent_id)).deployment_id == V2


async def test_a_session_of_a_version_that_is_gone(world: World, reads: RouteResolver, agent_id: UUID) -> None:
    """Failed: to production, and back after the version has recovered; deleted: to production from then on."""
    await world.promote(V2)
    await world.fail(V1)
    route = await by_both(reads, agent_id)
    assert (route.deployment_id, route.session_known) == (V2, False)
    await world.arrive(deployment_id=V1)
    assert (await by_both(reads, agent_id)).deployment_id == V1
    await world.delete(V1, force=True)
    assert (await by_both(reads, agent_id)).deployment_id == V2


async def test_a_session_of_a_failed_production(world: World, reads: RouteResolver, agent_id: UUID) -> None:
    """It is refused as any call is."""
    await world.fail(V1)
    with pytest.raises(DeploymentUnavailable):
        await by_both(reads, agent_id)


async def test_a_session_of_a_deleted_agent(world: World, reads: RouteResolver, agent_id: UUID) -> None:
    """It is refused as any call is, and a new agent of that name does not know the session."""
    await world.delete_agent()
    with pytest.raises(AgentDeletedError):
        await reads.find(RouteKey(agent_id=agent_id, session=ID))
    await world.arrive(deployment_id="new")
    route = await reads.find(RouteKey(name=NAME, session=ID))
    assert (route.deployment_id, route.session_known) == ("new", False)


async def test_a_session_while_nothing_or_a_legacy_address_serves(
    world: World, reads: RouteResolver, agent_id: UUID
) -> None:
    """The call goes to the deployment that issued the session."""
    await world.register(incoming(acp_url="http://legacy:1"))
    assert (await by_both(reads, agent_id, None)).deployment_id is None
    assert (await by_both(reads, agent_id)).deployment_id == V1


async def test_a_call_to_a_deployment_goes_there(world: World, reads: RouteResolver, agent_id: UUID) -> None:
    """The route says whether that deployment issued the session on its own route."""
    on_v1 = digest_of(b"one", V1)
    await world.do(lambda session: keep_session(session, agent_id, on_v1, V1, preview=True))
    for deployment_id, known in ((V1, True), (V2, False)):
        digest = digest_of(b"one", deployment_id)
        route = await reads.find(RouteKey(agent_id=agent_id, deployment_id=deployment_id, session=digest))
        assert (route.deployment_id, route.session_known) == (deployment_id, known)


async def test_sessions_of_version_0_1(world: World, reads: RouteResolver, agent_id: UUID) -> None:
    """Their rows do not say which route issued them: they count if their deployment has been in production."""
    await world.do(lambda session: keep_session(session, agent_id, UNKNOWN, V2))
    await world.do(lambda session: session.execute(text("UPDATE conversations SET preview = NULL")))
    assert (await by_both(reads, agent_id)).session_known
    assert (await by_both(reads, agent_id, UNKNOWN)).deployment_id == V1
    await world.do(lambda session: keep_session(session, agent_id, UNKNOWN, V1))
    assert (await by_both(reads, agent_id, UNKNOWN)).session_known
    await world.promote(V2)
    for digest in (ID, UNKNOWN):
        assert (await by_both(reads, agent_id, digest)).deployment_id == V1


async def test_a_session_counts_within_its_agent(world: World, reads: RouteResolver, agent_id: UUID) -> None:
    """Another agent does not know the id; if it issues the same id, the id leads to its own deployment."""
    await world.two_versions("other")
    await world.promote("other.v2", "other")
    route = await reads.find(RouteKey(name="other", session=ID))
    assert (route.deployment_id, route.session_known) == ("other.v2", False)
    other_id = await world.agent_id("other")
    await world.do(lambda session: keep_session(session, other_id, ID, "other.v1"))
    assert (await reads.find(RouteKey(name="other", session=ID))).deployment_id == "other.v1"
    assert (await by_both(reads, agent_id)).deployment_id == V1
