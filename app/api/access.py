"""What a route needs of its request: the exchange that the gate opened, and a principal with a scope."""

from collections.abc import Awaitable, Callable

from fastapi import Request

from app.access import Principal
from app.errors import Unauthenticated
from app.exchange import Exchange
from app.types import Scope


def exchange_of(request: Request) -> Exchange:
    exchange: Exchange = request.state.exchange
    return exchange


def require(scope: Scope) -> Callable[[Request], Awaitable[Principal]]:
    """A dependency that gives the principal, or raises `Unauthenticated` or `Forbidden`."""

    async def principal(request: Request) -> Principal:
        found = exchange_of(request).principal
        if found is None:
            raise Unauthenticated
        found.require(scope)
        return found

    return principal
