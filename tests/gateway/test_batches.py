"""Embeddings of several texts through a real gateway: each text is computed once."""

import asyncio
import json
from pathlib import Path

from tests.fleet.servers import Answer, Request, reply
from tests.running import Running, running


def embeddings(model: str = "embed", **more: object) -> Answer:
    """An answer as of a model for which a text's vector is its length."""

    async def answer(writer, request: Request) -> None:
        given = json.loads(request.body)["input"]
        texts = [given] if isinstance(given, str) else given
        data = [{"object": "embedding", "index": n, "embedding": [len(text)]} for n, text in enumerate(texts)]
        tokens = sum(map(len, texts))
        usage = {"prompt_tokens": tokens, "total_tokens": tokens}
        body = {"object": "list", "data": data, "model": model, "usage": usage, **more}
        await reply(200, json.dumps(body).encode())(writer, request)

    return answer


def asked(gateway: Running) -> list[object]:
    return [json.loads(post.body)["input"] for post in gateway.upstreams["us-east"].posts]


async def lengths(gateway: Running, given: object, **headers: str) -> tuple[str, list[int], int]:
    answer = await gateway.embed(given, **headers)
    assert answer.status_code == 200, answer.text
    body = answer.json()
    assert [item["index"] for item in body["data"]] == list(range(len(body["data"])))
    vectors = [item["embedding"][0] for item in body["data"]]
    return answer.headers["X-Cache-Status"], vectors, body["usage"]["total_tokens"]


async def test_of_a_hundred_texts_with_ninety_known_ten_are_computed(tmp_path: Path) -> None:
    async with running(tmp_path, "us-east") as gateway:
        gateway.upstreams["us-east"].answer = embeddings()
        texts = ["x" * length for length in range(1, 101)]
        known = [text for number, text in enumerate(texts) if number % 10]
        assert (await lengths(gateway, known))[0] == "MISS"
        status, vectors, tokens = await lengths(gateway, texts)
        assert (status, vectors, tokens) == ("MISS", list(range(1, 101)), sum(range(1, 101)))
        assert asked(gateway)[1] == texts[::10]
        assert await lengths(gateway, texts[::-1]) == ("HIT", list(range(100, 0, -1)), sum(range(1, 101)))
        assert await lengths(gateway, texts[7]) == ("HIT", [8], 8)
        assert len(asked(gateway)) == 2
        records = await gateway.records()
        assert [record["cache"] for record in records if record["kind"] == "completion"] == [
            "MISS",
            "MISS",
            "HIT",
            "HIT",
        ]


async def test_single_texts_and_batches_share(tmp_path: Path) -> None:
    async with running(tmp_path, "us-east") as gateway:
        gateway.upstreams["us-east"].answer = embeddings()
        assert (await lengths(gateway, "a"))[0] == "MISS"
        assert (await lengths(gateway, ["a"]))[0] == "HIT"
        assert await lengths(gateway, ["a", "bb", "a"]) == ("MISS", [1, 2, 1], 4)
        assert await lengths(gateway, ["bb"]) == ("HIT", [2], 2)
        assert asked(gateway) == ["a", ["bb"]]


async def test_what_the_caller_refuses_is_computed_again(tmp_path: Path) -> None:
    async with running(tmp_path, "us-east") as gateway:
        gateway.upstreams["us-east"].answer = embeddings()
        await lengths(gateway, ["a", "bb"])
        assert (await lengths(gateway, ["a", "bb"], Cache_Control="no-cache"))[1] == [1, 2]
        assert (await lengths(gateway, ["a", "bb"], Cache_Control="no-store"))[0] == "BYPASS"
        assert len(asked(gateway)) == 3
        missing = await gateway.embed(["a", "ccc"], Cache_Control="only-if-cached")
        assert (missing.status_code, missing.json()["error"]["code"]) == (504, "cache_miss")
        assert (await lengths(gateway, ["bb", "a"], Cache_Control="only-if-cached"))[:2] == ("HIT", [2, 1])


async def test_other_parameters_share_nothing(tmp_path: Path) -> None:
    async with running(tmp_path, "us-east") as gateway:
        gateway.upstreams["us-east"].answer = embeddings()
        await lengths(gateway, ["a", "bb"])
        body = {"model": "embed", "input": ["a", "bb"], "dimensions": 2}
        other = await gateway.client.post("/v1/embeddings", json=body)
        assert other.headers["X-Cache-Status"] == "MISS"


async def test_an_answer_that_says_more_is_kept_whole(tmp_path: Path) -> None:
    async with running(tmp_path, "us-east") as gateway:
        gateway.upstreams["us-east"].answer = embeddings(created=1)
        assert (await lengths(gateway, ["a", "bb"]))[0] == "MISS"
        assert (await lengths(gateway, ["a", "bb"]))[0] == "HIT"
        assert (await lengths(gateway, ["bb", "a"]))[0] == "MISS"


async def test_a_model_that_changed_is_asked_for_everything(tmp_path: Path) -> None:
    async with running(tmp_path, "us-east") as gateway:
        upstream = gateway.upstreams["us-east"]
        upstream.answer = embeddings()
        await lengths(gateway, ["a", "bb"])
        upstream.answer = embeddings("embed-2")
        answer = await gateway.embed(["a", "bb", "ccc"])
        assert answer.json()["model"] == "embed-2"
        assert [item["embedding"] for item in answer.json()["data"]] == [[1], [2], [3]]
        assert asked(gateway)[1:] == [["ccc"], ["a", "bb", "ccc"]]
        records = await gateway.records()
        kinds = [record["kind"] for record in records]
        assert kinds.count("decision") == kinds.count("completion") == 2


async def test_a_refusal_names_the_text_as_the_caller_counts(tmp_path: Path) -> None:
    async with running(tmp_path, "us-east") as gateway:
        upstream = gateway.upstreams["us-east"]
        upstream.answer = embeddings()
        await lengths(gateway, ["a", "bb"])

        async def refusing(writer: asyncio.StreamWriter, request: Request) -> None:
            place = json.loads(request.body)["input"].index("bad")
            error = {"message": f"input[{place}] is bad", "type": "invalid_request_error"}
            await reply(400, json.dumps({"error": error}).encode())(writer, request)

        upstream.answer = refusing
        answer = await gateway.embed(["a", "bb", "bad"])
        assert (answer.status_code, answer.json()["error"]["message"]) == (400, "input[2] is bad")
