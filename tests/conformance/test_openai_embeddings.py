"""Embeddings, models and errors through the unmodified `openai` SDK, from the real models."""

import asyncio
import base64
import uuid
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import openai
import pytest

from app.config import DEMO_KEY
from tests.conformance.topology import Topology

pytestmark = pytest.mark.xdist_group("topology")

SENTENCES = (
    "Where does the tide go?",
    "A gateway that fails closed on data residency.",
    "Wohin geht die Flut? 🌊",
    "hello " * 100,
    "!",
)
CloseTo = Callable[[Any, Sequence[str]], None]


def fresh(text: str = "fresh") -> str:
    """A text that no cache has seen."""
    return f"{text} {uuid.uuid4().hex}"


def test_one_text(sdk: openai.OpenAI, close_to: CloseTo) -> None:
    answer = sdk.embeddings.create(model="minilm", input=SENTENCES[0])
    close_to([answer.data[0].embedding], SENTENCES[:1])
    assert (answer.object, answer.model, answer.data[0].index) == ("list", "minilm", 0)
    assert answer.usage.prompt_tokens == answer.usage.total_tokens == 8


def test_fewer_dimensions(sdk: openai.OpenAI) -> None:
    whole = np.array(sdk.embeddings.create(model="minilm", input=SENTENCES[0]).data[0].embedding)
    short = np.array(sdk.embeddings.create(model="minilm", input=SENTENCES[0], dimensions=64).data[0].embedding)
    np.testing.assert_allclose(short, whole[:64] / np.linalg.norm(whole[:64]), atol=1e-3)


def test_many_texts_in_their_order(sdk: openai.OpenAI, close_to: CloseTo) -> None:
    answer = sdk.embeddings.create(model="minilm", input=SENTENCES)
    assert [each.index for each in answer.data] == list(range(len(SENTENCES)))
    close_to([each.embedding for each in answer.data], SENTENCES)


def test_float_and_base64_say_the_same(sdk: openai.OpenAI) -> None:
    floats = sdk.embeddings.create(model="minilm", input=SENTENCES[0], encoding_format="float").data[0].embedding
    coded = sdk.embeddings.create(model="minilm", input=SENTENCES[0], encoding_format="base64").data[0].embedding
    assert isinstance(coded, str)
    decoded = np.frombuffer(base64.b64decode(coded), dtype="<f4")
    np.testing.assert_allclose(decoded, floats, atol=1e-6)


async def test_the_asynchronous_client(topology: Topology, close_to: CloseTo) -> None:
    async with openai.AsyncOpenAI(base_url=topology.url + "/v1", api_key=DEMO_KEY, max_retries=0) as client:
        answers = await asyncio.gather(*(client.embeddings.create(model="minilm", input=text) for text in SENTENCES))
        close_to([answer.data[0].embedding for answer in answers], SENTENCES)
        models = [model.id async for model in await client.models.list()]
        assert models == ["minilm", "minilm-moe", "dynamic-moe"]


def test_models(sdk: openai.OpenAI) -> None:
    listed = sdk.models.list().data
    assert [model.id for model in listed] == ["minilm", "minilm-moe", "dynamic-moe"]
    model = sdk.models.retrieve("minilm-moe")
    assert (model.id, model.object, model.owned_by) == ("minilm-moe", "model", "tidegate")
    assert model.model_extra == {"regions": ["us-east", "eu-west", "ap-southeast"]}


def test_a_compute_budget_is_kept_and_told(sdk: openai.OpenAI, close_to: CloseTo) -> None:
    def at(budget: float) -> tuple[list[float], dict[str, float]]:
        answer = sdk.embeddings.create(
            model="minilm-moe", input=SENTENCES[1], extra_body={"compute_budget": budget}, encoding_format="float"
        )
        return answer.data[0].embedding, answer.usage.model_extra["details"]

    half, half_details = at(0.5)
    low, low_details = at(0.2)
    whole, whole_details = at(1.0)
    assert (half_details["compute_budget"], low_details["compute_budget"]) == (0.5, 0.2)
    assert 0 < low_details["flops_share"] < half_details["flops_share"] <= 0.55
    assert whole_details == {"compute_budget": 1.0, "flops_share": 1.0}
    close_to([whole], SENTENCES[1:2])  # at the whole budget it is the dense model
    to_dense = [float(np.dot(vector, whole) / np.linalg.norm(vector)) for vector in (low, half)]
    assert 0.3 < to_dense[0] < to_dense[1] < 0.9999


def test_headers_of_an_answer(sdk: openai.OpenAI) -> None:
    text = fresh()
    request_id = f"from-the-sdk-{uuid.uuid4().hex}"
    raw = sdk.embeddings.with_raw_response.create(
        model="minilm", input=text, extra_headers={"X-Data-Subject": "FR", "X-Request-Id": request_id}
    )
    assert len(raw.parse().data[0].embedding) == 384
    assert raw.headers["x-request-id"] == request_id == raw.parse()._request_id
    assert raw.headers["x-served-region"] == "eu-west"
    assert raw.headers["x-route-reason"] == "ALLOW_INTRA"
    assert raw.headers["x-cache-status"] == "MISS"
    assert len(raw.headers["x-audit-id"]) == 32
    assert int(raw.headers["x-ratelimit-remaining-requests"]) < 60_000
    for stage in ("gate", "limit", "cache", "upstream", "audit", "total"):
        assert f"{stage};dur=" in raw.headers["server-timing"]
    again = sdk.embeddings.with_raw_response.create(model="minilm", input=text, extra_headers={"X-Data-Subject": "FR"})
    assert (again.headers["x-cache-status"], again.headers["x-served-region"]) == ("HIT", "eu-west")
    assert again.parse().data[0].embedding == raw.parse().data[0].embedding


def refused(error: pytest.ExceptionInfo[openai.APIStatusError], code: str, param: str | None = None) -> None:
    assert (error.value.code, error.value.param) == (code, param)
    assert error.value.response.headers["content-language"] == "en"
    assert error.value.request_id


def test_errors_are_the_sdks_own_classes(sdk: openai.OpenAI) -> None:
    with pytest.raises(openai.AuthenticationError) as wrong:
        sdk.with_options(api_key="wrong").embeddings.create(model="minilm", input="x")
    refused(wrong, "unauthenticated")
    with pytest.raises(openai.PermissionDeniedError) as scope:
        sdk.with_options(api_key="auditor-key").embeddings.create(model="minilm", input="x")
    refused(scope, "forbidden")
    with pytest.raises(openai.PermissionDeniedError) as rule:
        sdk.with_options(api_key="narrow-key").embeddings.create(
            model="minilm", input="x", extra_headers={"X-Region": "eu-west"}
        )
    refused(rule, "forbidden")
    with pytest.raises(openai.NotFoundError) as model:
        sdk.embeddings.create(model="gpt-17", input="x")
    refused(model, "model_not_found", "model")
    with pytest.raises(openai.NotFoundError) as retrieved:
        sdk.models.retrieve("gpt-17")
    refused(retrieved, "model_not_found", "model")
    with pytest.raises(openai.BadRequestError) as empty:
        sdk.embeddings.create(model="minilm", input=["x", ""])
    refused(empty, "invalid_request", "input[1]")
    with pytest.raises(openai.BadRequestError) as region:
        sdk.embeddings.create(model="minilm", input="x", extra_headers={"X-Region": "mars"})
    refused(region, "unknown_region", "X-Region")


def test_a_refusal_by_law(sdk: openai.OpenAI) -> None:
    with pytest.raises(openai.APIStatusError) as law:
        sdk.embeddings.create(model="minilm", input="x", extra_headers={"X-Data-Subject": "SG", "X-Region": "us-east"})
    assert law.value.status_code == 451
    refused(law, "residency_denied")
    assert law.value.body["permitted"] == ["ap-southeast"]
    with pytest.raises(openai.APIStatusError) as unknown:
        sdk.with_options(api_key="nobody-key").embeddings.create(model="minilm", input="x")
    assert unknown.value.status_code == 451
    assert unknown.value.body["reason"] == "UNKNOWN_JURISDICTION"


def test_a_model_that_cannot_chat(sdk: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as chat:
        sdk.chat.completions.create(model="minilm", messages=[{"role": "user", "content": "x"}])
    refused(chat, "model_not_found", "model")
    with pytest.raises(openai.NotFoundError) as completion:
        sdk.completions.create(model="minilm", prompt="x")
    refused(completion, "model_not_found", "model")


def test_a_tight_limit(sdk: openai.OpenAI) -> None:
    tight = sdk.with_options(api_key="tight-key")
    for _ in range(2):
        tight.embeddings.create(model="minilm", input="x")
    with pytest.raises(openai.RateLimitError) as limited:
        tight.embeddings.create(model="minilm", input="x")
    refused(limited, "rate_limited")
    assert 1 <= int(limited.value.response.headers["retry-after"]) <= 1800


def test_what_can_never_fit_is_not_retried_by_the_sdk(topology: Topology, sdk: openai.OpenAI) -> None:
    with pytest.raises(openai.RateLimitError) as never:
        sdk.with_options(api_key="small-key", max_retries=3).embeddings.create(model="minilm", input="x" * 1000)
    refused(never, "rate_limited")
    assert "retry-after" not in never.value.response.headers
    decisions = [each for each in topology.records(tenant="small") if each["kind"] == "decision"]
    assert [each["status"] for each in decisions] == [429]


@pytest.mark.parametrize("milliseconds", ["0.01", "1", "3"])
def test_a_deadline_that_cannot_be_met(topology: Topology, sdk: openai.OpenAI, milliseconds: str) -> None:
    """However short it is, it is the deadline that is told: never the audit trail, which waits for its disk."""
    headers = {"X-Request-Timeout-Ms": milliseconds, "X-Request-Id": f"late-{milliseconds}"}
    with pytest.raises(openai.InternalServerError) as late:
        sdk.embeddings.create(model="minilm", input=fresh("tide " * 200), extra_headers=headers)
    assert late.value.status_code == 504
    refused(late, "deadline_exceeded")
    decision, completion = topology.pair(f"late-{milliseconds}")
    assert (decision["outcome"], completion["outcome"]) in {("refused", "refused"), ("permitted", "failed")}
    assert completion["status"] == 504


def test_the_sdks_timeout_bounds_the_work(topology: Topology, sdk: openai.OpenAI) -> None:
    """Its `x-stainless-read-timeout` reaches the worker, and so does its leaving."""
    texts = [fresh("tide " * 200) for _ in range(400)]  # far more than a second of work
    with pytest.raises((openai.APITimeoutError, openai.InternalServerError)):
        sdk.embeddings.create(model="minilm", input=texts, timeout=1.0, extra_headers={"X-Request-Id": "bounded"})
    _, completion = topology.pair("bounded")
    assert (completion["outcome"], completion["status"]) in {("cancelled", 499), ("failed", 504)}
