"""Where objects of S3 lie. Loaded by who must not wait for an HTTP client. Standard library, Python 3.8 and up."""

from __future__ import annotations

from collections import namedtuple


class Place(namedtuple("Place", ("bucket", "prefix", "endpoint", "region"))):
    """Where objects lie. `prefix` is "" or ends with "/"; `endpoint` is "" for AWS's own."""

    @property
    def url(self) -> str:
        """Of the service: its endpoint, or that of the region."""
        china = ".cn" if self.region.startswith("cn-") else ""
        return self.endpoint or f"https://s3.{self.region}.amazonaws.com{china}"

    @property
    def has_bucket_in_path(self) -> bool:
        """Whether the bucket is named in the path: endpoints of one's own have no host for each, dots break TLS."""
        return bool(self.endpoint) or "." in self.bucket
