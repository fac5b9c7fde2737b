"""Who may do what: API keys to principals. Keys are held as SHA-256 digests only."""

import hashlib
import hmac
from collections.abc import Iterable
from dataclasses import dataclass

from app.config import Tenant
from app.errors import Forbidden, InvalidRequest, Unauthenticated
from app.fields import Fields
from app.policy.quota import Account, account
from app.types import Scope

_IMPLIED: dict[Scope, Scope] = {"audit:read": "audit:admin"}


@dataclass(frozen=True, slots=True)
class Principal:
    """An authenticated caller; `key_id` is the first 8 hex digits of the key's digest, enough to find it in a log."""

    tenant: Tenant
    key_id: str
    account: Account

    def may(self, scope: Scope) -> bool:
        return scope in self.tenant.scopes or _IMPLIED.get(scope) in self.tenant.scopes

    def require(self, scope: Scope) -> None:
        """Raise `Forbidden` unless this principal holds the scope, or one that implies it."""
        if not self.may(scope):
            raise Forbidden("scope", scope=scope)


class KeyRing:
    """All keys of a configuration, found by the start of their digest, which no caller can steer by a key's bytes."""

    def __init__(self, tenants: Iterable[Tenant]) -> None:
        self._principals: dict[str, list[tuple[str, Principal]]] = {}
        for tenant in tenants:
            for digest in (key.removeprefix("sha256:") for key in tenant.keys):
                principal = Principal(tenant, digest[:8], account(tenant, digest))
                self._principals.setdefault(digest[:8], []).append((digest, principal))

    def authenticate(self, headers: Fields) -> Principal:
        """The principal of the key in Authorization, x-api-key or api-key.

        Raises `Unauthenticated`, or `InvalidRequest` where one of these headers came twice.
        """
        key = _sent_key(headers)
        if key is None:
            raise Unauthenticated(headers={"WWW-Authenticate": 'Bearer realm="tidegate"'})
        digest = hashlib.sha256(key.encode("latin-1", "replace")).hexdigest()
        for known, principal in self._principals.get(digest[:8], ()):
            if hmac.compare_digest(known, digest):
                return principal
        raise Unauthenticated(
            "wrong_key", headers={"WWW-Authenticate": 'Bearer realm="tidegate", error="invalid_token"'}
        )


def _sent_key(headers: Fields) -> str | None:
    for name in ("authorization", "x-api-key", "api-key"):
        if len(headers.getlist(name)) > 1:
            raise InvalidRequest("header_repeated", param=name)
    scheme, _, credentials = headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer" and credentials.strip():
        return credentials.strip()
    return headers.get("x-api-key") or headers.get("api-key") or None
