"""From a `Reply` to a response, giving the work up when the client hangs up."""

import asyncio
from collections.abc import AsyncIterator, Coroutine
from contextlib import suppress
from typing import Any

from fastapi import Request
from starlette.responses import Response, StreamingResponse

from app.errors import GatewayError
from app.exchange import CLIENT_CLOSED
from app.types import Reply


async def answer(request: Request, work: Coroutine[Any, Any, Reply]) -> Response:
    """Await the work and give its response; cancel it as soon as the client is gone (the answer then goes nowhere)."""
    task = asyncio.ensure_future(work)
    watch = asyncio.ensure_future(_gone(request))
    try:
        await asyncio.wait({task, watch}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        watch.cancel()
        if not task.done():
            task.cancel()
            with suppress(asyncio.CancelledError, GatewayError):
                await task
    if task.cancelled():
        return Response(status_code=CLIENT_CLOSED)
    return _response(task.result())


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _response(reply: Reply) -> Response:
    response: Response
    if isinstance(reply.body, bytes):
        response = Response(reply.body, reply.status)
    else:
        response = StreamingResponse(_closing(reply.body), reply.status)
    for name, value in reply.headers:
        response.headers[name] = value
    return response


async def _closing(body: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """Close the upstream's iterator whichever way the stream to the client ends."""
    try:
        async for chunk in body:
            yield chunk
    finally:
        close = getattr(body, "aclose", None)
        if close is not None:
            await close()
