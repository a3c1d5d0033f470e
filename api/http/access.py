"""Access rules of route handlers: values for their `opt`, read by the guard in `api.auth`."""

from litestar.openapi.spec import SecurityRequirement

# The route needs no key.
PUBLIC = {"public": True}
# The same for the OpenAPI document.
NO_KEY: list[SecurityRequirement] = [{}]
# The route also accepts the key of the agent in the body.
FOR_AGENTS = {"agent_key": True}
# The same for the OpenAPI document, beside the keys of all other routes.
AGENT_KEY: list[SecurityRequirement] = [{"agent_key": []}]
