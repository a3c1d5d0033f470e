"""`podium register` and `podium deregister`: announce a pod, once or as a sidecar, and say goodbye for it."""

import asyncio
import signal
from collections.abc import Coroutine
from datetime import timedelta
from typing import TYPE_CHECKING, Annotated, Any

import typer

from podium.cli.command import CommandContext, command
from podium.cli.durations import parse_duration
from podium.cli.exits import ExitCode, Failure, code_of_reason

if TYPE_CHECKING:
    from contracts.messages import DeregisterInstance
    from podium.cli.announcements import Pod

MIN_INTERVAL = timedelta(seconds=1)
# A running registrar replies within milliseconds.
DECISION_SECONDS = 3.0
OUTCOMES = {
    "Registered": "The announcement was applied.",
    "Duplicate": "The announcement was decided before; nothing changed.",
    "Stale": "A newer announcement was applied before; nothing changed.",
    "Shadowed": "The address was stored, but production keeps the traffic.",
    "Departed": "The instance gets no further calls.",
}
# Pods that stop have little time.
GOODBYE_LIMIT = timedelta(seconds=5)

Name = Annotated[str | None, typer.Option("--name", envvar="AGENT_NAME", help="Name of the agent.")]
Url = Annotated[str | None, typer.Option("--acp-url", envvar="ACP_URL", help="Base address of the pod.")]
Port = Annotated[
    int | None,
    typer.Option("--acp-port", envvar="ACP_PORT", help="Port of the pod, if the URL has none.", min=1, max=65535),
]
DeploymentId = Annotated[
    str | None,
    typer.Option(
        "--deployment",
        envvar="AGENTEX_DEPLOYMENT_ID",
        help="Id of the deployment. Without it, a legacy agent is announced.",
    ),
]
InstanceId = Annotated[
    str | None,
    typer.Option(
        "--instance",
        envvar="AGENT_INSTANCE_ID",
        help="Id of this pod among those of the deployment. Without it, a pod replaces the one before.",
    ),
]
Description = Annotated[str | None, typer.Option(envvar="AGENT_DESCRIPTION", help="Description of the agent.")]
AcpType = Annotated[str | None, typer.Option(envvar="ACP_TYPE", help="sync, async or agentic.")]
InputType = Annotated[str | None, typer.Option(envvar="AGENT_INPUT_TYPE", help="text or json.")]
AgentId = Annotated[
    str | None, typer.Option(envvar="AGENT_ID", help="Id of the agent; refused if the agent has another id.")
]
Image = Annotated[
    str | None, typer.Option(envvar="AGENT_IMAGE", help="Image of the deployment, which cannot change later.")
]
Commit = Annotated[
    str | None, typer.Option(envvar=["AGENT_COMMIT_SHA", "GIT_COMMIT"], help="Stored as the fact commit_sha.")
]
Branch = Annotated[str | None, typer.Option(envvar="GIT_BRANCH", help="Stored as the fact branch.")]
Repo = Annotated[
    str | None, typer.Option(envvar=["AGENT_SOURCE_REPO", "GIT_URL"], help="Stored as the fact source_repo.")
]
RpcPath = Annotated[str | None, typer.Option(help="Path for calls, below the address. Default: /api.")]
HealthPath = Annotated[str | None, typer.Option(help="Path for probes, below the address. Default: /healthz.")]
ErrorStyle = Annotated[
    str | None, typer.Option(help="Form of the gateway's errors: http, or jsonrpc for agents that speak MCP.")
]
Fact = Annotated[list[str] | None, typer.Option("--fact", metavar="NAME=VALUE", help="Fact to store; repeatable.")]
Http = Annotated[bool, typer.Option("--http", help="Post to the API instead of publishing on RabbitMQ.")]
Every = Annotated[
    timedelta | None,
    typer.Option(parser=parse_duration, metavar="DURATION", help="Repeat at this interval until SIGTERM (sidecar)."),
]
Timeout = Annotated[
    timedelta | None,
    typer.Option(
        parser=parse_duration,
        metavar="DURATION",
        help="Give up an announcement that is not confirmed in this time. Default: never.",
    ),
]


@command
async def register(
    context: CommandContext,
    *,
    name: Name = None,
    acp_url: Url = None,
    acp_port: Port = None,
    deployment: DeploymentId = None,
    instance: InstanceId = None,
    description: Description = None,
    acp_type: AcpType = None,
    input_type: InputType = None,
    agent_id: AgentId = None,
    image: Image = None,
    commit: Commit = None,
    branch: Branch = None,
    repo: Repo = None,
    rpc_path: RpcPath = None,
    health_path: HealthPath = None,
    error_style: ErrorStyle = None,
    fact: Fact = None,
    http: Http = False,
    every: Every = None,
    timeout: Timeout = None,  # noqa: ASYNC109 - an option of the command
) -> None:
    """Announce a pod until the broker confirms the message.

    The environment variables are the same as those of pods that use the agentex SDK. The same message is sent until
    the broker (with --http: the API) confirms it, so several attempts have one effect. With --every and --instance,
    SIGTERM also deregisters the instance.
    """
    from podium.cli.announcements import Pod, parse_facts  # noqa: PLC0415 - --help starts faster without it

    if every is not None and every < MIN_INTERVAL:
        raise typer.BadParameter("must be at least 1s.", param_hint="--every")
    pod = Pod.from_options(
        name=name,
        acp_url=acp_url,
        acp_port=acp_port,
        description=description,
        acp_type=acp_type,
        agent_input_type=input_type,
        agent_id=agent_id,
        metadata={
            **parse_facts(fact or []),
            "deployment_id": deployment,
            "instance_id": instance,
            "docker_image": image,
            "commit_sha": commit,
            "branch": branch,
            "source_repo": repo,
            "rpc_path": rpc_path,
            "health_path": health_path,
            "error_style": error_style,
        },
    )
    if every is None:
        await _announce(context, pod, http=http, limit=timeout)
    else:
        await _run_until_sigterm(context, _repeat(context, pod, every, http=http, limit=timeout))
        if (goodbye := pod.goodbye()) is not None:
            await _say_goodbye(context, goodbye, http=http, limit=GOODBYE_LIMIT)


@command
async def deregister(
    context: CommandContext,
    *,
    name: Name = None,
    deployment: DeploymentId = None,
    instance: InstanceId = None,
    http: Http = False,
    timeout: Timeout = None,  # noqa: ASYNC109 - an option of the command
) -> None:
    """Say goodbye for an instance, so that it gets no further calls.

    Its last call may be in flight: stop the pod after that. An announcement made earlier does not bring it back.
    """
    from podium.cli.announcements import goodbye_of  # noqa: PLC0415 - --help starts faster without it

    await _say_goodbye(context, goodbye_of(name, deployment, instance), http=http, limit=timeout)


async def _say_goodbye(
    context: CommandContext, message: "DeregisterInstance", *, http: bool, limit: timedelta | None
) -> None:
    """Send a goodbye, and print the outcome if the registrar's reply arrives in time. Raises `Failure`."""
    from podium.cli.announcements import poster, publisher, send_until_confirmed  # noqa: PLC0415 - as in `register`

    output, instance = context.output, f"{message.deployment_id} {message.instance_id}"
    send = poster(context) if http else publisher(context.environment)
    async with output.progress(f"Deregistering {instance}"):
        await_decision = await send_until_confirmed(send, message, limit, output.note)
        decision = await await_decision(DECISION_SECONDS) if await_decision is not None else None
    if decision is not None and decision.outcome not in OUTCOMES:
        raise Failure(f"The goodbye of {instance} was refused: {decision.message}", code_of_reason(decision.reason))
    result = {
        "confirmed_by": "api" if http else "broker",
        "outcome": decision.outcome if decision else None,
        "message": message.model_dump(mode="json"),
    }
    output.item(result, str(message.message_id), f"Deregistered {instance}.")


async def _announce(
    context: CommandContext,
    pod: "Pod",
    *,
    http: bool,
    limit: timedelta | None,
    decision_seconds: float = DECISION_SECONDS,
) -> None:
    """Announce the pod, and print the outcome if the registrar's reply arrives in time. Raises `Failure`."""
    from podium.cli.announcements import poster, publisher, send_until_confirmed  # noqa: PLC0415 - as in `register`

    output, message = context.output, pod.announcement()
    send = poster(context) if http else publisher(context.environment)
    async with output.progress(f"Announcing {message.name}"):
        await_decision = await send_until_confirmed(send, message, limit, output.note)
    announced = " ".join(filter(None, (message.name, message.deployment_id)))
    if not output.as_json:
        confirmed_by = "the API" if http else "the broker"
        line = f"Announced {announced} at {message.acp_url}, confirmed by {confirmed_by}."
        output.item(None, str(message.message_id), line)
    async with output.progress("Waiting for the registrar's decision"):
        decision = await await_decision(decision_seconds) if await_decision is not None else None
    if decision is not None and decision.outcome not in OUTCOMES:
        raise Failure(f"{announced} was refused: {decision.message}", code_of_reason(decision.reason))
    if output.as_json:
        result = {"confirmed_by": "api" if http else "broker", "outcome": decision.outcome if decision else None}
        output.json({**result, "message": message.model_dump(mode="json", exclude_unset=True)})
    later = f"'podium registrations --agent {message.name}' shows the outcome."
    output.note(OUTCOMES[decision.outcome] if decision else later)


async def _repeat(
    context: CommandContext, pod: "Pod", every: timedelta, *, http: bool, limit: timedelta | None
) -> None:
    """Announce the pod at this interval, each time with a new message."""
    loop = asyncio.get_running_loop()
    while True:
        started = loop.time()
        try:
            decision_seconds = min(DECISION_SECONDS, every.total_seconds() / 2)
            await _announce(context, pod, http=http, limit=limit, decision_seconds=decision_seconds)
        except Failure as failure:
            # A sidecar keeps running through outages: the next announcement may succeed.
            if failure.code not in {ExitCode.TIMED_OUT, ExitCode.UNAVAILABLE}:
                raise
            context.output.note(failure.message)
        await asyncio.sleep(max(0.0, started + every.total_seconds() - loop.time()))


async def _run_until_sigterm(context: CommandContext, work: Coroutine[Any, Any, None]) -> None:
    """Run the work. SIGTERM cancels it and ends the command with exit code 0."""
    task, terminated = asyncio.create_task(work), asyncio.Event()

    def stop() -> None:
        terminated.set()
        task.cancel()

    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop)
    try:
        await task
    except asyncio.CancelledError:
        if not terminated.is_set():
            raise
        context.output.note("Stopped.")
