"""The candidates: how each is started in front of the one upstream, and where it takes requests."""

import hashlib
import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from gateways.peers import LITELLM, Peers

KEY = "sk-benchmark"
MODEL = "m"
UPSTREAM = 18_300
ANSWER = json.dumps(
    {
        "id": "chatcmpl-0123456789abcdef",
        "object": "chat.completion",
        "created": 1_790_000_000,
        "model": MODEL,
        "choices": [
            {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": "The tide turns. " * 20}}
        ],
        "usage": {"prompt_tokens": 40, "completion_tokens": 80, "total_tokens": 120},
    }
)
"""About 600 bytes, as a short answer of a chat has."""
FASTAPI = """
    import sys, httpx, uvicorn
    from fastapi import FastAPI, Request, Response
    from pydantic import BaseModel
    class Chat(BaseModel, extra="allow"):
        model: str
        messages: list[dict]
    app = FastAPI()
    client = httpx.AsyncClient(base_url=f"http://127.0.0.1:{sys.argv[2]}", limits=httpx.Limits(max_connections=None))
    @app.post("/v1/chat/completions")
    async def forward(chat: Chat, request: Request):
        answer = await client.post("/v1/chat/completions", content=await request.body())
        return Response(answer.content, answer.status_code, media_type="application/json")
    uvicorn.run(app, port=int(sys.argv[1]), log_level="error")
"""
FLOOR = """
    import asyncio, sys, uvicorn
    from app.fleet.answer import AnswerReader
    from app.fleet.pool import Pool
    HEAD = (b"POST /v1/chat/completions HTTP/1.1\\r\\nhost: x\\r\\ncontent-type: application/json\\r\\n"
            b"content-length: %d\\r\\n\\r\\n")
    pools = []
    async def app(scope, receive, send):
        body = (await receive())["body"]
        if sys.argv[2:]:
            pools or pools.append(Pool("http://127.0.0.1:" + sys.argv[2], None))
            end = asyncio.get_running_loop().time() + 30
            reader = AnswerReader(1 << 20, lambda status: False)
            connection = await pools[0].connection(5)
            body = await connection.exchange(HEAD % len(body), body, end, reader).answer()
        fields = [(b"x-header-%d" % n, b"as many as ours") for n in range(15)]
        fields += [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
        await send({"type": "http.response.start", "status": 200, "headers": fields})
        await send({"type": "http.response.body", "body": body})
    uvicorn.run(app, port=int(sys.argv[1]), loop="uvloop", http="httptools", lifespan="off", log_level="error",
                access_log=False)
"""
"""The least that a Python gateway can cost: uvicorn and Tidegate's own client with nothing between."""


@dataclass(frozen=True)
class Candidate:
    """A server on `port`; `repeats`: every request is the same, so that a cache can answer it."""

    name: str
    port: int
    command: tuple[str, ...]
    does: str
    environ: Mapping[str, str] = field(default_factory=dict)
    repeats: bool = False


def candidates(peers: Peers, directory: Path) -> list[Candidate]:
    """Those that can be had here; their configurations are written into `directory`."""
    found = [
        Candidate("nginx", 18_301, _nginx(peers, directory, "proxy", _PROXY), "forwards", peers.environ),
        *_routers(peers, directory),
        Candidate("FastAPI + httpx", 18_304, (sys.executable, "-c", _dedented(FASTAPI), "18304", str(UPSTREAM)),
                  "forwards, checks the body"),
        Candidate("bare uvicorn", 18_308, (sys.executable, "-c", _dedented(FLOOR), "18308", str(UPSTREAM)),
                  "forwards, no more: the floor"),
        Candidate("bare uvicorn, echo", 18_309, (sys.executable, "-c", _dedented(FLOOR), "18309"),
                  "answers, no more: the floor of a cache hit", repeats=True),
    ]  # fmt: skip
    for port, name in enumerate(LITELLM, start=18_305):
        program = peers.python(name, "litellm")
        if program:
            environ = {"LITELLM_LOCAL_MODEL_COST_MAP": "True", "LITELLM_LOG": "ERROR", "DISABLE_SCHEMA_UPDATE": "True"}
            options = ("--config", str(_litellm(directory)), "--port", str(port), "--host", "127.0.0.1")
            more = ("--num_workers", "1", "--telemetry", "False")
            found.append(Candidate(name, port, (program, *options, *more), "gateway: key, model names", environ))
    everything = "key, residency, limits, cache, two durable records, log, metrics"
    for name, port, repeats in (("tidegate", 18_310, False), ("tidegate, cache hit", 18_311, True)):
        found.append(Candidate(name, port, tidegate(directory, port), everything, repeats=repeats))
    return found


def upstream(peers: Peers, directory: Path) -> Candidate:
    """The constant upstream, nginx as well; asked directly it is the measure of what the others add."""
    (directory / "answer.json").write_text(ANSWER)
    return Candidate("direct", UPSTREAM, _nginx(peers, directory, "upstream", _CONSTANT), "answers", peers.environ)


_CONSTANT = f"""
    server {{
        listen 127.0.0.1:{UPSTREAM} reuseport;
        location / {{ default_type application/json; return 200 '{ANSWER}'; }}
    }}
"""
_PROXY = f"""
    upstream constant {{ server 127.0.0.1:{UPSTREAM}; keepalive 256; }}
    server {{
        listen 127.0.0.1:18301;
        location / {{
            proxy_pass http://constant; proxy_http_version 1.1; proxy_set_header Connection "";
        }}
    }}
"""


def _nginx(peers: Peers, directory: Path, name: str, servers: str) -> tuple[str, ...]:
    place = directory / f"nginx-{name}"
    place.mkdir(exist_ok=True)
    paths = " ".join(
        f"{kind}_temp_path {place}/{kind};" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    (place / "nginx.conf").write_text(
        f"daemon off; worker_processes 1; pid {place}/pid; error_log {place}/error crit;\n"
        "events { worker_connections 4096; }\n"
        f"http {{ access_log off; keepalive_requests 100000000; {paths} {servers} }}\n"
    )
    return (peers.debian("nginx"), "-p", str(place), "-c", str(place / "nginx.conf"), "-e", str(place / "error"))


def _routers(peers: Peers, directory: Path) -> list[Candidate]:
    found = []
    envoy, router = peers.python("routers", "envoy"), peers.python("routers", "vllm-router")
    if envoy:
        config = directory / "envoy.json"
        config.write_text(json.dumps(_envoy(18_302)))
        options = ("-c", str(config), "--concurrency", "1", "--disable-hot-restart", "-l", "error")
        found.append(Candidate("envoy", 18_302, (envoy, *options), "forwards"))
    if router:
        options = ("--host", "127.0.0.1", "--port", "18303", "--worker-urls", f"http://127.0.0.1:{UPSTREAM}")
        more = ("--policy", "round_robin", "--prometheus-port", "18313", "--log-level", "error")
        found.append(Candidate("vllm-router", 18_303, (router, *options, *more), "forwards, picks a worker"))
    return found


def _envoy(port: int) -> dict[str, object]:
    def address(number: int) -> dict[str, object]:
        return {"socket_address": {"address": "127.0.0.1", "port_value": number}}

    kind = "type.googleapis.com/envoy.extensions.filters"
    manager = {
        "@type": f"{kind}.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "all",
        "route_config": {
            "virtual_hosts": [
                {
                    "name": "all",
                    "domains": ["*"],
                    "routes": [{"match": {"prefix": "/"}, "route": {"cluster": "constant"}}],
                }
            ]
        },
        "http_filters": [
            {"name": "envoy.filters.http.router", "typed_config": {"@type": f"{kind}.http.router.v3.Router"}}
        ],
    }
    filters = [{"name": "envoy.filters.network.http_connection_manager", "typed_config": manager}]
    endpoints = [{"lb_endpoints": [{"endpoint": {"address": address(UPSTREAM)}}]}]
    cluster = {
        "name": "constant",
        "type": "STATIC",
        "load_assignment": {"cluster_name": "constant", "endpoints": endpoints},
    }
    listener = {"name": "all", "address": address(port), "filter_chains": [{"filters": filters}]}
    return {"static_resources": {"listeners": [listener], "clusters": [cluster]}}


def _litellm(directory: Path) -> Path:
    parameters = {"model": f"openai/{MODEL}", "api_base": f"http://127.0.0.1:{UPSTREAM}/v1", "api_key": "none"}
    config = {
        "model_list": [{"model_name": MODEL, "litellm_params": parameters}],
        "litellm_settings": {"telemetry": False, "drop_params": True, "num_retries": 0},
        "general_settings": {"master_key": KEY, "disable_spend_logs": True},
    }
    path = directory / "litellm.yaml"
    path.write_text(json.dumps(config))
    return path


def tidegate(directory: Path, port: int) -> tuple[str, ...]:
    """The command that starts a gateway before the upstream; its configuration and audit trail are in `directory`."""
    place = directory / f"tidegate-{port}"
    place.mkdir(exist_ok=True)
    backend = {"url": f"http://127.0.0.1:{UPSTREAM}", "protocol": "openai", "models": [MODEL]}
    region = {"id": "here", "country": "US", "latitude": 38.9, "longitude": -77.4, "operator": {"name": "bench"}}
    limits = {"requests": "100000000/minute", "tokens": "100000000000/minute", "concurrency": 4096}
    tenant = {
        "id": "bench",
        "keys": ["sha256:" + hashlib.sha256(KEY.encode()).hexdigest()],
        "scopes": ["infer"],
        "subject": "US",
        "limits": limits,
    }
    config = {
        "version": 1,
        "regions": [{**region, "backends": [backend]}],
        "tenants": [tenant],
        "audit": {"path": "audit"},
    }
    path = place / "tidegate.yaml"
    path.write_text(json.dumps(config))
    program = str(Path(sys.executable).with_name("tidegate"))
    return (program, "gateway", "--config", str(path), "--port", str(port))


def _dedented(program: str) -> str:
    return "\n".join(line.removeprefix("    ") for line in program.splitlines())
