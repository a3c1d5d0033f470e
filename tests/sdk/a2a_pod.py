"""An agent of the A2A SDK, run with the Python of the SDKs. Its card names addresses that do not exist."""

import asyncio
import os

import uvicorn
from a2a.helpers.proto_helpers import (
    new_task_from_user_message,
    new_text_artifact_update_event,
    new_text_status_update_event,
)
from a2a.server.agent_execution import AgentExecutor
from a2a.server.request_handlers import DefaultRequestHandler
from a2a.server.routes import create_agent_card_routes, create_jsonrpc_routes
from a2a.server.tasks import InMemoryTaskStore
from a2a.types import AgentCapabilities, AgentCard, AgentInterface, AgentSkill, TaskState
from starlette.applications import Starlette

VERSION = os.environ["VERSION"]
INTERNAL = "http://agent.internal.invalid:9/rpc"
# A2A versions that the card offers, such as 1.0,0.3.
PROTOCOLS = os.environ["PROTOCOLS"].split(",")


class Executor(AgentExecutor):
    """Answers in two parts with its version and the received text."""

    async def execute(self, context, event_queue):
        """Answer the message."""
        task = new_task_from_user_message(context.message)
        await event_queue.enqueue_event(task)
        for piece in (VERSION, f" heard: {context.get_user_input()}"):
            ids = {"task_id": task.id, "context_id": task.context_id, "artifact_id": "answer"}
            event = new_text_artifact_update_event(name="answer", text=piece, append=piece != VERSION, **ids)
            await event_queue.enqueue_event(event)
            await asyncio.sleep(0.05)
        done = new_text_status_update_event(task.id, task.context_id, TaskState.TASK_STATE_COMPLETED, "Done.")
        await event_queue.enqueue_event(done)

    async def cancel(self, context, event_queue):
        """Nothing to cancel."""


card = AgentCard(
    name="a2a-bot",
    description="Says which version it is.",
    version=VERSION,
    supported_interfaces=[
        AgentInterface(url="agent.internal.invalid:50051", protocol_binding="GRPC", protocol_version="1.0"),
        *(AgentInterface(url=INTERNAL, protocol_binding="JSONRPC", protocol_version=each) for each in PROTOCOLS),
        AgentInterface(url=INTERNAL, protocol_binding="HTTP+JSON", protocol_version="1.0"),
    ],
    capabilities=AgentCapabilities(streaming=True),
    default_input_modes=["text/plain"],
    default_output_modes=["text/plain"],
    skills=[AgentSkill(id="say", name="say", description="Says it.", tags=["say"])],
)

handler = DefaultRequestHandler(agent_executor=Executor(), task_store=InMemoryTaskStore(), agent_card=card)
app = Starlette(
    routes=[
        *create_agent_card_routes(card),
        *create_jsonrpc_routes(handler, "/rpc", enable_v0_3_compat=True),
    ]
)

if __name__ == "__main__":
    uvicorn.run(app, host="127.0.0.1", port=int(os.environ["PORT"]), log_level="warning")
