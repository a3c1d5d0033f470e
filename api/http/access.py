"""Who may call a route: marks that a route handler carries in its `opt`, read by the guard in `api.auth`."""

# Needs no key.
PUBLIC = {"public": True}
# Also accepts the agent's own key.
FOR_AGENTS = {"agent_key": True}
