from typing import Any

from podium.cli.promotions import newest_preview


def deployment(deployment_id: str, status: str = "Ready", *, production: bool = False) -> dict[str, Any]:
    """A row of a list of deployments, newest first."""
    return {"id": deployment_id, "status": status, "is_production": production}


def test_the_newest_ready_preview_is_chosen() -> None:
    """Pending and Failed deployments are skipped."""
    listed = [
        deployment("v4", "Pending"),
        deployment("v3", "Failed"),
        deployment("v2"),
        deployment("v1", production=True),
    ]
    chosen = newest_preview(listed)
    assert chosen is not None
    assert chosen["id"] == "v2"


def test_nothing_older_than_production_is_chosen() -> None:
    """A command that runs twice must not switch back and forth."""
    assert newest_preview([deployment("v2", production=True), deployment("v1")]) is None
    assert newest_preview([deployment("v2", "Failed", production=True), deployment("v1")]) is None


def test_nothing_is_chosen_if_nothing_is_ready() -> None:
    """An empty list has nothing to choose either."""
    assert newest_preview([]) is None
    assert newest_preview([deployment("v1", "Pending")]) is None
