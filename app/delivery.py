"""From a backend's answer to the caller's: passed on untouched, recorded before its last byte, kept where it may be."""

import asyncio
import re
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from functools import partial
from http import HTTPStatus

import structlog

from app.audit.record import CompletionOutcome
from app.batch import Wanted
from app.caching import STREAM_LIMIT, Caching, streamed
from app.errors import InvalidRequest, ModelNotFound, NotFound, PayloadTooLarge
from app.exchange import Exchange
from app.fleet.worker_client import AttemptFailed, UpstreamReply, UpstreamStream
from app.forwarding import Forwarded, Forwarder
from app.limiting import Hold
from app.policy.explain import route_reason
from app.recorder import Recorder
from app.shapes import in_shape
from app.sse import EndOfStream
from app.types import CacheEntry, Call, Reply
from regions.wire import HEADER_LENGTH, Fault

_KEPT_HEADERS = frozenset({"content-type", "content-encoding", "retry-after", "retry-after-ms", HEADER_LENGTH})
_USED = re.compile(rb'"total_tokens"\s*:\s*(\d{1,12})')
_EVENT = re.compile(rb"(?s).+?(?:\r\n\r\n|\n\n|\r\r|\Z)")
"""An event of a stream with the empty line that ends it."""
_DATA = b"data:"
_TAIL = 4096
"""Bytes at a stream's end in which its usage is looked for: OpenAI sends it in the last event before [DONE]."""
_AFTER_END = 0.25
"""Seconds that a backend has to end its answer after the closing event, so that its connection can be used again."""


log = structlog.get_logger("tidegate.delivery")


class Delivery:
    """Gives answers to callers, and tells limits, cache, registry and audit how they ended."""

    def __init__(self, recorder: Recorder, forwarder: Forwarder, caching: Caching) -> None:
        self._recorder = recorder
        self._forwarder = forwarder
        self._caching = caching

    async def cached(self, exchange: Exchange, entry: CacheEntry) -> Reply:
        """An answer that is at hand; decision and completion become durable in one commit."""
        await self._recorder.hit(exchange, entry.region, entry.status, len(entry.body))
        served_by(exchange, entry.region)
        return _kept(entry)

    async def rescued(self, exchange: Exchange, entry: CacheEntry) -> Reply:
        """An answer of earlier, where a decision has been made and no region has answered."""
        await self._recorder.completed(exchange, "served", entry.status, region=entry.region, size=len(entry.body))
        served_by(exchange, entry.region)
        return _kept(entry)

    async def forwarded(self, exchange: Exchange, wanted: Wanted, forwarded: Forwarded, hold: Hold) -> Reply:
        """A backend's answer; a stream takes the hold along to its end. Raises the error that a refusal means."""
        call, key, batch = wanted.call, wanted.key, wanted.batch
        reply = forwarded.reply
        served_by(exchange, forwarded.region)
        headers = _kept_fields(reply)
        if isinstance(reply.body, UpstreamStream):
            hold.handed_on = True
            parts = self._stream(exchange, call, key, forwarded, hold)
            unread = partial(self._end, exchange, call, forwarded, hold)
            return Reply(reply.status, tuple(headers.items()), Stream(parts, unread))
        body = reply.body
        outcome: CompletionOutcome = "served"
        if reply.status >= HTTPStatus.BAD_REQUEST:
            outcome = "failed"
            _raise_fault(forwarded, call, body)
            body = in_shape(call.wire, body)
            headers["content-type"] = "application/json"
        else:
            used = _used(body)
            hold.settle(call.tokens if used is None else used)
            if batch is not None:
                body = batch.whole(body) or body
        await self._complete(exchange, forwarded, outcome, len(body))
        if key is not None and reply.status == HTTPStatus.OK:
            answer = Reply(reply.status, tuple(headers.items()), reply.body)
            self._caching.keep(key, forwarded.region, reply.headers, answer, batch)
        return Reply(reply.status, tuple(headers.items()), body)

    async def _stream(
        self, exchange: Exchange, call: Call, key: bytes | None, forwarded: Forwarded, hold: Hold
    ) -> AsyncGenerator[bytes]:
        """The events as they come, but for the closing one, which waits until the completion is durable."""
        body = forwarded.reply.body
        assert isinstance(body, UpstreamStream)  # noqa: S101 - its caller has looked
        outcome: CompletionOutcome = "cancelled"
        size = events = 0
        tail = b""
        end = EndOfStream()
        copy = None if key is None else bytearray()
        try:
            async for chunk in _within(exchange, body):
                size += len(chunk)
                events += chunk.count(_DATA)
                tail = (tail + chunk)[-_TAIL:]
                if passed := end.feed(chunk):
                    if copy is not None:
                        copy += passed
                        copy = copy if len(copy) <= STREAM_LIMIT else None
                    yield passed
                if end.found:
                    await _exhaust(body, end)
                    break
            outcome = "served"
            hold.settle(_used_by(call, tail, events))
            await self._complete(exchange, forwarded, outcome, size)
            if key is not None and copy is not None and end.found and forwarded.reply.status == HTTPStatus.OK:
                fields = _kept_fields(forwarded.reply)
                answer = Reply(HTTPStatus.OK, tuple(fields.items()), bytes(copy + end.held))
                self._caching.keep(key, forwarded.region, forwarded.reply.headers, answer)
            if end.held:
                yield end.held
        except AttemptFailed as error:
            outcome = "failed"
            exchange.cut = True
            log.warning("stream broken off", region=forwarded.region, outcome=error.outcome)
            raise
        finally:
            hold.settle(_used_by(call, tail, events))
            await self._end(exchange, call, forwarded, hold, outcome=outcome, size=size)

    async def _complete(self, exchange: Exchange, forwarded: Forwarded, outcome: CompletionOutcome, size: int) -> None:
        await self._recorder.completed(exchange, outcome, forwarded.reply.status, region=forwarded.region, size=size)

    async def _end(
        self,
        exchange: Exchange,
        call: Call,
        forwarded: Forwarded,
        hold: Hold,
        *,
        outcome: CompletionOutcome = "cancelled",
        size: int = 0,
    ) -> None:
        """A stream is over; as it stands for one of which nobody has taken a part, as its client had left by then."""
        hold.settle(_used_by(call, b"", 0))
        hold.leave()
        self._forwarder.ended(forwarded, failed=outcome == "failed")
        try:
            await self._complete(exchange, forwarded, outcome, size)
        finally:
            if isinstance(forwarded.reply.body, UpstreamStream):
                await forwarded.reply.body.aclose()


class Stream:
    """The parts of an answer. A generator that was never begun runs none of its `finally`: `unread` is for that."""

    def __init__(self, parts: AsyncGenerator[bytes], unread: Callable[[], Awaitable[None]]) -> None:
        self._parts = parts
        self._unread = unread
        self._begun = False

    def __aiter__(self) -> AsyncIterator[bytes]:
        self._begun = True
        return self._parts

    async def __anext__(self) -> bytes:
        return await anext(aiter(self))

    async def aclose(self) -> None:
        """End the stream, wherever it is."""
        if not self._begun:
            self._begun = True
            await self._unread()
        await self._parts.aclose()


def _kept_fields(reply: UpstreamReply) -> dict[str, str]:
    return {name: value for name, value in reply.headers if name in _KEPT_HEADERS}


def _used(body: bytes) -> int | None:
    """The tokens that the backend says were used, where it says so."""
    found = _USED.findall(body)
    return int(found[-1]) if found else None


def _used_by(call: Call, tail: bytes, events: int) -> int:
    """What a stream used: as its backend says, else what was asked and a token for each event of the answer."""
    used = _used(tail)
    return call.tokens - call.answer_tokens + events if used is None else used


def _kept(entry: CacheEntry) -> Reply:
    return Reply(entry.status, entry.headers, _replayed(entry.body) if streamed(entry.headers) else entry.body)


async def _replayed(body: bytes) -> AsyncIterator[bytes]:
    """A kept stream, event by event."""
    for event in _EVENT.findall(body):
        yield event


def served_by(exchange: Exchange, region: str) -> None:
    """Note for the answer's head which region it is from, and by what right."""
    exchange.headers["X-Served-Region"] = region
    if exchange.decision is not None:
        exchange.headers["X-Route-Reason"] = str(route_reason(exchange.decision, region))


async def _within(exchange: Exchange, body: UpstreamStream) -> AsyncIterator[bytes]:
    """The chunks, within the deadline where the caller set one for the whole answer; raises `AttemptFailed` past it."""
    while True:
        try:
            async with asyncio.timeout(exchange.left() if exchange.bounds_stream else None):
                chunk = await anext(body)
        except StopAsyncIteration:
            return
        except TimeoutError as error:
            raise AttemptFailed("timeout", retryable=False) from error
        yield chunk


async def _exhaust(body: UpstreamStream, end: EndOfStream) -> None:
    try:
        async with asyncio.timeout(_AFTER_END):
            async for chunk in body:
                end.feed(chunk)
                if len(end.held) > _TAIL:
                    return
    except (TimeoutError, AttemptFailed):
        return  # the answer is whole: its closing event has come


def _raise_fault(forwarded: Forwarded, call: Call, body: bytes) -> None:
    """A refusal by a worker of ours becomes our own error, told in the caller's language and the endpoint's shape."""
    fault = Fault.decode(body) if forwarded.backend.config.protocol == "tidegate" else None
    match fault:
        case Fault(code=InvalidRequest.code):
            raise InvalidRequest(fault.detail, param=fault.param, **fault.values)
        case Fault(code=ModelNotFound.code | NotFound.code):
            # It has no such version; or no such endpoint, which is to say that the model cannot be asked for that.
            raise ModelNotFound(param="model", model=fault.values.get("model", call.model))
        case Fault(code=PayloadTooLarge.code):
            raise PayloadTooLarge(limit=fault.values.get("limit"))
