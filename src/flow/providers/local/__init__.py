"""The local provider: a durable queue and one scheduler on this machine."""
