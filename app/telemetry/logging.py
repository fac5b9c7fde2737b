"""Logs: every line, ours or a library's, is one JSON object with the request's id and without secrets."""

import json
import logging
import re
import sys
from collections.abc import Mapping
from functools import lru_cache
from typing import Any, Final, TextIO

import orjson
import structlog
from structlog.tracebacks import ExceptionDictTransformer
from structlog.types import EventDict, Processor

REDACTED: Final = "[redacted]"

_SECRET_KEYS: Final = frozenset({"authorization", "proxy_authorization", "api_key", "x_api_key", "key", "cookie"})
_BEARER: Final = re.compile(r"\b(bearer)\s+[A-Za-z0-9._~+/=-]+", re.IGNORECASE)
_DEPTH: Final = 8
_LENGTH: Final = 8192
_HANDLER: Final = "tidegate"
_UVICORN: Final = ("uvicorn", "uvicorn.error", "uvicorn.access", "uvicorn.asgi")
_CHATTY: Final = ("uvicorn.access", "httpx")
"""Loggers with a line at `info` for each request, which the gateway's own line already tells."""


def configure(level: str = "info", stream: TextIO | None = None) -> None:
    """Send structlog's and the standard library's records to `stream` (standard error) from `level` up.

    Each process calls this once, at its start; raises ValueError for a level that logging does not know.
    """
    number = logging.getLevelNamesMapping().get(level.upper())
    if number is None:
        raise ValueError(f"{level!r} is not a log level; write debug, info, warning, error or critical")
    stream = stream or sys.stderr
    common: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        # Never the local variables of a frame: they hold the caller's data.
        structlog.processors.ExceptionRenderer(ExceptionDictTransformer(show_locals=False)),
    ]
    structlog.configure(
        processors=[_add_name, *common, _redact, _render],
        wrapper_class=structlog.make_filtering_bound_logger(number),
        logger_factory=_Loggers(stream),
        cache_logger_on_first_use=False,  # a module's logger follows a later `configure` too
    )
    handler = logging.StreamHandler(stream)
    handler.set_name(_HANDLER)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[structlog.stdlib.add_logger_name, *common],
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, _redact, _render],
        )
    )
    _route(handler, number)


def bind_request(request_id: str, **fields: Any) -> None:
    """Put these fields on every line that this task logs from now on, and on no other task's."""
    structlog.contextvars.clear_contextvars()
    structlog.contextvars.bind_contextvars(request_id=request_id, **fields)


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


class _Logger(structlog.WriteLogger):
    def __init__(self, name: str, stream: TextIO) -> None:
        super().__init__(stream)
        self.name = name


class _Loggers:
    """Makes each named logger once; structlog asks for one at every line."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._made: dict[str, _Logger] = {}

    def __call__(self, name: str = "tidegate") -> _Logger:
        if name not in self._made:
            self._made[name] = _Logger(name, self._stream)
        return self._made[name]


def _add_name(logger: _Logger, _method: str, event: EventDict) -> EventDict:
    event["logger"] = logger.name
    return event


def _redact(_logger: Any, _method: str, event: EventDict) -> EventDict:
    """Blank secrets by the name they go under, and bearer tokens wherever they stand."""
    return {name: REDACTED if _secret(name) else _clean(value, _DEPTH) for name, value in event.items()}


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
    if value is None or isinstance(value, int | float):
        return value
    if isinstance(value, Mapping) and depth:
        return {_text(k): REDACTED if _secret(k) else _clean(v, depth - 1) for k, v in value.items()}
    if isinstance(value, list | tuple | set | frozenset) and depth:
        if len(value) == 2 and isinstance(value, tuple) and _secret(value[0]):  # noqa: PLR2004 - a header as ASGI has it
            return [_text(value[0]), REDACTED]
        return [_clean(item, depth - 1) for item in value]
    text = _text(value) if depth else "..."
    if len(text) > _LENGTH:
        text = text[:_LENGTH] + "..."
    # Most text holds none, and asking is cheaper than replacing.
    return _BEARER.sub(rf"\1 {REDACTED}", text) if "bearer" in text.lower() else text


def _render(_logger: Any, _method: str, event: EventDict) -> str:
    line = {"timestamp": event.pop("timestamp"), "level": event.pop("level"), "event": event.pop("event"), **event}
    try:
        return orjson.dumps(line).decode()
    except TypeError:  # what orjson refuses: lone surrogates and integers beyond 64 bits
        return json.dumps(line)
