"""Tests TLS: who may connect to whom, and certificates that are replaced while the server runs."""

import asyncio
import shutil
import socket
import ssl

import pytest
from conftest import POINT, Authority, cli, refused_start

import hookline
import hookline.aio


@pytest.fixture
def server(serve, authority):
    certificate, key = authority.certificate("server")
    return serve("--tls-cert", certificate, "--tls-key", key)


def rows_of(client):
    return sum(len(batch[POINT]) for batch in client.capture(POINT, [[256, 72, 105]], output="numpy"))


def test_a_capture_comes_by_tls(server, authority, receiver):
    for address, tls in (
        (f"grpcs://{server.address}", str(authority.ca)),
        (server.address, hookline.Tls(authority.ca)),
    ):
        with hookline.connect(address, tls=tls, receiver=receiver) as client:
            assert rows_of(client) == 3
            assert client.model().info.name == "demo"


def test_asyncio_speaks_tls(server, authority):
    async def run():
        async with hookline.aio.connect(f"grpcs://{server.address}", tls=str(authority.ca)) as client:
            assert [model.name for model in await client.models()] == ["demo"]
            return sum([len(b[POINT]) async for b in client.capture(POINT, [[256, 72, 105]], output="numpy")])

    assert asyncio.run(run()) == 3


def test_the_command_line_speaks_tls_by_flags_and_environment(server, authority):
    code, out, err = cli("models", "--server", server.address, "--tls", "--tls-ca", authority.ca)
    assert (code, "demo" in out) == (0, True), err
    code, out, err = cli("models", HOOKLINE_SERVER=f"grpcs://{server.address}", HOOKLINE_TLS_CA=str(authority.ca))
    assert (code, "demo" in out) == (0, True), err
    code, out, err = cli("health", "--server", server.address, "--tls-ca", authority.ca)
    assert (code, out) == (0, "serving\n"), err


def test_a_plain_client_of_a_tls_server_fails(server, receiver):
    with hookline.connect(server.address, receiver=receiver) as client, pytest.raises(hookline.UnavailableError):
        rows_of(client)
    assert cli("models", "--server", server.address)[0] == 3


def test_a_server_of_an_unknown_authority_is_not_trusted(server, tmp_path, receiver):
    other = Authority(tmp_path / "other")
    with hookline.connect(server.address, tls=str(other.ca), receiver=receiver) as client:
        with pytest.raises(hookline.UnavailableError):
            rows_of(client)


def test_a_certificate_of_another_host_is_not_trusted(serve, authority, receiver):
    certificate, key = authority.certificate("elsewhere", san="DNS:elsewhere.example")
    server = serve("--tls-cert", certificate, "--tls-key", key)
    with hookline.connect(server.address, tls=str(authority.ca), receiver=receiver) as client:
        with pytest.raises(hookline.UnavailableError):
            rows_of(client)


def test_tls_1_1_is_refused_and_1_2_accepted(server, authority):
    def speak(version):
        context = ssl.create_default_context(cafile=str(authority.ca))
        context.set_alpn_protocols(["h2"])
        context.minimum_version = context.maximum_version = version
        context.set_ciphers("ALL:@SECLEVEL=0")
        with socket.create_connection(("127.0.0.1", server.port)) as raw:
            with context.wrap_socket(raw, server_hostname="localhost") as secure:
                return secure.version()

    assert speak(ssl.TLSVersion.TLSv1_2) == "TLSv1.2"
    with pytest.warns(DeprecationWarning), pytest.raises(ssl.SSLError):
        speak(ssl.TLSVersion.TLSv1_1)


def test_mutual_tls_wants_a_certificate_of_the_authority(serve, authority, tmp_path, receiver):
    certificate, key = authority.certificate("mutual")
    server = serve("--tls-cert", certificate, "--tls-key", key, "--tls-client-ca", authority.ca)
    with hookline.connect(server.address, tls=str(authority.ca), receiver=receiver) as client:
        with pytest.raises(hookline.UnavailableError):
            rows_of(client)
    own, own_key = map(str, authority.certificate("client", san="URI:spiffe://lab/ci"))
    with hookline.connect(
        server.address, tls=hookline.Tls(str(authority.ca), own, own_key), receiver=receiver
    ) as client:
        assert rows_of(client) == 3
    stranger, stranger_key = map(str, Authority(tmp_path / "stranger").certificate("client"))
    with hookline.connect(
        server.address, tls=hookline.Tls(str(authority.ca), stranger, stranger_key), receiver=receiver
    ) as client:
        with pytest.raises(hookline.UnavailableError):
            rows_of(client)
    late, late_key = map(str, authority.certificate("late", san="URI:spiffe://lab/ci", days=-1))
    with hookline.connect(
        server.address, tls=hookline.Tls(str(authority.ca), late, late_key), receiver=receiver
    ) as client:
        with pytest.raises(hookline.UnavailableError):
            rows_of(client)
    code, _, err = cli(
        "models", "--server", server.address, "--tls-ca", authority.ca, "--tls-cert", own, "--tls-key", own_key
    )
    assert code == 0, err


def served_serial(server, authority):
    context = ssl.create_default_context(cafile=str(authority.ca))
    context.set_alpn_protocols(["h2"])
    with socket.create_connection(("127.0.0.1", server.port)) as raw:
        with context.wrap_socket(raw, server_hostname="localhost") as secure:
            return secure.getpeercert()["serialNumber"]


def test_a_certificate_is_replaced_while_a_stream_runs(serve, authority, tmp_path):
    certificate, key = tmp_path / "cert.pem", tmp_path / "key.pem"

    def put(name):
        made, made_key = authority.certificate(name)
        shutil.copy(made, certificate)
        shutil.copy(made_key, key)

    put("first")
    server = serve("--tls-cert", certificate, "--tls-key", key)
    before = served_serial(server, authority)
    with hookline.connect(server.address, tls=str(authority.ca), receiver="grpc") as client:
        tokens = [[256, *range(1, 200)]] * 200
        capture = client.capture(POINT, tokens, output="numpy", batch_rows=1000, prefetch=1)
        rows = len(next(capture)[POINT])
        put("second")
        assert server.wait_for("TLS files were read again") is not None
        assert served_serial(server, authority) != before
        rows += sum(len(batch[POINT]) for batch in capture)
        assert rows == 200 * 200
        assert capture.summary.reconnects == 0, "the stream was not cut"
    # A certificate and a key that do not match are not used.
    key.write_text("not a key")
    second = served_serial(server, authority)
    assert server.wait_for("are not used; the previous ones stay in force") is not None
    assert served_serial(server, authority) == second


def test_wrong_files_are_refused_at_start_by_name(authority, tmp_path):
    certificate, key = authority.certificate("good")
    _, other_key = authority.certificate("other")
    expired, expired_key = authority.certificate("expired", days=-1)
    garbage = tmp_path / "garbage.pem"
    garbage.write_text("garbage")
    for flags, said in (
        (
            ("--tls-cert", certificate, "--tls-key", other_key),
            f"--tls-key: {other_key} is not the key of the certificate",
        ),
        (("--tls-cert", tmp_path / "none.pem", "--tls-key", key), "none.pem cannot be read"),
        (("--tls-cert", certificate, "--tls-key", tmp_path / "none.key"), "none.key cannot be read"),
        (("--tls-cert", expired, "--tls-key", expired_key), f"--tls-cert: {expired} has expired"),
        (("--tls-cert", garbage, "--tls-key", key), "garbage.pem holds no certificate"),
        (("--tls-cert", certificate, "--tls-key", garbage), "garbage.pem holds no private key"),
        (("--tls-cert", certificate), "--tls-cert needs --tls-key"),
        (("--tls-client-ca", authority.ca), "need --tls-cert"),
        (("--tls-cert", certificate, "--tls-key", key, "--tls-client-ca", garbage), "--tls-client-ca"),
    ):
        code, log = refused_start(*flags)
        assert (code, said in log) == (2, True), log


def test_clients_name_what_is_wrong_with_their_own_files(authority, tmp_path):
    with pytest.raises(ValueError, match="cannot be read"):
        hookline.connect("grpcs://localhost:1", tls=str(tmp_path / "none.pem"), receiver="grpc").models(timeout=5)
    with pytest.raises(ValueError, match="together or not at all"):
        hookline.Tls(cert="a.pem")
    with pytest.raises(ValueError, match="grpcs://"):
        hookline.connect("grpcs://localhost:1", tls=False)
    code, _, err = cli("models", "--server", "localhost:1", "--tls-ca", tmp_path / "none.pem")
    assert (code, "none.pem" in err) == (2, True), err
