"""What a promote or rollback has changed: read from the ledger, so that it is true whoever else was at work."""

from typing import Any

from podium.client import Answer, Api, Json
from podium.commands.calling import Call
from podium.commands.wording import served

# Others may have changed what serves between our change and this look.
LEDGER_ROWS = 50


async def report(call: Call, agent: Json, answer: Answer, now: str) -> None:
    """Say what served before and what serves now; `agent` is as it was before, `now` names what was asked for."""
    changed = answer.generation != agent["generation"]
    row = await _ledger_row(call.api, agent["id"], answer.generation) if changed else None
    summary: dict[str, Any] = {
        "agent": agent["name"],
        "agent_id": agent["id"],
        "changed": changed,
        "generation": answer.generation,
        "deployment_id": row["to_deployment_id"] if row else agent["production_deployment_id"],
        "acp_url": row["to_acp_url"] if row else agent["acp_url"],
        "previous": _previous(row) if row else None,
    }
    serving = served(summary["deployment_id"], summary["acp_url"]) if row or not changed else now
    if not changed:
        shown = f"Nothing changed: {serving} serves {agent['name']} already (generation {answer.generation})."
    else:
        before = served(row["from_deployment_id"], row["from_acp_url"]) if row else "something else"
        shown = f"{agent['name']}: {serving} serves now, {before} did before (generation {answer.generation})."
    call.screen.one(summary, serving, shown)


async def _ledger_row(api: Api, agent_id: str, generation: int | None) -> Json | None:
    rows: list[Json] = await api.get(f"/agents/{agent_id}/promotions", limit=LEDGER_ROWS)
    return next((row for row in rows if row["generation"] == generation), None)


def _previous(row: Json) -> Json | None:
    if row["from_acp_url"] is None:
        return None
    return {"deployment_id": row["from_deployment_id"], "acp_url": row["from_acp_url"]}
