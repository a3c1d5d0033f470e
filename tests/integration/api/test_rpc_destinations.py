"""Addresses that the gateway refuses to dial; the resolved address counts, not the name."""

import socket
from ipaddress import IPv4Network
from typing import Any

import pytest
from sqlalchemy.engine import make_url
from yarl import URL

from services.egress import Resolver
from services.settings import Settings
from tests.integration.api.client import Api
from tests.integration.api.conftest import Serve
from tests.integration.api.pods import Pod, silent_port

RPC = "/agents/name/bot/rpc"


@pytest.mark.parametrize(
    "url",
    [
        "http://169.254.169.254/latest",
        "http://0.0.0.0:{port}",
        "http://[::]:{port}",
        "http://[::ffff:127.0.0.1]:{port}",
        "http://224.0.0.1:{port}",
        "http://8.8.8.8:{port}",
        "https://8.8.8.8:{port}",
    ],
)
async def test_addresses_that_are_not_dialled(api: Api, pod: Pod, url: str) -> None:
    """502 with the reason, before anything is sent."""
    await api.register("bot", "v1", acp_url=url.format(port=URL(pod.url).port))
    (await api.post(RPC, {"id": 1})).rpc_error(502, "destination-denied")
    assert not pod.seen


@pytest.mark.parametrize("host", ["999.999.999.999", "127.1", "2130706433", "017700000001", "x" * 63 + "." + "y" * 63])
async def test_invalid_host_names(api: Api, pod: Pod, host: str) -> None:
    """502 as for any name without an address, whatever error the system's resolver raises."""
    await api.register("bot", "v1", acp_url=f"http://{host}:{URL(pod.url).port}")
    (await api.post(RPC, {"id": 1})).rpc_error(502, "agent-unreachable")
    assert not pod.seen


async def test_podium_s_own_servers_are_not_dialled(serve: Serve, settings: Settings) -> None:
    """Neither PostgreSQL nor the broker nor the API, under any address of their machine."""
    api = await serve()
    database, broker = make_url(settings.database_url.get_secret_value()), URL(settings.amqp_url.get_secret_value())
    for port in (database.port, broker.port):
        for host in ("127.0.0.1", "127.0.0.2", "localhost"):
            await api.register("bot", acp_url=f"http://{host}:{port}")
            (await api.post(RPC, {"id": 1})).rpc_error(502, "destination-denied")


async def test_a_name_is_checked_each_time_it_is_resolved(
    serve: Serve, pod: Pod, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A name that resolved to an allowed address once can resolve to a denied one later."""
    answers = ["127.0.0.1", "169.254.169.254"]

    async def rebinding(_: Resolver, host: str, port: int = 0, family: Any = 0) -> list[Any]:
        del family
        literal = {"hostname": host, "host": answers.pop(0), "port": port}
        return [{**literal, "family": socket.AF_INET, "proto": 0, "flags": socket.AI_NUMERICHOST}]

    monkeypatch.setattr(Resolver, "resolve", rebinding)
    api = await serve()
    port = URL(pod.url).port
    await api.register("bot", "v1", acp_url=f"http://rebinding.test:{port}")
    assert (await api.post(RPC, {})).status == 200
    # Another port, so that neither a kept connection nor the name cache is used.
    async with silent_port() as other:
        await api.register("bot", "v2", acp_url=f"http://rebinding.test:{other}")
        agent = (await api.get("/agents/name/bot")).json
        await api.promote(agent, "v2")
        (await api.post(RPC, {"id": 1})).rpc_error(502, "destination-denied")


async def test_the_lists_of_the_settings_hold(serve: Serve, pod: Pod) -> None:
    """The settings for networks, hosts and ports apply independently."""
    port = URL(pod.url).port
    assert port is not None
    open_api = await serve()
    await open_api.register("bot", "v1", acp_url=f"http://localhost:{port}")
    assert (await open_api.post(RPC, {})).status == 200
    for narrow in (
        {"dial_networks": (IPv4Network("10.0.0.0/8"),)},
        {"dial_hosts": (".internal",)},
        {"dial_ports": (port + 1,)},
    ):
        api = await serve(**narrow)
        (await api.post(RPC, {"id": 1})).rpc_error(502, "destination-denied")
    assert len(pod.seen) == 1
