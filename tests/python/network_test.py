"""Tests addresses, proxies and pauses."""

import os
import re
import socket
import subprocess
import sys

import pytest
from ping_relay import PingRelay

import hookline
from hookline import _network

pytestmark = pytest.mark.usefixtures("receiver")

RESID = "blocks.0.hook_resid_post"
# Nothing here depends on time; this is long enough for a machine with other work.
PATIENCE = 120


@pytest.mark.parametrize(
    "address, why",
    [
        ("localhost", "no port"),
        ("127.0.0.1", "no port"),
        ("localhost:", "port ''"),
        ("localhost:http", "port 'http'"),
        ("localhost:0", "port '0'"),
        ("localhost:65536", "port '65536'"),
        ("http://localhost:7471", "begins with http://"),
        ("https://localhost:7471", "begins with https://"),
        (" localhost:7471", "spaces"),
        ("localhost:7471\n", "spaces"),
        ("::1", "IPv6 address without brackets"),
        ("::1:7471", "IPv6 address without brackets"),
        ("[::1]", "no port"),
        ("[1.2.3.4]:7471", "not an IPv6 address"),
        (":7471", "no host"),
        ("", "empty"),
        ("a/b:7471", "host 'a/b'"),
        ("dns:///localhost", "no port"),
    ],
)
def test_addresses_that_cannot_be_say_why(address, why):
    for connect in (hookline.connect, hookline.aio.connect):
        with pytest.raises(ValueError, match="address: .*" + re.escape(why) + ".*localhost:7471"):
            connect(address)


@pytest.mark.parametrize(
    "address",
    ["localhost:7471", "127.0.0.1:1", "[::1]:7471", "gpu-3.cluster:80", "dns:///localhost:7471", "ipv4:127.0.0.1:7471",
     "ipv6:[::1]:7471", "unix:/run/h.sock"],
)  # fmt: skip
def test_addresses_that_can_be_are_taken(address):
    hookline.connect(address).close()


def test_a_server_is_reached_over_ipv6(fake):
    if not socket.has_ipv6:
        pytest.skip("this machine has no IPv6")
    assert hookline.connect(fake(host="[::1]").address).model().name == "fake"


@pytest.mark.parametrize("variable", ["http_proxy", "https_proxy", "grpc_proxy"])
def test_loopback_never_goes_through_a_proxy(fake, monkeypatch, variable):
    for name in ("http_proxy", "https_proxy", "grpc_proxy", "no_proxy", "no_grpc_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv(variable, "http://127.0.0.1:9")
    server = fake()
    for host in ("127.0.0.1", "localhost"):
        with hookline.connect(f"{host}:{server.port}") as client:
            assert client.model().name == "fake"
            assert sum(batch.rows for batch in client.capture("blocks.0.hook_resid_post", [[1, 2, 3]])) == 3

    async def model():
        async with hookline.aio.connect(server.address) as client:
            return (await client.model()).name

    import asyncio

    assert asyncio.run(model()) == "fake"


def test_an_error_that_came_through_a_proxy_names_it(monkeypatch):
    for name in ("http_proxy", "https_proxy", "grpc_proxy", "no_proxy", "no_grpc_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("http_proxy", "http://user:secret@127.0.0.1:9")
    client = hookline.connect("gpu.invalid:7471")
    for call in (client.model, lambda: list(client.capture(RESID, [[1]]))):
        with pytest.raises(hookline.UnavailableError) as caught:
            call()
        assert "127.0.0.1:9, which http_proxy names; set no_proxy=gpu.invalid" in str(caught.value)
        assert "secret" not in str(caught.value)
    monkeypatch.setenv("no_proxy", ".example, .invalid")
    with pytest.raises(hookline.UnavailableError) as caught:
        hookline.connect("gpu.invalid:7471").model()
    assert "proxy" not in str(caught.value)


def test_loopback_is_told_by_the_address_not_by_its_beginning():
    for address in ("localhost:1", "127.0.0.1:1", "127.8.9.1:1", "[::1]:1", "dns:///localhost:1", "ipv4:127.0.0.1:1"):
        assert _network.loopback_port(address) == 1, address
    for address in ("127.0.0.1.example.com:1", "127.example:1", "10.0.0.1:1", "[::2]:1", "unix:/localhost:1"):
        assert _network.loopback_port(address) is None, address


PAUSE = """
import sys, hookline
sequences = [list(range(64))] * 4000
client = hookline.connect({address!r}, shared_memory=False)
capture = client.capture({resid!r}, {source}, batch_rows=64, retry=None, output="numpy")
next(capture)
print("paused", flush=True)
sys.stdin.readline()
print(sum(batch.rows for batch in capture), capture.summary.hook_points[{resid!r}].statistics_rows)
"""


@pytest.mark.parametrize("source", ["hookline.Dataset('d')", "(sequences[i : i + 10] for i in range(0, 4000, 10))"])
def test_a_pause_longer_than_keepalive_cuts_nothing_off(fake, source):
    server = fake(datasets={"d": [list(range(64))] * 4000}, chunk_rows=64, keepalive_ms=100, statistics=True)
    package = os.path.dirname(os.path.dirname(hookline.__file__))
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([package, os.environ.get("PYTHONPATH", "")])}
    with PingRelay(server.port) as relay:
        # The client runs in a process of its own, because threads of the fake server would read from its
        # connection, too.
        client = subprocess.Popen(
            [sys.executable, "-c", PAUSE.format(address=relay.address, resid=RESID, source=source)],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        try:
            assert client.stdout.readline() == "paused\n"
            assert relay.wait_for_answers(pings=4, timeout=PATIENCE)  # while no batch is taken
            assert client.communicate("\n", timeout=PATIENCE)[0].split() == [str(64 * 3999), str(64 * 4000)]
        finally:
            client.kill()
            client.wait()
