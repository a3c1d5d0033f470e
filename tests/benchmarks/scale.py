"""`make bench-scale`: reads and promotes with 1,000,000 deployments in the database, compared with 1,000.

    python -m tests.benchmarks.scale [--deployments 1000000]

Caveats: one caller at a time, on one machine. SQL writes the rows, not announcements. The database fits into memory.
"""

import argparse
import random
import statistics
import tempfile
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any
from uuid import UUID

import uvloop
from rich.console import Console
from rich.table import Table
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession

from podium.servers import private_servers
from services.agents.queries import get_agent, get_agent_by_name, get_deployment
from services.agents.queries import list_deployments as deployments_of
from services.domain.caller import Caller
from services.events.log import event_cursor, read_events
from services.promotion.history import history, served_at
from services.promotion.promote import promote
from services.registration.batch import register_batch
from services.registration.inbox import Lifetime, recent_registrations
from services.routing.resolver import RouteResolver
from services.routing.routes import RouteKey
from services.storage.database import Sessions, in_transaction, make_engine
from services.storage.pages import Page
from tests.benchmarks.measure import Bench
from tests.support.factories import incoming
from tests.support.lists import list_agents

PER_AGENT = 10
SMALL = 1_000
SAMPLES = 300
WARM_UP = 30
CHOSEN = 500
TARGET = 1.5

FILL = """
INSERT INTO agents (name, status, generation, event_seq, created_at)
    SELECT 'agent-' || n, 'Ready', 1, 4, now() - n * interval '1 ms' FROM generate_series(1, :agents) AS n;
INSERT INTO deployments (id, agent_id, docker_image, registration_metadata, status, status_changed_at, acp_url,
    is_production, registered_at, registered_message_id, first_registered_at, created_at, ready_at, promoted_at)
    SELECT name || '-v' || v, id, 'img:' || v, '{"commit": "0f1e2d3c"}', 'Ready', now(), 'http://10.0.0.1:8000',
        v = 1, now(), gen_random_uuid(), now(), now() - v * interval '1 s', now(), CASE WHEN v = 1 THEN now() END
    FROM agents, generate_series(1, :per_agent) AS v;
UPDATE agents SET production_deployment_id = name || '-v1';
INSERT INTO promotions (agent_id, generation, cause, actor, to_deployment_id, to_acp_url, at)
    SELECT id, 1, 'first', 'automation', name || '-v1', 'http://10.0.0.1:8000', now() FROM agents;
INSERT INTO outbox (event_id, type, agent_id, agent_name, subject, sequence, generation, payload, published_at)
    SELECT gen_random_uuid(), 'podium.deployment.ready.v1', id, name, name, s, 1, '{}', now()
    FROM agents, generate_series(1, 4) AS s;
INSERT INTO registrations (message_id, agent_name, deployment_id, registered_at, outcome)
    SELECT d.registered_message_id, a.name, d.id, now(), 'Registered'
    FROM deployments AS d JOIN agents AS a ON a.id = d.agent_id
"""

console = Console()


@dataclass(frozen=True)
class Chosen:
    """An agent of the database."""

    id: UUID
    name: str

    @property
    def some_deployment(self) -> str:
        """The id of a random deployment of the agent."""
        return f"{self.name}-v{random.randint(1, PER_AGENT)}"  # noqa: S311 - a load, not a secret


Work = Callable[[AsyncSession, Chosen], Awaitable[Any]]
WORK: dict[str, Work] = {
    "list agents": lambda session, _: list_agents(session, Page()),
    "list agents behind an id": lambda session, agent: list_agents(session, Page(after=agent.id)),
    "an agent": lambda session, agent: get_agent(session, agent.id),
    "an agent by its name": lambda session, agent: get_agent_by_name(session, agent.name),
    "list its deployments": lambda session, agent: deployments_of(session, agent.id, Page()),
    "a deployment": lambda session, agent: get_deployment(session, agent.id, agent.some_deployment),
    "its ledger": lambda session, agent: history(session, agent.id, limit=50),
    "what served now": lambda session, agent: served_at(session, agent.id, datetime.now(UTC)),
    "its announcements": lambda session, agent: recent_registrations(session, Lifetime(agent.name), Page()),
    "all announcements": lambda session, _: recent_registrations(session, Lifetime(), Page()),
    "its events": lambda session, agent: read_events(session, agent.id, (1,), 100),
    "all events": lambda session, _: read_events(session, None, (1, 0), 100),
    "the cursor of events": lambda session, _: event_cursor(session),
    "announce a version again": lambda session, agent: register_batch(
        session, [incoming(agent.name, deployment_id=agent.some_deployment)]
    ),
    "promote": lambda session, agent: promote(session, agent.id, agent.some_deployment, Caller(actor="benchmark")),
}


async def measure(bench: Bench, deployments: int) -> dict[str, list[float]]:
    """The milliseconds of each call by kind of work, one call at a time, on a database of this size."""
    async with bench.fresh() as settings:
        engine = make_engine(settings, application_name="bench", pool_size=2)
        sessions = Sessions(engine)
        agents = await _fill(engine.execution_options(isolation_level="AUTOCOMMIT"), deployments // PER_AGENT)

        async def do(work: Work) -> None:
            agent = random.choice(agents)  # noqa: S311 - as above
            await in_transaction(sessions, lambda session: work(session, agent))

        found = {name: await _milliseconds(partial(do, work)) for name, work in WORK.items()}
        async with RouteResolver(settings, application_name="bench") as routes:
            found["where a call goes"] = await _milliseconds(
                lambda: routes.find(RouteKey(agent_id=random.choice(agents).id))  # noqa: S311 - as above
            )
        await engine.dispose()
    return found


async def _fill(engine: AsyncEngine, agents: int) -> Sequence[Chosen]:
    async with engine.connect() as connection:
        for statement in FILL.split(";\n"):
            await connection.execute(text(statement), {"agents": agents, "per_agent": PER_AGENT})
        await connection.execute(text("VACUUM ANALYZE"))
        chosen = await connection.execute(text("SELECT id, name FROM agents ORDER BY random() LIMIT :n"), {"n": CHOSEN})
        return [Chosen(row.id, row.name) for row in chosen]


async def _milliseconds(work: Callable[[], Awaitable[Any]]) -> list[float]:
    taken = []
    for _ in range(WARM_UP + SAMPLES):
        began = perf_counter()
        await work()
        taken.append((perf_counter() - began) * 1000)
    return taken[WARM_UP:]


async def run(folder: Path, deployments: int) -> None:
    """Measure both sizes and print both numbers of each ratio."""
    async with private_servers(folder / "servers") as servers:
        bench = Bench(servers, folder)
        with console.status(f"measuring on {SMALL:,} deployments ..."):
            small = await measure(bench, SMALL)
        with console.status(f"measuring on {deployments:,} deployments ..."):
            large = await measure(bench, deployments)
    table = Table(title=f"p99 of {SAMPLES} calls, median in brackets")
    for heading in ("work", f"{SMALL:,} deployments", f"{deployments:,}", "ratio", "target"):
        table.add_column(heading, justify="left" if heading == "work" else "right")
    for name in small:
        before, after = _percentile(small[name]), _percentile(large[name])
        table.add_row(
            name,
            f"{before:.2f} ms ({statistics.median(small[name]):.2f})",
            f"{after:.2f} ms ({statistics.median(large[name]):.2f})",
            f"{after / before:.2f}x",
            f"<= {TARGET}x",
        )
    console.print(table)


def _percentile(milliseconds: Sequence[float]) -> float:
    return statistics.quantiles(milliseconds, n=100)[98]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Measure reads and promotes on a large database.")
    parser.add_argument("--deployments", type=int, default=1_000_000)
    with tempfile.TemporaryDirectory(prefix="podium-bench-", ignore_cleanup_errors=True) as name:
        Path(name).chmod(0o755)  # the servers' unprivileged account must be able to enter it
        uvloop.run(run(Path(name), parser.parse_args().deployments))
