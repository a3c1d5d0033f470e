"""`podium agents set`: what happens to an agent by itself, and how its deployments are probed."""

from datetime import timedelta
from typing import Annotated, Any, Literal

import typer

from podium.cli.calling import AgentArgument, Call, command
from podium.cli.durations import parse_duration, short

DEFAULT: Literal["default"] = "default"

Duration = timedelta | Literal["default"]


def _parse_interval(text: str) -> Duration:
    return DEFAULT if text.strip().lower() == DEFAULT else parse_duration(text)


def _parse_count(text: str) -> int | Literal["default"]:
    if text.strip().lower() == DEFAULT:
        return DEFAULT
    if not text.strip().isdecimal():
        raise typer.BadParameter(f"{text!r} is no number, nor {DEFAULT}.")
    return int(text)


@command
async def set_policy(
    call: Call,
    agent: AgentArgument,
    *,
    auto_promote: Annotated[
        Literal["first", "always", "never"] | None,
        typer.Option(help="Which new versions go to production by themselves."),
    ] = None,
    pause: Annotated[
        bool | None,
        typer.Option("--pause/--resume", help="Hold automatic promotion, or go on with it.", show_default=False),
    ] = None,
    on_failure: Annotated[
        Literal["hold", "rollback"] | None,
        typer.Option(help="When production fails: keep it, or go back to the newest version that answers."),
    ] = None,
    probe_interval: Annotated[
        timedelta | None,
        typer.Option(parser=_parse_interval, metavar="DURATION", help="How often each deployment is asked."),
    ] = None,
    probe_threshold: Annotated[
        int | None, typer.Option(parser=_parse_count, metavar="N", help="Probes in a row that must agree.")
    ] = None,
    probe_timeout: Annotated[
        timedelta | None, typer.Option(parser=_parse_interval, metavar="DURATION", help="The longest probe.")
    ] = None,
    description: Annotated[str | None, typer.Option(metavar="TEXT", help="What the agent is.")] = None,
) -> None:
    """Set what happens to an agent by itself.

    What is not named stays. 'default' for a probe is what the settings of the janitor say.
    """
    from podium.cli.agents import show_agent  # noqa: PLC0415 - it imports this module

    wanted: dict[str, Any] = {
        "auto_promote": auto_promote,
        "auto_promote_paused": pause,
        "on_failure": on_failure,
        "probe_interval_seconds": _seconds(probe_interval),
        "probe_threshold": probe_threshold,
        "probe_timeout_seconds": _seconds(probe_timeout),
        "description": description,
    }
    change = {name: value for name, value in wanted.items() if value is not None}
    if not change:
        raise typer.BadParameter("say what to set, such as --on-failure rollback.", param_hint="OPTIONS")
    async with call.screen.progress("Setting"):
        found = await call.api.agent(agent)
        answer = await call.api.call("PATCH", f"/agents/{found['id']}", json=change)
    show_agent(call, answer.body)


def probing(agent: dict[str, Any]) -> str | None:
    """How the agent's deployments are probed, as far as it is not by default."""
    parts = []
    if agent["probe_interval_seconds"] is not None:
        parts.append(f"every {_spoken(agent['probe_interval_seconds'])}")
    if agent["probe_threshold"] is not None:
        parts.append(f"{agent['probe_threshold']} in a row decide")
    if agent["probe_timeout_seconds"] is not None:
        parts.append(f"at most {_spoken(agent['probe_timeout_seconds'])} each")
    return ", ".join(parts) or None


def _seconds(duration: Duration | None) -> float | str | None:
    return duration.total_seconds() if isinstance(duration, timedelta) else duration


def _spoken(seconds: float) -> str:
    return short(timedelta(seconds=seconds)) if seconds >= 1 and seconds == int(seconds) else f"{seconds:g}s"
