"""What the gateway adds to a request: direct, through a bare FastAPI + httpx proxy, and through Tidegate, in one run.

The upstream answers a constant embedding, so every difference is the proxy's own. Tidegate does its whole work: key,
residency decision, limits, cache miss, two durable audit records, log and metrics. The candidates take turns, round by
round, so that a drift of the machine's speed meets all of them; ratios of medians are what to quote.

    python benchmarks/overhead.py [--rounds 5] [--requests 300] [--clients 8]
"""

import argparse
import asyncio
import hashlib
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import textwrap
import time
from pathlib import Path

import httpx

KEY = "benchmark-key"
UPSTREAM = """
    import sys, uvicorn
    NUMBERS = b",".join([b"0.125"] * 384)
    BODY = b'{"object":"list","data":[{"object":"embedding","index":0,"embedding":[' + NUMBERS + b']}]}'
    async def app(scope, receive, send):
        while (await receive()).get("more_body"):
            pass
        await send({"type": "http.response.start", "status": 200, "headers": [
            (b"content-type", b"application/json"), (b"content-length", str(len(BODY)).encode())]})
        await send({"type": "http.response.body", "body": BODY})
    uvicorn.run(app, port=int(sys.argv[1]), log_level="error", lifespan="off")
"""
PROXY = """
    import sys, httpx, uvicorn
    from fastapi import FastAPI, Request, Response
    app = FastAPI()
    client = httpx.AsyncClient(base_url=f"http://127.0.0.1:{sys.argv[2]}", limits=httpx.Limits(max_connections=None))
    @app.post("/v1/embeddings")
    async def forward(request: Request):
        answer = await client.post("/v1/embeddings", content=await request.body())
        return Response(answer.content, answer.status_code, media_type="application/json")
    uvicorn.run(app, port=int(sys.argv[1]), log_level="error")
"""
PORTS = {"direct": 18301, "fastapi + httpx": 18302, "tidegate": 18303}


def configuration() -> dict[str, object]:
    region = {
        "id": "here",
        "country": "US",
        "latitude": 38.9,
        "longitude": -77.4,
        "operator": {"name": "bench"},
        "backends": [{"url": f"http://127.0.0.1:{PORTS['direct']}", "protocol": "openai", "models": ["m"]}],
    }
    key = "sha256:" + hashlib.sha256(KEY.encode()).hexdigest()
    return {
        "version": 1,
        "regions": [region],
        "tenants": [{"id": "bench", "keys": [key], "scopes": ["infer"], "subject": "US"}],
        "audit": {"path": "audit"},
    }


def start(directory: Path) -> list[subprocess.Popen[bytes]]:
    (directory / "tidegate.yaml").write_text(json.dumps(configuration()))
    python = sys.executable
    tidegate = str(Path(python).with_name("tidegate"))
    commands = (
        [python, "-c", textwrap.dedent(UPSTREAM), str(PORTS["direct"])],
        [python, "-c", textwrap.dedent(PROXY), str(PORTS["fastapi + httpx"]), str(PORTS["direct"])],
        [tidegate, "gateway", "--config", str(directory / "tidegate.yaml"), "--port", str(PORTS["tidegate"])],
    )
    with (directory / "log").open("wb") as log:
        return [subprocess.Popen(command, stdout=log, stderr=log) for command in commands]


async def one(client: httpx.AsyncClient, port: int, number: int) -> float:
    began = time.perf_counter()
    answer = await client.post(
        f"http://127.0.0.1:{port}/v1/embeddings",
        json={"model": "m", "input": f"text {number} of {time.time_ns()}"},
        headers={"Authorization": f"Bearer {KEY}"},
    )
    answer.raise_for_status()
    return (time.perf_counter() - began) * 1000


async def measure(port: int, requests: int, clients: int) -> tuple[float, float]:
    """Median latency of one client in ms, and requests a second with all of them."""
    async with httpx.AsyncClient(timeout=30) as client:
        alone = [await one(client, port, number) for number in range(requests // 3)]
        began = time.perf_counter()

        async def serve(share: range) -> None:
            for number in share:
                await one(client, port, number)

        await asyncio.gather(*(serve(range(requests // clients)) for _ in range(clients)))
        return statistics.median(alone), requests // clients * clients / (time.perf_counter() - began)


async def until_up() -> None:
    async with asyncio.timeout(60), httpx.AsyncClient() as client:
        for port in PORTS.values():
            while True:
                try:
                    await one(client, port, 0)
                    break
                except httpx.HTTPError:
                    await asyncio.sleep(0.2)


async def compare(rounds: int, requests: int, clients: int) -> None:
    await until_up()
    figures: dict[str, list[tuple[float, float]]] = {name: [] for name in PORTS}
    for turn in range(rounds):
        for name, port in PORTS.items():
            print(f"round {turn + 1}/{rounds}: {name}", file=sys.stderr)
            figures[name].append(await measure(port, requests, clients))
    print(f"{'':18}{'p50 of one client':>20}{'added':>10}{f'requests/s of {clients}':>20}{'share of direct':>18}")
    base = [statistics.median(column) for column in zip(*figures["direct"], strict=True)]
    for name, measured in figures.items():
        alone, rate = (statistics.median(column) for column in zip(*measured, strict=True))
        print(f"{name:18}{alone:17.2f} ms{alone - base[0]:7.2f} ms{rate:20.0f}{rate / base[1]:18.2f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--requests", type=int, default=300)
    parser.add_argument("--clients", type=int, default=8)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        processes = start(Path(directory))
        try:
            asyncio.run(compare(options.rounds, options.requests, options.clients))
        finally:
            for process in processes:
                os.kill(process.pid, signal.SIGTERM)
            for process in processes:
                process.wait(20)


if __name__ == "__main__":
    main()
