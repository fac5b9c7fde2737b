"""What the product promises, on the real topology: residency, a region that dies, the trail of it, and a crowd."""

import asyncio
import os
import signal
import socket
import uuid
from collections.abc import Callable, Sequence
from typing import Any

import httpx
import openai
import pytest

from app.config import DEMO_KEY
from tests.conformance.topology import EMBED, INFER, Topology, until

pytestmark = pytest.mark.xdist_group("topology")

CROWD = 200
OTHERS = ("us-east", "ap-southeast")
GERMAN = {"X_Data_Subject": "DE", "Accept_Language": "de-AT, en;q=0.5"}
CloseTo = Callable[[Any, Sequence[str]], None]


def fresh(text: str) -> str:
    return f"{text} {uuid.uuid4().hex}"


def test_a_german_is_served_in_the_eea(topology: Topology) -> None:
    before = topology.requests("eu-west", *OTHERS)
    served = topology.embed(fresh("Guten Tag"), X_Request_Id="show-served", **GERMAN)
    assert (served.status_code, served.headers["X-Served-Region"]) == (200, "eu-west")
    assert served.headers["X-Route-Reason"] == "ALLOW_INTRA"
    assert topology.requests("eu-west", *OTHERS) == before | {"eu-west": before["eu-west"] + 1}
    decision, completion = topology.pair("show-served")
    assert decision["id"] == served.headers["X-Audit-Id"]
    assert (decision["region"], decision["reason"], decision["law"]) == ("eu-west", "ALLOW_INTRA", "GDPR 44")
    assert completion["attempts"] == [{"region": "eu-west", "outcome": "answered", "status": 200}]


def test_a_refused_region_is_told_in_german_before_the_body_is_asked_for(topology: Topology) -> None:
    before = topology.requests("eu-west", *OTHERS)
    lines = (
        f"POST {EMBED} HTTP/1.1",
        "Host: tidegate",
        f"Authorization: Bearer {DEMO_KEY}",
        "Content-Type: application/json",
        "Content-Length: 44",
        "Expect: 100-continue",
        "X-Data-Subject: DE",
        "X-Region: us-east",
        "X-Request-Id: show-refused",
        "Accept-Language: de-AT, en;q=0.5",
    )
    with socket.create_connection(("127.0.0.1", topology.port), timeout=30) as connection:
        connection.sendall("\r\n".join((*lines, "", "")).encode())
        answer = b""
        while part := connection.recv(65536):  # to the end: the gateway closes, for the body will not come
            answer += part
    head, _, body = answer.decode().partition("\r\n\r\n")
    assert head.startswith("HTTP/1.1 451 ")
    assert "100 Continue" not in answer.decode()
    assert "content-language: de" in head.lower()
    assert "nicht zulässig" in body
    assert '"code":"residency_denied"' in body
    assert topology.requests("eu-west", *OTHERS) == before
    decision, completion = topology.pair("show-refused")
    assert (decision["requested_region"], decision["region"]) == ("us-east", None)
    assert (completion["status"], completion["reason"]) == (451, "DENY_REQUESTED_REGION")
    assert (completion["attempts"], completion["body_may_have_arrived"]) == ([], False)


def test_a_permitted_request_is_asked_for_its_body(topology: Topology) -> None:
    """That the test above could fail: the same request for the lawful region does get its 100 Continue."""
    lines = (f"POST {EMBED} HTTP/1.1", "Host: x", f"Authorization: Bearer {DEMO_KEY}", "Content-Length: 44")
    more = ("Expect: 100-continue", "X-Data-Subject: DE", "X-Region: eu-west")
    with socket.create_connection(("127.0.0.1", topology.port), timeout=30) as connection:
        connection.sendall("\r\n".join((*lines, *more, "", "")).encode())
        assert connection.recv(65536) == b"HTTP/1.1 100 Continue\r\n\r\n"


def test_a_killed_region_is_replaced_by_none_and_comes_back(topology: Topology) -> None:
    cached = fresh("cached before")
    assert topology.embed(cached, **GERMAN).status_code == 200
    others = topology.requests(*OTHERS)
    killed, _ = topology.worker("eu-west")
    os.kill(killed, signal.SIGKILL)
    until(lambda: killed not in topology.processes(), lambda: "it lives", 10)

    refused = [
        topology.embed(fresh("Wohin?"), X_Request_Id="show-down-0", **GERMAN),
        topology.embed(fresh("Wohin?"), X_Request_Id="show-down-1", X_Region="eu-west", **GERMAN),
        topology.embed(fresh("Wohin?"), X_Request_Id="show-down-2", X_Region_Prefer="us-east, eu-west", **GERMAN),
        topology.embed(cached, X_Request_Id="show-down-3", **GERMAN),
        topology.post(
            INFER.format("minilm"),
            {"inputs": [{"name": "text", "datatype": "BYTES", "shape": [1], "data": ["Wohin?"]}]},
            X_Request_Id="show-down-4",
            **GERMAN,
        ),
    ]
    for number, answer in enumerate(refused):
        assert answer.status_code == 503, (number, answer.text)
        assert "rechtlich zulässige Regionen (eu-west)" in answer.text
        assert answer.headers["Content-Language"] == "de"
        assert answer.headers["X-Route-Reason"] == "NO_COMPLIANT_HEALTHY"
        assert int(answer.headers["Retry-After"]) >= 1
        assert "X-Served-Region" not in answer.headers
    assert [answer.json()["error"]["code"] for answer in refused[:4]] == ["no_healthy_region"] * 4
    for number in range(len(refused)):
        decision, completion = topology.pair(f"show-down-{number}")
        assert {attempt["region"] for attempt in completion["attempts"]} <= {"eu-west"}
        assert (completion["status"], decision["log"]) == (503, "eu-west")
        assert decision["region"] in (None, "eu-west")
    assert topology.requests(*OTHERS) == others  # nobody else has seen any of it

    assert topology.client.get("/readyz").json()["regions_up"] == ["us-east", "ap-southeast"]
    american = topology.embed(fresh("Where?"))
    assert (american.status_code, american.headers["X-Served-Region"]) == (200, "us-east")

    again: list[httpx.Response] = []

    def served() -> bool:
        again.append(topology.embed(fresh("Wieder da?"), X_Request_Id=f"show-back-{len(again)}", **GERMAN))
        assert again[-1].status_code in (200, 503), again[-1].text
        return again[-1].status_code == 200

    until(served, topology.said, 90)
    assert again[-1].headers["X-Served-Region"] == "eu-west"
    told = {record["request_id"]: record for record in topology.records(subject_country="DE", outcome="refused")}
    listed = [told[f"show-down-{number}"] for number in range(1, len(refused))]  # the first was permitted, and failed
    assert {(each["log"], each["region"], each["reason"], each["status"]) for each in listed} == {
        ("eu-west", None, "NO_COMPLIANT_HEALTHY", 503)
    }
    [*_, back] = topology.records(subject_country="DE", outcome="served")
    assert (back["id"], back["region"], back["reason"]) == (
        topology.pair(back["request_id"])[1]["id"],
        "eu-west",
        "ALLOW_INTRA",
    )
    assert topology.worker("eu-west")[0] != killed
    assert "worker eu-west: died (killed by SIGKILL)" in topology.said()


def test_the_trail_lists_all_of_it(topology: Topology) -> None:
    """By the country of the person alone, and of nobody else."""
    ids = ("list-served", "list-refused", "list-elsewhere")
    topology.embed(fresh("Guten Tag"), X_Request_Id=ids[0], **GERMAN)
    topology.embed("nie gesehen", X_Request_Id=ids[1], X_Region="us-east", **GERMAN)
    topology.embed(fresh("Bonjour"), X_Request_Id=ids[2], X_Data_Subject="FR")
    records = topology.records(subject_country="DE")
    assert {record["subject_country"] for record in records} == {"DE"}
    found = {
        request_id: [
            (record["kind"], record["outcome"], record["requested_region"], record["region"], record["reason"])
            for record in records
            if record["request_id"] == request_id
        ]
        for request_id in ids
    }
    assert found == {
        "list-served": [
            ("decision", "permitted", None, "eu-west", "ALLOW_INTRA"),
            ("completion", "served", None, "eu-west", "ALLOW_INTRA"),
        ],
        "list-refused": [
            ("decision", "refused", "us-east", None, "DENY_REQUESTED_REGION"),
            ("completion", "refused", "us-east", None, "DENY_REQUESTED_REGION"),
        ],
        "list-elsewhere": [],
    }


async def test_a_crowd_loses_nobody(topology: Topology, close_to: CloseTo) -> None:
    run = uuid.uuid4().hex
    texts = [f"text {number} of the crowd {run}" for number in range(CROWD)]
    before = sum(topology.requests("us-east", "eu-west", "ap-southeast").values())
    async with openai.AsyncOpenAI(base_url=topology.url + "/v1", api_key=DEMO_KEY, max_retries=0) as client:
        answers = await asyncio.gather(
            *(
                client.embeddings.create(
                    model="minilm", input=text, extra_headers={"X-Request-Id": f"crowd-{number}-{run}"}
                )
                for number, text in enumerate(texts)
            )
        )
    close_to([answer.data[0].embedding for answer in answers], texts)  # and nobody has another's answer
    assert sum(topology.requests("us-east", "eu-west", "ap-southeast").values()) == before + CROWD
    trail: dict[str, list[tuple[str, str]]] = {f"crowd-{number}-{run}": [] for number in range(CROWD)}
    for record in topology.records():
        if record["request_id"] in trail:
            trail[record["request_id"]].append((record["kind"], record["outcome"]))
    assert {tuple(told) for told in trail.values()} == {(("decision", "permitted"), ("completion", "served"))}
