"""`podium agents`: list agents, show one, or change its policy."""

import re
from datetime import timedelta
from math import inf
from typing import Annotated, Any, Literal

import typer

from podium.cli.command import LIST, AgentArgument, CommandContext, Limit, ListByDefault, Page, command
from podium.cli.durations import format_duration, parse_duration
from podium.cli.exits import ExitCode, Failure
from podium.cli.output import Column, age, details, local_time, serving_name

DEFAULT: Literal["default"] = "default"
NO_LIMIT: Literal["none"] = "none"

Duration = timedelta | Literal["default"]

COLUMNS = [
    Column("AGENT", wraps=True),
    Column("STATUS"),
    Column("SERVES", min_width=36, wraps=True),
    Column("GENERATION", drop_order=2),
    Column("AGE", drop_order=1),
    Column("DESCRIPTION", min_width=20, drop_order=3),
]


class AgentsGroup(ListByDefault):
    """Runs `list` also without arguments: `podium agents` is `podium agents list`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:  # noqa: ANN401 - Typer does not export this type
        """Insert `list` if there are no arguments."""
        return super().parse_args(ctx, args or [LIST])


def _parse_interval(text: str) -> Duration:
    return DEFAULT if text.strip().lower() == DEFAULT else parse_duration(text)


def _parse_count(text: str) -> int | Literal["default"]:
    if text.strip().lower() == DEFAULT:
        return DEFAULT
    if not text.strip().isdecimal():
        raise typer.BadParameter(f"{text!r} is neither a number nor '{DEFAULT}'.")
    return int(text)


def _parse_limit(text: str) -> float | Literal["none"]:
    if text.strip().lower() == NO_LIMIT:
        return NO_LIMIT
    try:
        number = float(text)
    except ValueError:
        number = 0
    if not 0 < number < inf:
        raise typer.BadParameter(f"{text!r} is neither a positive number nor '{NO_LIMIT}'.")
    return int(number) if number == int(number) else number


agents = typer.Typer(
    name="agents",
    cls=AgentsGroup,
    help="List agents, show one, change its policy, or print its signing key.",
    subcommand_metavar="[list] [AGENT] | set AGENT | key NAME",
)


@agents.command(LIST)
@command
async def list_agents(
    context: CommandContext,
    agent: Annotated[
        str | None, typer.Argument(metavar="AGENT", help="Show only this agent, by name or id.", show_default=False)
    ] = None,
    limit: Limit = 50,
    page: Page = 1,
) -> None:
    """List agents, newest first, or show one agent."""
    output = context.output
    if agent is not None:
        async with output.progress("Reading the agent"):
            found = await context.api.agent(agent)
        _show(context, found)
        return
    async with output.progress("Reading agents"):
        rows = await context.api.get("/agents", limit=limit, page_number=page)
    output.rows(rows, [row["name"] for row in rows], COLUMNS, [_cells(row) for row in rows])
    if not rows:
        output.note("There are no agents yet: 'podium register' announces one." if page == 1 else "No more agents.")
    output.note_next_page(rows, limit, page)


@agents.command("key")
@command
async def print_key(
    context: CommandContext,
    name: Annotated[str, typer.Argument(metavar="NAME", help="Name of the agent.", show_default=False)],
) -> None:
    """Print the key with which an agent's pods sign their announcements, for their PODIUM_AGENT_KEY.

    It is derived from PODIUM_SECRET_KEY on this machine: the agent need not exist, and no server is asked.
    """
    from contracts.fields import AGENT_NAME_PATTERN  # noqa: PLC0415 - --help starts faster without it
    from services.registration.signatures import signing_key  # noqa: PLC0415 - as above

    if not re.fullmatch(AGENT_NAME_PATTERN, name):
        raise Failure(f"{name!r} is not the name of an agent.", ExitCode.USAGE)
    secret_key = context.environment.get("PODIUM_SECRET_KEY")
    if not secret_key:
        raise Failure("PODIUM_SECRET_KEY is not set: run this where the API or a worker gets it.", ExitCode.USAGE)
    key = signing_key(secret_key, name)
    context.output.item({"name": name, "key": key}, key, key)


@agents.command("set")
@command
async def set_policy(
    context: CommandContext,
    agent: AgentArgument,
    *,
    auto_promote: Annotated[
        Literal["first", "always", "never"] | None,
        typer.Option(help="Which new deployments go to production automatically."),
    ] = None,
    pause: Annotated[
        bool | None,
        typer.Option("--pause/--resume", help="Pause or resume automatic promotion.", show_default=False),
    ] = None,
    on_failure: Annotated[
        Literal["hold", "rollback"] | None,
        typer.Option(
            help="What happens when production fails: 'hold' keeps it, 'rollback' goes back to the newest earlier "
            "deployment that answers."
        ),
    ] = None,
    probe_interval: Annotated[
        timedelta | None,
        typer.Option(parser=_parse_interval, metavar="DURATION", help="Time between two probes of a deployment."),
    ] = None,
    probe_threshold: Annotated[
        int | None,
        typer.Option(parser=_parse_count, metavar="N", help="How many equal probe results in a row change the status."),
    ] = None,
    probe_timeout: Annotated[
        timedelta | None,
        typer.Option(parser=_parse_interval, metavar="DURATION", help="Maximum duration of one probe."),
    ] = None,
    affinity: Annotated[
        Literal["none", "deployment", "instance"] | None,
        typer.Option(help="What the calls of a conversation stay with."),
    ] = None,
    conversation_keys: Annotated[
        Literal["a2a", "acp", "none"] | None,
        typer.Option(help="Whose ids in bodies are keys of conversations, besides those in headers."),
    ] = None,
    conversation_idle: Annotated[
        timedelta | None,
        typer.Option(
            parser=_parse_interval, metavar="DURATION", help="How long a conversation stays open after its last call."
        ),
    ] = None,
    conversation_max_age: Annotated[
        timedelta | None,
        typer.Option(
            parser=_parse_interval, metavar="DURATION", help="How long a conversation stays open after its first call."
        ),
    ] = None,
    drain_deadline: Annotated[
        timedelta | None,
        typer.Option(
            parser=_parse_interval,
            metavar="DURATION",
            help="How long conversations stay with a deployment that has stopped serving.",
        ),
    ] = None,
    forward_authorization: Annotated[
        Literal["strip", "pass"] | None,
        typer.Option(help="Whether the agent gets the Authorization header of calls that is not for Podium."),
    ] = None,
    calls_per_second: Annotated[
        float | None,
        typer.Option(parser=_parse_limit, metavar="N", help="Most RPC calls per second and API process; or 'none'."),
    ] = None,
    calls_in_flight: Annotated[
        float | None,
        typer.Option(parser=_parse_limit, metavar="N", help="Most RPC calls under way per API process; or 'none'."),
    ] = None,
    description: Annotated[str | None, typer.Option(metavar="TEXT", help="Description of the agent.")] = None,
) -> None:
    """Change the policy of an agent.

    Options that are not given change nothing. The value 'default' of a number or a duration returns to the setting.
    """
    options: dict[str, Any] = {
        "auto_promote": auto_promote,
        "auto_promote_paused": pause,
        "on_failure": on_failure,
        "probe_interval_seconds": _seconds(probe_interval),
        "probe_threshold": probe_threshold,
        "probe_timeout_seconds": _seconds(probe_timeout),
        "affinity": affinity,
        "conversation_keys": conversation_keys,
        "conversation_idle_seconds": _seconds(conversation_idle),
        "conversation_max_age_seconds": _seconds(conversation_max_age),
        "drain_deadline_seconds": _seconds(drain_deadline),
        "forward_authorization": forward_authorization,
        "calls_per_second": calls_per_second,
        "calls_in_flight": calls_in_flight,
        "description": description,
    }
    change = {name: value for name, value in options.items() if value is not None}
    if not change:
        raise typer.BadParameter("name what to set, such as --on-failure rollback.", param_hint="OPTIONS")
    async with context.output.progress("Changing the policy"):
        found = await context.api.agent(agent)
        response = await context.api.call("PATCH", f"/agents/{found['id']}", json=change)
    _show(context, response.body)


def _show(context: CommandContext, agent: dict[str, Any]) -> None:
    paused = ", paused until the next promote" if agent["auto_promote_paused"] else ""
    shown = details(
        [
            ("agent", agent["name"]),
            ("id", agent["id"]),
            ("status", agent["status"]),
            ("because", agent["status_reason"]),
            ("serves", serving_name(agent)),
            ("address", agent["acp_url"]),
            ("generation", str(agent["generation"])),
            ("auto-promote", f"{agent['auto_promote']}{paused}"),
            ("on failure", agent["on_failure"]),
            ("probes", _probes(agent)),
            ("conversations", _conversations(agent)),
            ("calls", _limits(agent)),
            ("authorization", "passed to the agent" if agent["forward_authorization"] == "pass" else None),
            ("type", agent["acp_type"]),
            ("image", agent["docker_image"]),
            ("description", agent["description"]),
            ("created", local_time(agent["created_at"])),
            ("deleted", local_time(agent["deleted_at"]) if agent["deleted_at"] else None),
        ]
    )
    context.output.item(agent, agent["name"], shown)


def _cells(agent: dict[str, Any]) -> list[str]:
    return [
        agent["name"],
        agent["status"],
        serving_name(agent),
        str(agent["generation"]),
        age(agent["created_at"]),
        agent["description"],
    ]


def _probes(agent: dict[str, Any]) -> str:
    """The agent's own probe settings; empty if it has none."""
    parts = []
    if agent["probe_interval_seconds"] is not None:
        parts.append(f"every {_format_seconds(agent['probe_interval_seconds'])}")
    if agent["probe_threshold"] is not None:
        parts.append(f"threshold {agent['probe_threshold']}")
    if agent["probe_timeout_seconds"] is not None:
        parts.append(f"timeout {_format_seconds(agent['probe_timeout_seconds'])}")
    return ", ".join(parts)


def _conversations(agent: dict[str, Any]) -> str:
    """What the agent's conversations stay with, and its own times for them."""
    parts = [f"stay with the {agent['affinity']}" if agent["affinity"] != "none" else "stay with nothing"]
    if agent["conversation_keys"] is not None:
        parts.append(f"keys of {agent['conversation_keys'].upper()}")
    for field, words in (
        ("conversation_idle_seconds", "idle for"),
        ("conversation_max_age_seconds", "at most"),
        ("drain_deadline_seconds", "drained within"),
    ):
        if agent[field] is not None:
            parts.append(f"{words} {_format_seconds(agent[field])}")
    return ", ".join(parts)


def _limits(agent: dict[str, Any]) -> str | None:
    """The agent's limits of calls; None if it has none."""
    parts = []
    if agent["calls_per_second"] is not None:
        parts.append(f"{agent['calls_per_second']:g} per second")
    if agent["calls_in_flight"] is not None:
        parts.append(f"{agent['calls_in_flight']} under way")
    return ", ".join(parts) or None


def _seconds(duration: Duration | None) -> float | str | None:
    return duration.total_seconds() if isinstance(duration, timedelta) else duration


def _format_seconds(seconds: float) -> str:
    whole = seconds >= 1 and seconds == int(seconds)
    return format_duration(timedelta(seconds=seconds)) if whole else f"{seconds:g}s"
