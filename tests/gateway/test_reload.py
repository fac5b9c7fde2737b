"""Reload through a real gateway: what changes takes force whole, or not at all and says so; nobody is turned away."""

import asyncio
import json
import re
import signal
import subprocess
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests import mmdb
from tests.fleet.servers import Request, reply, serving, stream, until
from tests.running import EMBEDDING, HASH, KEY, TIDEGATE, Running, Upstream, running

ROOT = Path(__file__).resolve().parents[2]
IRELAND = "IE, IT,"
"""As it stands among the places of gdpr.yaml: without it, no region is in the EEA."""
REFUSED = "configuration refused, the running one stays"


@asynccontextmanager
async def reloading(directory: Path, *regions: str, **changes: Any) -> AsyncIterator[Running]:
    """A gateway that reads two laws, so that reading them is quick, from a directory that a test can change."""
    (directory / "law").mkdir(exist_ok=True)
    for name in ("gdpr.yaml", "us.yaml"):
        (directory / "law" / name).write_text((ROOT / "configs" / "residency" / name).read_text())
    residency = {"rules": "law/*.yaml", **changes.pop("residency", {})}
    async with running(directory, *regions, residency=residency, **changes) as gateway:
        yield gateway


def settings(gateway: Running) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((gateway.directory / "tidegate.yaml").read_text())
    return found


def put(file: Path, text: str) -> None:
    """Replace a file by renaming, as editors do."""
    draft = file.with_suffix(".draft")
    draft.write_text(text)
    draft.replace(file)


def write(gateway: Running, /, **sections: Any) -> None:
    put(gateway.directory / "tidegate.yaml", json.dumps({**settings(gateway), **sections}))


def law(gateway: Running, name: str = "gdpr.yaml") -> Path:
    return gateway.directory / "law" / name


async def reloads(gateway: Running) -> dict[str, float]:
    """How often each outcome has been, and whether the last one was good."""
    text = (await gateway.client.get("/metrics")).text
    counted = dict(re.findall(r'^tidegate_config_reloads_total\{outcome="(\w+)"\} (\S+)$', text, re.MULTILINE))
    counted["good"] = re.findall(r"^tidegate_config_last_reload_successful (\S+)$", text, re.MULTILINE)[0]
    return {name: float(value) for name, value in counted.items()}


async def until_counted(gateway: Running, outcome: str, before: float) -> None:
    async with asyncio.timeout(40):
        while (await reloads(gateway))[outcome] == before:  # noqa: ASYNC110 - another process
            await asyncio.sleep(0.02)
    assert (await reloads(gateway))["good"] == (outcome != "refused")


async def noticed(gateway: Running, change: Callable[[], object], outcome: str = "applied") -> None:
    """Make a change and wait until the gateway has seen it by itself."""
    before = (await reloads(gateway))[outcome]
    change()
    await until_counted(gateway, outcome, before)


async def told(gateway: Running, change: Callable[[], object], outcome: str = "applied") -> None:
    """Make a change, send SIGHUP and wait for what comes of it."""
    before = (await reloads(gateway))[outcome]
    change()
    gateway.process.send_signal(signal.SIGHUP)
    await until_counted(gateway, outcome, before)


async def in_force(gateway: Running) -> dict[str, str]:
    found: dict[str, str] = (await gateway.client.get("/health")).json()["configuration"]
    return found


def problems(gateway: Running) -> list[str]:
    return [json.loads(line)["problem"] for line in gateway.log.splitlines() if f'"event":"{REFUSED}"' in line]


async def test_a_changed_law_takes_force_and_is_named_in_the_records(tmp_path: Path) -> None:
    async with reloading(tmp_path) as gateway:
        assert (await gateway.embed(X_Data_Subject="DE")).status_code == 200
        old = await in_force(gateway)
        text = law(gateway).read_text()
        assert text.count(IRELAND) == 1
        await noticed(gateway, lambda: put(law(gateway), text.replace(IRELAND, "IT,")))
        new = await in_force(gateway)
        assert (await gateway.embed(X_Data_Subject="DE")).status_code == 451  # though an answer to it is in the cache
        assert (await gateway.embed()).status_code == 200
        assert old["policy_digest"] != new["policy_digest"]
        assert old["digest"] != new["digest"]
        decisions = [one for one in await gateway.records(subject_country="DE") if one["kind"] == "decision"]
        assert [(one["outcome"], one["policy_digest"]) for one in decisions] == [
            ("permitted", old["policy_digest"]),
            ("refused", new["policy_digest"]),
        ]
        explained = await gateway.client.post("/v1/route/explain", json={"subject": "DE"})
        assert explained.json()["status"] == 451


async def test_a_broken_law_keeps_the_running_one_and_refuses_a_start(tmp_path: Path) -> None:
    async with reloading(tmp_path) as gateway:
        before, text = await in_force(gateway), law(gateway).read_text()
        await noticed(gateway, lambda: put(law(gateway), text + "\nrules: [\n"), "refused")
        assert await in_force(gateway) == before
        assert (await gateway.embed(X_Data_Subject="DE")).status_code == 200
        [problem] = set(problems(gateway))
        assert re.match(re.escape(str(law(gateway))) + r":\d+: is not YAML: ", problem)
        again = await asyncio.to_thread(
            subprocess.run,
            [TIDEGATE, "gateway", "--config", tmp_path / "tidegate.yaml"],
            capture_output=True,
            text=True,
        )
        assert (again.returncode, again.stderr.strip()) == (2, problem)
        put(law(gateway), text)  # as it was: there is nothing to apply, and all is well again
        await until_good(gateway)
        assert await in_force(gateway) == before


async def until_good(gateway: Running) -> None:
    async with asyncio.timeout(40):
        while not (await reloads(gateway))["good"]:  # noqa: ASYNC110 - another process
            await asyncio.sleep(0.05)


async def test_sighup_reads_the_files_even_unchanged(tmp_path: Path) -> None:
    async with reloading(tmp_path) as gateway:
        before = await in_force(gateway)
        await told(gateway, lambda: None, "unchanged")
        assert await in_force(gateway) == before
        text = law(gateway).read_text()
        await told(gateway, lambda: put(law(gateway), "# a comment\n" + text), "unchanged")


async def test_keys_are_taken_and_refused_while_the_gateway_runs(tmp_path: Path) -> None:
    def keys(*arguments: str) -> str:
        command = [TIDEGATE, "keys", *arguments, "--config", str(tmp_path / "tidegate.yaml")]
        ran = subprocess.run(command, capture_output=True, text=True, check=True)
        return (ran.stdout + ran.stderr).split()[0]

    async with reloading(tmp_path) as gateway:
        made: list[str] = []
        await noticed(gateway, lambda: made.append(keys("new", "--tenant", "demo")))
        assert (await gateway.embed(Authorization=f"Bearer {made[0]}")).status_code == 200
        await noticed(gateway, lambda: keys("revoke", HASH.removeprefix("sha256:")[:8]))
        assert (await gateway.embed()).status_code == 401
        assert (await gateway.embed(Authorization=f"Bearer {made[0]}")).status_code == 200


async def test_a_region_that_moves_is_judged_where_it_is(tmp_path: Path) -> None:
    async with reloading(tmp_path) as gateway:
        assert (await gateway.embed(X_Data_Subject="DE")).status_code == 200

        def move(country: str) -> None:
            regions = settings(gateway)["regions"]
            write(
                gateway,
                regions=[{**one, **({"country": country} if one["id"] == "eu-west" else {})} for one in regions],
            )

        await told(gateway, lambda: move("FR"))
        answer = await gateway.embed(X_Data_Subject="DE")
        assert (answer.status_code, answer.headers["X-Cache-Status"]) == (200, "MISS")  # the first was from Ireland
        await told(gateway, lambda: move("SG"))
        assert (await gateway.embed(X_Data_Subject="DE")).status_code == 451


async def test_what_needs_a_restart_refuses_all_of_a_change(tmp_path: Path) -> None:
    async with reloading(tmp_path) as gateway:
        tenants = [{**settings(gateway)["tenants"][0], "keys": []}]
        await told(gateway, lambda: write(gateway, gateway={"listen": "127.0.0.1:1"}, tenants=tenants), "refused")
        assert (await gateway.embed()).status_code == 200
        [problem] = problems(gateway)
        assert problem == (
            f"{tmp_path / 'tidegate.yaml'}:1: gateway.listen: was '127.0.0.1:8080' when this gateway started; "
            "a change needs a restart, as it listens there"
        )


async def test_a_file_that_is_gone_keeps_the_running_configuration(tmp_path: Path) -> None:
    file = tmp_path / "tidegate.yaml"
    async with reloading(tmp_path) as gateway:
        text = file.read_text()
        await noticed(gateway, file.unlink, "refused")
        assert problems(gateway) == [f"{file}: cannot be read: No such file or directory"]
        assert (await gateway.embed()).status_code == 200
        file.write_text(text)
        await until_good(gateway)


@pytest.mark.parametrize("name", ["\ud800", "\0"])
async def test_a_glob_that_names_no_file_is_refused_and_the_next_one_taken(tmp_path: Path, name: str) -> None:
    async with reloading(tmp_path) as gateway:
        residency = settings(gateway)["residency"]
        await noticed(gateway, lambda: write(gateway, residency={**residency, "rules": f"{name}/*.yaml"}), "refused")
        [problem] = problems(gateway)
        assert problem.startswith(f"{tmp_path / 'tidegate.yaml'}:1: residency.rules: {name + '/*.yaml'!r} holds a char")
        await noticed(gateway, lambda: write(gateway, residency={**residency, "disabled": ["eu-us-dpf"]}))


async def test_a_law_that_is_lost_stays_in_force_until_somebody_says_so(tmp_path: Path) -> None:
    async with reloading(tmp_path, residency={"unknown_subject": "US"}) as gateway:
        before = await in_force(gateway)
        await noticed(gateway, law(gateway).unlink, "refused")
        assert "residency.rules: no file holds the law gdpr any more" in problems(gateway)[0]
        assert await in_force(gateway) == before
        await told(gateway, lambda: None)
        assert await in_force(gateway) != before


async def test_a_law_whose_review_has_run_out_is_no_better_than_at_a_start(tmp_path: Path) -> None:
    async with reloading(tmp_path, gateway={"security": "strict"}) as gateway:
        text = re.sub(r"reviewed(_until)?: \S+", r"reviewed\1: 2020-01-01", law(gateway).read_text())
        await told(gateway, lambda: put(law(gateway), text), "refused")
        assert "the review of law gdpr ran out on 2020-01-01" in problems(gateway)[0]


async def test_a_file_that_is_being_written_is_left_alone(tmp_path: Path) -> None:
    async with reloading(tmp_path) as gateway:
        lines = (law(gateway).read_text().replace(IRELAND, "IT,") + "# the end\n" * 20).splitlines(keepends=True)

        async def slowly() -> None:
            with law(gateway).open("w") as file:
                for line in lines:
                    file.write(line)
                    file.flush()
                    await asyncio.sleep(0.02)  # much less than the time for which a file has to lie still

        before = (await reloads(gateway))["applied"]
        await slowly()
        await until_counted(gateway, "applied", before)
        assert problems(gateway) == []
        assert (await gateway.embed(X_Data_Subject="DE")).status_code == 451


async def test_backends_come_and_go_and_what_is_under_way_is_finished(tmp_path: Path) -> None:
    released = asyncio.Event()

    async def late(writer: asyncio.StreamWriter, request: Request) -> None:
        await released.wait()
        await reply(200, EMBEDDING)(writer, request)

    other = Upstream()
    async with reloading(tmp_path, "us-east", "eu-west") as gateway, serving(other.respond) as server:
        old = gateway.upstreams["eu-west"]
        old.answer = late
        asking = asyncio.create_task(gateway.embed(X_Data_Subject="DE"))
        await until(lambda: bool(old.posts))
        regions = settings(gateway)["regions"]
        regions[1]["backends"] = [
            {"url": server.url, "protocol": "openai", "models": ["embed"], "api_key": "secret", "weight": 2}
        ]
        await told(gateway, lambda: write(gateway, regions=regions))
        assert (await gateway.embed("another", X_Data_Subject="DE")).status_code == 200
        posts = [request for request in server.requests if request.line.startswith("POST")]
        assert [request.headers["authorization"] for request in posts] == ["Bearer secret"]
        assert (await gateway.embed("hello", model="chat", X_Data_Subject="DE")).status_code == 404
        assert not asking.done()
        old.server.gone.clear()  # by probes, whose connections are their own
        released.set()
        assert (await asking).status_code == 200
        await asyncio.wait_for(old.server.gone.wait(), 20)
        metrics = (await gateway.client.get("/metrics")).text
        assert 'tidegate_requests_in_flight{region="eu-west"} 0.0' in metrics


async def test_a_stream_goes_on_while_its_region_becomes_unlawful(tmp_path: Path) -> None:
    released = asyncio.Event()

    async def rest(_: asyncio.StreamWriter) -> None:
        await released.wait()

    async with reloading(tmp_path) as gateway:
        gateway.upstreams["eu-west"].answer = stream([b'data: {"n": 1}\n\n', b"data: [DONE]\n\n"], rest)
        old = (await in_force(gateway))["policy_digest"]
        body = {"model": "chat", "stream": True, "messages": [{"role": "user", "content": "hello"}]}
        headers = {"X-Data-Subject": "DE"}
        async with gateway.client.stream("POST", "/v1/chat/completions", json=body, headers=headers) as answer:
            chunks = answer.aiter_bytes()
            first = await anext(chunks)
            text = law(gateway).read_text().replace(IRELAND, "IT,")
            await told(gateway, lambda: put(law(gateway), text))
            assert (await gateway.embed(X_Data_Subject="DE")).status_code == 451
            released.set()
            whole = first + b"".join([chunk async for chunk in chunks])
        assert whole.endswith(b"data: [DONE]\n\n")
        decision, completion = [one for one in await gateway.records(subject_country="DE") if one["model"] == "chat"]
        assert (decision["policy_digest"], completion["outcome"]) == (old, "served")


async def test_limits_breakers_and_answers_outlive_a_reload(tmp_path: Path) -> None:
    tenant = {"id": "demo", "keys": [HASH], "scopes": ["infer", "audit:admin", "admin"], "subject": "US"}
    limited = {**tenant, "limits": {"requests": "5/hour"}}
    breaker = {"breaker": {"failures": 1, "recovery": "1h"}, "retry": {"attempts": 1}, "health": {"interval": "1h"}}
    async with reloading(tmp_path, tenants=[limited], resilience=breaker) as gateway:
        # Two backends a region: the first good probe of one would close its breaker again.
        await until(lambda: gateway.log.count('"event":"backend_health"') == 6)
        gateway.upstreams["ap-southeast"].answer = reply(500)
        assert (await gateway.embed(X_Region="ap-southeast")).status_code == 502
        assert (await gateway.embed()).headers["X-Cache-Status"] == "MISS"
        await told(gateway, lambda: write(gateway, tenants=[{**limited, "callers": "people"}]))
        assert (await gateway.embed()).headers["X-Cache-Status"] == "HIT"
        assert (await gateway.embed(X_Region="ap-southeast")).status_code == 503
        assert (await gateway.embed()).headers["x-ratelimit-remaining-requests"] == "0"
        assert (await gateway.embed()).status_code == 429
        await told(gateway, lambda: write(gateway, tenants=[{**tenant, "limits": {"requests": "1000/second"}}]))
        assert (await gateway.embed()).status_code == 200  # nobody waits for an hour that is no longer the limit
        await told(gateway, lambda: write(gateway, cache={"max_entries": 5}))
        assert (await gateway.embed()).headers["X-Cache-Status"] == "MISS"


async def test_a_new_table_of_addresses_is_taken(tmp_path: Path) -> None:
    table = tmp_path / "countries.mmdb"
    mmdb.write(table, {"8.8.8.0/24": {"country": {"iso_code": "DE"}}})
    sections = {"gateway": {"geoip": "countries.mmdb", "trusted_proxies": ["127.0.0.0/8"]}}
    tenant = {"id": "demo", "keys": [HASH], "scopes": ["infer"], "callers": "people"}
    async with reloading(tmp_path, tenants=[tenant], **sections) as gateway:
        assert (await gateway.embed(X_Forwarded_For="8.8.8.8")).headers["X-Served-Region"] == "eu-west"
        draft = tmp_path / "draft.mmdb"
        mmdb.write(draft, {"8.8.8.0/24": {"country": {"iso_code": "US"}}})
        await noticed(gateway, lambda: draft.replace(table))
        assert (await gateway.embed(X_Forwarded_For="8.8.8.8")).headers["X-Served-Region"] == "us-east"


async def in_parts(body: bytes) -> AsyncIterator[bytes]:
    """Slowly, so that many a request is decided, then waits for its body, and meanwhile the law changes."""
    yield body[:5]
    await asyncio.sleep(0.1)
    yield body[5:]


@pytest.mark.timeout(300)
async def test_twenty_reloads_under_load_fail_nobody_and_mix_nothing(tmp_path: Path) -> None:
    patient = {"path": "audit", "commit_deadline": "30s"}  # a busy disk is not what this is about
    async with reloading(tmp_path, audit=patient) as gateway:
        lawful = law(gateway).read_text()
        texts = [lawful.replace(IRELAND, "IT,"), lawful]
        digests = [(await in_force(gateway))["policy_digest"]]
        answers: dict[str, tuple[str, int]] = {}
        counted: Counter[int] = Counter()
        over = False

        async def ask(number: int) -> None:
            subject = {"X-Data-Subject": "DE"} if number % 4 else {}
            headers = {"Authorization": f"Bearer {KEY}", "Content-Type": "application/json"}
            async with httpx.AsyncClient(base_url=gateway.client.base_url, headers=headers, timeout=30) as client:
                for turn in range(100_000):
                    if over:
                        return
                    body = json.dumps({"model": "embed", "input": f"{number} {turn % 3}"}).encode()
                    sent = in_parts(body) if number % 2 else body
                    answer = await client.post("/v1/embeddings", content=sent, headers=subject)
                    counted[answer.status_code] += 1
                    assert answer.status_code in {200, 451}, answer.text
                    answers[answer.headers["X-Audit-Id"]] = (subject.get("X-Data-Subject", "US"), answer.status_code)

        clients = [asyncio.create_task(ask(number)) for number in range(8)]
        for number in range(20):
            await told(gateway, lambda text=texts[number % 2]: put(law(gateway), text))
            if number == 0:
                digests.append((await in_force(gateway))["policy_digest"])
        over = True
        await asyncio.gather(*clients)
        assert set(counted) == {200, 451}
        expected = {("DE", 200): {digests[0]}, ("DE", 451): {digests[1]}, ("US", 200): set(digests)}
        seen: dict[tuple[str, int], set[str]] = {}
        for record in await gateway.records():
            if record["kind"] == "decision" and record["id"] in answers:
                seen.setdefault(answers.pop(record["id"]), set()).add(record["policy_digest"])
        assert seen == expected
        assert not answers
        assert problems(gateway) == []
