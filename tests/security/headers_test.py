"""Tests that strangers can end the process neither by headers nor by compression, before they are authenticated."""

import socket
import ssl

import grpc
import pytest
from conftest import PATIENCE, entry, write_clients

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, RST_STREAM, SETTINGS, GOAWAY = 0, 1, 3, 4, 7
END_STREAM, END_HEADERS = 1, 4
# gRPC 1.51 knows these headers by name. On a port with a processor of metadata it aborts at grpclb_client_stats.
INTERNAL = (
    "grpclb_client_stats", "grpc-server-stats-bin", "grpc-tags-bin", "grpc-trace-bin", "lb-cost-bin", "lb-token",
    "endpoint-load-metrics-bin", "grpc-internal-encoding-request", "grpc-previous-rpc-attempts",
    "grpc-retry-pushback-ms", "grpc-status", "grpc-message", "x-envoy-peer-metadata",
)  # fmt: skip


def frame(kind, flags, stream, payload=b""):
    return len(payload).to_bytes(3, "big") + bytes([kind, flags]) + stream.to_bytes(4, "big") + payload


def header(name, value):
    """Returns a literal header field that is not indexed (RFC 7541, 6.2.2); both strings are shorter than 127 bytes."""
    return b"\0" + bytes([len(name)]) + name.encode() + bytes([len(value)]) + value.encode()


def request_with(name, value):
    fields = {
        ":method": "POST",
        ":scheme": "http",
        ":path": "/hookline.v1.ModelService/ListModels",
        ":authority": "x",
        "content-type": "application/grpc",
        "te": "trailers",
        name: value,
    }
    block = b"".join(header(*field) for field in fields.items())
    return (
        PREFACE + frame(SETTINGS, 0, 0) + frame(HEADERS, END_HEADERS, 1, block) + frame(DATA, END_STREAM, 1, bytes(5))
    )


def wait_for_the_end(connection):
    """Reads until the stream or the connection ends, in whatever way."""
    received = b""
    while data := connection.recv(65536):
        received += data
        while len(received) >= 9 + (size := int.from_bytes(received[:3], "big")):
            kind, flags = received[3], received[4]
            received = received[9 + size :]
            if kind in (RST_STREAM, GOAWAY) or (kind in (DATA, HEADERS) and flags & END_STREAM):
                return


def open_connection(server, way, tmp_path):
    if way == "unix":
        connection = socket.socket(socket.AF_UNIX)
        connection.settimeout(PATIENCE)
        connection.connect(f"{tmp_path}/socket")
        return connection
    connection = socket.create_connection(("127.0.0.1", server.port), PATIENCE)
    if way == "tls":
        context = ssl.create_default_context()
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        context.set_alpn_protocols(["h2"])
        connection = context.wrap_socket(connection)
    return connection


@pytest.mark.parametrize("way", ["tcp", "tls", "unix"])
def test_no_header_ends_the_process(serve, authority, tmp_path, way):
    clients = write_clients(tmp_path / "clients.json", entry("a", ["read"], "t"))
    certificate, key = authority.certificate("headers") if way == "tls" else (None, None)
    tls = ("--tls-cert", certificate, "--tls-key", key) if way == "tls" else ()
    server = serve("--auth-file", clients, *tls, listen=("127.0.0.1:0", f"unix:{tmp_path}/socket"))
    for name in INTERNAL:
        with open_connection(server, way, tmp_path) as connection:
            connection.sendall(request_with(name, "x"))
            try:
                wait_for_the_end(connection)
            except ConnectionError:
                pass  # the server may end the connection in any way
        assert server.process.poll() is None, f"{name}: {''.join(server.lines)}"
    with grpc.insecure_channel(f"unix:{tmp_path}/socket") as channel:
        list_models = channel.unary_unary("/hookline.v1.ModelService/ListModels")
        assert list_models(b"", metadata=[("authorization", "Bearer t")], timeout=PATIENCE)


@pytest.mark.parametrize("compression", [grpc.Compression.Gzip, grpc.Compression.Deflate])
def test_compressed_messages_are_refused_and_never_decompressed(serve, tmp_path, compression):
    server = serve("--auth-file", write_clients(tmp_path / "clients.json", entry("a", ["read"], "t")))
    before = peak_mib(server)
    with grpc.insecure_channel(server.address) as channel:
        for method in ("/hookline.v1.ModelService/ListModels", "/grpc.health.v1.Health/Check"):
            for metadata in ((), [("authorization", "Bearer t")]):
                with pytest.raises(grpc.RpcError) as caught:
                    channel.unary_unary(method)(
                        bytes(48 << 20), metadata=metadata, compression=compression, timeout=PATIENCE
                    )
                assert caught.value.code() == grpc.StatusCode.UNIMPLEMENTED, caught.value.details()
    assert peak_mib(server) < before + 24


def peak_mib(server):
    with open(f"/proc/{server.process.pid}/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmHWM")) // 1024
