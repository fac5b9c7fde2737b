"""The inference endpoints are one list, and work for a client that left is given up."""

import asyncio
import hashlib
import json
from pathlib import Path

import httpx
import pytest

from app.activity import Activity
from app.api import kserve, kserve_models, openai, openai_models
from app.api.departure import Departure
from app.api.inference import Dispatcher
from app.configuration import ConfigurationFiles
from app.errors import NotFound
from app.main import create_app

CONFIG = Path(__file__).parents[2] / "configs" / "compose" / "gateway.yaml"
KEY = "key"
TABLE = [*openai.ENDPOINTS, *kserve.ENDPOINTS]


@pytest.fixture
async def gateway(tmp_path):
    """The gateway in this process, not started."""
    digest = "sha256:" + hashlib.sha256(KEY.encode()).hexdigest()
    environ = {"TIDEGATE_AUDIT__PATH": str(tmp_path), "TIDEGATE_TENANTS__0__KEYS": json.dumps([digest])}
    files = ConfigurationFiles(CONFIG, environ)
    app = create_app(files, files.load(), {}, Activity())
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://gateway") as client:
        yield client


async def test_the_document_tells_of_the_table_and_fastapi_has_none_of_it(gateway):
    paths = (await gateway.get("/openapi.json")).raise_for_status().json()["paths"]
    posted = {
        path: operations["post"]
        for path, operations in paths.items()
        if "post" in operations and operations["post"]["tags"][0] in ("OpenAI", "KServe v2")
    }
    assert {path: one["operationId"] for path, one in posted.items()} == {one.path: one.operation_id for one in TABLE}
    routes = [*openai_models.routes().routes, *kserve_models.routes("0").routes]
    assert all("POST" not in route.methods for route in routes)
    names = [parameter["name"] for parameter in posted["/v2/models/{model}/versions/{version}/infer"]["parameters"]]
    assert names == ["model", "version"]


async def test_the_document_is_the_same_each_time(gateway):
    assert (await gateway.get("/openapi.json")).json() == (await gateway.get("/openapi.json")).json()


@pytest.mark.parametrize(
    ("path", "found"),
    [
        ("/v1/embeddings", True),
        ("/v1/embeddings/", False),
        ("/v1/embeddingsx", False),
        ("/v2/models/a b/infer", True),
        ("/v2/models/a/versions/1/infer", True),
        ("/v2/models//infer", False),
        ("/v2/models/a/b/infer", False),
        ("/v2/models/a/infer\n", False),
        ("/v1/models", False),
    ],
)
def test_paths_of_the_table(path, found):
    assert Dispatcher(TABLE).has(path) is found


async def test_another_method_is_refused_with_the_one_that_there_is(gateway):
    assert (await gateway.get("/v1/embeddings")).status_code == 401
    answer = await gateway.get("/v1/embeddings", headers={"Authorization": f"Bearer {KEY}"})
    assert (answer.status_code, answer.headers["allow"]) == (405, "POST")
    assert answer.json()["error"]["code"] == "method_not_allowed"


async def left(after):
    await asyncio.sleep(after)
    return {"type": "http.disconnect"}


async def test_a_client_that_leaves_ends_the_work():
    ended = []

    async def work():
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            ended.append("told")
            raise

    with Departure(lambda: left(0.01)):
        await work()
    assert ended == ["told"]
    assert asyncio.current_task().cancelling() == 0
    await asyncio.sleep(0)  # nothing is left over that would end what comes next


async def test_an_error_that_its_leaving_made_goes_with_it():
    with Departure(lambda: left(0.01)):
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            raise NotFound(path="/") from None


async def test_what_is_done_sooner_is_not_looked_after():
    async def never():
        raise AssertionError("nobody was to look")

    with Departure(never):
        await asyncio.sleep(0)
    await asyncio.sleep(0.05)


async def test_the_servers_own_cancellation_passes_through():
    async def work():
        with Departure(lambda: left(60)):
            await asyncio.sleep(60)

    task = asyncio.ensure_future(work())
    await asyncio.sleep(0.05)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
