import os
import sys

import pytest

sys.path.insert(0, os.path.join(os.path.dirname(__file__), "..", "..", "client", "python"))
sys.path.insert(0, os.path.join(os.path.dirname(__file__), "..", "bench", "python"))
sys.path.insert(0, os.path.dirname(__file__))

from fake_server import FakeServer  # noqa: E402

import hookline  # noqa: E402

# Every few seconds gRPC polls connections that no call waits for, so a ping might be answered only because the time-out
# is long or the machine is slow. With that turned off, only what the client does about pings counts.
os.environ.setdefault("GRPC_CLIENT_CHANNEL_BACKUP_POLL_INTERVAL_MS", "0")
# Threads that spin while they wait for each other slow down everything on a busy machine, and no test needs them.
os.environ.setdefault("OMP_NUM_THREADS", "1")
LIBRARY = os.environ.pop("HOOKLINE_CLIENT_LIBRARY", "")
os.environ["HOOKLINE_CLIENT_LIBRARY"] = ""  # a test that needs the library asks for it


@pytest.fixture(params=["grpc", "native"])
def receiver(request, monkeypatch):
    """Runs a test with either receiver; results must be the same."""
    if request.param == "native":
        assert LIBRARY, "HOOKLINE_CLIENT_LIBRARY must name the C++ client's library; ctest sets it"
        monkeypatch.setenv("HOOKLINE_CLIENT_LIBRARY", LIBRARY)
    return request.param


@pytest.fixture
def fake():
    """Makes fake servers, which stop with the test."""
    servers = []

    def make(**options):
        servers.append(FakeServer(**options))
        return servers[-1]

    yield make
    for server in servers:
        server.stop()


@pytest.fixture
def client(server):
    """Connects a client to the module's server."""
    with hookline.connect(server.address) as connected:
        yield connected
