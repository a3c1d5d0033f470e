"""Events over HTTP as Server-Sent Events."""
