"""The witness of other gateways' logs, before servers on loopback that grow, lie, hang, or answer nonsense."""

import asyncio
import gzip
import os
import re
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from app.audit import checkpoint
from app.audit.checkpoint import MAX_NOTE_BYTES, Checkpoint, VerifierKey
from app.audit.witness.extension import KEYS_HEADER
from app.audit.witness.witness import Witness
from app.config import Settings
from app.stores.base import CacheStats
from app.telemetry.metrics import Metrics
from tests.audit.peers import Log, Peer, body
from tests.audit.threads import replacing
from tests.fleet.servers import cut_at_once, cut_in_the_body, hang, junk, reply, serving, until, unused_port

LOGS = ("us-east", "eu-west", "gateway")
CONTRADICTS = "a peer's audit log contradicts what was witnessed"
UNUSABLE = "a peer's checkpoint is unusable"


class Desk:
    """A witness that stands in us-east, its files and its metrics."""

    def __init__(self, home: Path, urls: dict[str, str], **audit) -> None:
        self.directory = home / "audit" / "witness"
        region = {"country": "IE", "latitude": 53.3, "longitude": -6.3, "operator": {"name": "acme"}}
        self.settings = Settings.model_validate(
            {
                "version": 1,
                "gateway": {"region": "us-east", "public_urls": urls},
                "regions": [{"id": each, **region} for each in (*LOGS[:-1], "ap-southeast")],
                "tenants": [{"id": "demo"}],
                "audit": {"path": home / "audit", "witness": 0.02, **audit},
            }
        )
        regions = [{"id": each, "health": "up", "breaker": "closed", "in_flight": 0} for each in urls]
        self.metrics = Metrics(lambda: regions, lambda: CacheStats(0, 0, 0))

    @asynccontextmanager
    async def working(self):
        """The witness at work inside; cancelled, it ends at once and well."""
        task = asyncio.create_task(Witness(self.settings, LOGS, self.metrics).run())
        try:
            yield
            assert not task.done(), task.result()
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            assert task.cancelled()

    def note(self, log="eu-west", peer="eu-west") -> str:
        return (self.directory / peer / f"{log}.note").read_text()

    def size(self, log="eu-west", peer="eu-west") -> int | None:
        try:
            return Checkpoint.parse(self.note(log, peer).rpartition("\n\n")[0] + "\n").size
        except FileNotFoundError:
            return None

    def keys(self, file="eu-west/eu-west.pub") -> list[VerifierKey]:
        return [VerifierKey.parse(line) for line in (self.directory / file).read_text().splitlines()]

    def conflict(self, log="eu-west") -> str:
        return (self.directory / "eu-west" / f"{log}.conflict").read_text()

    def conflicts(self, log="eu-west", peer="eu-west") -> float:
        return self._sample("tidegate_audit_witness_conflicts_total", peer, log)

    def witnessed(self, log="eu-west", peer="eu-west") -> float:
        return self._sample("tidegate_audit_witnessed_timestamp_seconds", peer, log)

    def _sample(self, name: str, peer: str, log: str) -> float:
        text = self.metrics.render()[0].decode()
        return float(re.search(rf'^{name}{{log="{log}",peer="{peer}"}} (\S+)$', text, re.MULTILINE)[1])


@pytest.fixture
async def stack():
    async with AsyncExitStack() as opened:
        yield opened


@pytest.fixture
async def peer(stack):
    """The gateway of eu-west; its log of that region has five records."""
    made = Peer("eu-west", LOGS)
    made.logs["eu-west"].records += [f"record {number}" for number in range(5)]
    made.server = await stack.enter_async_context(serving(made.respond))
    return made


@pytest.fixture
def desk(tmp_path, peer):
    return Desk(tmp_path, {"eu-west": peer.server.url, "us-east": f"http://127.0.0.1:{unused_port()}"})


async def rounds(peer: Peer, number: int = 3) -> None:
    """Wait until the last of the peer's logs has been asked about so many times more."""
    target = peer.asked.count((LOGS[-1], "0")) + number
    await until(lambda: peer.asked.count((LOGS[-1], "0")) >= target)


async def test_every_log_is_witnessed_cosigned_and_followed_as_it_grows(desk, peer):
    async with desk.working():
        await until(lambda: all(desk.size(log) is not None for log in LOGS))
        assert [desk.size(log) for log in LOGS] == [0, 5, 0]
        log = peer.logs["eu-west"]
        log.records += ["more", "and more"]
        await until(lambda: desk.size() == 7)
        await rounds(peer)
    assert checkpoint.opened(desk.note(), desk.keys()) == log.checkpoint().text()
    (own,) = desk.keys("witness.pub")
    assert own.name == "tidegate/us-east/witness"
    assert 0 <= desk.witnessed() - checkpoint.cosigned_at(desk.note(), own) < 60
    assert ("eu-west", "5") in peer.asked
    assert ("eu-west", "7") in peer.asked
    assert desk.conflicts() == 0
    assert {file.stat().st_mode & 0o777 for file in desk.directory.rglob("*.*")} == {0o600}
    assert {each.name for each in desk.directory.iterdir()} == {"eu-west", "witness.pub"}
    assert not (desk.directory / "eu-west" / "eu-west.conflict").exists()


async def test_a_peer_is_looked_at_where_this_gateway_reaches_it(tmp_path, peer):
    outside = {"eu-west": f"http://127.0.0.1:{unused_port()}"}
    desk = Desk(tmp_path, outside, peers={"eu-west": peer.server.url, "us-east": f"http://127.0.0.1:{unused_port()}"})
    async with desk.working():
        await until(lambda: desk.size() == 5)
    assert {each.name for each in desk.directory.iterdir()} == {"eu-west", "witness.pub"}


async def test_what_has_not_changed_is_not_written_again(desk, peer):
    async with desk.working():
        await until(lambda: desk.size() == 5)
        file = desk.directory / "eu-west" / "eu-west.note"
        before, seen = file.stat(), desk.witnessed()
        await rounds(peer)
        assert file.stat().st_ino == before.st_ino
        assert desk.witnessed() > seen


def shorter(log: Log) -> None:
    del log.records[3:]


def altered(log: Log) -> None:
    log.records[1] = "altered"


def dropped(log: Log) -> None:
    del log.records[1]
    log.records += ["new", "newer", "newest"]


def forked(log: Log) -> None:
    shorter(log)
    log.records += [f"fork {number}" for number in range(9)]


def rekeyed(log: Log) -> None:
    log.rotate()
    forked(log)


def impostor(log: Log) -> None:
    log.seed = b"\7" * 32
    altered(log)


@pytest.mark.parametrize("lie", [shorter, altered, dropped, forked, rekeyed, impostor])
async def test_a_log_that_is_no_longer_what_it_was_is_a_conflict_until_it_is_again(desk, peer, lie):
    with capture_logs() as lines:
        async with desk.working():
            await until(lambda: desk.size() == 5)
            log = peer.logs["eu-west"]
            truth, seed = list(log.records), log.seed
            good, key = desk.note(), desk.keys()
            lie(log)
            first = log.note()
            await until(lambda: desk.conflicts() >= 1)
            seen = desk.witnessed()
            log.records.append("the lie goes on")
            await until(lambda: desk.conflicts() >= 4)
            assert (desk.conflict(), desk.note(), desk.keys()) == (first, good, key)
            assert desk.witnessed() == seen
            told = [line for line in lines if line["event"] == CONTRADICTS]
            log.records[:], log.seed, log.former = [*truth, "the truth goes on"], seed, []
            await until(lambda: desk.size() == 6)
            await rounds(peer, 1)
        assert desk.conflict() == first
    assert len(told) == 1
    assert told[0]["log_level"] == "error"
    assert (told[0]["peer"], told[0]["log"]) == ("eu-west", "eu-west")
    assert "5" in told[0]["problem"]
    assert told[0]["conflict"] == str(desk.directory / "eu-west" / "eu-west.conflict")
    assert "a peer's audit log extends again what was witnessed" in [line["event"] for line in lines]
    assert desk.conflicts("us-east") == 0


async def test_a_peer_that_refuses_to_prove_its_growth_contradicts_itself(desk, peer):
    async def refuses(writer, request):
        log = peer.logs["eu-west"]
        await (reply(409) if "old=" in request.line else peer.answer(log, None))(writer, request)

    async with desk.working():
        await until(lambda: desk.size() == 5)
        peer.instead["eu-west"] = refuses
        await rounds(peer)
        assert desk.conflicts() == 0  # it is as large as it was, which needs no proof
        peer.logs["eu-west"].records.append("unproven")
        await until(lambda: desk.conflicts() >= 2)
    assert (desk.size(), desk.conflict()) == (5, peer.logs["eu-west"].note())


async def test_a_peer_that_is_too_busy_for_a_proof_is_asked_again(desk, peer):
    async def busy(writer, request):
        log = peer.logs["eu-west"]
        await (reply(429) if "old=" in request.line else peer.answer(log, None))(writer, request)

    async with desk.working():
        await until(lambda: desk.size() == 5)
        peer.logs["eu-west"].records.append("more")
        peer.instead["eu-west"] = busy
        await rounds(peer)
        assert desk.conflicts() == 0
        peer.instead.clear()
        await until(lambda: desk.size() == 6)


async def test_a_proof_of_another_growth_is_no_proof(desk, peer):
    async with desk.working():
        await until(lambda: desk.size() == 5)
        log = peer.logs["eu-west"]
        log.records += ["more"] * 6
        wrong = body(5, log.proof(6), log.note())
        peer.instead["eu-west"] = reply(200, wrong.encode(), f"{KEYS_HEADER}: {log.keys()}")
        await until(lambda: desk.conflicts() >= 1)
        assert desk.size() == 5


async def test_a_key_is_replaced_where_the_tree_goes_on(desk, peer):
    with capture_logs() as lines:
        async with desk.working():
            await until(lambda: desk.size() == 5)
            log = peer.logs["eu-west"]
            assert desk.keys() == [log.key]
            log.rotate()
            await until(lambda: desk.keys() == [log.key])
            log.records.append("under the new key")
            await until(lambda: desk.size() == 6)
            await rounds(peer)
    assert desk.keys() == [log.key]
    assert checkpoint.opened(desk.note(), [log.key]) == log.checkpoint().text()
    assert desk.conflicts() == 0
    assert [line["verifier"] for line in lines if "another key" in line["event"]] == [log.key.line()]


async def test_what_the_pinned_key_signs_needs_no_list_of_keys(desk, peer):
    async with desk.working():
        await until(lambda: desk.size() == 5)
        log = peer.logs["eu-west"]
        log.records.append("more")
        peer.instead["eu-west"] = reply(200, body(5, log.proof(5), log.note()).encode())
        await until(lambda: desk.size() == 6)


def says(text: str | bytes, *headers: str):
    return reply(200, text.encode() if isinstance(text, str) else text, *headers)


def nonsense(log: Log):
    """Answers that are none, by what is wrong with them."""
    keys = f"{KEYS_HEADER}: {log.keys()}"
    note, other = log.note(), Log("tidegate/us-east/eu-west", log.records)
    text, _, signatures = note.rpartition("\n\n")
    return {
        "empty": says("", keys),
        "a page": says("<html>\n\n</html>", keys),
        "not text": says(b"\xff\xfe\x00", keys),
        "the note alone": says(note, keys),
        "another size": says(body(4, [], note), keys),
        "no signature": says(body(0, [], text + "\n"), keys),
        "a wrong signature": says(body(0, [], f"{text.replace('5', '6')}\n\n{signatures}"), keys),
        "another log": says(body(0, [], other.note()), f"{KEYS_HEADER}: {other.keys()}"),
        "no keys": says(body(0, [], note)),
        "no such keys": says(body(0, [], note), f"{KEYS_HEADER}: nonsense"),
        "too many signatures": says(
            body(0, [], note + "".join(f"— x{number} AAAAAAA=\n" for number in range(15))), keys
        ),
        "compressed": says(gzip.compress(body(0, [], note).encode()), keys, "Content-Encoding: gzip"),
        "too large": says(body(0, [], note) + "x" * MAX_NOTE_BYTES, keys),
        "not found": reply(404),
        "unauthenticated": reply(401),
    }


NONSENSE = sorted(nonsense(Log("tidegate/eu-west/eu-west", ["record"])))


@pytest.mark.parametrize("what", NONSENSE)
async def test_an_answer_that_is_none_is_told_once_and_kept_nowhere(desk, peer, what):
    peer.instead["eu-west"] = nonsense(peer.logs["eu-west"])[what]
    with capture_logs() as lines:
        async with desk.working():
            await rounds(peer)
            assert [desk.size(log) for log in LOGS] == [0, None, 0]
            peer.instead.clear()
            await until(lambda: desk.size() == 5)
    assert [line["log"] for line in lines if line["event"] == UNUSABLE] == ["eu-west"]
    assert desk.conflicts() == 0
    assert not (desk.directory / "eu-west" / "eu-west.conflict").exists()


async def test_an_answer_without_end_is_left(desk, peer):
    async def endless(writer, _):
        writer.write(b"HTTP/1.1 200 OK\r\n\r\nold 0\n")
        while True:
            writer.write(b"x" * 4096)
            await writer.drain()

    peer.instead["eu-west"] = endless
    with capture_logs() as lines:
        async with desk.working():
            await until(lambda: UNUSABLE in [line["event"] for line in lines])
            await rounds(peer)


async def test_what_comes_again_is_told_again(desk, peer):
    with capture_logs() as lines:
        async with desk.working():
            for number in (1, 2):
                peer.instead["eu-west"] = reply(404)
                await until(lambda: len(lines) == number)  # noqa: B023 - awaited before the next
                await rounds(peer)
                peer.instead.clear()
                seen = desk.witnessed()
                await until(lambda: desk.witnessed() > seen)  # noqa: B023 - as above
    assert [line["event"] for line in lines] == [UNUSABLE] * 2


async def test_nonsense_after_the_truth_changes_nothing(desk, peer):
    async with desk.working():
        await until(lambda: desk.size() == 5)
        good = desk.note()
        for each in nonsense(peer.logs["eu-west"]).values():
            peer.instead["eu-west"] = each
            await rounds(peer, 2)
        assert desk.note() == good


@pytest.mark.parametrize("failing", [cut_at_once, cut_in_the_body, junk, reply(503), reply(429)])
async def test_a_peer_that_fails_is_not_accused(desk, peer, failing):
    with capture_logs() as lines:
        async with desk.working():
            await until(lambda: desk.size() == 5)
            peer.instead["eu-west"] = failing
            await rounds(peer)
            assert desk.size() == 5
    assert {line["log_level"] for line in lines} <= {"debug"}
    assert desk.conflicts() == 0


async def test_a_redirect_is_not_followed(desk, peer, stack):
    elsewhere = await stack.enter_async_context(serving(reply(200)))
    peer.instead["eu-west"] = reply(302, b"", f"Location: {elsewhere.url}/v1/audit/checkpoint")
    async with desk.working():
        await rounds(peer)
    assert elsewhere.connections == 0


async def test_a_peer_that_hangs_holds_up_nobody_else_and_has_one_request(tmp_path, peer, stack):
    stuck = Peer("ap-southeast", LOGS)
    stuck.instead = dict.fromkeys(LOGS, hang)
    server = await stack.enter_async_context(serving(stuck.respond))
    desk = Desk(tmp_path, {"ap-southeast": server.url, "eu-west": peer.server.url})
    async with desk.working():
        await until(lambda: len(stuck.asked) == 1)
        await rounds(peer, 5)
        assert len(stuck.asked) == 1
        assert desk.witnessed(peer="ap-southeast") == 0
    assert (stuck.most_at_once, peer.most_at_once) == (1, 1)


async def test_nobody_there_is_no_error_and_the_age_shows(tmp_path, peer):
    desk = Desk(tmp_path, {"eu-west": f"http://127.0.0.1:{unused_port()}", "ap-southeast": peer.server.url})
    with capture_logs() as lines:
        async with desk.working():
            await rounds(peer)
            assert (desk.witnessed(), desk.conflicts()) == (0, 0)
    unreached = [line for line in lines if line["peer"] == "eu-west"]
    assert unreached
    assert {line["log_level"] for line in unreached} == {"debug"}


async def test_a_restart_keeps_what_was_pinned(desk, peer):
    async with desk.working():
        await until(lambda: desk.size() == 5)
    good, (key,) = desk.note(), desk.keys("witness.pub")
    forked(peer.logs["eu-west"])
    async with desk.working():
        await until(lambda: desk.conflicts() >= 1)
        assert desk.note() == good
        assert desk.witnessed() == checkpoint.cosigned_at(good, key)
    assert desk.keys("witness.pub") == [key]


async def test_an_own_note_that_is_damaged_is_told_and_accuses_nobody(desk, peer):
    async with desk.working():
        await until(lambda: (desk.size(), desk.size("gateway")) == (5, 0))
    file = desk.directory / "eu-west" / "eu-west.note"
    altered, another = desk.note().replace("\n5\n", "\n9\n"), desk.note("gateway")
    for damaged in (altered, another, peer.logs["eu-west"].note(), "nonsense"):
        file.write_text(damaged)
        with capture_logs() as lines:
            async with desk.working():
                await rounds(peer)
        told = [line for line in lines if line["log_level"] == "error"]
        assert [line["event"] for line in told] == ["cannot keep what is witnessed of an audit log"]
        assert str(file) in told[0]["problem"]
        assert (file.read_text(), desk.conflicts()) == (damaged, 0)
    file.unlink()  # as its message says
    async with desk.working():
        await until(lambda: desk.size() == 5)


async def test_what_cannot_be_kept_is_told_and_tried_again(desk):
    desk.directory.parent.mkdir(parents=True)
    desk.directory.write_text("in the way")
    with capture_logs() as lines:
        async with desk.working():
            await until(lambda: bool(lines))
            await asyncio.sleep(0.1)
            desk.directory.unlink()
            await until(lambda: desk.size() == 5)
    assert [line["event"] for line in lines] == ["cannot keep what is witnessed of an audit log"]


@pytest.mark.parametrize("off", [{"witness": None}, {}])
async def test_without_an_interval_or_peers_nothing_is_asked_or_written(tmp_path, peer, off):
    desk = Desk(tmp_path, {"eu-west" if off else "us-east": peer.server.url}, **off)
    await Witness(desk.settings, LOGS, desk.metrics).run()
    assert peer.asked == []
    assert list(tmp_path.iterdir()) == []


async def test_cancelled_it_ends_once_its_files_are_written(desk, peer):
    """Who witnesses after it writes the same files."""
    async with desk.working():
        await until(lambda: desk.size() == 5)
    draft = desk.directory / "eu-west" / ".eu-west.note.new"
    os.mkfifo(draft)  # whoever opens it to write waits for a reader
    peer.logs["eu-west"].records.append("more")
    task = asyncio.create_task(Witness(desk.settings, LOGS, desk.metrics).run())
    try:
        await until(lambda: replacing() == 1)
        task.cancel()
        await asyncio.wait([task], timeout=0.1)
        assert not task.done()
    finally:
        reader = os.open(draft, os.O_RDONLY | os.O_NONBLOCK)
        await asyncio.wait([task])
        os.close(reader)
    assert task.cancelled()
