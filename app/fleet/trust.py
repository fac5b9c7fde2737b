"""Whom backends' certificates may be signed by: the system's authorities, read when a first backend has TLS."""

import ssl
from functools import cached_property


class Trust:
    """One for all backends; to read the authorities takes 20 ms, and most gateways reach their workers without TLS."""

    def context(self, url: str) -> ssl.SSLContext | None:
        """What the certificate of a URL's server is judged by; None where it has none."""
        return self._authorities if url.startswith("https://") else None

    @cached_property
    def _authorities(self) -> ssl.SSLContext:
        context = ssl.create_default_context()
        context.set_alpn_protocols(["http/1.1"])
        return context
