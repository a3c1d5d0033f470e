"""`podium register`: announces a pod of any language, once or as a sidecar, from what its environment says."""

import asyncio
import signal
from datetime import timedelta
from typing import Annotated, Any

import typer

from podium.cli.calling import Call, command
from podium.cli.durations import parse_duration
from podium.cli.exits import ExitCode, Failure, code_of_reason

LEAST_EVERY = timedelta(seconds=1)
# Workers that are there decide within milliseconds.
OUTCOME_SECONDS = 3.0
OUTCOMES = {
    "Registered": "It was registered.",
    "Duplicate": "It was decided before.",
    "Stale": "Something newer was registered before: nothing changed.",
    "Shadowed": "Its address was noted; production keeps the traffic.",
}

Name = Annotated[str | None, typer.Option("--name", envvar="AGENT_NAME", help="The agent that the pod is one of.")]
Url = Annotated[str | None, typer.Option("--acp-url", envvar="ACP_URL", help="Where the pod answers.")]
Port = Annotated[
    int | None, typer.Option("--acp-port", envvar="ACP_PORT", help="If the URL names none.", min=1, max=65535)
]
DeploymentId = Annotated[
    str | None,
    typer.Option("--deployment", envvar="AGENTEX_DEPLOYMENT_ID", help="Its version; without, a legacy agent."),
]
Description = Annotated[str | None, typer.Option(envvar="AGENT_DESCRIPTION", help="What the agent does.")]
AcpType = Annotated[str | None, typer.Option(envvar="ACP_TYPE", help="sync, async or agentic.")]
InputType = Annotated[str | None, typer.Option(envvar="AGENT_INPUT_TYPE", help="text or json.")]
AgentId = Annotated[str | None, typer.Option(envvar="AGENT_ID", help="Refused if it is not the id of that agent.")]
Image = Annotated[str | None, typer.Option(envvar="AGENT_IMAGE", help="The version's image; it never changes.")]
Commit = Annotated[str | None, typer.Option(envvar=["AGENT_COMMIT_SHA", "GIT_COMMIT"], help="Kept as commit_sha.")]
Branch = Annotated[str | None, typer.Option(envvar="GIT_BRANCH", help="Kept as branch.")]
Repo = Annotated[str | None, typer.Option(envvar=["AGENT_SOURCE_REPO", "GIT_URL"], help="Kept as source_repo.")]
RpcPath = Annotated[str | None, typer.Option(help="Below the URL. Default: /api.")]
HealthPath = Annotated[str | None, typer.Option(help="Below the URL. Default: /healthz.")]
ErrorStyle = Annotated[str | None, typer.Option(help="http, or jsonrpc for agents that speak MCP.")]
Fact = Annotated[list[str] | None, typer.Option("--fact", metavar="NAME=VALUE", help="Another fact to keep.")]
Http = Annotated[bool, typer.Option("--http", help="Post to the API instead of publishing on RabbitMQ.")]
Every = Annotated[
    timedelta | None,
    typer.Option(parser=parse_duration, metavar="DURATION", help="Repeat so often until SIGTERM, as a sidecar does."),
]
Timeout = Annotated[
    timedelta | None,
    typer.Option(parser=parse_duration, metavar="DURATION", help="Give up an announcement after this. Default: never."),
]


@command
async def register(
    call: Call,
    *,
    name: Name = None,
    acp_url: Url = None,
    acp_port: Port = None,
    deployment: DeploymentId = None,
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
    """Announce a pod, of any language, until it is confirmed.

    Reads the variables that pods of the agentex SDK have. The same message is sent until the broker (with --http: the
    API) confirms it, so that it has one effect.
    """
    from podium.cli.announcing import Pod, facts_of  # noqa: PLC0415 - --help starts faster without it

    if every is not None and every < LEAST_EVERY:
        raise typer.BadParameter("at least 1s.", param_hint="--every")
    pod = Pod.of(
        name=name,
        acp_url=acp_url,
        acp_port=acp_port,
        description=description,
        acp_type=acp_type,
        agent_input_type=input_type,
        agent_id=agent_id,
        metadata={
            **facts_of(fact or []),
            "deployment_id": deployment,
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
        await _announce(call, pod, http=http, limit=timeout)
    else:
        await _until_terminated(call, _repeat(call, pod, every, http=http, limit=timeout))


async def _announce(
    call: Call,
    pod: Any,  # noqa: ANN401 - imported late
    *,
    http: bool,
    limit: timedelta | None,
    wait_seconds: float = OUTCOME_SECONDS,
) -> None:
    """One announcement, until it is confirmed and, as far as it is known by then, decided. Raises `Failure`."""
    from podium.cli.announcing import until_confirmed  # noqa: PLC0415 - --help starts faster without it
    from podium.cli.publishing import poster, publisher  # noqa: PLC0415 - as above

    message = pod.announcement()
    send = poster(call) if http else publisher(call.environment)
    async with call.screen.progress(f"Announcing {message.name}"):
        ask = await until_confirmed(send, message, limit, call.screen.remark)
    by, what = "the API" if http else "the broker", " ".join(filter(None, (message.name, message.deployment_id)))
    if not call.screen.as_json:
        line = f"Announced {what} at {message.acp_url}, confirmed by {by}."
        call.screen.one(None, str(message.message_id), line)
    async with call.screen.progress("Waiting for a worker to decide it"):
        told = await ask(wait_seconds) if ask is not None else None
    if told is not None and told.outcome not in OUTCOMES:
        raise Failure(f"{what} was refused: {told.message}", code_of_reason(told.reason))
    if call.screen.as_json:
        answer = {"confirmed_by": "api" if http else "broker", "outcome": told.outcome if told else None}
        call.screen.json({**answer, "message": message.model_dump(mode="json", exclude_unset=True)})
    later = f"'podium registrations --agent {message.name}' says what became of it."
    call.screen.remark(OUTCOMES[told.outcome] if told else later)


async def _repeat(call: Call, pod: Any, every: timedelta, *, http: bool, limit: timedelta | None) -> None:  # noqa: ANN401 - imported late
    """Announce again and again, each time anew."""
    loop = asyncio.get_running_loop()
    while True:
        began = loop.time()
        try:
            wait_seconds = min(OUTCOME_SECONDS, every.total_seconds() / 2)
            await _announce(call, pod, http=http, limit=limit, wait_seconds=wait_seconds)
        except Failure as failure:
            # The next announcement may fare better: a sidecar ends when it is told to.
            if failure.code not in {ExitCode.TIMED_OUT, ExitCode.UNAVAILABLE}:
                raise
            call.screen.remark(failure.sentence)
        await asyncio.sleep(max(0.0, began + every.total_seconds() - loop.time()))


async def _until_terminated(call: Call, work: Any) -> None:  # noqa: ANN401 - a coroutine
    """Work until SIGTERM, which is an orderly end."""
    task, terminated = asyncio.ensure_future(work), asyncio.Event()

    def stop() -> None:
        terminated.set()
        task.cancel()

    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop)
    try:
        await task
    except asyncio.CancelledError:
        if not terminated.is_set():
            raise
        call.screen.remark("Stopped.")
