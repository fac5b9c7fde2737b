"""Log lines: one JSON object each, with the request's id, whoever wrote them, and no secret in any."""

import asyncio
import io
import json
import logging
import warnings
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import structlog
from hypothesis import given, settings
from hypothesis import strategies as st
from starlette.datastructures import Headers

from app.telemetry.logging import REDACTED, bind_request, configure

KEY = "sk-verysecret123"


@pytest.fixture(autouse=True)
def _restore() -> Iterator[None]:
    root = logging.getLogger()
    level, handlers = root.level, list(root.handlers)
    yield
    logging.captureWarnings(capture=False)
    root.handlers[:] = handlers
    root.setLevel(level)
    for name in ("uvicorn.access", "httpx"):
        logging.getLogger(name).setLevel(logging.NOTSET)
    structlog.contextvars.clear_contextvars()
    structlog.reset_defaults()


class Log:
    """What has been written so far, read back."""

    def __init__(self, level: str = "info") -> None:
        self.stream = io.StringIO()
        configure(level, self.stream)

    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.stream.getvalue().split("\n")[:-1]]

    def line(self) -> dict[str, Any]:
        (line,) = self.lines()
        return line


def test_a_line_of_ours() -> None:
    log = Log()
    structlog.get_logger("tidegate.gate").info("request", status=200, region="eu-west", text="Zürich\n東京")
    line = log.line()
    when = datetime.fromisoformat(line.pop("timestamp"))
    assert abs(datetime.now(UTC) - when) < timedelta(minutes=1)
    assert when.utcoffset() == timedelta(0)
    assert line == {
        "level": "info",
        "event": "request",
        "logger": "tidegate.gate",
        "status": 200,
        "region": "eu-west",
        "text": "Zürich\n東京",
    }


@pytest.mark.parametrize("name", ["uvicorn", "uvicorn.error", "somelib.deep"])
def test_a_line_of_a_library(name: str) -> None:
    log = Log()
    logging.getLogger(name).warning("lost %s of %d", "two", 3)
    line = log.line()
    assert line.keys() == {"timestamp", "level", "event", "logger"}
    assert (line["level"], line["event"], line["logger"]) == ("warning", "lost two of 3", name)


def test_takes_over_uvicorns_own_handlers() -> None:
    own = io.StringIO()
    logger = logging.getLogger("uvicorn")
    logger.addHandler(logging.StreamHandler(own))
    logger.propagate = False
    log = Log()
    logger.error("bind failed")
    assert own.getvalue() == ""
    assert log.line()["event"] == "bind failed"


@pytest.mark.parametrize(("level", "events"), [("debug", ["a", "b", "c"]), ("info", ["b", "c"]), ("WARNING", ["c"])])
def test_level_counts_for_both_kinds(level: str, events: list[str]) -> None:
    log = Log(level)
    for logger in (structlog.get_logger("tidegate"), logging.getLogger("somelib")):
        logger.debug("a")
        logger.info("b")
        logger.warning("c")
    assert [line["event"] for line in log.lines()] == events * 2


def test_refuses_an_unknown_level() -> None:
    with pytest.raises(ValueError, match="'loud' is not a log level"):
        configure("loud")


@pytest.mark.parametrize(("level", "count"), [("info", 0), ("debug", 2)])
def test_lines_for_each_request_of_libraries_are_for_debugging(level: str, count: int) -> None:
    log = Log(level)
    logging.getLogger("httpx").info("HTTP Request: POST http://127.0.0.1")
    logging.getLogger("uvicorn.access").info("127.0.0.1 - POST /v1/embeddings 200")
    assert len(log.lines()) == count


def test_warnings_are_lines_too() -> None:
    log = Log()
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        logging.captureWarnings(capture=False)
        logging.captureWarnings(capture=True)  # catch_warnings put the plain printer back
        warnings.warn("old", UserWarning, stacklevel=1)
        logging.captureWarnings(capture=False)
    assert log.line()["logger"] == "py.warnings"
    assert "UserWarning: old" in log.line()["event"]


def test_a_second_configuration_replaces_the_first() -> None:
    module_logger = structlog.get_logger("tidegate")
    first = Log()
    module_logger.info("one")
    second = Log()
    module_logger.info("two")
    logging.getLogger("somelib").info("three")
    assert [line["event"] for line in first.lines()] == ["one"]
    assert [line["event"] for line in second.lines()] == ["two", "three"]


def test_exceptions_are_data_without_local_variables() -> None:
    log = Log()

    def fail(prompt: str) -> None:
        raise ValueError(f"bad input from {len(prompt)} characters")

    try:
        fail("the caller's own words")
    except ValueError:
        structlog.get_logger("tidegate").exception("failed")
        logging.getLogger("somelib").exception("failed")
    for line in log.lines():
        (exception,) = line["exception"]
        assert (exception["exc_type"], exception["exc_value"]) == ("ValueError", "bad input from 22 characters")
        assert exception["frames"][-1]["name"] == "fail"
        assert "the caller's own words" not in json.dumps(line)


def test_a_request_id_is_on_every_line_of_its_task_alone() -> None:
    log = Log()

    async def request(name: str) -> None:
        bind_request(name, tenant=f"of-{name}")
        for _ in range(3):
            await asyncio.sleep(0)
            structlog.get_logger("tidegate").info(name)
            logging.getLogger("somelib").warning(name)

    async def serve() -> None:
        await asyncio.gather(*(asyncio.create_task(request(f"r{number}")) for number in range(5)))
        structlog.get_logger("tidegate").info("idle")

    asyncio.run(serve())
    *requests, idle = log.lines()
    assert len(requests) == 30
    assert all(line["request_id"] == line["event"] for line in requests)
    assert all(line["tenant"] == f"of-{line['event']}" for line in requests)
    assert "request_id" not in idle


def test_binding_forgets_the_request_before() -> None:
    log = Log()
    bind_request("one", tenant="demo")
    bind_request("two")
    structlog.get_logger("tidegate").info("x")
    (second,) = log.lines()
    assert second["request_id"] == "two"
    assert "tenant" not in second


@pytest.mark.parametrize(
    "fields",
    [
        {"authorization": KEY},
        {"Authorization": f"Basic {KEY}"},
        {"Proxy-Authorization": KEY},
        {"api_key": KEY},
        {"API-Key": KEY},
        {"x-api-key": KEY},
        {"key": KEY},
        {"Cookie": KEY},
        {"key": {"nested": [KEY]}},
        {"headers": {"x-api-key": KEY, "accept": "*/*"}},
        {"headers": Headers({"x-api-key": KEY})},
        {"headers": [(b"x-api-key", KEY.encode()), (b"accept", b"*/*")]},
        {"headers": (("Authorization", KEY),)},
        {"deep": [[{"a": [{"cookie": KEY}]}]]},
        {"error": f"sent Authorization: Bearer {KEY} to it"},
        {"error": f"bearer   {KEY}"},
        {"error": f"BEARER\t{KEY}".encode()},
        {"error": ValueError(f"Bearer {KEY}")},
        {"error": {f"Bearer {KEY}"}},
    ],
)
def test_secrets_never_reach_the_stream(fields: dict[str, Any]) -> None:
    log = Log()
    structlog.get_logger("tidegate").info("sent", **fields)
    assert KEY not in log.stream.getvalue()
    assert REDACTED in log.stream.getvalue()


def test_secrets_in_other_records_and_exceptions() -> None:
    log = Log()
    logging.getLogger("somelib").warning("headers: %s", {"Authorization": f"Bearer {KEY}"})
    logging.getLogger("somelib").error("failed", exc_info=RuntimeError(f"refused: Bearer {KEY}"))
    assert KEY not in log.stream.getvalue()
    assert len(log.lines()) == 2


def test_what_only_looks_like_a_secret_stays() -> None:
    log = Log()
    structlog.get_logger("tidegate").info("bearer of news", monkey="x", key_id="a1b2c3d4", pair=("x", "y"))
    line = log.line()
    assert (line["monkey"], line["key_id"], line["pair"]) == ("x", "a1b2c3d4", ["x", "y"])


@pytest.mark.parametrize(
    ("value", "written"),
    [
        (2**70, 2**70),
        ("half \ud800", "half \ud800"),
        ({1: {"a": (None, 1.5, True)}}, {"1": {"a": [None, 1.5, True]}}),
        ("x" * 10_000, "x" * 8192 + "..."),
        (timedelta(seconds=1), "datetime.timedelta(seconds=1)"),
    ],
)
def test_any_value_can_be_written(value: Any, written: Any) -> None:
    log = Log()
    structlog.get_logger("tidegate").info("x", value=value)
    assert log.line()["value"] == written


def test_endless_structures_end() -> None:
    log = Log()
    endless: dict[str, Any] = {}
    endless["again"] = endless
    structlog.get_logger("tidegate").info("x", value=endless)
    assert log.stream.getvalue().count("again") == 8


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.binary(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner) | st.tuples(inner, inner),
    max_leaves=10,
)


@settings(deadline=None)
@given(_JSON)
def test_every_record_is_one_line(value: Any) -> None:
    log = Log()
    structlog.get_logger("tidegate").info("x", value=value)
    assert log.stream.getvalue().count("\n") == 1
    assert log.line()["event"] == "x"
