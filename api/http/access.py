"""Access rules of route handlers: values for their `opt`, read by the guard in `api.auth`."""

# The route needs no key.
PUBLIC = {"public": True}
# The route also accepts the key of the agent in the body.
FOR_AGENTS = {"agent_key": True}
