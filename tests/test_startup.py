"""What a start does not wait for. Wall time says little on a busy machine; which modules are loaded says it exactly."""

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

LATE = {
    "fastapi": "a tenth of a second, with the description of its endpoints; no request of inference needs it",
    "app.api.application": "what FastAPI answers",
    "app.audit.auditor": "proofs, exports and checks, asked for over FastAPI",
    "app.audit.reader": "as above",
    "app.audit.rights": "as above",
    "webob": "compiles the grammar of every header; read by the first request with Accept-Language",
    "pycountry": "indexes tables of which only the codes are read",
    "countryinfo": "a file for each country; read when a caller is placed by its address",
    "maxminddb": "only where gateway.geoip names a file",
}
"""Modules that must not be loaded when a gateway is ready, each with why."""

CODE = """
import asyncio, json, sys
from pathlib import Path
from app.activity import Activity
from app.commands import gateway
from app.configuration import ConfigurationFiles
from app.main import create_app

async def main(directory):
    files = ConfigurationFiles(Path("configs/compose/gateway.yaml"), {"TIDEGATE_AUDIT__PATH": directory + "/audit"})
    app, said, ended, sent = create_app(files, files.load(), {}, Activity()), asyncio.Event(), asyncio.Event(), []
    asked = iter(["lifespan.startup", "lifespan.shutdown"])

    async def receive():
        kind = next(asked)
        if kind == "lifespan.shutdown":
            await ended.wait()
        return {"type": kind}

    async def send(message):
        sent.append(message["type"])
        said.set()

    life = asyncio.create_task(app({"type": "lifespan"}, receive, send))
    await said.wait()
    page = []

    async def tell(message):
        page.append(message)

    await app({"type": "http", "method": "GET", "path": "/readyz", "headers": []}, receive, tell)
    loaded = sorted(sys.modules)
    ended.set()
    await life
    print(json.dumps({"sent": sent, "answered": page[0]["status"], "loaded": loaded}))

asyncio.run(main(sys.argv[1]))
"""


def test_what_a_gateway_that_is_ready_has_not_loaded(tmp_path: Path) -> None:
    ran = subprocess.run(
        [sys.executable, "-c", CODE, str(tmp_path)], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stderr
    told = json.loads(ran.stdout.splitlines()[-1])
    assert told["sent"] == ["lifespan.startup.complete", "lifespan.shutdown.complete"]
    assert told["answered"] in (200, 503)  # its backend may be up or not; the page is there
    assert set(told["loaded"]) & LATE.keys() == set()
    assert {"app.main", "app.pipeline", "uvicorn"} <= set(told["loaded"])
