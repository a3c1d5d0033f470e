"""The client of the agentex SDK with a running Podium: prints the result of each call as one JSON object."""

import json
import sys

from agentex import Agentex, NotFoundError

CONTENT = {"type": "text", "author": "user", "content": "ping"}


def main(base_url: str, name: str, live: str, preview: str) -> None:
    """Manage the deployments of the agent like a deployment pipeline."""
    client = Agentex(base_url=base_url, api_key="unused")
    agent = client.agents.retrieve_by_name(name)
    deployments = client.agents.deployments
    params = {
        "content": CONTENT,
        "stream": False,
        "agent": {**agent.model_dump(mode="json")},
        "task": {"id": "11111111-1111-4111-8111-111111111111"},
    }

    def says(answer):
        return answer.result if isinstance(answer.result, str) else json.dumps(answer.to_dict(mode="json"))

    answers = {
        "agent": agent.to_dict(mode="json"),
        "retrieved": client.agents.retrieve(agent.id).id,
        "agents": [each.name for each in client.agents.list(limit=10, page_number=1)],
        "created": deployments.create(
            agent.id,
            docker_image="registry/bot:3",
            registration_metadata={"commit_hash": "abc"},
            helm_release_name="bot-3",
        ).to_dict(mode="json"),
        "production_says": says(client.agents.rpc_by_name(name, method="message/send", params=params, id=7)),
        "preview_says": says(
            deployments.preview_rpc(preview, agent_id=agent.id, method="message/send", params=params, id="8")
        ),
        "promoted": deployments.promote(preview, agent_id=agent.id).to_dict(mode="json"),
        "production_says_after": says(client.agents.rpc(agent.id, method="message/send", params=params, id=9)),
        "retrieved_deployment": deployments.retrieve(preview, agent_id=agent.id).to_dict(mode="json"),
        "deleted": deployments.delete(live, agent_id=agent.id).to_dict(mode="json"),
        "listed": [each.id for each in deployments.list(agent.id, order_by="created_at", order_direction="asc")],
        "built": client.agents.register_build(name="built-bot", description="No pod yet.").to_dict(mode="json"),
    }
    answers["agent_deleted"] = client.agents.delete_by_name("built-bot").to_dict(mode="json")
    try:
        client.agents.retrieve_by_name("built-bot")
    except NotFoundError as error:
        answers["missing"] = error.status_code
    print(json.dumps(answers))


if __name__ == "__main__":
    main(*sys.argv[1:])
