"""The announcements for the benchmarks: a fleet whose pods announce themselves repeatedly."""

import random
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

DEPLOYMENTS_PER_AGENT = 4
ANNOUNCEMENTS_PER_DEPLOYMENT = 10
PER_AGENT = DEPLOYMENTS_PER_AGENT * ANNOUNCEMENTS_PER_DEPLOYMENT


def announcements(agents: int, *, seed: int = 1) -> list[tuple[str, dict[str, Any]]]:
    """Agent names and bodies in random order. Each deployment has ANNOUNCEMENTS_PER_DEPLOYMENT messages."""
    bodies = list(_bodies(agents))
    random.Random(seed).shuffle(bodies)  # noqa: S311 - a reproducible order, not a secret
    return bodies


def _bodies(agents: int) -> Iterator[tuple[str, dict[str, Any]]]:
    began = datetime.now(UTC) - timedelta(hours=1)
    for number in range(agents):
        name = f"agent-{number}"
        for version in range(DEPLOYMENTS_PER_AGENT):
            for turn in range(ANNOUNCEMENTS_PER_DEPLOYMENT):
                yield (
                    name,
                    {
                        "name": name,
                        "acp_url": f"http://10.0.{number % 250}.{version}:8000",
                        "description": "Answers questions of customers.",
                        "message_id": str(uuid4()),
                        "registered_at": (began + timedelta(seconds=turn)).isoformat(),
                        "registration_metadata": {
                            "deployment_id": f"{name}-v{version}",
                            "docker_image": f"registry.internal/{name}:{version}",
                            "commit_hash": "0f1e2d3c4b5a69788796a5b4c3d2e1f001122334",
                            "branch_name": "main",
                        },
                    },
                )
