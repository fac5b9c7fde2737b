"""What a route needs of its request: what serves it, the exchange that the gate opened, a principal with a scope."""

from collections.abc import Awaitable, Callable

from fastapi import Request

from app.access import Principal
from app.errors import Unauthenticated
from app.exchange import Exchange
from app.serving import Serving
from app.types import Scope


def exchange_of(request: Request) -> Exchange:
    exchange: Exchange = request.state.exchange
    return exchange


def serving_of(request: Request) -> Serving:
    """What was in force when the request began, and answers it to its end."""
    serving: Serving = request.state.serving
    return serving


def require(scope: Scope) -> Callable[[Request], Awaitable[Principal]]:
    """A dependency that gives the principal, or raises `Unauthenticated` or `Forbidden`."""

    async def principal(request: Request) -> Principal:
        found = exchange_of(request).principal
        if found is None:
            raise Unauthenticated
        found.require(scope)
        return found

    return principal
