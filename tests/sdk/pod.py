"""A pod of the agentex SDK, run with the Python of the SDKs. It registers itself when it starts."""

import os

import uvicorn
from agentex.lib.sdk.fastacp.fastacp import FastACP
from agentex.types.text_content import TextContent

acp = FastACP.create(acp_type="sync")


@acp.on_message_send
async def handle(params):
    """Answer with the version and the received text."""
    return TextContent(author="agent", content=f"{os.environ['AGENTEX_DEPLOYMENT_ID']} heard: {params.content.content}")


if __name__ == "__main__":
    uvicorn.run(acp, host="127.0.0.1", port=int(os.environ["ACP_PORT"]), log_level="warning")
