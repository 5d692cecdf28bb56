"""A stand-in for the Mithril cloud: it speaks the API, has a market and bills, and really boots machines."""

from tests.support.mithril_cloud.cloud import Cloud, serve

__all__ = ["Cloud", "serve"]
