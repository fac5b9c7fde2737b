"""The FastAPI application: every endpoint but those of inference and health, and the description of all of them."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fastapi import APIRouter, FastAPI

from app.api import audit, audit_rights, faults, kserve_models, openai_models, routes
from app.audit.auditor import Auditor
from app.audit.reader import Reader
from app.audit.rights.rights import Rights
from app.audit.writer import Trail
from app.config import Settings


@dataclass(frozen=True, slots=True)
class Parts:
    """What the endpoints tell of and act on. `settings` gives those in force, `logs` are the trail's by name."""

    version: str
    trail: Trail
    logs: Sequence[str]
    settings: Callable[[], Settings]


def application(parts: Parts, described: Mapping[str, Any]) -> FastAPI:
    """`described` are the paths that others answer, for /openapi.json and /docs."""
    app = FastAPI(
        title="Tidegate",
        version=parts.version,
        summary="Multi-region inference gateway that fails closed on data residency",
        redoc_url=None,
        redirect_slashes=False,  # it would build the address from the caller's Host, and repeat the body there
    )
    for router in _routers(parts):
        app.include_router(router)
    faults.handle_errors(app)
    own = app.openapi

    def everything() -> dict[str, Any]:
        document = own()
        if not document["paths"].keys() >= described.keys():
            document["paths"] = {**described, **document["paths"]}
        return document

    app.openapi = everything  # type: ignore[method-assign] # FastAPI's own way to extend the document
    return app


def _routers(parts: Parts) -> tuple[APIRouter, ...]:
    place, trail = parts.settings().audit, parts.trail  # where the trail is stays as it was at the start

    def tenants() -> list[str]:
        return [tenant.id for tenant in parts.settings().tenants]

    reader = Reader(place, parts.logs, tenants)
    return (
        openai_models.routes(),
        kserve_models.routes(parts.version),
        routes.router,
        audit.routes(reader, Auditor(place, reader, trail), trail),
        audit_rights.routes(Rights(trail, place, parts.settings), trail),
    )
