"""RPC: one call in, one call to an agent's pod, its answer back byte for byte."""
