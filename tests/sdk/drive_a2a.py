"""The client of the A2A SDK with a running Podium: prints what it received as one JSON object."""

import asyncio
import json
import sys

import httpx
from a2a.client import A2ACardResolver, ClientConfig, ClientFactory
from a2a.helpers.proto_helpers import new_text_message
from a2a.types import Role, SendMessageRequest
from google.protobuf.json_format import MessageToDict

TIMEOUT_SECONDS = 40
asked = []


async def note(request):
    """Record the URL and the protocol version of each request."""
    asked.append({"url": str(request.url), "version": request.headers.get("a2a-version")})


async def say(client, text):
    """Send a message; returns the events of the answer, and its text."""
    events, said = [], ""
    async for event in client.send_message(SendMessageRequest(message=new_text_message(text, role=Role.ROLE_USER))):
        kind = event.WhichOneof("payload")
        events.append(kind)
        if kind == "artifact_update":
            said += event.artifact_update.artifact.parts[0].text
        if kind == "task":
            said += "".join(part.text for artifact in event.task.artifacts for part in artifact.parts)
    return {"events": events, "said": said}


async def main(api, agent_id):
    """Call the agent with its card, before and after a promote, and its preview with the preview's card."""
    urls = {
        "name": f"{api}/agents/name/a2a-bot",
        "preview": f"{api}/agents/{agent_id}/deployments/a2a-v2",
    }
    async with httpx.AsyncClient(timeout=TIMEOUT_SECONDS, event_hooks={"request": [note]}) as http:
        cards = {name: await A2ACardResolver(http, base_url=url).get_agent_card() for name, url in urls.items()}
        clients = {
            (name, streaming): ClientFactory(ClientConfig(httpx_client=http, streaming=streaming)).create(card)
            for name, card in cards.items()
            for streaming in (True, False)
        }
        answers = {
            "cards": {name: MessageToDict(card) for name, card in cards.items()},
            "streamed": await say(clients["name", True], "one"),
            "sent": await say(clients["name", False], "two"),
            "preview": await say(clients["preview", True], "three"),
            "preview_sent": await say(clients["preview", False], "four"),
        }
        async with httpx.AsyncClient() as other:
            (await other.post(f"{urls['preview']}/promote")).raise_for_status()
        answers["streamed_after"] = await say(clients["name", True], "five")
        answers["sent_after"] = await say(clients["name", False], "six")
        card = await A2ACardResolver(http, base_url=urls["name"]).get_agent_card()
        answers["version_after"] = card.version
        fresh = ClientFactory(ClientConfig(httpx_client=http)).create(card)
        answers["fresh"] = await say(fresh, "seven")
    print(json.dumps({**answers, "asked": asked}))


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
