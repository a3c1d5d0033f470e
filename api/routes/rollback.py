"""Rollback: the target is probed outside any transaction before anything changes."""

import asyncio
from uuid import UUID

from litestar import Response, post
from litestar.params import FromPath, JSONBody

from api.http.access import needs
from api.http.parameters import AnyRequest, agent_uuid, caller
from api.http.preconditions import generation_headers
from api.http.problems import documented
from api.http.requests import ConditionalChangeWithReason, JsonBody, RollbackRequest
from api.http.responses import AgentAnswer
from api.resources import Injected, Resources
from services.domain.caller import Caller
from services.domain.health_policy import ProbePolicy, probe_policy_of
from services.domain.state import AgentSnapshot
from services.errors import PodiumError, TargetDoesNotAnswer, TargetMoved
from services.promotion.rollback import ALTERNATIVES, Plan, plan_rollback, roll_back
from services.promotion.rollback_targets import Target, rollback_targets
from services.promotion.together import PlanRollback, RollBack, RolledBack
from services.storage.database import in_transaction

# An attempt fails if the agent changes while the target is probed.
ATTEMPTS = 3


@post(
    "/agents/{agent_id:str}/rollback",
    opt=needs("promote", agents="path"),
    status_code=200,
    dto=JsonBody[RollbackRequest],
    return_dto=None,
    operation_class=ConditionalChangeWithReason,
    operation_id="roll_back_agent",
    responses=documented(404, 409, 410, 412, 413, 415),
)
async def roll_agent_back(
    agent_id: FromPath[str], request: AnyRequest, resources: Injected, data: JSONBody[RollbackRequest | None] = None
) -> Response[AgentAnswer]:
    """Return to what served before, to a given deployment, or to 'legacy'. Pauses automatic promotion.

    A target that does not answer a probe now is refused unless `force` is true; the error names the nearest one that
    answers.
    """
    body = data or RollbackRequest()
    uuid, change = agent_uuid(agent_id), caller(request, body.reason)
    state = await rolled_back(resources, uuid, change, body)
    answer = AgentAnswer.of_state(state)
    return Response(answer, headers=generation_headers(answer.generation))


async def rolled_back(resources: Resources, agent_id: UUID, change: Caller, body: RollbackRequest) -> AgentSnapshot:
    """The agent after the rollback. Raises `TargetDoesNotAnswer`, `TargetMoved`, and what `roll_back` raises."""
    for attempt in range(1, ATTEMPTS + 1):
        proven = None if body.force else await _probed_targets(resources, agent_id, change, body)
        try:
            return await _made(resources, RollBack(agent_id, body.to, change, proven))
        except TargetMoved:
            if attempt == ATTEMPTS:
                raise
    raise TargetMoved


async def _made(resources: Resources, wanted: RollBack) -> AgentSnapshot:
    agent_id = wanted.agent_id
    made = await resources.cutovers.make(agent_id, wanted)
    if isinstance(made, PodiumError):
        raise made
    if isinstance(made, RolledBack):
        return made.state
    with resources.cutovers.alone(agent_id):
        state = await resources.change(
            agent_id,
            lambda session: roll_back(session, agent_id, wanted.caller, to=wanted.to, probed=wanted.probed),
        )
    resources.agent_changes.changed([state])
    return state


async def _probed_targets(
    resources: Resources, agent_id: UUID, change: Caller, body: RollbackRequest
) -> tuple[Target, ...]:
    """The target, which has answered a probe; none if it already serves. Raises `TargetDoesNotAnswer`."""
    plan = await _plan(resources, PlanRollback(agent_id, body.to, change))
    if plan.target is None:
        return ()
    policy = probe_policy_of(plan.agent, resources.settings)
    failure = await _failure(resources, plan, plan.target, policy)
    if failure is None:
        return (plan.target,)
    others = await _others(resources, agent_id, plan.target)
    failures = await asyncio.gather(*(_failure(resources, plan, other, policy) for other in others))
    living = [other for other, why in zip(others, failures, strict=True) if why is None]
    nearest = f"The nearest that does is {_named(living[0])}" if living else "No earlier one does"
    raise TargetDoesNotAnswer(
        f"{_named(plan.target)} does not answer: {failure}. {nearest}: name a deployment, or send force."
    )


async def _plan(resources: Resources, wanted: PlanRollback) -> Plan:
    agent_id = wanted.agent_id
    made = await resources.cutovers.make(agent_id, wanted)
    if isinstance(made, PodiumError):
        raise made
    if isinstance(made, Plan):
        return made
    return await resources.change(
        agent_id, lambda session: plan_rollback(session, agent_id, wanted.caller, to=wanted.to)
    )


async def _others(resources: Resources, agent_id: UUID, target: Target) -> list[Target]:
    """The other targets that there are now, the newest first."""
    found = await in_transaction(
        resources.reads, lambda session: rollback_targets(session, agent_id, limit=ALTERNATIVES)
    )
    return [other for other in found if not other.matches(target)]


async def _failure(resources: Resources, plan: Plan, target: Target, policy: ProbePolicy) -> str | None:
    return await resources.prober.ask(target.url, plan.agent.id, policy.timeout)


def _named(target: Target) -> str:
    return target.deployment_id or "legacy"


ROUTES = [roll_agent_back]
