"""Which connection takes the next request: only one that is beyond doubt, and never more of them than there may be."""

import asyncio
import datetime as dt
import ipaddress
import socket
import ssl
from dataclasses import replace

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from app.fleet import pool
from app.fleet.answer import AnswerReader, Broken
from app.fleet.pool import Pool
from app.fleet.worker_client import AttemptFailed
from tests.fleet.peers import CALL, CHUNKED, OK, STREAM, Client, against, body_of, playing, saying, then_closing
from tests.fleet.servers import until, unused_port

LINE = b"HTTP/1.1 200 OK\r\n"
OLD = b"HTTP/1.0 200 OK\r\n"
LENGTH = b"Content-Length: 2\r\n"
HEALTH = {"resilience": {"health": {"timeout": 0.1, "unhealthy": 2}}}
REQUEST = b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 0\r\n\r\n"


def exchange(connection, *, streams=False):
    reader = AnswerReader(1000, lambda _: streams)
    return connection.exchange(REQUEST, b"", asyncio.get_running_loop().time() + 30, reader)


async def failure(client, call=CALL, **options):
    with pytest.raises(AttemptFailed) as caught:
        await body_of(await client.ask(call, **options))
    return caught.value


# --- what a connection must have done to be used again

CLEAN = {
    "a length": OK,
    "no content": b"HTTP/1.1 204 No\r\n\r\n",
    "a length of nothing": LINE + b"Content-Length: 0\r\n\r\n",
    "chunks": CHUNKED + b"2\r\nok\r\n0\r\n\r\n",
    "trailers": CHUNKED + b"2\r\nok\r\n0\r\nX-Sum: 1\r\n\r\n",
    "an interim answer before": b"HTTP/1.1 100 Continue\r\n\r\n" + OK,
    "HTTP/1.0 that says so": OLD + b"Connection: keep-alive\r\n" + LENGTH + b"\r\nok",
    "a refusal": b"HTTP/1.1 429 Slow\r\n" + LENGTH + b"\r\nno",
    "a fault": b"HTTP/1.1 503 Full\r\n" + LENGTH + b"\r\nno",
    "a redirect that came whole": b"HTTP/1.1 307 There\r\nLocation: /\r\nContent-Length: 0\r\n\r\n",
}
UNCLEAN = {
    "its end": LINE + b"Connection: close\r\n" + LENGTH + b"\r\nok",
    "its end among others": LINE + b"Connection: x, Close\r\n" + LENGTH + b"\r\nok",
    "both": LINE + b"Connection: keep-alive\r\nConnection: close\r\n" + LENGTH + b"\r\nok",
    "HTTP/1.0": OLD + LENGTH + b"\r\nok",
    "a byte too many": OK + b"x",
    "an empty line too many": OK + b"\r\n",
    "an empty line after chunks": CHUNKED + b"2\r\nok\r\n0\r\n\r\n\r\n",
    "another answer behind it": OK + LINE + LENGTH + b"\r\nno",
    "no content of some length": b"HTTP/1.1 204 No\r\n" + LENGTH + b"\r\n",
    "no content in chunks": b"HTTP/1.1 204 No\r\nTransfer-Encoding: chunked\r\n\r\n",
    "no content, and content": b"HTTP/1.1 204 No\r\n" + LENGTH + b"\r\nok",
    "a coding among the trailers": CHUNKED + b"2\r\nok\r\n0\r\nTransfer-Encoding: x\r\n\r\n",
    "a redirect that does not end": b"HTTP/1.1 307 There\r\nLocation: /\r\nContent-Length: 9\r\n\r\n",
}


async def outcome(client, call):
    try:
        return await body_of(await client.ask(call))
    except AttemptFailed as error:
        return error.status


@pytest.mark.parametrize("call", [CALL, STREAM])
@pytest.mark.parametrize("name", CLEAN)
async def test_a_connection_is_used_again_after_a_clean_end(name, call):
    async with against(saying(CLEAN[name])) as (client, peer):
        answers = {await outcome(client, call) for _ in range(3)}
        assert len(answers) == 1
        assert peer.made == 1


@pytest.mark.parametrize("call", [CALL, STREAM])
@pytest.mark.parametrize("name", UNCLEAN)
async def test_a_connection_is_not_used_again_after_any_other(name, call):
    async with against(saying(UNCLEAN[name], LINE + b"Content-Length: 6\r\n\r\npoison")) as (client, peer):
        answers = {await outcome(client, call) for _ in range(3)}
        assert answers in ({b"ok"}, {b""}, {307})
        assert peer.made == 3
        await until(lambda: peer.open == 0)


@pytest.mark.parametrize("seen", [True, False], ids=["the loop knows", "only the kernel knows"])
@pytest.mark.parametrize("speaks", [True, False], ids=["speaks", "hangs up"])
async def test_a_server_that_speaks_or_hangs_up_while_idle_gets_no_other_request(monkeypatch, speaks, seen):
    monkeypatch.setattr(pool, "KEEP_ALIVE", 3600.0)
    async with against(saying(OK)) as (client, peer):
        await client.ask()
        line = peer.lines[0]
        if speaks:
            line.say_now(LINE + b"Content-Length: 6\r\n\r\npoison")
        else:
            line.hang_up_now()
        if seen:
            await until(lambda: peer.open == 0)
        assert (await client.ask()).body == b"ok"
        assert peer.made == 2
        await until(lambda: peer.open == 1)


async def test_a_request_that_fails_on_a_used_connection_is_not_sent_again():
    async def script(line):
        await line.request()
        await line.say(OK)
        await line.request()

    async with against(script) as (client, peer):
        await client.ask()
        error = await failure(client)
        assert (error.outcome, error.status, error.retryable) == ("reset", None, True)
        assert peer.made == 1


@pytest.mark.parametrize("says", [b"", LINE + b"Content-Length: 6\r\n\r\npoison"], ids=["closes", "speaks"])
async def test_a_connection_that_ended_before_it_was_used_fails_at_once(says):
    async def script(line):
        await line.say(says)

    async with playing(script) as peer:
        kept = Pool(peer.url, ssl.create_default_context())
        connection = await kept.connection(30)
        await until(lambda: not connection.open)
        with pytest.raises(Broken):
            await exchange(connection).answer()
        assert kept._places == pool.SIZE
        kept.close()


# --- an exchange that is over, and the connection that is another's by now


async def test_closing_or_reading_a_stream_after_its_end_leaves_others_alone():
    async with against(saying(OK)) as (client, peer):
        first = (await client.ask(STREAM)).body
        assert [part async for part in first] == [b"ok"]
        second = (await client.ask(STREAM)).body
        third = asyncio.create_task(client.ask())
        await asyncio.sleep(0)
        with pytest.raises(StopAsyncIteration):
            await anext(first)
        await first.aclose()
        assert (await third).body == b"ok"
        assert [part async for part in second] == [b"ok"]
        await first.aclose()
        assert (await client.ask()).body == b"ok"
        assert peer.made <= 2


async def test_who_leaves_as_the_answer_comes_takes_nothing_from_whoever_is_next():
    arrived = []

    async def script(line):
        while True:
            arrived.append(await line.request())  # answered by hand

    async with playing(script) as peer:
        kept = Pool(peer.url, ssl.create_default_context())
        connection = await kept.connection(30)
        first = exchange(connection)
        leaving = asyncio.create_task(first.answer())
        await until(lambda: len(arrived) == 1)
        connection.data_received(OK)
        leaving.cancel()
        assert await kept.connection(30) is connection
        second = exchange(connection)
        with pytest.raises(asyncio.CancelledError):
            await leaving
        first.close()
        await until(lambda: len(arrived) == 2)
        connection.data_received(OK)
        assert await second.answer() == b"ok"
        assert connection.open
        assert kept._places == pool.SIZE
        kept.close()


@pytest.mark.parametrize("call", [CALL, STREAM])
@pytest.mark.parametrize("says", [b"", LINE, LINE + b"Content-Length: 9\r\n\r\nhalf"], ids=["", "line", "half"])
async def test_cancelling_at_any_stage_closes_the_connection(says, call):
    said = asyncio.Event()

    async def script(line):
        await line.request()
        await line.say(says)
        said.set()
        await line.request()

    async with against(script) as (client, peer):
        whole = asyncio.create_task(_all(client, call))
        await said.wait()
        await asyncio.sleep(0.01)
        whole.cancel()
        with pytest.raises(asyncio.CancelledError):
            await whole
        await until(lambda: peer.open == 0)


async def _all(client, call):
    return await body_of(await client.ask(call))


# --- how many there are, and for how long


async def test_idle_connections_are_closed_after_a_while(monkeypatch):
    monkeypatch.setattr(pool, "KEEP_ALIVE", 0.05)
    async with against(saying(OK)) as (client, peer):
        for made in (1, 2):
            await client.ask()
            assert peer.made == made
            await until(lambda: peer.open == 0)


async def test_an_idle_connection_that_should_be_closed_by_now_is_not_used(monkeypatch):
    monkeypatch.setattr(pool, "KEEP_ALIVE", 0.0)
    async with against(saying(OK)) as (client, peer):
        for _ in range(3):
            await client.ask()
        assert peer.made == 3


def together(count):
    """Answers once so many requests are there."""
    here = [0]
    all_here = asyncio.Event()

    async def script(line):
        while True:
            await line.request()
            here[0] += 1
            if here[0] >= count:
                all_here.set()
            await all_here.wait()
            await line.say(OK)

    return script


async def test_few_are_kept_when_nothing_is_asked_and_the_last_one_is_used_first(monkeypatch):
    monkeypatch.setattr(pool, "IDLE", 3)
    async with against(together(9)) as (client, peer):
        await asyncio.gather(*(client.ask() for _ in range(9)))
        assert peer.made == 9
        await until(lambda: peer.open == 3)
        idle = [connection for connection, _ in client.connections.pool(client.backend)._idle]
        for _ in range(4):
            await client.ask()
        assert [connection for connection, _ in client.connections.pool(client.backend)._idle] == idle
        assert peer.made == 9


async def test_requests_beyond_the_bound_wait_their_turn(monkeypatch):
    monkeypatch.setattr(pool, "SIZE", 3)
    async with against(together(3)) as (client, peer):
        replies = await asyncio.gather(*(client.ask() for _ in range(50)))
        assert [reply.body for reply in replies] == [b"ok"] * 50
        assert (peer.made, peer.most) == (3, 3)
        assert client.connections.pool(client.backend)._places == 3


async def test_who_gets_no_turn_in_time_fails_as_who_cannot_connect(monkeypatch):
    monkeypatch.setattr(pool, "SIZE", 1)

    async def script(line):
        await line.request()
        await line.request()

    async with against(script, **HEALTH) as (client, peer):
        hanging = asyncio.create_task(client.ask())
        await until(lambda: peer.made)
        error = await failure(client)
        assert (error.outcome, error.retryable) == ("connect_timeout", True)
        error = await failure(client, within=0.01)
        assert (error.outcome, error.retryable) == ("timeout", False), "the deadline was shorter"
        hanging.cancel()
        await asyncio.gather(hanging, return_exceptions=True)
        await until(lambda: peer.open == 0)
        assert client.connections.pool(client.backend)._places == 1


async def test_a_turn_that_comes_as_its_owner_leaves_is_the_next_ones(monkeypatch):
    monkeypatch.setattr(pool, "SIZE", 1)
    async with playing(saying(OK)) as peer:
        kept = Pool(peer.url, ssl.create_default_context())
        connection = await kept.connection(30)
        leaving, next_one = (asyncio.create_task(kept.connection(30)) for _ in range(2))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        connection.abort()
        kept._over(connection)
        leaving.cancel()
        assert (await asyncio.wait_for(next_one, 10)).open
        assert leaving.cancelled()
        next_one.result().abort()
        kept._over(next_one.result())
        assert kept._places == 1
        kept.close()


async def test_a_failed_connect_gives_up_its_place(monkeypatch):
    monkeypatch.setattr(pool, "SIZE", 1)
    client = Client(f"http://127.0.0.1:{unused_port()}")
    errors = await asyncio.gather(*(failure(client) for _ in range(5)))
    assert [error.outcome for error in errors] == ["refused"] * 5
    assert client.connections.pool(client.backend)._places == 1


async def test_closing_the_pool_lets_nobody_wait_and_closes_what_is_in_use_at_its_end(monkeypatch):
    monkeypatch.setattr(pool, "SIZE", 1)
    monkeypatch.setattr(pool, "KEEP_ALIVE", 3600.0)
    proceed = asyncio.Event()

    async def script(line):
        await line.request()
        await proceed.wait()
        await line.say(OK)
        await line.request()

    async with against(script) as (client, peer):
        asking = asyncio.create_task(client.ask())
        await until(lambda: peer.made)
        waiting = asyncio.create_task(failure(client))
        await asyncio.sleep(0.01)
        client.connections.close()
        assert (await waiting).outcome == "refused"
        assert not asking.done()
        proceed.set()
        assert (await asking).body == b"ok"
        await until(lambda: peer.open == 0)


# --- where to, and whom to trust


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
async def test_addresses_are_not_looked_up_and_a_path_is_kept(host, monkeypatch):
    requests = []

    async def script(line):
        while True:
            requests.append(await line.request())
            await line.say(OK)

    def look_up(*_args, **_options):
        raise AssertionError("an address was looked up")

    async with playing(script, host=host) as peer:
        monkeypatch.setattr(socket, "getaddrinfo", look_up)
        client = Client(peer.url + "/v9/x")
        await client.ask()
        client.connections.close()
        [request] = requests
        netloc = peer.url.removeprefix("http://").encode()
        assert request.startswith(b"POST /v9/x/v1/embeddings HTTP/1.1\r\nhost: " + netloc + b"\r\n")


@pytest.fixture(scope="module")
def certificates(tmp_path_factory):
    """Server contexts by the name that their certificate is for, and the file with the authority's own."""
    directory = tmp_path_factory.mktemp("tls")
    root_key, root = _certificate("authority", None, None)
    (directory / "root.pem").write_bytes(root.public_bytes(serialization.Encoding.PEM))
    contexts = {}
    for name in ("127.0.0.1", "192.0.2.1"):
        key, leaf = _certificate(name, root_key, root)
        path = directory / f"{name}.pem"
        private = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        path.write_bytes(private + leaf.public_bytes(serialization.Encoding.PEM))
        contexts[name] = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        contexts[name].load_cert_chain(path)
        contexts[name].set_alpn_protocols(["h2", "http/1.1"])
    return contexts, directory / "root.pem"


def _certificate(name, issuer_key, issuer):
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    now = dt.datetime.now(dt.UTC)
    builder = x509.CertificateBuilder().subject_name(subject).issuer_name(issuer.subject if issuer else subject)
    builder = builder.public_key(key.public_key()).serial_number(x509.random_serial_number())
    builder = builder.not_valid_before(now - dt.timedelta(days=1)).not_valid_after(now + dt.timedelta(days=1))
    builder = builder.add_extension(x509.BasicConstraints(ca=issuer is None, path_length=None), critical=True)
    if issuer is not None:
        names = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address(name))])
        builder = builder.add_extension(names, critical=False)
    return key, builder.sign(issuer_key or key, hashes.SHA256())


async def test_a_trusted_server_is_asked_over_http_1_1_and_its_connection_kept(certificates, monkeypatch):
    contexts, root = certificates
    monkeypatch.setenv("SSL_CERT_FILE", str(root))
    large = replace(CALL, body=bytes(1 << 20))
    async with against(saying(OK), contexts["127.0.0.1"]) as (client, peer):
        for call in (CALL, STREAM, large, CALL):
            assert await body_of(await client.ask(call)) == b"ok"
        assert peer.made == 1
        secured = peer.lines[0].writer.get_extra_info("ssl_object")
        assert secured.selected_alpn_protocol() == "http/1.1"


@pytest.mark.parametrize(("name", "trusted"), [("127.0.0.1", False), ("192.0.2.1", True)])
async def test_a_server_with_a_wrong_certificate_gets_nothing(certificates, monkeypatch, name, trusted):
    contexts, root = certificates
    if trusted:
        monkeypatch.setenv("SSL_CERT_FILE", str(root))
    async with against(saying(OK), contexts[name]) as (client, peer):
        error = await failure(client)
        assert (error.outcome, error.retryable) == ("refused", True)
        assert (peer.made, peer.requests) == (0, []), "the handshake did not come to its end"


async def test_a_server_that_accepts_and_says_nothing_in_tls_is_left():
    async def script(line):
        while await line.reader.read(1000):
            pass

    async with playing(script) as peer:
        client = Client(peer.url.replace("http:", "https:"), **HEALTH)
        error = await failure(client)
        assert (error.outcome, error.retryable) == ("connect_timeout", True)
        await until(lambda: peer.open == 0)


@pytest.mark.asyncio(loop_factories=["uvloop"])  # asyncio's own loop does not tell one end from the other
@pytest.mark.parametrize("cut", [False, True])
async def test_a_body_without_length_must_be_ended_in_tls_too(certificates, monkeypatch, cut):
    contexts, root = certificates
    monkeypatch.setenv("SSL_CERT_FILE", str(root))

    async def script(line):
        await line.request()
        await line.say(LINE + b"\r\nall of it")
        if cut:  # TCP's end, without TLS's: anyone on the way can send that
            line.hang_up_now()
            await asyncio.sleep(0.2)
            line.writer.transport.abort()

    async with against(script, contexts["127.0.0.1"]) as (client, _):
        if cut:
            assert (await failure(client)).outcome == "reset"
        else:
            assert (await client.ask()).body == b"all of it"


async def test_a_body_ends_at_a_length_that_its_connection_does_not_reach():
    async with against(then_closing([LINE + b"Content-Length: 9\r\n\r\nhalf"])) as (client, _):
        assert (await failure(client)).outcome == "reset"
