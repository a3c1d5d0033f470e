from tests.integration.workers.conftest import registrar, relay

__all__ = ["registrar", "relay"]
