"""What a promote or rollback has changed: read from the ledger, so that it is true whoever else was at work."""

from typing import Any

from podium.cli.calling import Call
from podium.cli.client import Answer, Api, Json
from podium.cli.wording import served, serves

# Others may have changed what serves between our change and this look.
LEDGER_ROWS = 50


async def report(call: Call, agent: Json, answer: Answer, now: str) -> None:
    """Say what served before and what serves now; `agent` is as it was before, `now` names what was asked for."""
    if answer.generation == agent["generation"]:
        report_unchanged(call, agent)
        return
    row = await _ledger_row(call.api, agent["id"], answer.generation)
    serving, before = now, "unknown"
    if row is not None:
        serving = served(row["to_deployment_id"], row["to_acp_url"])
        before = served(row["from_deployment_id"], row["from_acp_url"])
    summary = {
        **_summary(agent, changed=True),
        "generation": answer.generation,
        "deployment_id": row["to_deployment_id"] if row else None,
        "acp_url": row["to_acp_url"] if row else None,
        "previous": _previous(row) if row else None,
    }
    shown = f"{agent['name']}: {serving} serves now, {before} served before (generation {answer.generation})."
    call.screen.one(summary, serving, shown)


def report_unchanged(call: Call, agent: Json) -> None:
    """Say that what was asked for is so already."""
    serving = serves(agent)
    shown = f"Nothing changed: {serving} serves {agent['name']} already (generation {agent['generation']})."
    call.screen.one(_summary(agent, changed=False), serving, shown)


def _summary(agent: Json, *, changed: bool) -> dict[str, Any]:
    return {
        "agent": agent["name"],
        "agent_id": agent["id"],
        "changed": changed,
        "generation": agent["generation"],
        "deployment_id": agent["production_deployment_id"],
        "acp_url": agent["acp_url"],
        "previous": None,
    }


async def _ledger_row(api: Api, agent_id: str, generation: int | None) -> Json | None:
    rows: list[Json] = await api.get(f"/agents/{agent_id}/promotions", limit=LEDGER_ROWS)
    return next((row for row in rows if row["generation"] == generation), None)


def _previous(row: Json) -> Json | None:
    if row["from_acp_url"] is None:
        return None
    return {"deployment_id": row["from_deployment_id"], "acp_url": row["from_acp_url"]}
