"""Liveness, readiness and metrics, ahead of FastAPI: a gateway that starts is asked for them first, and often after."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import orjson
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from app.errors import MethodNotAllowed
from app.exchange import Exchange
from app.serving import Serving
from app.telemetry.metrics import Metrics


@dataclass(frozen=True, slots=True)
class _Page:
    """What answers GET at a path; none asks for a key or calls a model."""

    summary: str
    operation_id: str
    answer: Callable[[Serving], Response]

    def described(self) -> dict[str, Any]:
        """Its operation in OpenAPI."""
        return {
            "tags": ["health"],
            "summary": self.summary,
            "operationId": self.operation_id,
            "responses": {"200": {"description": "Successful Response"}},
        }


class Health:
    """Answers the pages of health."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        alive, ready = "Is the process alive?", "May traffic come?"
        self._pages: Mapping[str, _Page] = {
            "/livez": _Page(alive, "alive_livez", _alive),
            "/health/liveliness": _Page(alive, "alive_health_liveliness", _alive),
            "/readyz": _Page(ready, "ready_readyz", _ready),
            "/health": _Page(ready, "ready_health", _health),
            "/health/readiness": _Page(ready, "ready_health_readiness", _ready),
            "/metrics": _Page("Prometheus metrics", "prometheus_metrics_get", self._prometheus),
        }

    def has(self, path: str) -> bool:
        """Whether a path is one of these."""
        return path in self._pages

    def described(self) -> dict[str, Any]:
        """The pages as the paths of an OpenAPI document."""
        return {path: {"get": page.described()} for path, page in self._pages.items()}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        exchange: Exchange = scope["state"]["exchange"]
        serving: Serving = scope["state"]["serving"]
        head = exchange.head
        if head.method == "GET":
            answer = self._pages[head.path].answer(serving)
        else:
            error = MethodNotAllowed(path=head.path, method=head.method, allowed="GET", headers={"Allow": "GET"})
            answer = await serving.failures.answer(exchange, error)
        await answer(scope, receive, send)

    def _prometheus(self, _: Serving) -> Response:
        body, media = self._metrics.render()
        return Response(body, headers={"Content-Type": media})


def _alive(_: Serving) -> Response:
    return _json({"status": "alive"}, 200)


def _ready(serving: Serving) -> Response:
    return _told(serving.views.readiness())


def _health(serving: Serving) -> Response:
    return _told({**serving.views.readiness(), "configuration": serving.views.in_force()})


def _told(report: Mapping[str, Any]) -> Response:
    return _json(report, 200 if report["status"] == "ready" else 503)


def _json(report: Mapping[str, Any], status: int) -> Response:
    return Response(orjson.dumps(report), status, media_type="application/json")
