"""History over HTTP: what served when and for how long, and the production periods of each version."""

from datetime import UTC, datetime

from tests.integration.api.client import Api


async def test_the_ledger_and_what_served_when(api: Api) -> None:
    """One row per generation, newest first, with actor and reason; `at` selects the row of that time."""
    agent = await api.register("bot", "v1")
    path = f"/agents/{agent['id']}"
    before = datetime.now(UTC)
    await api.register("bot", "v2")
    await api.post(f"{path}/deployments/v2/promote", {"reason": "release 2"})
    ledger = (await api.get(f"{path}/promotions")).json
    assert [(row["generation"], row["cause"], row["actor"], row["reason"]) for row in ledger] == [
        (2, "manual", "local", "release 2"),
        (1, "first", "podium", None),
    ]
    assert (ledger[0]["from_deployment_id"], ledger[0]["to_deployment_id"]) == ("v1", "v2")
    for at, expected in (
        (ledger[0]["at"], [2]),
        (before.isoformat().replace("+00:00", "Z"), [1]),
    ):
        answer = await api.get(f"{path}/promotions?at={at}")
        assert [row["generation"] for row in answer.json] == expected
    (await api.get(f"{path}/promotions?at=2000-01-01T00:00:00Z")).problem(404, "nothing-served-yet")
    assert [row["generation"] for row in (await api.get(f"{path}/promotions?limit=1&page_number=2")).json] == [1]
    assert [(row["until"], row["duration_seconds"] is None) for row in ledger] == [
        (None, True),
        (ledger[0]["at"], False),
    ]
    lasted = datetime.fromisoformat(ledger[0]["at"]) - datetime.fromisoformat(ledger[1]["at"])
    assert ledger[1]["duration_seconds"] == lasted.total_seconds()


async def test_deployments_say_when_they_were_in_production(api: Api) -> None:
    """Every answer contains them: promote, read, lookup by id, list and repeated creation."""
    agent = await api.register("bot", "v1")
    path = f"/agents/{agent['id']}"
    await api.register("bot", "v2")
    promoted = (await api.post(f"{path}/deployments/v2/promote")).json
    newest, first = (await api.get(f"{path}/promotions")).json
    now = [{"generation": 2, "since": newest["at"], "until": None}]
    assert promoted["production_periods"] == now
    listed = (await api.get(f"{path}/deployments")).json
    assert [each["production_periods"] for each in listed] == [
        now,
        [{"generation": 1, "since": first["at"], "until": newest["at"]}],
    ]
    for again in (f"{path}/deployments/v2", "/deployments/v2"):
        assert (await api.get(again)).json["production_periods"] == now
    made = {"id": "v2", "docker_image": "bot:2"}
    assert (await api.post(f"{path}/deployments", made)).json["production_periods"] == now
    created = await api.post(f"{path}/deployments", {"id": "v3", "docker_image": "bot:3"})
    assert (created.json["production_periods"], created.json["purged_at"]) == ([], None)
