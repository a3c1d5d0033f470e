"""The RPC gateway: each call becomes one call to an agent's pod, and the answer returns byte for byte."""
