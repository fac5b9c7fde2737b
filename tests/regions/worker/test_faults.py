"""Faults of a real worker process with the real models, caused: bad weights, kills, hang-ups, batches too large."""

import asyncio
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib import resources
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from safetensors import safe_open
from safetensors.torch import save_file

from tests.regions.worker.processes import Worker, started

SENTENCE = "The harbour master counts the boats that come in with the tide."


@pytest.fixture(scope="module")
def damaged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shipped conversion with NaN in the router of one layer."""
    directory = tmp_path_factory.mktemp("damaged")
    shipped = resources.files("regions.models").joinpath("shipped", "model.safetensors")
    with safe_open(str(shipped), framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - a file, not a mapping
        metadata = file.metadata()
    tensors["layers.3.router.weight"].fill_(float("nan"))
    save_file(tensors, directory / "model.safetensors", metadata)
    return directory


@pytest.fixture(scope="module")
def worker(damaged: Path) -> Iterator[Worker]:
    with started("--models", "minilm,minilm-moe", TIDEGATE_WORKER__MOE_MODEL=str(damaged)) as running:
        yield running


def tokens_run(worker: Worker) -> float:
    """Tokens of all batches of minilm that have run."""
    sums = worker.client.get("/metrics.json").json()["tidegate_worker_batch_tokens_sum"]
    return sum(entry["value"] for entry in sums if entry["labels"]["model"] == "minilm")


def vectors(response: httpx.Response) -> np.ndarray:
    return np.array([entry["embedding"] for entry in response.raise_for_status().json()["data"]])


def test_a_router_of_nan_is_stood_in_for_and_counted(worker: Worker) -> None:
    for _ in range(7):
        answer = worker.embed(model="minilm-moe", input=[SENTENCE], compute_budget=0.5)
    cosine = float((vectors(answer) * vectors(worker.embed(input=[SENTENCE]))).sum())
    assert cosine > 0.93
    assert answer.json()["usage"]["details"]["flops_share"] == pytest.approx(0.5 * 5 / 6 + 1 / 6, abs=0.05)
    tokens = answer.json()["usage"]["total_tokens"]
    counted = worker.client.get("/metrics.json").json()["tidegate_worker_unrouted_tokens_total"]
    of_moe = next(entry["value"] for entry in counted if entry["labels"]["model"] == "minilm-moe")
    assert of_moe >= 7 * tokens


def test_one_bad_text_fails_its_request_and_no_other(worker: Worker) -> None:
    with httpx.Client(base_url=worker.client.base_url, timeout=60) as other:
        good = other.post("/v1/embeddings", json={"model": "minilm", "input": [SENTENCE] * 5})
        bad = other.post("/v1/embeddings", json={"model": "minilm", "input": [SENTENCE, "", SENTENCE]})
    assert (good.status_code, bad.status_code) == (200, 400)
    assert bad.json()["param"] == "input[1]"


def test_a_batch_beyond_every_bound_is_split_over_forwards(worker: Worker) -> None:
    long = " ".join(["tide"] * 250)
    answer = worker.embed(input=[long] * 40 + [SENTENCE])
    assert len(vectors(answer)) == 41
    np.testing.assert_allclose(vectors(answer)[40], vectors(worker.embed(input=SENTENCE))[0], atol=2e-3)


async def test_clients_that_hang_up_leave_the_queue(worker: Worker) -> None:
    """Much is asked for and abandoned; what is asked for next does not wait for it to be computed."""
    long = " ".join(["tide"] * 250)
    async with httpx.AsyncClient(base_url=worker.client.base_url, timeout=60) as client:
        asked = [
            asyncio.create_task(client.post("/v1/embeddings", json={"model": "minilm", "input": [long] * 100}))
            for _ in range(10)
        ]
        before = tokens_run(worker)
        while await asyncio.to_thread(tokens_run, worker) == before:
            assert not all(task.done() for task in asked)
        for task in asked:
            task.cancel()
        await asyncio.gather(*asked, return_exceptions=True)
        loop = asyncio.get_running_loop()
        begun = loop.time()
        answer = await client.post("/v1/embeddings", json={"model": "minilm", "input": SENTENCE})
        seconds = loop.time() - begun
    assert answer.status_code == 200
    tokens = tokens_run(worker)
    assert tokens < 10 * 100 * 252, f"all of the abandoned texts were computed, in {seconds:.1f} s"


def test_a_worker_that_is_killed_in_a_forward_drops_its_connections_at_once() -> None:
    long = " ".join(["tide"] * 250)
    with started("--models", "minilm") as running, ThreadPoolExecutor(1) as threads:
        asked = threads.submit(running.embed, input=[long] * 500)
        before = tokens_run(running)
        while tokens_run(running) == before:
            time.sleep(0.01)
        assert not asked.done()
        running.process.child.kill()
        with pytest.raises(httpx.TransportError):
            asked.result(timeout=10)


def test_an_automatic_budget_falls_under_load_and_rises_afterwards() -> None:
    bounds = {"MIN": "0.2", "MAX": "0.6", "LATENCY": "20ms"}
    environ = {f"TIDEGATE_WORKER__AUTO_BUDGET__{name}": value for name, value in bounds.items()}

    def told(running: Worker) -> dict[str, Any]:
        answer = running.embed(model="minilm-moe", input=SENTENCE)
        assert answer.headers.get("cache-control") == ("no-store" if details(answer)["compute_budget"] < 0.6 else None)
        return details(answer)

    def details(answer: httpx.Response) -> dict[str, Any]:
        figures: dict[str, Any] = answer.raise_for_status().json()["usage"]["details"]
        return figures

    with started("--models", "minilm-moe", TIDEGATE_WORKER__COMPUTE_BUDGET="auto", **environ) as running:
        assert told(running) == {"compute_budget": 0.6, "flops_share": pytest.approx(0.6, abs=0.03), "auto": True}
        assert "auto" not in details(running.embed(model="minilm-moe", input=SENTENCE, compute_budget=0.3))
        with ThreadPoolExecutor(8) as threads:
            asked = [
                threads.submit(running.embed, model="minilm-moe", input=[SENTENCE] * 400, compute_budget="auto")
                for _ in range(8)
            ]
            under_load = [details(each.result(timeout=60)) for each in asked]
        assert all(0.2 <= each["compute_budget"] <= 0.6 and each["auto"] for each in under_load)
        low = told(running)
        assert low["compute_budget"] < 0.6
        assert low["flops_share"] == pytest.approx(low["compute_budget"], abs=0.03)
        until = time.monotonic() + 30
        while (now := told(running)["compute_budget"]) < 0.6:
            assert now >= low["compute_budget"]
            assert time.monotonic() < until
            time.sleep(0.5)
