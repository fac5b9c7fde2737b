"""What must hold of the audit trails: no name where it may not be, intact, and witnessed by the other gateways."""

import json
import time
import uuid

from tests.compose.project import REGIONS
from tests.compose.report import until
from tests.compose.scene import Scene

_TRAIL = "/var/lib/tidegate/audit"
_INTACT, _TAMPERED, _INCOMPLETE = 0, 1, 2
_LOOK = """
import json, pathlib, sqlite3, sys
named = [word.encode() for word in sys.argv[2:]]
files = [each for each in pathlib.Path("/var/lib/tidegate").rglob("*") if each.is_file()]
holding = [str(each) for each in files if any(word in each.read_bytes() for word in named)]
records = []
for file in pathlib.Path(sys.argv[1]).glob("*.db"):
    rows = sqlite3.connect(f"file:{file}?mode=ro", uri=True).execute("select record, subject from records").fetchall()
    records += [(json.loads(record), subject) for record, subject in rows]
print(json.dumps({
    "files": len(files),
    "holding": holding,
    "misdirected": sum(record["reason"] == "MISDIRECTED" for record, _ in records),
    "named": sum(bool(subject or record["subject"] or record["personal"]) for record, subject in records),
}))
"""
"""Run inside a gateway's container: where words occur in its volume, and how many records name a subject."""


def no_pseudonym_where_data_may_not_enter(scene: Scene) -> None:
    """The misdirected request of a person in Germany leaves neither id nor pseudonym at the gateway in the USA."""
    person = f"person-{uuid.uuid4()}"
    answer = scene.embed("us-east", X_Data_Subject="DE", X_Subject_Id=person)
    scene.report.check(answer.status == 421, "us-east: a named person in Germany gets 421", answer)
    answer = scene.embed("eu-west", X_Data_Subject="DE", X_Subject_Id=person)
    scene.report.check(answer.status == 200, "eu-west: the same person is served", answer)
    records = scene.get("eu-west", "/v1/audit/logs", subject=person)["records"]
    scene.report.check(len(records) == 2, "eu-west: decision and completion name the person", len(records))
    elsewhere = scene.get("us-east", "/v1/audit/logs", subject=person)["records"]
    scene.report.check(not elsewhere, "us-east: no record is about the person", len(elsewhere))
    pseudonym = records[0]["subject"]
    seen = {at: json.loads(_look(scene, at, person, pseudonym)) for at in ("us-east", "eu-west")}
    found = seen["us-east"]
    clean = found["misdirected"] > 0 and (found["named"], found["holding"]) == (0, [])
    what = f"us-east: no record names anyone, and none of {found['files']} files holds id or pseudonym"
    scene.report.check(clean, what, found)
    scene.report.check(seen["eu-west"]["named"] == 2, "eu-west: the same look finds both records", seen["eu-west"])


def audits_verify(scene: Scene) -> None:
    """Each trail is intact, by file and over HTTP; what another gateway witnessed of it is still in it."""
    for at in REGIONS:
        while (found := _verify(scene, at))[0] == _INCOMPLETE:  # the newest records wait a second for a checkpoint
            time.sleep(0.5)
        status, said = found
        scene.report.check(status == _INTACT, f"{at}: {said.splitlines()[-1]}", said)
        online = scene.get(at, "/v1/audit/verify")
        scene.report.check(online["result"] == "intact", f"{at}: intact over HTTP as well", online)
    for at in REGIONS:
        for peer in REGIONS:
            if peer != at:
                _witnessed(scene, at, peer)


def _witnessed(scene: Scene, at: str, peer: str) -> None:
    """One gateway keeps a cosigned checkpoint of another's log, with records in it, and that log holds it."""
    kept = f"{_TRAIL}/witness/{peer}/{peer}.note"
    until(lambda: _size(scene.project.inside(at_gateway(at), "cat", kept, check=False).out) > 0)
    note = scene.project.inside(at_gateway(at), "cat", kept).out
    conflicts = scene.project.inside(at_gateway(at), "sh", "-c", f"ls {_TRAIL}/witness/{peer}/*.conflict", check=False)
    status, said = _verify(scene, peer, note)
    good = status != _TAMPERED and conflicts.status != 0 and f"tidegate/{at}/witness" in note
    scene.report.check(good, f"{at} has witnessed {peer} to record {_size(note)}, and its trail holds that", said)


def _verify(scene: Scene, at: str, checkpoint: str = "") -> tuple[int, str]:
    """Status and words of `tidegate audit verify` inside a gateway's container, under a checkpoint kept elsewhere."""
    verify = f"tidegate audit verify --path {_TRAIL}"
    if checkpoint:
        verify = f"cat > /tmp/kept.note && {verify} --checkpoint /tmp/kept.note"
    ended = scene.project.inside(at_gateway(at), "sh", "-c", verify, given=checkpoint, check=False)
    return ended.status, ended.tail


def _look(scene: Scene, at: str, *words: str) -> str:
    return scene.project.inside(at_gateway(at), "python3", "-c", _LOOK, _TRAIL, *words).out


def at_gateway(region: str) -> str:
    return f"gateway-{region}"


def _size(note: str) -> int:
    """How many records a checkpoint covers; 0 for none."""
    lines = note.splitlines()
    return int(lines[1]) if len(lines) > 1 else 0
