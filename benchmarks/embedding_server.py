"""Sentences per second over HTTP, with the same model: the worker and what people would otherwise run, in one run.

The peers: sentence-transformers behind plain FastAPI, LitServe with its batching, and ONNX Runtime in float32 and int8
behind FastAPI. Each serves POST /v1/embeddings in OpenAI's shape, one sentence a request, from a process of its own;
one is up at a time, they take turns, and the load comes from a further process on the same cores. Figures are medians
over the rounds.

    python -m venv peers
    peers/bin/pip install torch==2.13.0 sentence-transformers litserve onnxruntime onnx onnxscript uvloop httptools
    python benchmarks/embedding_server.py --peers peers/bin/python [--seconds 5] [--rounds 3] [--clients 1 16 128]

Without --peers only sentence-transformers (of the test extra) is compared with.

On two cores with avx512_bf16, load included: 627 sentences a second at 128 clients, 8.4 times sentence-transformers,
4.9 times LitServe, 3.2 times ONNX Runtime in float32 and 1.6 times its int8 (whose cosine falls to 0.942); 35 ms p99 at
half of that; one client has 217, in float32 ONNX Runtime has 210. What limits the rest, by processor time for each of
these sentences of 34 tokens: 2.5 ms of the forward, which is 2.2 where nothing else runs and three quarters of what the
cores multiply in bfloat16; 0.35 of the event loop (0.5 with FastAPI's layer); 0.15 to read the text; 0.4 of the load. A
single client's sentence runs on one core: on two, which wait for each other and for what serves it, it had 178 a second
in place of 226.
"""

import argparse
import asyncio
import os
import random
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import httpx
import numpy as np
import orjson

from regions.models.convert.corpus import held_out_texts, training_texts
from regions.models.source import find_text_model

PORT = 18_400
SERVERS = Path(__file__).parent / "embedding_servers"
OURS = "tidegate worker"
WORDS = (12, 40)
"""Words of a sentence, so that texts have 30 tokens on average."""


@dataclass(frozen=True)
class Load:
    """What one run of clients saw: answers per second, and milliseconds."""

    rate: float
    p50: float
    p99: float


def sentences() -> list[str]:
    """Real sentences that differ, in an order of chance that repeats."""
    low, high = WORDS
    found = [text for text in [*held_out_texts(), *training_texts([])] if low <= len(text.split()) <= high]
    random.Random(0).shuffle(found)
    return found


def command(name: str, peers: str | None) -> tuple[list[str], dict[str, str]]:
    model = str(find_text_model(None))
    if name.startswith(OURS):
        environ = {"TIDEGATE_WORKER__PRECISION": name.rsplit(" ", 1)[1]}
        arguments = ["--region", "here", "--models", "minilm", "--port", str(PORT)]
        return [sys.executable, "-m", "regions.worker", *arguments], environ
    python = peers or sys.executable
    return [python, str(SERVERS / f"{name}.py"), model, str(PORT)], {}


def start(name: str, peers: str | None, log: Path) -> subprocess.Popen[bytes]:
    wait_until_free()
    line, environ = command(name, peers)
    offline = {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    with log.open("ab") as file:
        # A group of its own, for LitServe leaves processes behind that keep the port.
        child = subprocess.Popen(
            line, env=os.environ | offline | environ, stdout=file, stderr=file, start_new_session=True
        )
    until = time.monotonic() + 120
    while True:
        try:
            embedding("The tide turns.")
        except (httpx.HTTPError, KeyError):
            if child.poll() is not None or time.monotonic() > until:
                child.kill()
                raise SystemExit(f"{name} did not start; its log ends:\n{log.read_text()[-2000:]}") from None
            time.sleep(0.3)
        else:
            return child


def wait_until_free() -> None:
    """Waits for the server before this one to let go of the port, at most ten seconds."""
    for _ in range(100):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", PORT)):
                return
        time.sleep(0.1)
    raise SystemExit(f"port {PORT} is taken; stop what listens there")


def embedding(text: str) -> np.ndarray:
    body = {"model": "minilm", "input": text}
    answer = httpx.post(f"http://127.0.0.1:{PORT}/v1/embeddings", json=body, timeout=30).raise_for_status()
    return np.array(answer.json()["data"][0]["embedding"])


async def drive(texts: list[str], clients: int, seconds: float, rate: float | None) -> Load:
    """`clients` connections, each asking again once answered; with a `rate`, together so often and no more."""
    took: list[float] = []
    end = time.perf_counter() + seconds
    begun = time.perf_counter()

    async def client(number: int) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", PORT)
        place, turn = number * 7919 % len(texts), 0
        while time.perf_counter() < end:
            if rate is not None:
                await asyncio.sleep(max(0.0, begun + (turn * clients + number) / rate - time.perf_counter()))
            body = orjson.dumps({"model": "minilm", "input": texts[place]})
            asked = time.perf_counter()
            writer.write(HEAD % len(body) + body)
            await answered(reader)
            took.append(time.perf_counter() - asked)
            place, turn = (place + 1) % len(texts), turn + 1
        writer.close()

    await asyncio.gather(*(client(number) for number in range(clients)))
    took.sort()
    passed = time.perf_counter() - begun
    return Load(len(took) / passed, 1000 * took[len(took) // 2], 1000 * took[int(len(took) * 0.99)])


HEAD = b"POST /v1/embeddings HTTP/1.1\r\nHost: here\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"


async def answered(reader: asyncio.StreamReader) -> None:
    head = (await reader.readuntil(b"\r\n\r\n")).lower()
    if b" 200 " not in head.split(b"\r\n", 1)[0]:
        raise SystemExit(f"a server refused: {head[:200]!r}")
    await reader.readexactly(int(head.split(b"content-length:")[1].split(b"\r\n")[0]))


def measured(clients: int, seconds: float, rate: float | None = None) -> Load:
    """One run of the load, from a process of its own."""
    line = [sys.executable, __file__, "--load", str(clients), str(seconds), str(rate or 0)]
    done = subprocess.run(line, stdout=subprocess.PIPE, check=True, timeout=seconds + 120)
    return Load(**orjson.loads(done.stdout))


def one_round(name: str, options: argparse.Namespace, log: Path) -> tuple[dict[int, Load], Load, np.ndarray]:
    child = start(name, options.peers, log)
    try:
        measured(8, 1.0)  # warm-up
        loads = {clients: measured(clients, options.seconds) for clients in options.clients}
        half = measured(16, options.seconds, max(load.rate for load in loads.values()) / 2)
        return loads, half, np.stack([embedding(text) for text in sentences()[:50]])
    finally:
        child.send_signal(signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            child.wait(timeout=15)
        with suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)
        child.wait()


def median(values: list[float]) -> float:
    return statistics.median(values)


def report(results: dict[str, list[tuple[dict[int, Load], Load, np.ndarray]]], clients: list[int]) -> None:
    exact = results[f"{OURS} fp32"][0][2]
    print(
        f"\n{'server':24}" + "".join(f"{f'{n} clients':>22}" for n in clients) + f"{'half of peak':>16}{'cosine':>10}"
    )
    print(f"{'':24}" + "".join(f"{'/s   p50   p99 ms':>22}" for _ in clients) + f"{'p99 ms':>16}{'least':>10}")
    for name, rounds in results.items():
        line = f"{name:24}"
        for n in clients:
            rate, p50, p99 = (median([getattr(r[0][n], f) for r in rounds]) for f in ("rate", "p50", "p99"))
            line += f"{f'{rate:.0f} {p50:6.1f} {p99:6.1f}':>22}"
        vectors = rounds[0][2]
        cosines = (vectors * exact).sum(axis=1) / np.linalg.norm(vectors, axis=1) / np.linalg.norm(exact, axis=1)
        print(line + f"{median([r[1].p99 for r in rounds]):>16.1f}{cosines.min():>10.5f}")
    print(f"\nsentences per second of {OURS} auto over each, round by round, median:")
    ours = results[f"{OURS} auto"]
    for name, rounds in results.items():
        ratios = [median([a[0][n].rate / b[0][n].rate for a, b in zip(ours, rounds, strict=True)]) for n in clients]
        print(f"{name:24}" + "".join(f"{ratio:>21.2f}x" for ratio in ratios))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peers", help="Python of an environment with the peers' packages")
    parser.add_argument("--seconds", type=float, default=5.0, help="of each measurement")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 16, 128])
    parser.add_argument("--only", nargs="+", help="names of servers")
    parser.add_argument("--load", nargs=3, type=float, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.load:
        clients, seconds, rate = options.load
        load = asyncio.run(drive(sentences(), int(clients), seconds, rate or None))
        sys.stdout.buffer.write(orjson.dumps(load))
        return
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that no server is left behind
    peers = ["sentence_transformers_fastapi"]
    peers += ["litserve_batching", "onnx_fp32_fastapi", "onnx_int8_fastapi"] if options.peers else []
    names = [f"{OURS} auto", f"{OURS} fp32", *(name for name in peers if not options.only or name in options.only)]
    results: dict[str, list[tuple[dict[int, Load], Load, np.ndarray]]] = {name: [] for name in names}
    with tempfile.TemporaryDirectory() as directory:
        for number in range(options.rounds):
            for name in names:
                print(f"round {number + 1} of {options.rounds}: {name}", file=sys.stderr, flush=True)
                results[name].append(one_round(name, options, Path(directory) / "log"))
                loads, half, _ = results[name][-1]
                told = [f"{n}: {load.rate:.0f}/s p99 {load.p99:.0f} ms" for n, load in loads.items()]
                print(f"    {', '.join(told)}, half of peak: p99 {half.p99:.0f} ms", file=sys.stderr, flush=True)
    report(results, options.clients)


if __name__ == "__main__":
    main()
