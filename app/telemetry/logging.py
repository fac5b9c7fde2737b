"""Logs: every line, ours or a library's, is one JSON object with the request's id and without secrets."""

import asyncio
import json
import logging
import re
import sys
from collections import deque
from collections.abc import Mapping
from contextlib import suppress
from contextvars import ContextVar
from datetime import UTC, datetime
from functools import lru_cache
from types import MappingProxyType
from typing import Any, Final, TextIO

import orjson
import structlog
from structlog.tracebacks import ExceptionDictTransformer
from structlog.types import EventDict, Processor

REDACTED: Final = "[redacted]"

_SECRET_KEYS: Final = frozenset({"authorization", "proxy_authorization", "api_key", "x_api_key", "key", "cookie"})
_BEARER: Final = re.compile(r"\b(bearer)\s+[A-Za-z0-9._~+/=-]+", re.IGNORECASE)
_LEVELS: Final = MappingProxyType({"exception": "error", "fatal": "critical", "warn": "warning"})
_NUMBERS: Final = (int, float)
_PLAIN: Final = frozenset({str, int, float, bool, type(None)})
_DEPTH: Final = 8
_LENGTH: Final = 8192
_HANDLER: Final = "tidegate"
_UVICORN: Final = ("uvicorn", "uvicorn.error", "uvicorn.access", "uvicorn.asgi")
_CHATTY: Final = ("uvicorn.access", "httpx")
"""Loggers with a line at `info` for each request, which the gateway's own line already tells."""

_BOUND: Final[ContextVar[Mapping[str, Any]]] = ContextVar("bound", default=MappingProxyType({}))
"""A variable of our own, not structlog's one for each field: those cost a search through the whole context."""


def configure(level: str = "info", stream: TextIO | None = None) -> None:
    """Send structlog's and the standard library's records to `stream` (standard error) from `level` up.

    Each process calls this once, at its start; raises ValueError for a level that logging does not know.
    """
    number = logging.getLevelNamesMapping().get(level.upper())
    if number is None:
        raise ValueError(f"{level!r} is not a log level; write debug, info, warning, error or critical")
    stream = stream or sys.stderr
    # Never the local variables of a frame: they hold the caller's data.
    exceptions: Processor = structlog.processors.ExceptionRenderer(ExceptionDictTransformer(show_locals=False))
    structlog.configure(
        processors=[_begin, exceptions, _finish],
        wrapper_class=structlog.make_filtering_bound_logger(number),
        logger_factory=_Loggers(stream),
        cache_logger_on_first_use=False,  # a module's logger follows a later `configure` too
    )
    handler = logging.StreamHandler(stream)
    handler.set_name(_HANDLER)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[structlog.stdlib.add_logger_name, _begin, exceptions],
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, _finish],
        )
    )
    _route(handler, number)


def bind_request(request_id: str, **fields: Any) -> None:
    """Put these fields, and only these, on every line that this task logs from now on, and on no other task's."""
    _BOUND.set({"request_id": request_id, **fields})


def _route(handler: logging.Handler, level: int) -> None:
    root = logging.getLogger()
    for old in [old for old in root.handlers if old.get_name() == _HANDLER]:
        root.removeHandler(old)
    root.addHandler(handler)
    root.setLevel(level)
    logging.captureWarnings(capture=True)
    for name in _UVICORN:
        logger = logging.getLogger(name)
        logger.handlers.clear()
        logger.propagate = True
    for name in _CHATTY:
        logging.getLogger(name).setLevel(logging.NOTSET if level < logging.INFO else logging.WARNING)


class _Lines:
    """The way to the stream: what one turn of an event loop has to say goes out at its end, in one write.

    A write costs more than a line does. Warnings and worse, and lines of other threads, go at once, and with them what
    waits.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._waiting: deque[str] = deque()
        self._due: asyncio.AbstractEventLoop | None = None

    def soon(self, line: str) -> None:
        self._waiting.append(line)
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            self._flush()
            return
        if self._due is not loop:
            self._due = loop
            loop.call_soon(self._flush)

    def now(self, line: str) -> None:
        self._waiting.append(line)
        self._flush()

    def _flush(self) -> None:
        self._due = None
        lines = []
        with suppress(IndexError):  # only taking one is safe while another thread does the same
            while True:
                lines.append(self._waiting.popleft())
        if lines:
            self._stream.write("\n".join([*lines, ""]))
            self._stream.flush()


class _Logger:
    """What structlog ends in: a method for each level."""

    def __init__(self, name: str, lines: _Lines) -> None:
        self.name = name
        self.debug = self.info = lines.soon
        self.warning = self.error = self.critical = lines.now


class _Loggers:
    """Makes each named logger once; structlog asks for one at every line."""

    def __init__(self, stream: TextIO) -> None:
        self._lines = _Lines(stream)
        self._made: dict[str, _Logger] = {}

    def __call__(self, name: str = "tidegate") -> _Logger:
        if name not in self._made:
            self._made[name] = _Logger(name, self._lines)
        return self._made[name]


def _begin(logger: Any, method: str, event: EventDict) -> EventDict:
    """What every line begins with, then what is bound to its request, then its own fields."""
    begun = {
        "timestamp": datetime.now(UTC).isoformat().replace("+00:00", "Z"),
        "level": _LEVELS.get(method, method),
        "event": event.pop("event"),
        "logger": event.pop("logger", None) or logger.name,
    }
    return {**begun, **_BOUND.get(), **event}


def _finish(_logger: Any, _method: str, event: EventDict) -> str:
    """The line, without secrets: one look at the whole is all that most need."""
    if _harmless_names(tuple(event)) and _PLAIN.issuperset(map(type, event.values())):
        line = _rendered(event)
        if len(line) <= _LENGTH and "bearer" not in line.lower():
            return line
    return _rendered(_redacted(event))


def _redacted(event: EventDict) -> EventDict:
    """Blank secrets by the name they go under, and bearer tokens wherever they stand."""
    return {name: REDACTED if _secret(name) else _clean(value, _DEPTH) for name, value in event.items()}


@lru_cache(maxsize=1024)
def _harmless_names(names: tuple[str, ...]) -> bool:
    return not any(map(_secret, names))


def _secret(name: Any) -> bool:
    return _secret_name(name) if isinstance(name, str) else _secret_name(_text(name))


@lru_cache(maxsize=1024)
def _secret_name(name: str) -> bool:
    return name.lower().replace("-", "_") in _SECRET_KEYS


def _text(value: Any) -> str:
    if isinstance(value, str):
        return value
    return value.decode("latin-1") if isinstance(value, bytes) else repr(value)


def _clean(value: Any, depth: int) -> Any:
    if isinstance(value, str):
        return _clean_text(value if depth else "...")
    if value is None or isinstance(value, _NUMBERS):
        return value
    if isinstance(value, Mapping) and depth:
        return {_text(k): REDACTED if _secret(k) else _clean(v, depth - 1) for k, v in value.items()}
    if isinstance(value, list | tuple | set | frozenset) and depth:
        if len(value) == 2 and isinstance(value, tuple) and _secret(value[0]):  # noqa: PLR2004 - a header as ASGI has it
            return [_text(value[0]), REDACTED]
        return [_clean(item, depth - 1) for item in value]
    return _clean_text(_text(value) if depth else "...")


def _clean_text(text: str) -> str:
    if len(text) > _LENGTH:
        text = text[:_LENGTH] + "..."
    # Most text holds none, and asking is cheaper than replacing.
    return _BEARER.sub(rf"\1 {REDACTED}", text) if "bearer" in text.lower() else text


def _rendered(event: EventDict) -> str:
    try:
        return orjson.dumps(event).decode()
    except TypeError:  # what orjson refuses: lone surrogates and integers beyond 64 bits
        return json.dumps(event)
