"""The HTTP side: decode, one service call in one transaction, encode; and the gateway that forwards RPC."""
